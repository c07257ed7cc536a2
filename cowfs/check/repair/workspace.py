"""What one round of a repair works with: the state that is mended, new blocks, and trees with changed leaves.

Everything is written to blocks that neither slot's state uses, on an overlay; nothing is counted here, since `system`
counts anew when a round is done. So a change is simple: put a block, and put the blocks above it.
"""

from __future__ import annotations

import array
from collections.abc import Iterable, Mapping, Sequence

from cowfs.check.check import Found
from cowfs.check.counts import bits_of
from cowfs.check.flipped import without_flipped_bit
from cowfs.check.layers import LayersBelow
from cowfs.check.reader import Contents, contents_of
from cowfs.check.repair.overlay import OverlayDevice
from cowfs.check.tables import snapshot_records
from cowfs.check.trees import BITMAP, CHECKSUMS, FileTree
from cowfs.errors import NoSpace
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c
from cowfs.ondisk.geometry import Geometry, pointers_from, pointers_to

Words = Sequence[int]


class Space:
    """Blocks that a repair may write: neither state uses them, and, while there are such, neither bitmap says so."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._page_blocks = geometry.block_size * 8
        self._used: dict[int, bytearray] = {}
        self._marked: dict[int, bytes] = {}
        self._next = 0
        self._strict = True

    def keep(self, found: Found) -> None:
        """Nothing that this state uses is given out."""
        for index, page in found.walk.usage.pages.items():
            self._used[index] = _either(self._used.get(index), bits_of(page))
        for index, block in found.walk.leaf_blocks[BITMAP].items():
            self._marked[index] = bytes(_either(self._marked.get(index), found.reader.block(block)))

    def keep_out(self, pages: dict[int, int]) -> None:
        """Nothing that is buried is given out."""
        for index, bits in pages.items():
            page = bits.to_bytes(self._geometry.block_size, "little")
            self._used[index] = _either(self._used.get(index), page)

    def take(self) -> int:
        """A block. Raises NoSpace."""
        while True:
            while self._next < self._geometry.num_blocks:
                block = self._next
                index, bit = divmod(block, self._page_blocks)
                if bit == 0 and self._full(index):
                    self._next += self._page_blocks
                    continue
                self._next += 1
                if not self._busy(index, bit):
                    page = self._used.setdefault(index, bytearray(self._geometry.block_size))
                    page[bit >> 3] |= 1 << (bit & 7)
                    return block
            if not self._strict:
                raise NoSpace("no free block is left for the repair; it may fit into a copy on a larger volume")
            self._strict, self._next = False, 0

    def _full(self, index: int) -> bool:
        page = self._used.get(index)
        return page is not None and page.count(0xFF) == len(page)

    def _busy(self, index: int, bit: int) -> bool:
        pages = (self._used.get(index), self._marked.get(index) if self._strict else None)
        return any(page is not None and page[bit >> 3] >> (bit & 7) & 1 for page in pages)


def _either(a: bytes | bytearray | None, b: bytes) -> bytearray:
    if a is None:
        return bytearray(b)
    return bytearray((int.from_bytes(a, "little") | int.from_bytes(b, "little")).to_bytes(len(b), "little"))


class Workspace:
    """One round. `trees` has the live tree first, then those of the snapshot table, whose records are in `records`."""

    def __init__(self, device: OverlayDevice, found: Found, space: Space, now_ns: int, actions: list[str]) -> None:
        self.device = device
        self.found = found
        self.reader = found.reader
        self.geometry = found.state.geometry
        self.block_size = self.geometry.block_size
        self.now_ns = now_ns
        self.superblock = f.Superblock.unpack(found.state.superblock.pack())
        assert found.state.extension is not None
        self.extension = f.Extension.unpack(found.state.extension.pack())
        self.zero_blocks = self.extension.zero_blocks
        self.sums: dict[int, int] = {}  # of the blocks written in this round
        self.fixed: dict[int, bytes] = {}  # by byte offset: what is written where it lies
        self.space = space
        self.layers = LayersBelow(device)
        self.system_suspect = False  # pages of the volume's own trees may be something else: all are written anew
        self._actions = actions
        self.records: dict[int, f.SnapshotRecord] = {}
        self.trees: list[FileTree] = []
        self.load_records()

    def load_records(self) -> None:
        """Reads the snapshot table; `trees` begins anew."""
        self.records = dict(snapshot_records(self.reader, self.extension.snapshots))
        sb = self.superblock
        self.trees = [FileTree(0, sb.inode, sb.longfile, sb.num_inodes, sb.free_inodes)]
        self.trees += [
            FileTree(record.id, record.inode, record.longfile, record.num_inodes, record.free_inodes)
            for record in self.records.values()
        ]

    def say(self, text: str, *, tree: int = 0, inode: int | None = None) -> None:
        """Notes down what is done. The same line is noted once."""
        where = (f"snapshot {tree}, " if tree else "") + (f"inode {inode}, " if inode is not None else "")
        line = f"{where.rstrip(', ')}: {text}" if where else text
        if line not in self._actions:
            self._actions.append(line)

    # --- blocks ---

    def put(self, data: bytes | bytearray) -> int:
        """A new block with these contents, padded by zeros. Raises NoSpace."""
        block = self.space.take()
        self.put_at(block, data)
        return block

    def put_at(self, block: int, data: bytes | bytearray) -> None:
        """The contents of a block taken before."""
        whole = bytes(data).ljust(self.block_size, b"\0")
        self.device.write(self.geometry.block_offset(block), [whole])
        self.sums[block] = crc32c(whole)

    def put_words(self, words: Iterable[int]) -> int:
        """A new indirect block."""
        return self.put(pointers_to(array.array("I", words), self.geometry.order))

    def put_in_place(self, offset: int, data: bytes) -> None:
        """Bytes whose place and contents are given by the format: written where they lie, when all else is durable."""
        self.fixed[offset] = data
        self.device.write(offset, [data])

    def hole(self, level: int) -> int:
        """The pointer to a hole whose child would be at `level`."""
        return self.zero_blocks[level] if level < len(self.zero_blocks) else f.NO_BLOCK

    def gap(self, level: int, leaves: int) -> int:
        """The pointer to a hole whose child would be at `level`, and of which `leaves` leaves are below the end."""
        if leaves >= self.geometry.fanout**level:
            return self.hole(level)
        whole, rest = divmod(leaves, self.geometry.fanout ** (level - 1))
        words = [self.hole(level - 1)] * whole + ([self.gap(level - 1, rest)] if rest else [])
        return self.put_words(words + [f.NO_BLOCK] * (self.geometry.fanout - len(words)))

    # --- trees ---

    def build(self, data: bytes, *, own: bool = False) -> Contents:
        """A new tree with these contents; `own`: of those that no other driver knows (holes are behind their end)."""
        size = self.block_size
        leaves = {at // size: self.put(data[at : at + size]) for at in range(0, len(data), size)}
        return self.with_leaves(Contents(0, f.NO_BLOCK_POINTERS, 0), leaves, len(data), own=own)

    def with_leaves(self, tree: Contents, leaves: Mapping[int, int], size: int, *, own: bool = False) -> Contents:
        """The tree with other pointers for some leaves (by index), and of another size; more levels where needed."""
        ptr, levels = list(tree.ptr), tree.levels
        fanout = self.geometry.fanout
        blocks = self.geometry.blocks_of(size)
        old = self.geometry.blocks_of(tree.size)
        while blocks > f.POINTER_COUNT * fanout**levels:
            holes = all(pointer in (f.NO_BLOCK, self.hole(levels)) for pointer in ptr)
            above = self.hole(levels + 1) if holes else self.put_words(ptr + [f.NO_BLOCK] * (fanout - len(ptr)))
            ptr = [above] + [f.NO_BLOCK] * (f.POINTER_COUNT - 1)
            levels += 1
        span = fanout**levels
        for slot in range(f.POINTER_COUNT):
            first = slot * span
            below = {index: leaf for index, leaf in leaves.items() if first <= index < first + span}
            inside = first < blocks
            ptr[slot] = self._with(ptr[slot], levels, first, below, old, blocks, own) if inside else f.NO_BLOCK
        return Contents(size, tuple(ptr), levels)

    def _with(
        self, pointer: int, level: int, first: int, leaves: Mapping[int, int], old: int, end: int, own: bool
    ) -> int:
        """The pointer to a subtree with these leaves, in a tree that ended before leaf `old` and now does before `end`."""
        span = self.geometry.fanout**level
        if first >= end:
            return self.hole(level) if own else f.NO_BLOCK
        if first >= old:
            pointer = self.hole(level)
        cut = old != end and any(first < edge < first + span for edge in (old, end))
        if not leaves and not cut:
            return pointer
        if level == 0:
            return leaves.get(first, pointer)
        words = pointers_from(self.block(pointer), self.geometry.order)
        child = span // self.geometry.fanout
        groups: dict[int, dict[int, int]] = {}
        for index, leaf in leaves.items():
            groups.setdefault((index - first) // child, {})[index] = leaf
        for slot, word in enumerate(words):
            words[slot] = self._with(word, level - 1, first + slot * child, groups.get(slot, {}), old, end, own)
        return self.put_words(words)

    def block(self, pointer: int) -> bytes:
        """A block's bytes; a zero block's are what they should be."""
        if pointer in self.zero_blocks:
            level = self.zero_blocks.index(pointer)
            return self.zero_block(level)
        return self.reader.block(pointer)

    def zero_block(self, level: int) -> bytes:
        """What Z0..Z3 hold."""
        if level == 0:
            return bytes(self.block_size)
        words = array.array("I", [self.zero_blocks[level - 1]]) * self.geometry.fanout
        return pointers_to(words, self.geometry.order)

    def bytes_of(self, tree: Contents) -> bytes:
        """All the contents of a tree that is known to be small."""
        size = tree.size
        data = bytearray(size)
        for index, block in self.reader.leaves(tree):
            at = index * self.block_size
            piece = self.reader.block(block)[: size - at]
            data[at : at + len(piece)] = piece
        return bytes(data)

    # --- the end of a round ---

    def store_trees(self) -> None:
        """Puts the roots and numbers of all trees into the records, and changed records into the snapshot table."""
        live = self.trees[0]
        sb = self.superblock
        sb.inode, sb.longfile, sb.num_inodes, sb.free_inodes = _numbers(live)
        changed: dict[int, bytes] = {}
        for (place, record), tree in zip(self.records.items(), self.trees[1:], strict=True):
            record.inode, record.longfile, record.num_inodes, record.free_inodes = _numbers(tree)
            changed[place] = record.pack()
        if changed:
            self._store_records(changed)
        if self.system_suspect:
            settings = contents_of(self.extension.settings)
            small = settings.size <= f.SETTINGS_LENGTH_MAX + f.SettingsHeader.SIZE
            self.extension.settings = (
                root_node(self.build(self.bytes_of(settings), own=True)) if small else f.RootNode()
            )

    def _store_records(self, records: dict[int, bytes]) -> None:
        root = contents_of(self.extension.snapshots)
        size, block_size = f.SnapshotRecord.SIZE, self.block_size
        old = dict(self.reader.leaves(root))
        pages: dict[int, bytearray] = {}
        for place, data in records.items():
            for at in range(0, size, min(size, block_size)):
                index, start = divmod(place * size + at, block_size)
                page = pages.setdefault(index, bytearray(block_size))
                piece = data[at : at + block_size]
                page[start : start + len(piece)] = piece
        leaves = {
            index: self.put(page)
            for index, page in pages.items()
            if index not in old or self.system_suspect or self.reader.block(old[index]) != page
        }
        leaves |= {index: self.hole(0) for index in old if index not in pages}
        if leaves:
            tree = self.with_leaves(root, leaves, root.size, own=True)
            self.extension.snapshots = root_node(tree)


def _numbers(tree: FileTree) -> tuple[f.RootNode, f.RootNode, int, int]:
    return tree.inode, tree.longfile, tree.num_inodes, tree.free_inodes


def root_node(tree: Contents, hint: int = 0) -> f.RootNode:
    """A root node for a tree."""
    return f.RootNode(tree.size, tree.ptr, tree.levels, hint=hint)


class Checks:
    """The recorded checksums, as far as the checksum tree is what its parents say; a single flipped bit in it is put right.

    What no trusted leaf speaks of is believed: nothing says that it is wrong.
    """

    def __init__(self, found: Found) -> None:
        self._found = found
        self._leaves = found.walk.leaf_blocks[CHECKSUMS]
        self.per_leaf = found.reader.block_size // f.CHECKSUM_SIZE
        self._kept: tuple[int, array.array[int] | None] = (-1, None)

    def leaf(self, index: int) -> array.array[int] | None:
        """The words of a leaf, None where there is none to be trusted."""
        if self._kept[0] != index:
            self._kept = (index, self._load(index))
        return self._kept[1]

    def trusted_as_it_is(self, index: int) -> bool:
        """Whether the leaf's block can stay."""
        block = self._leaves.get(index)
        return block is not None and block not in self._found.walk.untrusted

    def _load(self, index: int) -> array.array[int] | None:
        block = self._leaves.get(index)
        if block is None or block in self._found.reader.unreadable:
            return None
        data = self._found.reader.block(block)
        if block in self._found.walk.untrusted:
            sums = self._found.walk.untrusted[block]
            mended = None if sums is None else without_flipped_bit(data, *sums)
            if mended is None:
                return None
            data = mended
        return pointers_from(data, self._found.reader.geometry.order)

    def recorded(self, block: int) -> int | None:
        """The checksum that a block should have, None where nobody knows."""
        words = self.leaf(block // self.per_leaf)
        return None if words is None else words[block % self.per_leaf]
