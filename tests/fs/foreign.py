"""Makes small volumes as others write them: either byte order, no extension area, and all the liberties of the family."""

from __future__ import annotations

import array
import stat
from dataclasses import dataclass, field

from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import long_name_checksum, qnx_crc
from cowfs.ondisk.geometry import Geometry, pointers_to
from cowfs.ondisk.records import ByteOrder
from cowfs.storage.device import MemoryDevice

TIME = 0xF0000000  # unsigned seconds: the year 2097


@dataclass
class ForeignVolume:
    """A volume under construction; `device` finishes it. `inodes` are (inode, contents) by number."""

    order: ByteOrder
    block_size: int
    blocks: list[bytes] = field(default_factory=list)
    inodes: dict[int, f.DiskInode] = field(default_factory=dict)
    long_names: list[bytes] = field(default_factory=list)

    def add(
        self, number: int, mode: int, data: bytes, *, links: int = 1, levels: int = 0, size: int = -1
    ) -> f.DiskInode:
        """An inode with contents; the tail of the inode is full of bytes that only QNX understands."""
        pointers, levels = self.tree(data, levels)
        inode = f.DiskInode(
            size=len(data) if size < 0 else size,
            uid=1000,
            gid=100,
            birth=TIME - 1,
            mtime=TIME,
            atime=TIME + 1,
            ctime=TIME + 2,
            mode=mode,
            links=links,
            ptr=pointers,
            levels=levels,
            status=f.STATUS_USED,
            flags=0xFFFF,
            mtime_extra=0xFFFFFFFF,
            atime_extra=0xFFFFFFFF,
            ctime_extra=0xFFFFFFFF,
            blocks=0xFFFFFFFF,
            generation=0xFFFFFFFF,
            xattr_inode=0xFFFFFFFF,
        )
        self.inodes[number] = inode
        return inode

    def tree(self, data: bytes, levels: int = 0) -> tuple[tuple[int, ...], int]:
        """Stores contents as a block tree of at least `levels`; its top pointers and levels."""
        size = self.block_size
        pointers = [self.block(data[at : at + size]) for at in range(0, len(data), size)]
        depth = 0
        while depth < levels or len(pointers) > f.POINTER_COUNT:
            fanout = size // f.POINTER_SIZE
            groups = [pointers[at : at + fanout] for at in range(0, len(pointers), fanout)]
            pad = [f.NO_BLOCK] * fanout
            pointers = [
                self.block(pointers_to(array.array("I", (group + pad)[:fanout]), self.order)) for group in groups
            ]
            depth += 1
        return tuple((pointers + [f.NO_BLOCK] * f.POINTER_COUNT)[: f.POINTER_COUNT]), depth

    def block(self, data: bytes) -> int:
        self.blocks.append(data.ljust(self.block_size, b"\0"))
        return len(self.blocks) - 1

    def short(self, number: int, name: bytes, padding: bytes = b"") -> bytes:
        """A short entry; behind the name may lie anything."""
        raw = f.ShortEntry(number, len(name), name + b"\0" * bool(padding)).pack(self.order)
        used = f.DIRECTORY_ENTRY_SIZE - f.SHORT_NAME_MAX + len(name) + bool(padding)
        return raw[:used] + (padding * f.DIRECTORY_ENTRY_SIZE)[: len(raw) - used] if padding else raw

    def long(self, number: int, name: bytes, checksum: int | None = None) -> bytes:
        """A long entry, by default with the right checksum."""
        self.long_names.append(f.LongNameHeader(len(name)).pack(self.order) + name)
        value = long_name_checksum(name) if checksum is None else checksum
        return f.LongEntry(number, f.LONG_NAME_MARK, len(self.long_names) - 1, value).pack(self.order)

    def directory(self, number: int, entries: list[bytes], *, links: int = 2) -> f.DiskInode:
        data = b"".join(entries)
        data = data.ljust(-(-len(data) // self.block_size) * self.block_size, b"\0")
        return self.add(number, stat.S_IFDIR | 0o755, data, links=links)

    def device(self) -> MemoryDevice:
        """The finished volume: both slots valid, slot 2 newest."""
        last = max(self.inodes)
        free = bytes(f.INODE_SIZE)
        table = b"".join(
            self.inodes[number].pack(self.order) if number in self.inodes else free for number in range(1, last + 1)
        )
        table = table.ljust(-(-len(table) // self.block_size) * self.block_size, b"\0")
        names = b"".join(name.ljust(self.block_size, b"\0") for name in self.long_names)
        inode_tree, inode_levels = self.tree(table)
        name_tree, name_levels = self.tree(names)
        bitmap = self.block(b"\xff" * self.block_size)
        geometry = Geometry(self.block_size, len(self.blocks) + 10, self.order)
        device = MemoryDevice(geometry.end)
        for number, block in enumerate(self.blocks):
            device.write(geometry.block_offset(number), [block])
        for slot, offset in enumerate(geometry.slot_offsets, 1):
            record = f.Superblock(
                serial=slot,
                flags=f.SB_FLAG_LONG_NAME_CHECKSUMS,
                block_size=self.block_size,
                num_inodes=len(table) // f.INODE_SIZE,
                free_inodes=5,
                num_blocks=geometry.num_blocks,
                free_blocks=10,
                inode=f.RootNode(len(table), inode_tree, inode_levels),
                bitmap=f.RootNode(self.block_size, (bitmap, *[f.NO_BLOCK] * 15), 0),
                longfile=f.RootNode(len(names), name_tree, name_levels),
                anchor=f.Anchor(magic=bytes(8), version=0, length=0),
            )
            record.checksum = qnx_crc(record.pack(self.order)[f.CRC_START :])
            device.write(offset, [record.pack(self.order)])
        return device
