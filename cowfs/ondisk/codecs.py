"""The declared records in bulk: the same bytes without an object per record, for the paths that see thousands of them.

Everything here is derived from the declarations in `format`; nothing is declared a second time.
"""

from __future__ import annotations

import functools
import itertools
import operator
import struct
from collections.abc import Iterator, Sequence
from typing import Final

from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import pointers_from
from cowfs.ondisk.records import Buffer, ByteOrder, Record


def offset_of(kind: type[Record], name: str) -> int:
    """Byte offset of the field `name` in records of `kind`."""
    return next(item.offset for item in kind.LAYOUT if item.name == name)


STATUS_OFFSET: Final = offset_of(f.DiskInode, "status")

_ATIME_BYTES: Final = [
    offset + byte
    for offset in (offset_of(f.DiskInode, "atime"), offset_of(f.DiskInode, "atime_extra"))
    for byte in range(4)
]


def without_access_times(leaf: Buffer) -> bytearray:
    """A block of the inode file with zeros for the access times of all its inodes."""
    result = bytearray(leaf)
    zeros = bytes(len(result) // f.INODE_SIZE)
    for offset in _ATIME_BYTES:
        result[offset :: f.INODE_SIZE] = zeros
    return result


ENTRY_SIZE: Final = f.DIRECTORY_ENTRY_SIZE
KEY_OFFSET: Final = offset_of(f.ShortEntry, "length")
"""A directory entry is an inode number and a key; the key of a short entry is its length byte and padded name."""
KEY_SIZE: Final = ENTRY_SIZE - KEY_OFFSET
NAME_OFFSET: Final = offset_of(f.ShortEntry, "name")
SLOT_OFFSET: Final = offset_of(f.LongEntry, "slot")
CHECKSUM_OFFSET: Final = offset_of(f.LongEntry, "checksum")

_KEY: Final = struct.Struct(f"<B{f.SHORT_NAME_MAX}s")
assert offset_of(f.LongEntry, "mark") == KEY_OFFSET
assert _KEY.size == KEY_SIZE


pack_key: Final = _KEY.pack
"""pack_key(length, name): the key of a short entry, what stands behind the inode number. `name` has 1..27 bytes."""

_NOTHING: Final = bytes(ENTRY_SIZE)
_SHORT_LENGTHS: Final = bytes(range(1, f.SHORT_NAME_MAX + 1))

DOT_KEY: Final = pack_key(1, b".")
DOT_DOT_KEY: Final = pack_key(2, b"..")


assert [(item.name, item.code) for item in f.ManifestEntry.LAYOUT] == [("block", "I"), ("checksum", "I")]
assert [(item.name, item.code) for item in f.ManifestHeader.LAYOUT] == [("count", "I"), ("spare", "I")]


def pack_manifest(entries: Sequence[tuple[int, int]]) -> bytes:
    """The manifest of blocks and their checksums with its header; only our own volumes have one."""
    numbers = itertools.chain.from_iterable(entries)
    return struct.pack(f"<{2 + 2 * len(entries)}I", len(entries), 0, *numbers)


_CHECKSUM: Final = struct.Struct("<I")
_SUPERBLOCK_CHECKSUM_OFFSET: Final = offset_of(f.Superblock, "checksum")


def put_superblock_checksum(record: bytearray, checksum: int) -> None:
    """Enters the checksum into a packed superblock of our own, which is little endian."""
    _CHECKSUM.pack_into(record, _SUPERBLOCK_CHECKSUM_OFFSET, checksum)


class InodeCodec:
    """Inodes as plain tuples, in the order of DiskInode's fields with the 16 pointers in place.

    `unpack_parts` is for listings: (size, head, tail, blocks, generation). Head and tail are bytes, which inodes that were
    made together often have in common; `unpack_shared(head + tail)` is (uid, gid, birth, mtime, atime, ctime, mode, links,
    levels, status, flags, mtime_extra, atime_extra, ctime_extra). `each_pointers` is for who wants nothing else: (mode, the 16
    pointers, levels, status) of each inode of a leaf.
    """

    __slots__ = ("each_pointers", "pack", "pack_into", "unpack_from", "unpack_parts", "unpack_shared")

    def __init__(self, order: ByteOrder) -> None:
        layout = f.DiskInode._structs[order]
        self.pack = layout.pack
        self.pack_into = layout.pack_into
        self.unpack_from = layout.unpack_from
        wanted = ("mode", "ptr", "levels", "status")
        kept = (item.code if item.name in wanted else f"{item.size}x" for item in f.DiskInode.LAYOUT)
        self.each_pointers = struct.Struct(order + "".join(kept)).iter_unpack
        head = offset_of(f.DiskInode, "ptr") - offset_of(f.DiskInode, "uid")
        tail = offset_of(f.DiskInode, "blocks") - offset_of(f.DiskInode, "levels")
        fields = {item.name: item.code for item in f.DiskInode.LAYOUT}
        names = list(fields)
        between = offset_of(f.DiskInode, "levels") - offset_of(f.DiskInode, "ptr")
        parts = (fields["size"], f"{head}s{between}x{tail}s", fields["blocks"], fields["generation"])
        shared = names[names.index("uid") : names.index("ptr")] + names[names.index("levels") : names.index("blocks")]
        self.unpack_parts = struct.Struct(order + "".join(parts)).unpack_from
        self.unpack_shared = struct.Struct(order + "".join(fields[name] for name in shared)).unpack


class EntryCodec:
    """Directory entries in raw bytes: offsets are bytes from the start of the directory, multiples of 32."""

    __slots__ = ("_listed", "_long", "_order", "_short", "_word", "unpack_number")

    def __init__(self, order: ByteOrder) -> None:
        self._order = order
        self._listed = f.ShortEntry._structs[order]
        self._word = struct.Struct(order + "I")
        self.unpack_number = self._word.unpack_from
        self._short = f.ShortEntry._structs[order].pack
        self._long = f.LongEntry._structs[order].pack

    def short(self, number: int, name: bytes) -> bytes:
        """An entry with a name of 1..27 bytes."""
        return self._short(number, len(name), name)

    def long(self, number: int, slot: int, checksum: int) -> bytes:
        """An entry whose name lies in a long-name slot."""
        return self._long(number, f.LONG_NAME_MARK, slot, checksum)

    def word(self, value: int) -> bytes:
        """An inode number or a checksum as it stands in an entry."""
        return self._word.pack(value)

    def number_at(self, raw: Buffer, offset: int) -> int:
        """The inode number of the entry at `offset`."""
        value: int = self.unpack_number(raw, offset)[0]
        return value

    def slot_at(self, raw: Buffer, offset: int) -> int:
        """The long-name slot of the long entry at `offset`."""
        value: int = self.unpack_number(raw, offset + SLOT_OFFSET)[0]
        return value

    def checksum_at(self, raw: Buffer, offset: int) -> int:
        """The name's checksum in the long entry at `offset`."""
        value: int = self.unpack_number(raw, offset + CHECKSUM_OFFSET)[0]
        return value

    def listed(self, raw: Buffer) -> Iterator[tuple[int, int, bytes]]:
        """(inode number, length byte, padded name) of each entry in `raw`, whose size is a multiple of 32."""
        return self._listed.iter_unpack(raw)

    def all_short(self, raw: bytes) -> bool:
        """Whether each entry in `raw`, whose size is a multiple of 32, has its name in it."""
        return not raw[KEY_OFFSET::ENTRY_SIZE].translate(None, _SHORT_LENGTHS)

    def numbers(self, raw: Buffer) -> list[int]:
        """The inode number of each entry in `raw`, whose size is a multiple of 32."""
        return pointers_from(raw, self._order)[:: ENTRY_SIZE // f.POINTER_SIZE].tolist()

    def slots(self, raw: Buffer) -> list[int]:
        """The long-name slots of the long entries in `raw`, whose size is a multiple of 32."""
        marks = bytes(raw[KEY_OFFSET::ENTRY_SIZE])
        if f.LONG_NAME_MARK not in marks:
            return []
        slots = pointers_from(raw, self._order)[SLOT_OFFSET // f.POINTER_SIZE :: ENTRY_SIZE // f.POINTER_SIZE]
        return [slot for mark, slot in zip(marks, slots, strict=True) if mark == f.LONG_NAME_MARK]

    def size_in_use(self, block: bytes | bytearray) -> int:
        """Bytes of a block up to the end of its last entry that is not all zeros."""
        at = block.find(_NOTHING)
        if at < 0:
            return len(block)
        end = -(-at // ENTRY_SIZE) * ENTRY_SIZE
        if block[end:] == bytes(len(block) - end):  # as it should be; rstrip() takes twenty times as long
            return end
        return -(-len(block.rstrip(b"\0")) // ENTRY_SIZE) * ENTRY_SIZE

    def has_gap(self, raw: Buffer) -> bool:
        """Whether an entry with inode number 0 is among `raw`, whose size is a multiple of 32."""
        # The four bytes of all numbers as four very long integers: a directory has a million entries now and then.
        planes = (int.from_bytes(raw[byte::ENTRY_SIZE], "little") for byte in range(f.POINTER_SIZE))
        return 0 in functools.reduce(operator.or_, planes).to_bytes(len(raw) // ENTRY_SIZE, "little")
