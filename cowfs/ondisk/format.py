"""The format: what lies where on a volume. The words for it are in `docs/FORMAT.md`.

A volume is a QNX Power-Safe (qnx6) volume plus an extension area of our own in bytes 0x200..0xFFF of each superblock
slot. Names that begin with ``QNX_`` or stand in the qnx6 part keep the field names of Linux's fs/qnx6 where it has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NewType

from cowfs.ondisk.records import Record, at, nested, record

BlockNumber = NewType("BlockNumber", int)
"""Index of a block in the data area: byte offset = data start + number * block size."""
InodeNumber = NewType("InodeNumber", int)
"""Inode n (n >= 1) lies at byte (n - 1) * 128 of the inode file."""
Serial = NewType("Serial", int)
"""Sequence number of a commit; the slot with the higher one is the present state."""

# --- the volume ------------------------------------------------------------------------------------------------------
BOOT_SIZE: Final = 0x2000
SLOT_AREA_SIZE: Final = 0x1000
SLOT1_OFFSET: Final = 0x2000
DATA_OFFSET: Final = 0x3000  # block 0, for block sizes up to 4096
BLOCK_SIZES: Final = (512, 1024, 2048, 4096)  # what we write
FOREIGN_BLOCK_SIZES: Final = (512, 1024, 2048, 4096, 8192, 16384, 32768)  # what QNX makes, and we read
BLOCK_SIZE_DEFAULT: Final = 4096
BLOCK_COUNT_MAX: Final = 0xFFFFFFF0  # numbers above are kept free for markers
VOLUME_SIZE_MIN: Final = 1 << 20

# --- pointers --------------------------------------------------------------------------------------------------------
POINTER_SIZE: Final = 4
POINTER_COUNT: Final = 16
NO_BLOCK: Final = 0xFFFFFFFF  # beyond the end of a file
NO_BLOCK_POINTERS: Final = (NO_BLOCK,) * POINTER_COUNT
FOREIGN_HOLE: Final = 0xFFFFFFFE  # in volumes of QNX 7.1 and later
LEVEL_MAX: Final = 3  # of every tree that another driver walks
SYSTEM_LEVEL_MAX: Final = 4  # of trees that only we walk (checksums of a large volume with 512-byte blocks)
FOREIGN_LEVEL_MAX: Final = 5  # what Linux accepts for root nodes
ZERO_BLOCK_COUNT: Final = 4  # Z0 .. Z3

# --- the superblock record -------------------------------------------------------------------------------------------
QNX_MAGIC: Final = 0x68191122
OVERLAY_MAGIC: Final = 0x6C764F63  # "cOvl" on the medium: no reader of the family takes an overlay for a whole volume
RECORD_SIZE: Final = 0x200
CRC_START: Final = 8  # the record's CRC covers bytes 8..511
SB_FLAG_LONG_NAME_CHECKSUMS: Final = 0x100
SB_FLAG_INCOMPATIBLE: Final = 0x80000  # a bit unknown to QNX in the byte whose unknown bits forbid a mount
SB_FLAGS: Final = SB_FLAG_LONG_NAME_CHECKSUMS | SB_FLAG_INCOMPATIBLE
SB_VERSION1: Final = 4
SB_VERSION2: Final = 3
ROOT_NODE_MODE: Final = 1

ANCHOR_OFFSET: Final = 0x1EC
ANCHOR_MAGIC: Final = b"cowfsAnc"
EXTENSION_OFFSET: Final = 0x200
EXTENSION_SIZE: Final = SLOT_AREA_SIZE - EXTENSION_OFFSET
EXTENSION_MAGIC: Final = b"cowfsExt"
FORMAT_VERSION: Final = 1  # of the bytes, not of the software

# Feature words, with ext4's meaning: an unknown compatible bit is ignored, an unknown read-only compatible bit forbids
# writing, an unknown incompatible bit forbids everything.
READ_ONLY_COMPATIBLE_SEALED: Final = 0x1  # the volume is a base and must not change
INCOMPATIBLE_OVERLAY: Final = 0x1  # blocks that the base uses lie there, not here
COMPATIBLE_KNOWN: Final = 0
READ_ONLY_COMPATIBLE_KNOWN: Final = READ_ONLY_COMPATIBLE_SEALED
INCOMPATIBLE_KNOWN: Final = INCOMPATIBLE_OVERLAY
LAYERS_MAX: Final = 16  # layers below an overlay

# --- the boot block --------------------------------------------------------------------------------------------------
BOOT_JUMP: Final = b"\xeb\x10\x90\x00"
BOOT_SECTOR_SIZE: Final = 512
SLOT_POINTER_OFFSET: Final = 0x200  # in the boot block
SLOT_POINTER_MAGIC: Final = b"cowfsSl2"
BASE_NAME_OFFSETS: Final = (0x400, 0x1200)  # of an overlay: two places for the name of its base, written in turn
BASE_NAME_SIZE: Final = 0xE00  # of each place
BASE_NAME_MAGIC: Final = b"cowfsBas"
BASE_PATH_MAX: Final = BASE_NAME_SIZE - 24

# --- inodes ----------------------------------------------------------------------------------------------------------
INODE_SIZE: Final = 128
ROOT_INODE: Final = InodeNumber(1)
ORPHAN_INODE: Final = InodeNumber(2)  # hidden: the list of unlinked inodes that are still open
FIRST_FREE_INODE: Final = InodeNumber(3)
INODE_COUNT_MAX: Final = 0xFFFFFFFF
LINK_COUNT_MAX: Final = 65535
STATUS_FREE: Final = 0
STATUS_USED: Final = 0x01
STATUS_MODIFIED: Final = 0x02
STATUS_IN_USE: Final = STATUS_USED | STATUS_MODIFIED
INODE_FLAG_HIDDEN: Final = 0x0001  # no name leads to it: the orphan list, a holder of xattrs
FREE_INODE_BYTES: Final = bytes(INODE_SIZE)
ORPHAN_ENTRY_SIZE: Final = 4
SYMLINK_SIZE_MAX: Final = 4095  # Linux's qnx6 driver reads no more

# --- directories and names -------------------------------------------------------------------------------------------
DIRECTORY_ENTRY_SIZE: Final = 32
SHORT_NAME_MAX: Final = 27
LONG_NAME_MARK: Final = 0xFF
NAME_MAX: Final = 510
LONG_NAME_HEADER_SIZE: Final = 2

# --- extended attributes ---------------------------------------------------------------------------------------------
XATTR_MAGIC: Final = 0x52544158  # "XATR"
XATTR_NAME_MAX: Final = 255
XATTR_VALUE_MAX: Final = 65536
XATTR_NAMES_MAX: Final = 65536  # of all names, each with its NUL: what listxattr(2) can return

# --- our own trees ---------------------------------------------------------------------------------------------------
CHECKSUM_SIZE: Final = 4
CHECKED_POINTER_SIZE: Final = 8  # block, crc32c: an entry of an indirect block of the checksum tree
REFERENCE_SIZE: Final = 4
REFERENCE_MAX: Final = 0xFFFFFFFF
SNAPSHOT_NAME_MAX: Final = 255
SNAPSHOT_DESCRIPTION_MAX: Final = 500
LABEL_MAX: Final = 64

KIND_FILE: Final = 0  # data of a file, a directory, a symlink or a hidden inode; its indirect blocks
KIND_INODES: Final = 1  # the inode file and its indirect blocks
KIND_LONG_NAMES: Final = 2  # the long-name file and its indirect blocks
KIND_COUNT: Final = 3


@record(80, spare=((0x4E, 2),))
@dataclass(slots=True, eq=False, repr=False)
class RootNode(Record):
    """The root of a block tree: the size in bytes and up to 16 pointers of uniform depth."""

    size: int = at(0x00, "Q", "size of the tree's contents in bytes")
    ptr: tuple[int, ...] = at(0x08, "16I", "top pointers; 0xFFFFFFFF beyond the end", default=NO_BLOCK_POINTERS)
    levels: int = at(0x48, "B", "number of indirect levels; 0: the pointers name data blocks")
    mode: int = at(0x49, "B", "1 as QNX writes it; nobody looks at it", default=ROOT_NODE_MODE)
    hint: int = at(0x4A, "I", "in the Inode and Longfile root nodes: no free inode number or slot is lower; else 0")


def zero_root() -> RootNode:
    """A root node of 80 zero bytes, as QNX leaves in places that it does not use."""
    return RootNode(0, (0,) * POINTER_COUNT, 0, 0, 0)


@record(20)
@dataclass(slots=True, eq=False, repr=False)
class Anchor(Record):
    """Bytes 0x1EC..0x1FF of the superblock record: says that an extension area follows, and checks it."""

    magic: bytes = at(0x00, "8s", "'cowfsAnc'; anything else: a foreign volume", default=ANCHOR_MAGIC)
    version: int = at(0x08, "H", "version of the format", default=FORMAT_VERSION)
    length: int = at(0x0A, "H", "length of the extension area in bytes", default=EXTENSION_SIZE)
    checksum: int = at(0x0C, "I", "crc32c of the whole extension area")
    spare: int = at(0x10, "I", "0")


def no_anchor() -> Anchor:
    """Twenty zero bytes, as in a record that is not ours."""
    return Anchor(bytes(len(ANCHOR_MAGIC)), 0, 0)


@record(RECORD_SIZE, spare=((0x1E5, 3),))
@dataclass(slots=True, eq=False, repr=False)
class Superblock(Record):
    """The 512-byte superblock record. Offsets are bytes from the start of its slot."""

    magic: int = at(0x000, "I", "0x68191122", default=QNX_MAGIC)
    checksum: int = at(0x004, "I", "CRC-32, MSB first, of bytes 0x008..0x1FF")
    serial: int = at(0x008, "Q", "sequence number of the commit")
    ctime: int = at(0x010, "I", "time of formatting, seconds")
    atime: int = at(0x014, "I", "time of the commit, seconds")
    flags: int = at(
        0x018, "I", "0x100: long names carry checksums; 0x80000: ours, so that QNX does not mount", default=SB_FLAGS
    )
    version1: int = at(0x01C, "H", "4", default=SB_VERSION1)
    version2: int = at(0x01E, "H", "3", default=SB_VERSION2)
    volume_id: bytes = at(0x020, "16s", "UUID")
    block_size: int = at(0x030, "I", "bytes")
    num_inodes: int = at(0x034, "I", "inodes in the inode file: its size / 128")
    free_inodes: int = at(0x038, "I", "how many of them are free")
    num_blocks: int = at(0x03C, "I", "blocks of the data area; places slot 2")
    free_blocks: int = at(0x040, "I", "zero bits in the bitmap")
    alloc_group: int = at(0x044, "I", "allocation groups of QNX; 1 here", default=1)
    inode: RootNode = nested(0x048, RootNode, "root node of the inode file")
    bitmap: RootNode = nested(0x098, RootNode, "root node of the bitmap")
    longfile: RootNode = nested(0x0E8, RootNode, "root node of the long-name file")
    iclaim: RootNode = nested(0x138, RootNode, "unused: size 0, pointers 0xFFFFFFFF")
    iextra: RootNode = nested(0x188, RootNode, "unused: zero bytes", factory=zero_root)
    qnx_tail: bytes = at(0x1D8, "13s", "fields of newer QNX versions; zero bytes here")
    socket_count: int = at(0x1E8, "I", "a field of QNX 8; 0 here")
    anchor: Anchor = nested(0x1EC, Anchor, "magic and checksum of the extension area")


@record(64, spare=((0x20, 8),))
@dataclass(slots=True, eq=False, repr=False)
class OverlayState(Record):
    """What an overlay says of the layers below it; of a whole volume zeros."""

    base_uuid: bytes = at(0x00, "16s", "UUID of the base", default=bytes(16))
    base_serial: int = at(0x10, "Q", "serial of the base's newest slot, slot 1")
    base_checks: tuple[int, ...] = at(0x18, "2I", "state checks of the base")
    base_blocks: int = at(0x28, "I", "num_blocks of the base")
    buried_free: int = at(0x2C, "I", "blocks that are free here but buried")
    buried_system: int = at(0x30, "I", "blocks of the bitmap and our own trees that are buried")
    base_snapshot: int = at(0x34, "I", "place in the snapshot table, plus 1, of the first base tree; 0: there is none")
    depth: int = at(0x38, "I", "layers below; 0: a whole volume")
    spent: int = at(0x3C, "I", "of the chain of base trees, so many at its head are of no use and wait to be dropped")


@record(40, spare=((0x20, 8),))
@dataclass(slots=True, eq=False, repr=False)
class MergedState(Record):
    """The overlay that was last merged into the volume; zeros where none was."""

    uuid: bytes = at(0x00, "16s", "UUID of the overlay", default=bytes(16))
    serial: int = at(0x10, "Q", "serial of slot 1 of the state of it that was merged")
    checks: tuple[int, ...] = at(0x18, "2I", "its state checks")


EXTENSION_ROOTS: Final = ("checksums", "references", "snapshots", "snapshot_index", "reclaim", "settings")
MANIFEST_OFFSET: Final = 0x400  # in the extension area
MANIFEST_ENTRY_SIZE: Final = 8
MANIFEST_ENTRY_MAX: Final = (EXTENSION_SIZE - MANIFEST_OFFSET - 8) // MANIFEST_ENTRY_SIZE


@record(MANIFEST_OFFSET, spare=((0x00C, 4), (0x350, 0xB0)))
@dataclass(slots=True, eq=False, repr=False)
class Extension(Record):
    """The fixed part of the extension area. Offsets are bytes from its start (slot + 0x200)."""

    magic: bytes = at(0x000, "8s", "'cowfsExt'", default=EXTENSION_MAGIC)
    version: int = at(0x008, "I", "version of the format", default=FORMAT_VERSION)
    compatible: int = at(0x010, "Q", "feature bits: unknown ones are ignored")
    read_only_compatible: int = at(0x018, "Q", "feature bits: an unknown one forbids writing")
    incompatible: int = at(0x020, "Q", "feature bits: an unknown one forbids reading and writing")
    serial: int = at(0x028, "Q", "the record's serial again")
    zero_blocks: tuple[int, ...] = at(
        0x030, "4I", "Z0..Z3: the zero block and the indirect blocks full of the lower one"
    )
    generation: int = at(0x040, "Q", "the next inode generation; never goes back")
    snapshot_id: int = at(0x048, "Q", "the next snapshot id; never goes back", default=1)
    format_time: int = at(0x050, "Q", "time of formatting, nanoseconds since 1970")
    commit_time: int = at(0x058, "Q", "time of the commit, nanoseconds since 1970")
    data_hint: int = at(0x060, "I", "where the search for free data blocks goes on")
    metadata_hint: int = at(0x064, "I", "where the search for free metadata blocks goes on")
    snapshot_count: int = at(0x068, "I", "snapshots and clones in the snapshot table")
    reclaim_count: int = at(0x06C, "I", "entries of the reclaim queue")
    label: bytes = at(0x070, "64s", "label, UTF-8, zero padded")
    system_blocks: int = at(0x0B0, "I", "blocks of our own trees and of the bitmap, their indirect blocks included")
    first_pin: int = at(0x0B4, "I", "place of the newest pin in the snapshot table, plus 1; 0: there is none")
    pin_count: int = at(0x0B8, "I", "pins in the snapshot table")
    resizing: int = at(0x0BC, "I", "1: slot 2 is being moved, so the boot block may lead elsewhere; else 0")
    spare_0c0: int = at(0x0C0, "Q", "0")
    checksums: RootNode = nested(0x0C8, RootNode, "root node of the checksum tree")
    references: RootNode = nested(0x118, RootNode, "root node of the reference counts")
    snapshots: RootNode = nested(0x168, RootNode, "root node of the snapshot table")
    snapshot_index: RootNode = nested(0x1B8, RootNode, "root node of the snapshot table's index by name")
    reclaim: RootNode = nested(0x208, RootNode, "root node of the reclaim queue")
    settings: RootNode = nested(0x258, RootNode, "root node of the volume's settings")
    checksum_checks: tuple[int, ...] = at(
        0x2A8, "16I", "crc32c of the blocks that the checksum tree's top pointers name"
    )
    overlay: OverlayState = nested(0x2E8, OverlayState, "of an overlay: the layers below")
    merged: MergedState = nested(0x328, MergedState, "the overlay that was last merged into this volume")

    @property
    def is_overlay(self) -> bool:
        """Whether some of the blocks lie in a base."""
        return bool(self.incompatible & INCOMPATIBLE_OVERLAY)

    @property
    def is_sealed(self) -> bool:
        """Whether nothing may be written until it is unsealed."""
        return bool(self.read_only_compatible & READ_ONLY_COMPATIBLE_SEALED)


@record(8)
@dataclass(slots=True, eq=False, repr=False)
class ManifestHeader(Record):
    """At `MANIFEST_OFFSET` of the extension area; `count` entries follow."""

    count: int = at(0x00, "I", "number of entries; 0: the whole state was flushed before the record was written")
    spare: int = at(0x04, "I", "0")


@record(MANIFEST_ENTRY_SIZE)
@dataclass(slots=True, eq=False, repr=False)
class ManifestEntry(Record):
    """A block that was written together with the slot, and only flushed together with it."""

    block: int = at(0x00, "I", "block number")
    checksum: int = at(0x04, "I", "crc32c of the block")


@record(16)
@dataclass(slots=True, eq=False, repr=False)
class BootHead(Record):
    """The first 16 bytes of the boot block, as other readers want them."""

    jump: bytes = at(0x00, "4s", "EB 10 90 00", default=BOOT_JUMP)
    start: int = at(0x04, "I", "0: first sector of the volume")
    slot1_sector: int = at(
        0x08, "I", "sector of slot 1 in units of 512 bytes", default=SLOT1_OFFSET // BOOT_SECTOR_SIZE
    )
    slot2_sector: int = at(0x0C, "I", "sector of slot 2; 0xFFFFFFFF where it does not fit")


@record(24)
@dataclass(slots=True, eq=False, repr=False)
class SlotPointer(Record):
    """At `SLOT_POINTER_OFFSET` of the boot block: where slot 2 is, should slot 1 be lost."""

    magic: bytes = at(0x00, "8s", "'cowfsSl2'", default=SLOT_POINTER_MAGIC)
    slot2_offset: int = at(0x08, "Q", "byte offset of slot 2")
    block_size: int = at(0x10, "I", "bytes")
    checksum: int = at(0x14, "I", "crc32c of the 20 bytes before")


@record(24)
@dataclass(slots=True, eq=False, repr=False)
class BaseName(Record):
    """At each of `BASE_NAME_OFFSETS` of an overlay's boot block; the base's path follows, then zeros."""

    magic: bytes = at(0x00, "8s", "'cowfsBas'", default=BASE_NAME_MAGIC)
    sequence: int = at(0x08, "Q", "the place with the higher one holds the name")
    length: int = at(0x10, "I", "length of the path in bytes")
    checksum: int = at(0x14, "I", "crc32c of the 20 bytes before and the path")


@record(INODE_SIZE)
@dataclass(slots=True, eq=False, repr=False)
class DiskInode(Record):
    """An inode: 128 bytes. A free inode is 128 zero bytes."""

    size: int = at(0x00, "Q", "bytes")
    uid: int = at(0x08, "I", "owner")
    gid: int = at(0x0C, "I", "group")
    birth: int = at(0x10, "I", "birth time, seconds")
    mtime: int = at(0x14, "I", "low 32 bits of the seconds of the last change of the contents")
    atime: int = at(0x18, "I", "low 32 bits of the seconds of the last access")
    ctime: int = at(0x1C, "I", "low 32 bits of the seconds of the last change of the inode")
    mode: int = at(0x20, "H", "st_mode: type and permissions")
    links: int = at(0x22, "H", "link count; 0: an orphan")
    ptr: tuple[int, ...] = at(0x24, "16I", "top pointers; pointer 0 of a device: its number", default=NO_BLOCK_POINTERS)
    levels: int = at(0x64, "B", "number of indirect levels")
    status: int = at(0x65, "B", "bit 0: in use; bit 1: changed since formatting")
    flags: int = at(0x66, "H", "0x1: hidden (no name leads to it)")
    mtime_extra: int = at(0x68, "I", "bits 0..29: nanoseconds; bits 30..31: epoch")
    atime_extra: int = at(0x6C, "I", "the same for atime")
    ctime_extra: int = at(0x70, "I", "the same for ctime")
    blocks: int = at(0x74, "I", "data blocks allocated (holes and indirect blocks do not count)")
    generation: int = at(0x78, "I", "low 32 bits of the volume's generation counter at creation")
    xattr_inode: int = at(0x7C, "I", "hidden inode that holds the extended attributes; 0: none")


@record(DIRECTORY_ENTRY_SIZE)
@dataclass(slots=True, eq=False, repr=False)
class ShortEntry(Record):
    """A directory entry with a name of 1..27 bytes."""

    inode: int = at(0x00, "I", "inode number; 0: no entry (only behind the last one)")
    length: int = at(0x04, "B", "length of the name, 1..27")
    name: bytes = at(0x05, "27s", "name, zero padded")


@record(DIRECTORY_ENTRY_SIZE, spare=((0x05, 3), (0x10, 16)))
@dataclass(slots=True, eq=False, repr=False)
class LongEntry(Record):
    """A directory entry with a name of 28..510 bytes, which lies in the long-name file."""

    inode: int = at(0x00, "I", "inode number")
    mark: int = at(0x04, "B", "0xFF", default=LONG_NAME_MARK)
    slot: int = at(0x08, "I", "number of the long-name slot: block of the long-name file")
    checksum: int = at(0x0C, "I", "rotating sum over the name")


@record(LONG_NAME_HEADER_SIZE)
@dataclass(slots=True, eq=False, repr=False)
class LongNameHeader(Record):
    """At the start of a long-name slot; the name follows. A free slot is a pointer to Z0."""

    length: int = at(0x00, "H", "length of the name")


@record(8)
@dataclass(slots=True, eq=False, repr=False)
class XattrHeader(Record):
    """At the start of a hidden inode's data; `count` entries follow, each padded with zero bytes to 4."""

    magic: int = at(0x00, "I", "'XATR'", default=XATTR_MAGIC)
    count: int = at(0x04, "I", "number of attributes")


