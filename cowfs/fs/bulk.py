"""Attributes of many inodes at once, for listings: straight from the records, without an `Inode` for each.

Duty: a listing asks for inodes that nobody has in memory and that hardly anybody will ask for again. So what it needs is
unpacked from the leaf of the inode file and nothing is kept of it; leaves, and slots of long names, are read ahead in runs.
Inodes that were made together have owner, mode and times in common, so what the one before had is decoded once.

Invariant: what is told here is what `InodeTable.get` and `InodeTable.attributes` would tell. A record that is not plainly
right goes through these, which say what is wrong with it; so there is one judge of damage.

Locking: the core thread only.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from typing import Final

from cowfs.errors import Corrupt
from cowfs.fs.attributes import (
    NANOSECONDS,
    STAT_BLOCK_SIZE,
    Attributes,
    Common,
    Listed,
    as_listed,
    new_attributes,
)
from cowfs.fs.inode import InodeTable
from cowfs.ondisk import format as f
from cowfs.ondisk.codecs import InodeCodec
from cowfs.ondisk.records import Buffer
from cowfs.ondisk.times import decode_time
from cowfs.storage.volume import Volume

_TYPE_MASK: Final = 0o170000
_SIGN: Final = 1 << 31  # of a time's seconds
_NOT_PLAIN: Final[tuple[int, Common]] = -1, (0, 0, 0, 0, 0, 0, 0, 0, 0)


class BulkReader:
    """Reads the inodes of one tree."""

    def __init__(self, volume: Volume, inodes: InodeTable) -> None:
        geometry = volume.geometry
        self._inodes = inodes
        self._trees = volume.trees
        self._own = not volume.foreign
        codec = InodeCodec(geometry.order)
        self._unpack = codec.unpack_parts
        self._unpack_shared = codec.unpack_shared
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

    def attributes(self, numbers: Sequence[int], whose: str) -> list[Listed | Corrupt]:
        """Attributes of inodes that something on the disk names, or what is wrong with them. Raises DeviceError."""
        held = self._inodes.held(numbers) if self._own else set(numbers)
        unpack, per_leaf, units = self._unpack, self._per_leaf, self._units
        head = tail = b""
        most, common = _NOT_PLAIN
        leaf: Buffer = b""
        first = 1  # inode of the leaf; there is nothing in it yet
        result: list[Listed | Corrupt] = []
        for number in numbers:
            offset = (number - first) * f.INODE_SIZE
            if not 0 <= offset < len(leaf):
                leaf = self._leaf_of(number)
                first = (number - 1) // per_leaf * per_leaf + 1
                offset = (number - first) * f.INODE_SIZE
            if number in held or not leaf:
                result.append(self._judged(number, whose))
                continue
            size, new_head, new_tail, blocks, generation = unpack(leaf, offset)
            if new_head != head or new_tail != tail:
                head, tail = new_head, new_tail
                most, common = self._decode(head, tail)
            if size <= most:
                result.append((generation, size, blocks * units, common))
            else:
                result.append(self._judged(number, whose))
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
        size, head, tail, blocks, generation = self._unpack(leaf, offset)
        most, (mode, links, uid, gid, rdev, atime, mtime, ctime, birth) = self._decode(head, tail)
        if size > most:
            return None
        # fmt: off
        return new_attributes((
            number, generation, mode, links, uid, gid, rdev, size, blocks * self._units,
            atime, mtime, ctime, birth, self._block_size,
        ))
        # fmt: on

    def _judged(self, number: int, whose: str) -> Listed | Corrupt:
        """An inode for which its leaf is not enough. Raises DeviceError."""
        try:
            return as_listed(self.get(number, whose))
        except Corrupt as error:
            return error

    def _leaf_of(self, number: int) -> Buffer:
        """The leaf of an inode; nothing where there is none that can be read. Raises DeviceError."""
        if not (self._own and 0 < number <= self._inodes.tree.num_inodes):
            return b""
        try:
            return self._inodes.leaf((number - 1) // self._per_leaf)
        except Corrupt:
            return b""  # whoever asks again meets it

    def _decode(self, head: bytes, tail: bytes) -> tuple[int, Common]:
        """What plain inodes may have in common, and the size that they may have; that is -1 where they are not plain."""
        # fmt: off
        (uid, gid, birth, mtime, atime, ctime, mode, links,
         levels, status, flags, mtime_extra, atime_extra, ctime_extra) = self._unpack_shared(head + tail)
        # fmt: on
        if flags or not status & f.STATUS_USED:
            return _NOT_PLAIN
        most = self._size_max.get(mode & _TYPE_MASK | levels, -1)
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
        return most, (mode, links, uid, gid, 0, accessed, modified, changed, birth * NANOSECONDS)

    def read_ahead(self, numbers: Sequence[int], slots: Iterable[int]) -> None:
        """Reads the leaves of inodes that nobody has in memory, and the slots of long names, that will be asked for."""
        tree, per_leaf = self._inodes.tree, self._per_leaf
        leaves = {(number - 1) // per_leaf for number in set(numbers) - self._inodes.held(numbers) if number}
        self._trees.read_ahead(((tree.inodes, leaves), (tree.longnames, slots)))
