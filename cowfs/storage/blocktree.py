"""Block trees that may be shared: the inode file, the long-name file, and every file, directory and symlink.

16 pointers at the root, uniform depth, data at the lowest level only. Reading needs a Root; writing needs a WritableRoot,
a token which says that the root's owner (an inode's leaf, the live tree) is writable in the open generation, so that
writing goes strictly top down (I6) and a forgotten shadow does not type-check.

Invariants:
- I9 A pointer to what begins below the end is never ~0: a hole is Zk. One to what begins behind the end is always ~0, and
  an indirect block in which the end lies is there, whatever holes it names. (Volumes of before have Zk behind the end;
  it is read as ~0 is.)
- I10 Bytes beyond the end of a file, in its last block, are zeros.

Runs of contiguous blocks are read and written with one device call; a write that covers a whole block never reads it.

Locking: the core thread only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from cowfs.errors import Corrupt, DeviceError, FileTooBig, UnreadableData
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import Geometry
from cowfs.ondisk.records import Buffer
from cowfs.storage.blockio import BlockStore, Words, hole_pointer, pointer_bytes
from cowfs.storage.children import Child
from cowfs.storage.transaction import INLINE_INDIRECT_BLOCKS, Transaction, runs_of


class Root:
    """The root of a block tree in memory. `size` is bytes, `blocks` the number of data blocks that are not holes."""

    __slots__ = ("blocks", "kind", "levels", "ptr", "size")

    def __init__(
        self, kind: int, size: int = 0, ptr: list[int] | None = None, levels: int = 0, blocks: int = 0
    ) -> None:
        self.kind = kind
        self.size = size
        self.ptr = [f.NO_BLOCK] * f.POINTER_COUNT if ptr is None else ptr
        self.levels = levels
        self.blocks = blocks


class WritableRoot:
    """A root whose owner is writable in the generation and epoch `epoch`."""

    __slots__ = ("epoch", "root")

    def __init__(self, root: Root, epoch: int) -> None:
        self.root: Final = root
        self.epoch: Final = epoch


@dataclass(slots=True)
class _Leaves:
    """Pointers to leaves that may be changed, and the place of the next one among them."""

    pointers: Words | list[int]
    slot: int
    holder: bytearray | list[int]
    """What they stand in: an indirect block's buffer, or the root's own list."""

    def next(self, number: int) -> list[int]:
        """The next so many pointers."""
        return list(self.pointers[self.slot : self.slot + number])

    def store(self, news: list[int], geometry: Geometry) -> None:
        """Puts new pointers in the place of the next ones, and goes on behind them."""
        if isinstance(self.holder, list):
            self.holder[self.slot : self.slot + len(news)] = news
        else:
            at = self.slot * f.POINTER_SIZE
            self.holder[at : at + len(news) * f.POINTER_SIZE] = pointer_bytes(news, geometry)
        self.slot += len(news)


class BlockTrees:
    """Reading and writing of block trees on one volume. `tx` is None on a volume that is only read."""

    def __init__(self, store: BlockStore, zero_blocks: tuple[int, ...], tx: Transaction | None) -> None:
        self.store = store
        self.zero_blocks = zero_blocks
        self._holes = frozenset((f.NO_BLOCK, *(zero_blocks or (f.FOREIGN_HOLE,))))
        self.epoch = 0  # grows at each seal, snapshot and clone
        self._ready: dict[Root, dict[int, bytearray]] = {}  # metadata leaves known to be writable where they lie
        self._tx = tx
        self._block_size = store.block_size
        self._fanout = store.geometry.fanout

    # --- reading ---

    def read(self, root: Root, offset: int, size: int) -> bytes:
        """The bytes from `offset` on, at most `size`, less at the end of the file. Raises Corrupt, DeviceError."""
        size = min(size, root.size - offset)
        if size <= 0 or offset < 0:
            return b""
        block_size = self._block_size
        first = offset // block_size
        start = offset - first * block_size
        if start + size <= block_size:
            pointer = self.pointer(root, first)
            if pointer == f.NO_BLOCK:
                return bytes(size)
            data = self.store.read_data(pointer)
            return data if size == block_size else data[start : start + size]
        count = (offset + size - 1) // block_size + 1 - first
        pieces = self.store.read_runs(list(self.runs(root, first, count)))
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if start == 0 and len(data) == size:
            return data
        return data[start : start + size]

    def runs(self, root: Root, first: int, count: int) -> Iterator[tuple[int, int]]:
        """The blocks `first`.. as runs: (first block number, or NO_BLOCK for a hole; how many)."""
        start = length = 0
        for pointer, number in self._pieces(root, first, count):
            if length and pointer == (start if start == f.NO_BLOCK else start + length):
                length += number
                continue
            if length:
                yield start, length
            start, length = pointer, number
        if length:
            yield start, length

    def _pieces(self, root: Root, first: int, count: int) -> Iterator[tuple[int, int]]:
        """As `runs`, ending at least where an indirect block ends."""
        while count > 0:
            words, slot, room = self._container(root, first)
            number = min(count, room)
            if words is None:
                yield f.NO_BLOCK, number
            else:
                yield from self._split(words, slot, number)
            first += number
            count -= number

    def _split(self, words: Words | list[int], slot: int, number: int) -> Iterator[tuple[int, int]]:
        pointers = words[slot : slot + number].tolist() if not isinstance(words, list) else words[slot : slot + number]
        first = pointers[0]
        if number == 1 or (pointers[-1] - first == number - 1 and pointers == list(range(first, first + number))):
            if not self.is_hole(first):
                yield first, number
                return
            if number == 1:
                yield f.NO_BLOCK, 1
                return
        at = 0
        while at < number:
            first = pointers[at]
            end = at + 1
            if self.is_hole(first):
                while end < number and self.is_hole(pointers[end]):
                    end += 1
                yield f.NO_BLOCK, end - at
            else:
                while end < number and pointers[end] == first + end - at and not self.is_hole(pointers[end]):
                    end += 1
                yield first, end - at
            at = end

    def _container(self, root: Root, index: int) -> tuple[Words | list[int] | None, int, int]:
        """(pointers that hold leaf `index`, its place there, leaves from it to their end); pointers None in a hole."""
        if root.levels == 0:
            return (root.ptr, index, f.POINTER_COUNT - index) if index < f.POINTER_COUNT else (None, 0, 1 << 62)
        span = self._fanout**root.levels
        if index >= span * f.POINTER_COUNT:
            return None, 0, 1 << 62
        words: Words | list[int] = root.ptr
        for _ in range(root.levels):
            slot, index = divmod(index, span)
            pointer = words[slot]
            if self.is_hole(pointer):
                return None, 0, span - index
            words = self.store.words(self.store.read(pointer))
            span //= self._fanout
        return words, index, self._fanout - index

    def pointer(self, root: Root, index: int) -> int:
        """The block of leaf `index`, NO_BLOCK for a hole."""
        words, slot, _ = self._container(root, index)
        if words is None or self.is_hole(words[slot]):
            return f.NO_BLOCK
        return words[slot]

    def shares(self, root: Root, index: int) -> bool:
        """Whether leaf `index`, or a block on the path to it, has another parent, too. Raises Corrupt, DeviceError."""
        path = self._path(root, index)
        return any(not self.is_hole(pointer) and self._extra_parents(pointer) for pointer in path)

    def cut_takes_blocks(self, root: Root, size: int) -> bool:
        """Whether making a tree so short takes blocks that do not come back: part of the path to the new end is a hole, or has
        another parent, too, and the tree gets its own (I9). Raises Corrupt, DeviceError.
        """
        keep = -(-size // self._block_size)
        if size % self._block_size and self.shares(root, keep - 1):
            return True
        for level, pointer in zip(range(root.levels, 0, -1), self._path(root, keep - 1), strict=False):
            if keep % self._fanout**level == 0:
                break
            if self.is_hole(pointer) or self._extra_parents(pointer):
                return True
            self.store.read(pointer)  # so it does not fail later, in the middle of the change
        return False

    def _path(self, root: Root, index: int) -> Iterator[int]:
        """The pointers that lead to leaf `index`, from the root down to the first hole or the leaf's own."""
        span = self._fanout**root.levels
        words: Words | list[int] = root.ptr
        while True:
            slot, index = divmod(index, span)
            pointer = words[slot]
            yield pointer
            if span == 1 or self.is_hole(pointer):
                return
            words = self.store.words(self.store.read(pointer))
            span //= self._fanout

    def _extra_parents(self, block: int) -> int:
        assert self._tx is not None
        return self._tx.spacemap.extra_parents(block)

    def gap(self, root: Root, index: int) -> int:
        """How many leaves from `index` on are holes together because nothing is stored above them; 0: something is."""
        words, _, room = self._container(root, index)
        return room if words is None else 0

    def leaf(self, root: Root, index: int) -> Buffer:
        """Leaf `index` of a metadata tree, for reading only; zeros for a hole. Valid until the next change."""
        leaves = self._ready.get(root)
        ready = None if leaves is None else leaves.get(index)
        if ready is not None:
            return ready
        pointer = self.pointer(root, index)
        return bytes(self._block_size) if pointer == f.NO_BLOCK else self.store.read(pointer)

    def read_ahead(self, wanted: Iterable[tuple[Root, Iterable[int]]]) -> None:
        """Has leaves of metadata trees that will soon be asked for read in a few runs; damage is left to who asks."""
        blocks = set()
        for root, leaves in wanted:
            end = self._leaves(root)
            for index in leaves:
                if index < end:
                    with contextlib.suppress(Corrupt, DeviceError):
                        blocks.add(self.pointer(root, index))
        blocks.discard(f.NO_BLOCK)
        self.store.read_ahead(blocks)

    def is_hole(self, pointer: int) -> bool:
        """Whether a pointer names no block of its own."""
        return pointer in self._holes

    # --- writing ---

    def token(self, root: Root) -> WritableRoot:
        """Says that the owner of `root` is writable now. Only the layer that has made it so calls this."""
        return WritableRoot(root, self.epoch)

    def end_epoch(self) -> None:
        """What was remembered as writable may be sealed or shared now: every token dies."""
        self.epoch += 1
        self._ready.clear()

    def _open(self, writable: WritableRoot) -> tuple[Root, Transaction]:
        assert writable.epoch == self.epoch, "a token of an earlier generation"
        assert self._tx is not None, "the volume is not open for writing"
        return writable.root, self._tx

    def writable_leaf(self, writable: WritableRoot, index: int) -> bytearray:
        """The buffer of metadata leaf `index`, to be changed in place until the next commit, snapshot or clone."""
        leaf = self.prepare_leaf(writable, index)
        assert self._tx is not None
        self._tx.changes += 1  # whoever asks changes it, also where no block had to be copied for that
        return leaf

    def prepare_leaf(self, writable: WritableRoot, index: int) -> bytearray:
        """The same, for who does not change it yet: failing after this is no failure in the middle of a change."""
        root, tx = self._open(writable)
        leaves = self._ready.get(root)
        if leaves is None:
            leaves = self._ready[root] = {}
        leaf = leaves.get(index)
        if leaf is None:
            assert index < self._leaves(root), "a leaf behind the end"
            leaf = leaves[index] = self._descend(root, tx, index, 0)
        return leaf

    def _descend(self, root: Root, tx: Transaction, index: int, stop: int) -> bytearray:
        """Shadows the path to leaf `index` down to level `stop`; the buffer there."""
        level = root.levels
        span = self._fanout**level
        left = self._leaves(root) - index  # from the leaf to the end
        slot, index = divmod(index, span)
        old = root.ptr[slot]
        inside = self._inside(level, left + index) if self.is_hole(old) else 0
        new, buffer = tx.shadow(old, root.kind, level, inside)
        if new != old:
            root.ptr[slot] = new
            if level == 0 and tx.is_hole(old):
                root.blocks += 1
        while level > stop:
            level -= 1
            span //= self._fanout
            slot, index = divmod(index, span)
            at = slot * f.POINTER_SIZE
            old = self.store.words(buffer)[slot]
            inside = self._inside(level, left + index) if self.is_hole(old) else 0
            new, child = tx.shadow(old, root.kind, level, inside)
            if new != old:
                buffer[at : at + f.POINTER_SIZE] = pointer_bytes([new], self.store.geometry)
                if level == 0 and tx.is_hole(old):
                    root.blocks += 1
            buffer = child
        return buffer

    def _leaves(self, root: Root) -> int:
        """Leaves that begin below the end."""
        return -(-root.size // self._block_size)

    def _inside(self, level: int, leaves: int) -> int:
        """Entries of a block at `level` that are below the end, where its first `leaves` leaves are; 0 of a leaf."""
        return min(self._fanout, -(-leaves // self._fanout ** (level - 1))) if level else 0

    def _add_levels(self, root: Root, tx: Transaction, blocks: int) -> None:
        """Adds levels until the tree can hold `blocks` leaves. What lies behind the present end becomes ~0."""
        while blocks > f.POINTER_COUNT * self._fanout**root.levels:
            if root.levels >= f.LEVEL_MAX:
                raise FileTooBig
            top = f.NO_BLOCK
            if not all(self.is_hole(p) for p in root.ptr):
                top, buffer = tx.shadow(f.NO_BLOCK, root.kind, root.levels + 1)
                buffer[: f.POINTER_COUNT * f.POINTER_SIZE] = pointer_bytes(root.ptr, self.store.geometry)
            elif root.size:
                top = hole_pointer(self.zero_blocks, root.levels + 1)
            root.ptr[:] = [top] + [f.NO_BLOCK] * (f.POINTER_COUNT - 1)
            root.levels += 1

    def _stretch(self, root: Root, tx: Transaction, blocks: int) -> None:
        """Makes everything from the present end up to `blocks` leaves a hole; setting the size is the caller's business."""
        old = self._leaves(root)
        if blocks > old:
            self._add_levels(root, tx, blocks)
            span = self._fanout**root.levels
            for slot in range(old // span, -(-blocks // span)):
                at = slot * span
                root.ptr[slot] = self._stretch_below(root, tx, root.ptr[slot], root.levels, old - at, blocks - at)

    def _stretch_below(self, root: Root, tx: Transaction, pointer: int, level: int, old: int, new: int) -> int:
        """The pointer to a subtree at `level`, of which the first `old` leaves were below the end, and now `new` are.

        The former may be 0 or less, the latter more than there are. Only blocks in which either end lies are changed.
        """
        span = self._fanout**level
        if old >= span:
            return pointer
        if old <= 0:
            pointer = f.NO_BLOCK
        if new >= span and self.is_hole(pointer):
            return hole_pointer(self.zero_blocks, level)
        child = span // self._fanout
        inside = self._inside(level, new)
        pointer, buffer = tx.shadow(pointer, root.kind, level, inside)
        words = self.store.words(buffer).tolist()
        first = -(-max(old, 0) // child)
        words[first:inside] = [hole_pointer(self.zero_blocks, level - 1)] * (inside - first)
        words[inside:] = [f.NO_BLOCK] * (self._fanout - inside)
        if level > 1:
            for slot in {max(old, 0) // child, inside - 1}:
                at = slot * child
                words[slot] = self._stretch_below(root, tx, words[slot], level - 1, old - at, new - at)
        buffer[:] = pointer_bytes(words, self.store.geometry)
        return pointer

    def write(self, writable: WritableRoot, offset: int, data: Buffer) -> None:
        """Stores file data at any offset; the file grows where it ends beyond. Raises FileTooBig and device errors."""
        root, tx = self._open(writable)
        view = memoryview(data).cast("B")
        end = offset + len(view)
        block_size = self._block_size
        if end > self.store.geometry.file_size_max:
            raise FileTooBig
        if not view:
            return
        index, start = divmod(offset, block_size)
        head_size = min(block_size - start, len(view)) if start or len(view) < block_size else 0
        whole_size = (len(view) - head_size) // block_size * block_size
        tail = view[head_size + whole_size :]
        last = (end - 1) // block_size
        gap = index > self._leaves(root)
        if gap:
            self.check_growth(root)
        self._look(root, index, last - index + 1)
        head_content = self._content(root, index) if head_size else bytearray()
        tail_content = self._content(root, last) if tail else bytearray()

        self._ready.pop(root, None)
        if gap:
            self._stretch(root, tx, last + 1)
        else:
            self._add_levels(root, tx, last + 1)  # all that is new is written: it needs not be made a hole first
        root.size = max(root.size, end)
        if head_size:
            self._patch(root, tx, index, head_content, start, view[:head_size])
            index += 1
        if whole_size:
            self._write_whole(root, tx, index, view[head_size : head_size + whole_size])
        if tail:
            self._patch(root, tx, last, tail_content, 0, tail)

    def check_growth(self, root: Root) -> None:
        """Before anything changes: reads what `resize` reads to make the file larger. Raises UnreadableData."""
        self._look(root, self._leaves(root), 1)  # on the way there are just the blocks in which the end lies

    def _look(self, root: Root, first: int, count: int) -> None:
        """Reads what is above the leaves `first`..: before anything changes, so that damage there costs nothing else."""
        try:
            while count > 0:
                _, _, room = self._container(root, first)
                first += room
                count -= room
        except (Corrupt, DeviceError) as error:
            raise UnreadableData(str(error)) from error

    def _content(self, root: Root, index: int) -> bytearray:
        """A block of file data that is to be changed in part. Raises UnreadableData: nothing was changed yet."""
        try:
            block = self.pointer(root, index)
            return bytearray(self._block_size if block == f.NO_BLOCK else self.store.read_run(block, 1))
        except (Corrupt, DeviceError) as error:
            raise UnreadableData(str(error)) from error

    def _patch(
        self, root: Root, tx: Transaction, index: int, content: bytearray, start: int, piece: memoryview
    ) -> None:
        """Changes part of one block of file data, whose contents are `content`."""
        leaves = self._leaves_for_write(root, tx, index)
        old = leaves.pointers[leaves.slot]
        content[start : start + len(piece)] = piece
        if not tx.is_hole(old) and tx.writable_in_place(old):
            self.store.put_data(old, content)
            tx.changes += 1
        else:
            self._write_runs(self._place(root, tx, leaves, 1), memoryview(content))

    def _write_whole(self, root: Root, tx: Transaction, index: int, view: memoryview) -> None:
        """Gives whole blocks their places, one indirect block after the other, then writes them, run by run."""
        runs: list[tuple[int, int]] = []
        end = index + len(view) // self._block_size
        try:
            while index < end:
                leaves = self._leaves_for_write(root, tx, index)
                number = min(end - index, len(leaves.pointers) - leaves.slot)
                runs += self._places(root, tx, leaves, number)
                index += number
        finally:
            self._write_runs(runs, view)  # also after a failure: what has a place must have its contents

    def _places(self, root: Root, tx: Transaction, leaves: _Leaves, number: int) -> list[tuple[int, int]]:
        """Where the new contents of so many leaves go: those born in this generation are written where they lie."""
        if not tx.spacemap.born_count:
            return self._place(root, tx, leaves, number)
        runs: list[tuple[int, int]] = []
        for part, in_place in tx.in_place_pieces(leaves.next(number)):
            if in_place:
                runs += runs_of(leaves.next(part))
                tx.changes += 1
                leaves.slot += part
            else:
                runs += self._place(root, tx, leaves, part)
        return runs

    def _place(self, root: Root, tx: Transaction, leaves: _Leaves, number: int) -> list[tuple[int, int]]:
        """New places for the next leaves; lets go of the old ones, and goes on behind them."""
        olds = leaves.next(number)
        before = leaves.pointers[leaves.slot - 1] if leaves.slot else f.NO_BLOCK
        near = olds[0] if tx.is_hole(before) else before
        runs = tx.allocate_data(number, None if tx.is_hole(near) else near)
        leaves.store([block for start, count in runs for block in range(start, start + count)], self.store.geometry)
        real = olds if tx.holes.isdisjoint(olds) else [p for p in olds if p not in tx.holes]
        root.blocks += number - len(real)
        tx.drop_leaves(real)
        return runs

    def _write_runs(self, runs: list[tuple[int, int]], view: memoryview) -> None:
        """Writes the blocks of `view` to the runs, in order; runs that continue one another in one call."""
        at = 0
        start = length = 0
        for first, count in [*runs, (f.NO_BLOCK, 0)]:
            if first == start + length:
                length += count
                continue
            if length:
                size = length * self._block_size
                self.store.write_run(start, view[at : at + size])
                at += size
            start, length = first, count

    def _leaves_for_write(self, root: Root, tx: Transaction, index: int) -> _Leaves:
        """The pointers from leaf `index` on, every block above them shadowed; good until the next is shadowed."""
        if root.levels == 0:
            return _Leaves(root.ptr, index, root.ptr)
        buffer = self._descend(root, tx, index, 1)
        return _Leaves(self.store.words(buffer), index % self._fanout, buffer)

    # --- sharing ---

    def check_share(self, roots: Sequence[Root], leaves: Sequence[int] = ()) -> None:
        """Before anything changes: whether `share`, and `share_leaf` for each of `leaves`, would be refused.

        Raises TooManyLinks, Corrupt, DeviceError.
        """
        assert self._tx is not None
        self._tx.check_parents(self.tops(roots) + [(leaf, f.KIND_LONG_NAMES, 0) for leaf in leaves])

    def tops(self, roots: Iterable[Root]) -> list[Child]:
        """The blocks that roots name."""
        return [(p, root.kind, root.levels) for root in roots for p in root.ptr if not self.is_hole(p)]

    def share(self, roots: Sequence[Root]) -> list[Root]:
        """For each root another one over the same blocks: at most 16 of each gain a parent, whatever lies below.

        Raises TooManyLinks before anything changes. The owners of `roots` need not be writable: one more pointer is one more
        parent, whoever else shares the old one. And what is known of them as writable stays true, since whoever writes asks
        each block below the root anew whether it may be changed where it lies (I6).
        """
        assert self._tx is not None
        self._ready.clear()
        self._tx.add_parents(self.tops(roots))
        return [Root(root.kind, root.size, list(root.ptr), root.levels, root.blocks) for root in roots]

    def share_leaf(self, writable: WritableRoot, index: int, block: int) -> None:
        """Lets leaf `index`, which is a hole, be `block`, which has no children and gains a parent; checked before."""
        root, tx = self._open(writable)
        assert index < self._leaves(root), "a leaf behind the end"
        self._ready.clear()
        leaves = self._leaves_for_write(root, tx, index)
        tx.add_parents([(block, root.kind, 0)])
        leaves.store([block], self.store.geometry)
        root.blocks += 1

    # --- truncating ---

    def resize(self, writable: WritableRoot, size: int) -> None:
        """Sets the size: what lies beyond is let go (large parts through the reclaim queue), what is new is a hole.

        A file of which `check_growth` has been asked grows without a failure in the middle.
        """
        root, tx = self._open(writable)
        if size > self.store.geometry.file_size_max:
            raise FileTooBig
        tx.changes += 1
        if size >= root.size:
            self._stretch(root, tx, -(-size // self._block_size))
            root.size = size
            return
        keep = -(-size // self._block_size)
        tail = size % self._block_size
        content = self._content(root, keep - 1) if tail else bytearray()
        if keep < -(-root.size // self._block_size):
            self._cut(root, tx, keep)
        root.size = size
        if tail and self.pointer(root, keep - 1) != f.NO_BLOCK:
            self._patch(root, tx, keep - 1, content, tail, memoryview(bytes(self._block_size - tail)))

    def drop_all(self, writable: WritableRoot) -> None:
        """Lets go of everything: size 0."""
        self.resize(writable, 0)

    def punch(self, writable: WritableRoot, index: int) -> None:
        """Makes leaf `index` a hole and lets go of its block."""
        root, tx = self._open(writable)
        old = self.pointer(root, index)
        if old != f.NO_BLOCK:
            self._ready.pop(root, None)
            leaves = self._leaves_for_write(root, tx, index)
            old = leaves.pointers[leaves.slot]
            leaves.store([hole_pointer(self.zero_blocks, 0)], self.store.geometry)
            root.blocks -= 1
            tx.drop(old, root.kind, 0)

    def _cut(self, root: Root, tx: Transaction, keep: int) -> None:
        """Lets go of all leaves from `keep` on."""
        blocks = self._blocks_before(root, keep)  # reads, so it comes before any change
        self._ready.pop(root, None)
        whole, rest = divmod(keep, self._fanout**root.levels)
        first_gone = whole + 1 if rest else whole
        gone = [p for p in root.ptr[first_gone:] if p not in self._holes]
        if rest:
            inside = self._inside(root.levels, rest)
            root.ptr[whole], buffer = tx.shadow(root.ptr[whole], root.kind, root.levels, inside)
            self._cut_below(root, tx, buffer, root.levels, rest)
        self._let_go(root, tx, gone, root.levels)
        root.ptr[first_gone:] = [f.NO_BLOCK] * (f.POINTER_COUNT - first_gone)
        if keep == 0:
            root.levels = 0
        root.blocks = blocks

    def _cut_below(self, root: Root, tx: Transaction, buffer: bytearray, level: int, keep: int) -> None:
        """Cuts inside a shadowed block of `level`, whose first `keep` leaves stay."""
        whole, rest = divmod(keep, self._fanout ** (level - 1))
        first_gone = whole + 1 if rest else whole
        gone = [p for p in self.store.words(buffer)[first_gone:].tolist() if p not in self._holes]
        if rest:
            old = self.store.words(buffer)[whole]
            new, child = tx.shadow(old, root.kind, level - 1, self._inside(level - 1, rest))
            at = whole * f.POINTER_SIZE
            buffer[at : at + f.POINTER_SIZE] = pointer_bytes([new], self.store.geometry)
            self._cut_below(root, tx, child, level - 1, rest)
        buffer[first_gone * f.POINTER_SIZE :] = pointer_bytes(
            [f.NO_BLOCK] * (self._fanout - first_gone), self.store.geometry
        )
        self._let_go(root, tx, gone, level - 1)

    def _let_go(self, root: Root, tx: Transaction, gone: list[int], level: int) -> None:
        """Lets go of subtrees: of leaves and a few small subtrees at once, of the others through the queue."""
        if level == 0 and root.kind != f.KIND_INODES:
            tx.drop_leaves(gone)
            return
        at_once = INLINE_INDIRECT_BLOCKS if level == 1 else 0
        for pointer in gone[:at_once]:
            tx.drop_now(pointer, root.kind, level)
        for pointer in gone[at_once:]:
            tx.drop(pointer, root.kind, level)

    # --- counting ---

    def _blocks_before(self, root: Root, keep: int) -> int:
        """How many of the first `keep` leaves are no holes. Raises UnreadableData."""
        if keep == 0 or root.blocks == -(-root.size // self._block_size):
            return keep
        try:
            return max(0, root.blocks - self._count_from(root.ptr, root.levels, keep))
        except (Corrupt, DeviceError) as error:
            raise UnreadableData(str(error)) from error

    def _count_from(self, pointers: list[int], level: int, keep: int) -> int:
        """Leaves from `keep` on, counted below these pointers to blocks of `level`, that are no holes."""
        whole, rest = divmod(keep, self._fanout**level)
        if level == 0:
            return self._count_leaves(pointers[whole:])
        total = sum(self._count(pointer, level) for pointer in pointers[whole + 1 if rest else whole :])
        if rest and not self.is_hole(pointers[whole]):
            total += self._count_from(self._pointers(pointers[whole]), level - 1, rest)
        return total

    def _count(self, pointer: int, level: int) -> int:
        """Leaves below a pointer to a block of `level` >= 1 that are no holes. Raises Corrupt for impossibly many."""
        if self.is_hole(pointer):
            return 0
        pointers = self._pointers(pointer)
        if level == 1:
            return self._count_leaves(pointers)
        total = 0
        for child in pointers:
            total += self._count(child, level - 1)
            if total > self.store.num_blocks:  # pointers in a circle, most likely
                raise Corrupt("a tree with more leaves than the volume has blocks", block=pointer)
        return total

    def _count_leaves(self, pointers: list[int]) -> int:
        return len(pointers) - sum(map(pointers.count, (f.NO_BLOCK, *self.zero_blocks)))

    def _pointers(self, block: int) -> list[int]:
        return self.store.words(self.store.read(block)).tolist()


def check_root(root: Root, block_size: int, fanout: int, what: str, level_max: int = f.LEVEL_MAX) -> None:
    """Raises Corrupt for a root whose levels or size cannot be."""
    if root.levels > level_max:
        raise Corrupt(f"{what}: levels", wanted=f"<= {level_max}", found=root.levels)
    if root.size > f.BLOCK_COUNT_MAX * block_size:
        raise Corrupt(f"{what}: size", wanted=f"<= {f.BLOCK_COUNT_MAX * block_size}", found=root.size)
    if root.size > f.POINTER_COUNT * fanout**root.levels * block_size:
        raise Corrupt(f"{what}: {root.size} bytes do not fit into {root.levels} levels")
