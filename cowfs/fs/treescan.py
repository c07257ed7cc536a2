"""Reading a tree in bulk and from the side: where two block trees differ, and what many directories hold.

For whoever looks at whole trees (`diff`, `usage`), live ones, snapshots and clones alike; nothing is kept that would push the
working set of users out of memory. What it reads is what the blocks say: changed inodes have been written back before.

Locking: the core thread only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import Final, TypeAlias

from cowfs.errors import Corrupt
from cowfs.fs.directory import Directories
from cowfs.fs.inode import Inode
from cowfs.fs.longnames import LongNames
from cowfs.ondisk import codecs as c
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import pointers_from
from cowfs.storage.blocktree import BlockTrees, Root
from cowfs.storage.tree import Tree
from cowfs.storage.volume import Volume

CHUNK_BLOCKS: Final = 64  # of a directory, read at once
_SLICE: Final = 64  # pointers compared at once

_ENTRY: Final = c.ENTRY_SIZE
_DOTS: Final = 2 * _ENTRY  # '.' and '..' come first
_ENTRY_WORDS: Final = _ENTRY // f.POINTER_SIZE

Entry: TypeAlias = "int | Sequence[Entry]"
"""What stands for a subtree: the pointer to its block, or the pointers that a block would hold that is not there."""


# --- block trees ---


def path_to(trees: BlockTrees, root: Root, index: int) -> list[int]:
    """The blocks from the top of a block tree down to leaf `index`. Raises Corrupt where that is a hole."""
    span = trees.store.geometry.fanout**root.levels
    words: Sequence[int] | memoryview = root.ptr
    blocks = []
    for level in range(root.levels, -1, -1):
        slot, index = divmod(index, span)
        block = words[slot]
        if trees.is_hole(block):
            raise Corrupt("a hole where a block is in use", wanted="a block", found=block)
        blocks.append(block)
        if level:
            words = pointers_from(trees.store.read(block), trees.store.geometry.order)
            span //= trees.store.geometry.fanout
    return blocks


def differing_leaves(trees: BlockTrees, one: Root, other: Root) -> Iterator[int]:
    """The indices, ascending, of the leaves that are different blocks in two block trees; all holes are the same.

    Blocks that both trees have are never read, so the cost follows the number of differences.
    """
    level = max(one.levels, other.levels)
    return _differing(trees, _raised(one, level), _raised(other, level), level, 0)


def _raised(root: Root, level: int) -> Sequence[Entry]:
    """The top pointers of a tree as they would be if it had more levels."""
    tops: Sequence[Entry] = root.ptr
    for _ in range(level - root.levels):
        tops = [tops]
    return tops


def _differing(
    trees: BlockTrees, one: Sequence[Entry], other: Sequence[Entry], level: int, first: int
) -> Iterator[int]:
    span = trees.store.geometry.fanout**level
    for slot in _differing_slots(one, other):
        a, b = _at(one, slot), _at(other, slot)
        if isinstance(a, int) and isinstance(b, int) and trees.is_hole(a) and trees.is_hole(b):
            continue
        start = first + slot * span
        if level == 0:
            yield start
        else:
            yield from _differing(trees, _below(trees, a), _below(trees, b), level - 1, start)


def _differing_slots(one: Sequence[Entry], other: Sequence[Entry]) -> Iterator[int]:
    for start in range(0, max(len(one), len(other)), _SLICE):
        if one[start : start + _SLICE] != other[start : start + _SLICE]:
            for slot in range(start, min(start + _SLICE, max(len(one), len(other)))):
                if _at(one, slot) != _at(other, slot):
                    yield slot


def _at(entries: Sequence[Entry], slot: int) -> Entry:
    return entries[slot] if slot < len(entries) else f.NO_BLOCK


def _below(trees: BlockTrees, entry: Entry) -> Sequence[Entry]:
    if not isinstance(entry, int):
        return entry
    if trees.is_hole(entry):
        return ()
    return pointers_from(trees.store.read(entry), trees.store.geometry.order)


# --- directories ---


class DirectoryScan:
    """The directories of one tree, as raw entries of 32 bytes, '.' and '..' left out."""

    def __init__(self, volume: Volume, tree: Tree) -> None:
        self._trees = volume.trees
        self._order = volume.geometry.order
        self._block_size = volume.geometry.block_size
        self._codec = c.EntryCodec(volume.geometry.order)
        self._directories = Directories(volume, tree, LongNames(volume, tree))

    def chunks(self, root: Root) -> Iterator[bytes]:
        """All entries of a directory, some thousand at a time."""
        size = CHUNK_BLOCKS * self._block_size
        for offset in range(0, root.size, size):
            data = self._trees.read(root, offset, size)
            yield self._in_use(data[_DOTS:] if offset == 0 else data)

    def leaf(self, root: Root, index: int) -> bytes:
        """The entries in one leaf of a directory; none beyond its end."""
        data = self._trees.read(root, index * self._block_size, self._block_size)
        return self._in_use(data[_DOTS:] if index == 0 else data)

    def _in_use(self, data: bytes) -> bytes:
        """Entries without the zeros that follow the last one."""
        return data[: self._codec.size_in_use(data)]

    def numbers(self, entries: bytes) -> Sequence[int]:
        """The inode numbers of entries."""
        return pointers_from(entries, self._order)[::_ENTRY_WORDS]

    def number(self, entry: bytes) -> int:
        """The inode number of one entry."""
        return self._codec.number_at(entry, 0)

    def long_slots(self, entries: bytes) -> list[int]:
        """The slots of those entries that have long names."""
        marks = entries[c.KEY_OFFSET :: _ENTRY]
        if f.LONG_NAME_MARK not in marks:
            return []
        places = [at for at, mark in enumerate(marks) if mark == f.LONG_NAME_MARK]
        return [self._codec.slot_at(entries, at * _ENTRY) for at in places]

    def slot(self, entry: bytes) -> int | None:
        """The long-name slot of an entry, None for a short name."""
        return self._codec.slot_at(entry, 0) if entry[c.KEY_OFFSET] == f.LONG_NAME_MARK else None

    def name(self, entry: bytes) -> bytes:
        """The name of an entry. Raises Corrupt, DeviceError."""
        return self._directories.name(entry)

    def parent(self, inode: Inode) -> int:
        """The inode number in '..'. Raises Corrupt where there is none."""
        dots = self._trees.read(inode.root, 0, _DOTS)
        if not dots.startswith(c.DOT_DOT_KEY, _ENTRY + c.KEY_OFFSET):
            raise Corrupt(f"directory {inode.number} does not begin with '.' and '..'")
        return self._codec.number_at(dots, _ENTRY)

    def naming(self, root: Root, wanted: Set[int]) -> Iterator[tuple[int, bytes] | None]:
        """(inode number, entry) of the entries that name one of the inodes `wanted`; None after each piece read.

        `wanted` may shrink meanwhile.
        """
        for entries in self.chunks(root):
            numbers = self.numbers(entries)
            if not wanted.isdisjoint(numbers):
                for at, number in enumerate(numbers):
                    if number in wanted:
                        yield number, entries[at * _ENTRY : (at + 1) * _ENTRY]
            yield None

    def find(self, inode: Inode, name: bytes) -> int | None:
        """The inode number that a directory has under a name. Raises Corrupt, DeviceError."""
        directory = self._directories.open(inode)
        index = directory.find(name)
        return directory.number(index) if index >= 0 else None


def split(entries: bytes) -> Iterator[bytes]:
    """Entries one by one."""
    return (entries[at : at + _ENTRY] for at in range(0, len(entries), _ENTRY))
