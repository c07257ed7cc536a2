"""The records of partition tables: a volume may lie in one partition of a whole disk's image.

These formats are not ours: the master boot record of the PC, and the GUID partition table of the UEFI specification. They
are little-endian, and are only ever read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cowfs.ondisk.records import Record, at, record

SECTOR_SIZES: Final = (512, 4096)
MBR_SIZE: Final = 512
MBR_ENTRIES_OFFSET: Final = 446
MBR_SIGNATURE: Final = b"\x55\xaa"
MBR_SIGNATURE_OFFSET: Final = 510
MBR_EXTENDED: Final = frozenset({0x05, 0x0F, 0x85})
MBR_QNX: Final = frozenset({0xB1, 0xB2, 0xB3})  # QNX Power-Safe

GPT_SIGNATURE: Final = b"EFI PART"
GPT_ENTRY_COUNT_MAX: Final = 1024  # 128 are usual
GPT_QNX: Final = "cef5a9ad-73bc-4601-89f3-cdeeeee321a1"  # QNX Power-Safe


@record(16)
@dataclass(slots=True)
class MbrEntry(Record):
    """A partition in a master boot record, in sectors of 512 bytes."""

    status: int = at(0, "B", "0x80: to boot from")
    first_chs: bytes = at(1, "3s", "first sector as cylinder, head and sector: not used")
    kind: int = at(4, "B", "type; 0: no partition")
    last_chs: bytes = at(5, "3s", "last sector as cylinder, head and sector: not used")
    start: int = at(8, "I", "first sector; in extended partitions relative to something else")
    sectors: int = at(12, "I", "how many")


@record(92)
@dataclass(slots=True)
class GptHeader(Record):
    """The header of a GUID partition table, in sector 1."""

    signature: bytes = at(0x00, "8s", "`EFI PART`")
    revision: int = at(0x08, "I", "version")
    header_size: int = at(0x0C, "I", "bytes of the header")
    checksum: int = at(0x10, "I", "CRC of the header")
    reserved: int = at(0x14, "I", "0")
    own_sector: int = at(0x18, "Q", "where this header is")
    other_sector: int = at(0x20, "Q", "where the copy is")
    first_usable: int = at(0x28, "Q", "first sector for partitions")
    last_usable: int = at(0x30, "Q", "last sector for partitions")
    disk_id: bytes = at(0x38, "16s", "UUID of the disk")
    entries_sector: int = at(0x48, "Q", "where the entries begin")
    entry_count: int = at(0x50, "I", "how many there are, free ones included")
    entry_size: int = at(0x54, "I", "bytes of each")
    entries_checksum: int = at(0x58, "I", "CRC of the entries")


@record(128)
@dataclass(slots=True)
class GptEntry(Record):
    """A partition in a GUID partition table; a type of zeros: none."""

    kind: bytes = at(0x00, "16s", "UUID of the type, its first three parts little-endian")
    unique_id: bytes = at(0x10, "16s", "UUID of the partition")
    first: int = at(0x20, "Q", "first sector")
    last: int = at(0x28, "Q", "last sector")
    attributes: int = at(0x30, "Q", "flags")
    label: bytes = at(0x38, "72s", "name in UTF-16")
