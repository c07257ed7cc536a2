"""Reading a cold directory: its entries as one piece of memory, checked, in our form.

Duty: `DirectoryReader` reads a directory from its beginning to its end, a large one in slices of `SLICE_BYTES` with
other work in between. Foreign volumes may have gaps, any padding and other checksums: their entries are brought into our
form, in one go.

Invariant: between two slices nobody has changed the directory, or else the reading is given up: that is the caller's business.

Locking: the core thread only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cowfs.errors import Corrupt
from cowfs.fs.inode import Inode
from cowfs.fs.longnames import LongNames
from cowfs.ondisk import codecs as c
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import long_name_checksum
from cowfs.storage.volume import Volume

SLICE_BYTES = 1 << 20  # 32,768 entries, a few milliseconds; a directory is large above that

_ENTRY: Final = c.ENTRY_SIZE
_KEY: Final = c.KEY_OFFSET


class Reading:
    """A directory that is being read: `raw` is what is there of it. Its inode is asked for anew for each slice."""

    __slots__ = ("blocks", "raw", "whole")

    def __init__(self) -> None:
        self.raw = bytearray()
        self.blocks: set[int] = set()
        self.whole = False


class DirectoryReader:
    """Reads directories of one tree."""

    def __init__(self, volume: Volume, names: LongNames, codec: c.EntryCodec) -> None:
        self._trees = volume.trees
        self._foreign = volume.foreign
        self._block_size = volume.geometry.block_size
        self._volume = volume
        self._names = names
        self._codec = codec

    def is_large(self, inode: Inode) -> bool:
        """Whether a directory is worth being read in slices."""
        return inode.root.size > SLICE_BYTES and not self._foreign

    def begin(self, inode: Inode) -> Reading:
        """Nothing of it is read yet. Raises Corrupt for a size that cannot be, DeviceError."""
        size = inode.root.size
        what = f"directory {inode.number}"
        geometry = self._volume.geometry
        most = min(geometry.num_blocks * geometry.block_size, self._volume.device.size())
        if size > most:
            raise Corrupt(f"{what}: size", wanted=f"<= {most}", found=size)
        if not self._foreign and (size == 0 or size % self._block_size):
            raise Corrupt(f"{what}: size", wanted=f"a multiple of {self._block_size}", found=size)
        return Reading()

    def read_slice(self, reading: Reading, inode: Inode) -> None:
        """Reads on. Raises Corrupt, DeviceError: then the reading is void."""
        raw, size = reading.raw, inode.root.size
        if not reading.whole:
            if size > SLICE_BYTES:
                for _ in self._runs(reading, inode, len(raw) // self._block_size, SLICE_BYTES // self._block_size):
                    pass
            piece = self._trees.read(inode.root, len(raw), SLICE_BYTES)
            reading.whole = len(raw) + len(piece) >= size
            if reading.whole:
                last = len(piece) - self._block_size
                piece = piece[: last + self._codec.size_in_use(piece[last:])]
            elif not any(piece[-_ENTRY:]):
                raise Corrupt(f"directory {inode.number}: a gap before entry {(len(raw) + len(piece)) // _ENTRY}")
            if self._codec.has_gap(piece):
                raise Corrupt(f"directory {inode.number}: an entry without an inode before its last one")
            raw += piece

    def finish(self, reading: Reading, inode: Inode) -> bytearray:
        """All entries, what is missing read at once. Raises Corrupt, DeviceError."""
        if self._foreign:
            return self._load_foreign(reading, inode)
        while not reading.whole:
            self.read_slice(reading, inode)
        raw = reading.raw
        if not (
            raw.startswith(c.DOT_KEY, _KEY)
            and raw.startswith(c.DOT_DOT_KEY, _ENTRY + _KEY)
            and self._codec.number_at(raw, 0) == inode.number
        ):
            raise Corrupt(f"directory {inode.number} does not begin with '.' and '..'")
        return raw

    def _runs(self, reading: Reading, inode: Inode, first: int, count: int) -> Iterator[tuple[int, int]]:
        """The runs of blocks that these leaves lie in, (first, count), at most SLICE_BYTES each; NO_BLOCK: a hole.

        Raises Corrupt where a block is there twice: else a few blocks could be a directory as large as memory.
        """
        root, seen = inode.root, reading.blocks
        most = max(1, SLICE_BYTES // self._block_size)
        count = min(count, -(-root.size // self._block_size) - first)
        for begin, length in self._trees.runs(root, first, count):
            if begin == f.NO_BLOCK:
                yield begin, length
                continue
            for start in range(begin, begin + length, most):
                blocks = range(start, min(start + most, begin + length))
                if not seen.isdisjoint(blocks):
                    raise Corrupt(f"directory {inode.number} has the same block twice", block=start)
                seen.update(blocks)
                yield start, len(blocks)

    def _load_foreign(self, reading: Reading, inode: Inode) -> bytearray:
        """A directory as others write it, in our form: no gaps, zero padding, unsigned checksums, '.' and '..' first."""
        codec = self._codec
        parent = inode.number
        entries = bytearray()
        left = inode.root.size
        for first, count in self._runs(reading, inode, 0, -(-inode.root.size // self._block_size)):
            size = min(left, count * self._block_size)
            left -= size
            if first == f.NO_BLOCK:
                continue
            read = self._trees.store.read_run(first, count)
            if not read.strip(b"\0"):
                continue
            for offset in range(0, size - _ENTRY + 1, _ENTRY):
                entry = read[offset : offset + _ENTRY]
                number = codec.number_at(entry, 0)
                if number == 0 or entry[_KEY] == 0:
                    continue
                entry, name = self._foreign_entry(entry, number)
                if name == b"..":
                    parent = number
                if name not in (b".", b".."):
                    entries += entry
        return bytearray(codec.short(inode.number, b".") + codec.short(parent, b"..")) + entries

    def _foreign_entry(self, entry: bytes, number: int) -> tuple[bytes, bytes]:
        """A foreign entry in our form, and its name if it is a short one."""
        length = entry[_KEY]
        if length <= f.SHORT_NAME_MAX:
            name = entry[c.NAME_OFFSET : c.NAME_OFFSET + length]
            return self._codec.short(number, name), name
        if length != f.LONG_NAME_MARK:
            return entry, b""
        slot = self._codec.slot_at(entry, 0)
        try:
            checksum = long_name_checksum(self._names.read(slot))
        except Corrupt:
            checksum = self._codec.checksum_at(entry, 0)  # whoever asks for the name meets the damage
        return self._codec.long(number, slot, checksum), b""