@record(8)
@dataclass(slots=True, eq=False, repr=False)
class XattrEntry(Record):
    """Before the name and the value of one attribute."""

    name_length: int = at(0x00, "H", "length of the name in bytes")
    spare: int = at(0x02, "H", "0")
    value_length: int = at(0x04, "I", "length of the value in bytes")


@record(16)
@dataclass(slots=True, eq=False, repr=False)
class ReclaimEntry(Record):
    """A subtree that waits to be dropped; it holds one reference to its block."""

    block: int = at(0x00, "I", "block number")
    kind: int = at(0x04, "B", "0: of a file; 1: of the inode file; 2: of the long-name file")
    level: int = at(0x05, "B", "0: a leaf; else levels below it")
    spare: int = at(0x06, "H", "0")
    spare2: int = at(0x08, "Q", "0")


@record(8)
@dataclass(slots=True, eq=False, repr=False)
class SettingsHeader(Record):
    """The start of the settings; a JSON object in UTF-8 follows."""

    length: int = at(0x00, "I", "length of the JSON text in bytes")
    spare: int = at(0x04, "I", "0")


SETTINGS_LENGTH_MAX: Final = 65_536

SNAPSHOT_WRITABLE: Final = 0x1
SNAPSHOT_INTERNAL: Final = 0x2
SNAPSHOT_PROTECTED: Final = 0x4
SNAPSHOT_PIN: Final = 0x8
SNAPSHOT_AUTOMATIC: Final = 0x10  # made by the policy for rolling snapshots, which may delete it
SNAPSHOT_BASE: Final = 0x20  # internal: the live tree of a layer below, to which a reset goes back


