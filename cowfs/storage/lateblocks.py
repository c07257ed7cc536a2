"""Late placement: small pieces of file data stay in memory, and get their blocks many at a time.

A block that is written alone costs a search for a free one, a pointer, and the end of the old one's use. Done for some
hundred blocks together, each of these is a run or a row: one search, pointers by indirect block, old blocks by bitmap page.
What is overwritten or removed before that never gets a place at all.

Late blocks are part of their file at once: its size and its number of blocks are those of a file that has them. They are
placed (`settle`) when there are too many, and before anything that needs to know where they are: an inode goes back into
its leaf, a file is cut or shared.

Invariants:
- I46 No inode is written back, no tree is shared and no epoch ends while there are late blocks. So the path to each of
  them, made writable (I6) when the first one below an indirect block came, still is when it is placed.
- `count` blocks will be allocated by `settle` at the most, and `growth` of them take nobody else's place: who asks for
  space sees them as used.
- What can fail for damage is read before a late block is entered; after that it counts as a change.

Locking: the core thread only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from cowfs.errors import Corrupt, DeviceError, FileTooBig, UnreadableData
from cowfs.ondisk import format as f
from cowfs.ondisk.records import Buffer
from cowfs.storage import blockio
from cowfs.storage.blockio import BlockStore, pointer_bytes
from cowfs.storage.blocktree import BlockTrees, Root, WritableRoot
from cowfs.storage.children import Child
from cowfs.storage.transaction import Transaction

WAYS_MAX: Final = 64  # files of which the way to late blocks stays known after they were placed


class _Pointers:
    """The pointers to some leaves of a file, in a writable place."""

    __slots__ = ("buffer", "contents", "grows", "words")

    def __init__(self, words: blockio.Words | list[int], buffer: bytearray | None) -> None:
        self.words = words
        self.buffer = buffer  # None: they are the root's own
        self.contents: dict[int, Buffer] = {}
        """The late blocks below them, by place among them."""
        self.grows: set[int] = set()  # those of them that take nobody else's place


class LateTrees(BlockTrees):
    """Block trees of a volume, with late blocks."""

    def __init__(self, store: BlockStore, zero_blocks: tuple[int, ...], tx: Transaction | None) -> None:
        super().__init__(store, zero_blocks, tx)
        self.count = 0
        self.growth = 0
        self.on_failure: Callable[[BaseException], None] = lambda error: None
        self._late: dict[Root, dict[int, _Pointers]] = {}
        """Late blocks by file and number of the indirect block; where they were, the way to it stays known for a while."""

    # --- writing ---

    def write_late(self, writable: WritableRoot, offset: int, data: Buffer) -> None:
        """As `write`; a small piece gets its place later. Raises FileTooBig, UnreadableData and device errors."""
        block_size = self._block_size
        size = len(data)
        index, start = divmod(offset, block_size)
        root = writable.root
        if size >= blockio.DIRECT_BYTES or index > -(-root.size // block_size) or not size:
            self.write(writable, offset, data)
            return
        groups = self._late.get(root)
        if groups is not None and size == block_size and not start:  # as most are
            group, slot = divmod(index, self._fanout)
            below = groups.get(group)
            if below is not None and slot < len(below.words):
                _, tx = self._open(writable)
                if offset + size > root.size:
                    if offset + size > self.store.geometry.file_size_max:
                        raise FileTooBig
                    root.size = offset + size
                elif slot not in below.contents:
                    self._check_old(tx, below.words[slot])
                tx.changes += 1
                self._enter(root, tx, below, slot, bytes(data))
                if self.count > self.store.spill_max:
                    self.settle(to_device=True)
                return
        self._write_pieces(writable, index, start, memoryview(data).cast("B"))

    def _write_pieces(self, writable: WritableRoot, index: int, start: int, view: memoryview) -> None:
        root, tx = self._open(writable)
        block_size = self._block_size
        end = index * block_size + start + len(view)
        if end > self.store.geometry.file_size_max:
            raise FileTooBig
        last = (end - 1) // block_size
        if last >= f.POINTER_COUNT * self._fanout**root.levels:
            self.settle()
            self._late.pop(root, None)  # the tree gains a level: its pointers move
        self._look(root, index, last - index + 1)
        contents: list[Buffer] = []
        at = 0
        for number in range(index, last + 1):
            taken = min(block_size - start, len(view) - at)
            if taken == block_size:
                contents.append(bytes(view[at : at + taken]))
            else:
                old = self._content(root, number)
                old[start : start + taken] = view[at : at + taken]
                contents.append(old)
            at += taken
            start = 0
            self._check_old(tx, self.pointer(root, number))
        self._ready.pop(root, None)
        self._add_levels(root, tx, last + 1)
        root.size = max(root.size, end)
        tx.changes += 1
        for number, content in enumerate(contents, index):
            below, slot = self._pointers_to(root, tx, number)
            self._enter(root, tx, below, slot, content)
        if self.count > self.store.spill_max:
            self.settle(to_device=True)

    def _pointers_to(self, root: Root, tx: Transaction, index: int) -> tuple[_Pointers, int]:
        """The pointers to leaf `index`, writable, and its place among them."""
        group, slot = divmod(index, self._fanout)
        groups = self._late.get(root)
        if groups is None:
            groups = self._late[root] = {}
        below = groups.get(group)
        if below is None:
            if root.levels == 0:
                below = _Pointers(root.ptr, None)
            else:
                buffer = self._descend(root, tx, index, 1)
                below = _Pointers(self.store.words(buffer), buffer)
            groups[group] = below
        return below, slot

    def _check_old(self, tx: Transaction, old: int) -> None:
        """Reads what letting go of an old block needs. Raises UnreadableData: but for shadowing nothing was changed yet."""
        if old in self._holes:
            return
        spacemap = tx.spacemap
        try:
            spacemap.extra_parents(old)
            used = spacemap.in_use(old)
        except (Corrupt, DeviceError) as error:
            raise UnreadableData(str(error)) from error
        if not used:
            raise UnreadableData(f"block {old} is part of a file, and free")

    def _enter(self, root: Root, tx: Transaction, below: _Pointers, slot: int, content: Buffer) -> None:
        if slot not in below.contents:
            self.count += 1
            old = below.words[slot]
            hole = old in self._holes
            if hole:
                root.blocks += 1
            if hole or tx.spacemap.extra_parents(old):
                below.grows.add(slot)
                self.growth += 1
        below.contents[slot] = content

    # --- placing ---

    def settle(self, *, to_device: bool = False) -> None:
        """Places all late blocks. `to_device`: what they hold is written now, else by the commit. A failure latches."""
        if self.count:
            try:
                self._settle(to_device)
            except BaseException as error:
                self.on_failure(error)
                raise
        if len(self._late) > WAYS_MAX:
            self._late.clear()

    def _settle(self, to_device: bool) -> None:
        tx, store = self._tx, self.store
        assert tx is not None
        contents = self._place_one(tx) if self.count == 1 else self._place_all(tx)
        tx.changes += 1
        store.forget_blocks(contents.keys())
        self.count = self.growth = 0
        if to_device:
            store.write_blocks(contents)
        else:
            store.dirty_data.update(contents)

    def _place_one(self, tx: Transaction) -> dict[int, Buffer]:
        """The only late block with its place: what a small commit mostly has."""
        below = next(below for groups in self._late.values() for below in groups.values() if below.contents)
        ((slot, content),) = below.contents.items()
        block = old = below.words[slot]
        hole = old in self._holes
        if hole or not tx.writable_in_place(old):
            near = below.words[slot - 1] if slot else f.NO_BLOCK
            ((block, _),) = tx.allocate_data(1, None if near in self._holes else near)
            self._point(below, [slot], [block])
            if not hole:
                tx.drop_data(old, 1)
        below.contents = {}
        below.grows = set()
        return {block: content}

    def _place_all(self, tx: Transaction) -> dict[int, Buffer]:
        """All late blocks with their places."""
        late = [(root, below) for root, groups in self._late.items() for below in groups.values() if below.contents]
        alone = all(root is late[0][0] for root, _ in late)
        rows = [sorted(below.contents) for _, below in late]
        olds = [[below.words[slot] for slot in slots] for (_, below), slots in zip(late, rows, strict=True)]
        named = [old for row in olds for old in row if old not in self._holes]
        stay = tx.in_place_among(named)
        before = late[0][1].words[rows[0][0] - 1] if alone and rows[0][0] else f.NO_BLOCK
        free = self._new_places(tx, self.count - len(stay), before)
        contents: dict[int, Buffer] = {}
        for (_, below), slots, row in zip(late, rows, olds, strict=True):
            news = [old if old in stay else next(free) for old in row]
            for slot, block in zip(slots, news, strict=True):
                contents[block] = below.contents[slot]
            self._point(below, slots, news)
            below.contents = {}
            below.grows = set()
        tx.drop_leaves([old for old in named if old not in stay])
        return contents

    def _new_places(self, tx: Transaction, number: int, near: int) -> Iterator[int]:
        """So many new blocks, behind the block `near` if it is one."""
        if not number:
            return iter(())
        runs = tx.allocate_data(number, None if near in self._holes else near)
        return itertools.chain.from_iterable(range(start, start + count) for start, count in runs)

    def _point(self, below: _Pointers, slots: list[int], blocks: list[int]) -> None:
        buffer, first, number = below.buffer, slots[0], len(slots)
        if buffer is None:
            for slot, block in zip(slots, blocks, strict=True):
                below.words[slot] = block
        elif slots[-1] - first == number - 1:
            at = first * f.POINTER_SIZE
            buffer[at : at + number * f.POINTER_SIZE] = pointer_bytes(blocks, self.store.geometry)
        else:
            raw = pointer_bytes(blocks, self.store.geometry)
            for at, slot in enumerate(slots):
                buffer[slot * f.POINTER_SIZE : (slot + 1) * f.POINTER_SIZE] = raw[
                    at * f.POINTER_SIZE : (at + 1) * f.POINTER_SIZE
                ]

    def _leave(self, roots: Iterable[Root]) -> None:
        """These files have no late blocks, and nothing is known of them."""
        for root in roots:
            if root in self._late:
                self.settle()
                self._late.pop(root, None)

    # --- what a late block is part of ---

    def read(self, root: Root, offset: int, size: int) -> bytes:
        """As BlockTrees has it."""
        groups = self._late.get(root) if self.count else None
        if groups is None:
            return super().read(root, offset, size)
        size = min(size, root.size - offset)
        if size <= 0 or offset < 0:
            return b""
        block_size = self._block_size
        pieces: list[Buffer] = []
        first = start = offset // block_size
        end = (offset + size - 1) // block_size + 1
        for index in range(first, end):
            below = groups.get(index // self._fanout)
            content = None if below is None else below.contents.get(index % self._fanout)
            if content is not None:
                if start < index:
                    pieces.append(super().read(root, start * block_size, (index - start) * block_size))
                pieces.append(content)
                start = index + 1
        if start < end:
            pieces.append(super().read(root, start * block_size, (end - start) * block_size))
        at = offset - first * block_size
        return b"".join(pieces)[at : at + size]

    def _content(self, root: Root, index: int) -> bytearray:
        groups = self._late.get(root)
        below = None if groups is None else groups.get(index // self._fanout)
        content = None if below is None else below.contents.get(index % self._fanout)
        return super()._content(root, index) if content is None else bytearray(content)

    def write(self, writable: WritableRoot, offset: int, data: Buffer) -> None:
        """As BlockTrees has it."""
        self._leave((writable.root,))
        super().write(writable, offset, data)

    def resize(self, writable: WritableRoot, size: int) -> None:
        """As BlockTrees has it; of a file that is emptied late blocks are never placed."""
        root = writable.root
        if root in self._late:
            if size:
                self._leave((root,))
            else:
                self._forget(root)
        super().resize(writable, size)

    def _forget(self, root: Root) -> None:
        for below in self._late.pop(root).values():
            self.count -= len(below.contents)
            self.growth -= len(below.grows)

    def punch(self, writable: WritableRoot, index: int) -> None:
        """As BlockTrees has it."""
        self._leave((writable.root,))
        super().punch(writable, index)

    def tops(self, roots: Iterable[Root]) -> list[Child]:
        """As BlockTrees has it."""
        roots = list(roots)
        self._leave(roots)
        return super().tops(roots)

    def share(self, roots: Sequence[Root]) -> list[Root]:
        """As BlockTrees has it."""
        self.settle()
        self._late.clear()
        return super().share(roots)

    def end_epoch(self) -> None:
        """As BlockTrees has it."""
        assert not self.count, "late blocks at the end of an epoch"
        self._late.clear()
        super().end_epoch()
