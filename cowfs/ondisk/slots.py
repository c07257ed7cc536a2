"""What a slot's 4096 bytes say of the state that it names, whether or not the volume is sealed. Pure.

Sealing a base must not part it from its overlays, and no more must saying that its slot 2 is about to move. So an overlay
knows a state by checks that leave both out: the two checksums of the slot as they are, or would be, without them.
"""

from __future__ import annotations

from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c, qnx_crc
from cowfs.ondisk.records import Buffer

_SEAL = f.EXTENSION_OFFSET + f.Extension.place_of("read_only_compatible")
_RESIZING = f.EXTENSION_OFFSET + f.Extension.place_of("resizing")


def state_checks(slot: Buffer) -> tuple[int, int]:
    """(record checksum, extension checksum) that a slot with an extension area has without a seal, and not `resizing`."""
    raw = bytearray(slot)
    _put_seal(raw, on=False)
    raw[_RESIZING : _RESIZING + 4] = bytes(4)
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