@record(1024)
@dataclass(slots=True, eq=False, repr=False)
class SnapshotRecord(Record):
    """One snapshot or clone: of a committed superblock the root nodes and the counters that make a tree."""

    id: int = at(0x000, "I", "number, never reused; 0: an empty place of the table")
    flags: int = at(0x004, "I", "1: writable clone, 2: internal, 4: protected, 8: pin, 16: automatic")
    created: int = at(0x008, "Q", "time of creation, nanoseconds since 1970")
    origin: int = at(0x010, "I", "id of the snapshot that it was made from; 0: the live tree")
    num_inodes: int = at(0x014, "I", "inodes in the inode file")
    free_inodes: int = at(0x018, "I", "how many of them are free")
    next_pin: int = at(0x01C, "I", "of a pin, or a base's tree: place of the next one, plus 1; 0: there is none")
    serial: int = at(0x020, "Q", "serial of the commit that it was made with")
    spare_028: int = at(0x028, "Q", "0")
    inode: RootNode = nested(0x030, RootNode, "root node of the inode file")
    longfile: RootNode = nested(0x080, RootNode, "root node of the long-name file")
    spare_0d0: bytes = at(0x0D0, "48s", "zero bytes")
    name_length: int = at(0x100, "H", "length of the name in bytes, 1..255")
    description_length: int = at(0x102, "H", "length of the description in bytes, 0..500")
    name: bytes = at(0x104, "256s", "name, zero padded")
    description: bytes = at(0x204, "508s", "description, zero padded")


@record(8)
@dataclass(slots=True, eq=False, repr=False)
class SnapshotIndexEntry(Record):
    """A slot of the snapshot table's index by name; home slot: the hash modulo the number of slots."""

    hash: int = at(0x00, "I", "crc32c of the name")
    place: int = at(0x04, "I", "place of the record in the table, plus 1; 0: an empty slot")


assert MANIFEST_ENTRY_MAX == 319
assert Superblock.SIZE == RECORD_SIZE
assert ANCHOR_OFFSET + Anchor.SIZE == RECORD_SIZE == EXTENSION_OFFSET
assert Extension.SIZE == MANIFEST_OFFSET
assert NAME_MAX + LONG_NAME_HEADER_SIZE == BLOCK_SIZES[0]
assert BASE_NAME_OFFSETS[0] + BASE_NAME_SIZE == BASE_NAME_OFFSETS[1] == BOOT_SIZE - BASE_NAME_SIZE
assert BASE_PATH_MAX == BASE_NAME_SIZE - BaseName.SIZE
