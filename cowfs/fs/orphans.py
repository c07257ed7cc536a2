"""The list of orphans: inodes that no name leads to any more, but that somebody still has open.

It lies inside the tree, as the data of hidden inode 2 (32-bit inode numbers, dense), so that snapshots, clones and rollback
carry it. After a crash the next mount reads it and frees what is on it.

Through FUSE nearly every unlinked file is an orphan for a moment, until the kernel forgets it. So changes stay in memory
and the list is written when a commit is sealed; at most `CHANGED_BLOCKS_MAX` of its blocks wait, so that what a seal needs
for them is a small constant. Writing never reads: whole blocks are replaced.

Locking: the core thread only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cowfs.errors import Corrupt
from cowfs.fs.inode import Inode, InodeTable
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import pointers_from, pointers_to
from cowfs.storage.volume import Volume

CHANGED_BLOCKS_MAX: Final = 2


class OrphanList:
    """The orphans of one writable tree, in the order of the list."""

    def __init__(self, volume: Volume, inodes: InodeTable) -> None:
        self._trees = volume.trees
        self._tx = volume.tx
        self._order = volume.geometry.order
        self._per_block = volume.geometry.block_size // f.ORPHAN_ENTRY_SIZE
        self._inodes = inodes
        self._changed: set[int] = set()  # blocks of the list
        inode = self._inode()
        size = inode.root.size
        if size % f.ORPHAN_ENTRY_SIZE or size > inodes.tree.num_inodes * f.ORPHAN_ENTRY_SIZE:
            raise Corrupt("orphan list: size", wanted="one entry for each inode at most", found=size)
        self._numbers = pointers_from(self._trees.read(inode.root, 0, size), self._order)
        self._places = {number: place for place, number in enumerate(self._numbers)}
        if len(self._places) != len(self._numbers):
            raise Corrupt("orphan list: an inode is on it twice")

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers.tolist())

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def levels(self) -> int:
        """Indirect levels of the list, for estimates of space."""
        return self._inode().root.levels

    def add(self, number: int) -> None:
        """Puts an inode on the list; space has been admitted."""
        place = len(self._numbers)
        self._places[number] = place
        self._numbers.append(number)
        self._change(place)

    def remove(self, number: int) -> None:
        """Takes an inode off the list, and the last one takes its place; space has been admitted."""
        place = self._places.pop(number)
        last = self._numbers.pop()
        if last != number:
            self._numbers[place] = last
            self._places[last] = place
        self._change(place)
        self._change(len(self._numbers))

    def write_back(self) -> None:
        """Brings the list on the disk up to date."""
        inode = self._inode()
        count, per_block = len(self._numbers), self._per_block
        changed, self._changed = self._changed, set()
        if not changed or count == inode.root.size == 0:
            return
        root = self._inodes.make_writable(inode)
        block_size = per_block * f.ORPHAN_ENTRY_SIZE
        whole = count // per_block
        if inode.root.size > whole * block_size:
            self._trees.resize(root, whole * block_size)
        for block in sorted(changed | {whole}):
            entries = self._numbers[block * per_block : (block + 1) * per_block]
            if entries:
                self._trees.write(root, block * block_size, pointers_to(entries, self._order))

    def _change(self, place: int) -> None:
        assert self._tx is not None
        self._tx.changes += 1
        self._changed.add(place // self._per_block)
        if len(self._changed) > CHANGED_BLOCKS_MAX:
            self.write_back()

    def _inode(self) -> Inode:
        return self._inodes.get_hidden(f.ORPHAN_INODE, "the volume")
