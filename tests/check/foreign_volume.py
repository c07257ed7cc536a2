"""A foreign volume made by hand: no extension area, either byte order, any block size of the family.

It has what QNX does and we do not: a region that is marked in use for nothing, a deleted directory entry, ~0 as a hole.
"""

from __future__ import annotations

import stat

from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import long_name_checksum, qnx_crc
from cowfs.ondisk.geometry import Geometry
from cowfs.ondisk.records import ByteOrder, Record
from cowfs.storage.device import MemoryDevice

BLOCKS = 64
BITMAP, INODES, LONG_NAMES, ROOT, FILE, RESERVED = 0, 1, 2, 3, 4, 60
LONG_NAME = b"a name of more than twenty-seven bytes"


class ForeignVolume:
    """The pieces of the volume: change them, then `build`."""

    def __init__(self, block_size: int, order: ByteOrder = "<", *, boot_block: bool = True) -> None:
        self.order = order
        self.geometry = Geometry(block_size, BLOCKS, order, slot1=f.SLOT1_OFFSET if boot_block else 0)
        self.used = {BITMAP, INODES, LONG_NAMES, ROOT, FILE, RESERVED}
        self.inodes = {
            1: f.DiskInode(size=block_size, mode=stat.S_IFDIR | 0o755, links=2, status=1, ptr=pointers(ROOT)),
            2: f.DiskInode(
                size=3 * block_size,
                mode=stat.S_IFREG | 0o644,
                links=2,
                status=3,
                ptr=pointers(f.NO_BLOCK, f.NO_BLOCK, FILE),
            ),
        }
        self.entries: list[Record] = [
            f.ShortEntry(1, 1, b"."),
            f.ShortEntry(1, 2, b".."),
            f.ShortEntry(0, 4, b"gone"),
            f.ShortEntry(2, 4, b"file"),
            f.LongEntry(2, slot=0, checksum=long_name_checksum(LONG_NAME)),
        ]
        self.superblock = f.Superblock(
            serial=5,
            flags=f.SB_FLAG_LONG_NAME_CHECKSUMS,
            block_size=block_size,
            num_inodes=block_size // f.INODE_SIZE,
            free_inodes=block_size // f.INODE_SIZE - 2,
            num_blocks=BLOCKS,
            free_blocks=BLOCKS - len(self.used),
            inode=f.RootNode(block_size, pointers(INODES)),
            bitmap=f.RootNode(BLOCKS // 8, pointers(BITMAP)),
            longfile=f.RootNode(block_size, pointers(LONG_NAMES)),
        )
        self.superblock.anchor.magic = bytes(8)

    def build(self) -> MemoryDevice:
        """The volume on a device."""
        geometry, order, block_size = self.geometry, self.order, self.geometry.block_size
        device = MemoryDevice(geometry.end)
        bits = sum(1 << block for block in self.used)
        bitmap = bits.to_bytes(BLOCKS // 8, "little").ljust(block_size, b"\xff")
        inodes = b"".join(
            self.inodes[number].pack(order) if number in self.inodes else f.FREE_INODE_BYTES
            for number in range(1, block_size // f.INODE_SIZE + 1)
        )
        name = f.LongNameHeader(len(LONG_NAME)).pack(order) + LONG_NAME
        for block, data in (
            (BITMAP, bitmap),
            (INODES, inodes),
            (LONG_NAMES, name),
            (ROOT, b"".join(entry.pack(order) for entry in self.entries)),
            (FILE, b"contents"),
        ):
            device.write(geometry.block_offset(block), [data.ljust(block_size, b"\0")])
        for offset in geometry.slot_offsets:
            self.superblock.checksum = qnx_crc(self.superblock.pack(order)[f.CRC_START :])
            device.write(offset, [self.superblock.pack(order)])
        return device


def pointers(*blocks: int) -> tuple[int, ...]:
    """Sixteen top pointers that begin with these."""
    return blocks + f.NO_BLOCK_POINTERS[len(blocks) :]
