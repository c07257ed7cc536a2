"""What a slot's 4096 bytes say of the state that it names, and of nothing else. Pure.

Two commits of one state differ in serials, times and hints. None of these is the state, nor is the seal, nor that slot 2 is
about to move; and none may part a base from its overlays, for opening a volume for writing alone makes a commit. So a state is
known by checks that leave them out: the two checksums that the slot would have with zeros there. All else leads to the
contents of every block in use, by numbers and checksums.
"""

from __future__ import annotations

from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c, qnx_crc
from cowfs.ondisk.records import Buffer

_SEAL = f.EXTENSION_OFFSET + f.Extension.place_of("read_only_compatible")
_RESIZING = f.EXTENSION_OFFSET + f.Extension.place_of("resizing")
_OF_A_COMMIT = (  # (place, bytes)
    (f.Superblock.place_of("serial"), 8),
    (f.Superblock.place_of("atime"), 4),
    (f.EXTENSION_OFFSET + f.Extension.place_of("serial"), 8),
    (f.EXTENSION_OFFSET + f.Extension.place_of("commit_time"), 8),
    (f.EXTENSION_OFFSET + f.Extension.place_of("data_hint"), 4),
    (f.EXTENSION_OFFSET + f.Extension.place_of("metadata_hint"), 4),
    (_RESIZING, 4),
)


def state_checks(slot: Buffer) -> tuple[int, int]:
    """(record checksum, extension checksum) that any slot with an extension area that names the same state has."""
    raw = bytearray(slot)
    _put_seal(raw, on=False)
    for place, size in _OF_A_COMMIT:
        raw[place : place + size] = bytes(size)
    bare = _with_checksums(raw)
    superblock = f.Superblock.unpack(bare)
    return superblock.checksum, superblock.anchor.checksum


def with_seal(slot: Buffer, *, on: bool) -> bytes:
    """The bytes of a slot of ours with or without the seal, the checksums with it; nothing else is touched."""
    raw = bytearray(slot)
    _put_seal(raw, on=on)
    return _with_checksums(raw)


def with_resizing(slot: Buffer) -> bytes:
    """The bytes of a slot of ours that says that slot 2 may be about to move; nothing else is touched."""
    raw = bytearray(slot)
    raw[_RESIZING : _RESIZING + 4] = (1).to_bytes(4, "little")
    return _with_checksums(raw)


def _put_seal(raw: bytearray, *, on: bool) -> None:
    word = int.from_bytes(raw[_SEAL : _SEAL + 8], "little")
    word = word | f.READ_ONLY_COMPATIBLE_SEALED if on else word & ~f.READ_ONLY_COMPATIBLE_SEALED
    raw[_SEAL : _SEAL + 8] = word.to_bytes(8, "little")


def _with_checksums(raw: bytearray) -> bytes:
    place = f.ANCHOR_OFFSET + f.Anchor.place_of("checksum")
    raw[place : place + 4] = crc32c(raw[f.EXTENSION_OFFSET : f.SLOT_AREA_SIZE]).to_bytes(4, "little")
    place = f.Superblock.place_of("checksum")
    raw[place : place + 4] = qnx_crc(raw[f.CRC_START : f.RECORD_SIZE]).to_bytes(4, "little")
    return bytes(raw)
