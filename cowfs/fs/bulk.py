"""Attributes of many inodes at once, for listings: straight from the records, without an `Inode` for each.

Duty: a listing asks for inodes that nobody has in memory and that hardly anybody will ask for again. So what it needs is
unpacked from the leaf of the inode file and nothing is kept of it; leaves, and slots of long names, are read ahead in runs.

Invariant: what is told here is what `InodeTable.get` and `InodeTable.attributes` would tell. A record that is not plainly
right goes through these, which say what is wrong with it; so there is one judge of damage.

Locking: the core thread only.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import Final

from cowfs.errors import Corrupt
from cowfs.fs.attributes import NANOSECONDS, STAT_BLOCK_SIZE, Attributes, new_attributes
from cowfs.fs.inode import InodeTable
from cowfs.ondisk import format as f
from cowfs.ondisk.codecs import InodeCodec
from cowfs.ondisk.records import Buffer
from cowfs.ondisk.times import decode_time
from cowfs.storage.volume import Volume

_TYPE_MASK: Final = 0o170000
_SIGN: Final = 1 << 31  # of a time's seconds


class BulkReader:
    """Reads the inodes of one tree."""

    def __init__(self, volume: Volume, inodes: InodeTable) -> None:
        geometry = volume.geometry
        self._inodes = inodes
        self._trees = volume.trees
        self._own = not volume.foreign
        self._unpack = InodeCodec(geometry.order).unpack_without_pointers
        self._block_size = geometry.block_size
        self._per_leaf = geometry.inodes_per_block
        self._units = geometry.block_size // STAT_BLOCK_SIZE
        sizes = [
            min(f.POINTER_COUNT * geometry.fanout**levels * geometry.block_size, geometry.file_size_max)
            for levels in range(f.LEVEL_MAX + 1)
        ]
        # The largest size of a plain inode, by its type and number of levels; others are not plain.
        self._size_max = {stat.S_IFLNK: f.SYMLINK_SIZE_MAX}
        for kind in (stat.S_IFREG, stat.S_IFDIR):
            self._size_max.update({kind | levels: size for levels, size in enumerate(sizes)})

    def attributes(self, numbers: Iterable[int], whose: str) -> list[Attributes | Corrupt]:
        """Attributes of inodes that something on the disk names, or what is wrong with them. Raises DeviceError."""
        result: list[Attributes | Corrupt] = []
        for number in numbers:
            try:
                result.append(self.get(number, whose))
            except Corrupt as error:
                result.append(error)
        return result

    def get(self, number: int, whose: str) -> Attributes:
        """Attributes of an inode that something on the disk names. Raises Corrupt, DeviceError."""
        inodes = self._inodes
        inode = inodes.cached.get(number) or inodes.find_in_memory(number)
        if inode is None and self._own and 0 < number <= inodes.tree.num_inodes:
            index, place = divmod(number - 1, self._per_leaf)
            found = self._plain(number, inodes.leaf(index), place * f.INODE_SIZE)
            if found is not None:
                return found
        if inode is None or inode.flags:
            inode = inodes.get(number, whose)
        return inode.attributes or inodes.attributes(inode)

    def _plain(self, number: int, leaf: Buffer, offset: int) -> Attributes | None:
        """What a record says, if it is in use, and nothing is special about it."""
        # fmt: off
        (size, uid, gid, birth, mtime, atime, ctime, mode, links, levels, status, flags,
         mtime_extra, atime_extra, ctime_extra, blocks, generation, _) = self._unpack(leaf, offset)
        # fmt: on
        if flags or not status & f.STATUS_USED or size > self._size_max.get(mode & _TYPE_MASK | levels, -1):
            return None
        # Nearly all times are after 1970 and in range: written out for speed.
        second = NANOSECONDS
        accessed, modified, changed = (
            atime * second + atime_extra,
            mtime * second + mtime_extra,
            ctime * second + ctime_extra,
        )
        if atime | mtime | ctime >= _SIGN or atime_extra >= second or mtime_extra >= second or ctime_extra >= second:
            accessed = decode_time(atime, atime_extra)
            modified = decode_time(mtime, mtime_extra)
            changed = decode_time(ctime, ctime_extra)
        # fmt: off
        return new_attributes((
            number, generation, mode, links, uid, gid, 0, size, blocks * self._units,
            accessed, modified, changed, birth * NANOSECONDS, self._block_size,
        ))
        # fmt: on

    def read_ahead(self, numbers: Iterable[int], slots: Iterable[int]) -> None:
        """Reads the leaves of inodes that nobody has in memory, and the slots of long names, that will be asked for."""
        tree, cached = self._inodes.tree, self._inodes.cached
        leaves = {(number - 1) // self._per_leaf for number in numbers if number and number not in cached}
        self._trees.read_ahead(((tree.inodes, leaves), (tree.longnames, slots)))
