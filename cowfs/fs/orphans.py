"""The list of orphans: inodes that no name leads to any more, but that somebody still has open.

It lies inside the tree, as the data of hidden inode 2 (32-bit inode numbers, dense), so that snapshots, clones and rollback
carry it. After a crash the next mount reads it and frees what is on it.

Locking: the core thread only.
"""

from __future__ import annotations

from collections.abc import Iterator

from cowfs.errors import Corrupt
from cowfs.fs.inode import Inode, InodeTable
from cowfs.ondisk import format as f
from cowfs.ondisk.codecs import orphan_entry, orphan_numbers
from cowfs.storage.volume import Volume


class OrphanList:
    """The orphans of one writable tree, in the order of the list. Space for changes has been admitted."""

    def __init__(self, volume: Volume, inodes: InodeTable) -> None:
        self._trees = volume.trees
        self._order = volume.geometry.order
        self._inodes = inodes
        inode = self._inode()
        size = inode.root.size
        if size % f.ORPHAN_ENTRY_SIZE or size > inodes.tree.num_inodes * f.ORPHAN_ENTRY_SIZE:
            raise Corrupt("orphan list: size", wanted="one entry for each inode at most", found=size)
        self._numbers = orphan_numbers(self._trees.read(inode.root, 0, size), self._order)
        self._places = {number: place for place, number in enumerate(self._numbers)}
        if len(self._places) != len(self._numbers):
            raise Corrupt("orphan list: an inode is on it twice")

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._numbers))

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def levels(self) -> int:
        """Indirect levels of the list, for estimates of space."""
        return self._inode().root.levels

    def add(self, number: int) -> None:
        """Puts an inode on the list."""
        token = self._inodes.make_writable(self._inode())
        self._trees.write(token, len(self._numbers) * f.ORPHAN_ENTRY_SIZE, orphan_entry(number, self._order))
        self._places[number] = len(self._numbers)
        self._numbers.append(number)

    def remove(self, number: int) -> None:
        """Takes an inode off the list; the last one takes its place."""
        token = self._inodes.make_writable(self._inode())
        place = self._places.pop(number)
        last = self._numbers.pop()
        if last != number:
            self._trees.write(token, place * f.ORPHAN_ENTRY_SIZE, orphan_entry(last, self._order))
            self._numbers[place] = last
            self._places[last] = place
        self._trees.resize(token, len(self._numbers) * f.ORPHAN_ENTRY_SIZE)

    def _inode(self) -> Inode:
        return self._inodes.get_hidden(f.ORPHAN_INODE, "the volume")
