"""What a slot's 4096 bytes say of the state that it names, whether or not the volume is sealed. Pure.

Sealing a base must not part it from its overlays, so an overlay knows a state by checks that leave the seal out: the two
checksums of the slot as they are, or would be, without it.
"""

from __future__ import annotations

from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c, qnx_crc
from cowfs.ondisk.records import Buffer


def state_checks(slot: Buffer) -> tuple[int, int]:
    """(record checksum, extension checksum) that a slot with an extension area has without a seal."""
    bare = with_seal(slot, on=False)
    superblock = f.Superblock.unpack(bare)
    return superblock.checksum, superblock.anchor.checksum


def with_seal(slot: Buffer, *, on: bool) -> bytes:
    """The bytes of a slot of ours with or without the seal, the checksums with it; nothing else is touched."""
    raw = bytearray(slot)
    place = f.EXTENSION_OFFSET + f.Extension.place_of("read_only_compatible")
    word = int.from_bytes(raw[place : place + 8], "little")
    word = word | f.READ_ONLY_COMPATIBLE_SEALED if on else word & ~f.READ_ONLY_COMPATIBLE_SEALED
    raw[place : place + 8] = word.to_bytes(8, "little")
    place = f.ANCHOR_OFFSET + f.Anchor.place_of("checksum")
    raw[place : place + 4] = crc32c(raw[f.EXTENSION_OFFSET : f.SLOT_AREA_SIZE]).to_bytes(4, "little")
    place = f.Superblock.place_of("checksum")
    raw[place : place + 4] = qnx_crc(raw[f.CRC_START : f.RECORD_SIZE]).to_bytes(4, "little")
    return bytes(raw)
