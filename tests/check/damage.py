"""Editing a volume byte by byte, with all checksums put right again, so that what lies deeper can be damaged.

An `Image` takes the state of slot 1 apart: records as objects, blocks by number. `finish` writes the changed blocks,
their checksums, the checksum tree above them, and both slots. Nothing here uses the storage room but its device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c, long_name_checksum, qnx_crc
from cowfs.ondisk.geometry import Geometry, pointers_from, pointers_to
from cowfs.storage.device import MemoryDevice

Root = f.RootNode | f.DiskInode


class Image:
    """The volume on `device`, to be changed in place. Only for little-endian volumes of ours."""

    def __init__(self, device: MemoryDevice) -> None:
        self.device = device
        raw = device.read(f.SLOT1_OFFSET, f.SLOT_AREA_SIZE)
        self.superblock = f.Superblock.unpack(raw)
        self.extension = f.Extension.unpack(raw, f.EXTENSION_OFFSET)
        self.geometry = Geometry(self.superblock.block_size, self.superblock.num_blocks)
        self.block_size = self.geometry.block_size
        self.manifest: list[f.ManifestEntry] = []
        self.zero_blocks = self.extension.zero_blocks
        self._changed: set[int] = set()

    # --- blocks ---

    def block(self, number: int) -> bytes:
        """A block's bytes."""
        return self.device.read(self.geometry.block_offset(number), self.block_size)

    def put(self, number: int, data: bytes | bytearray, *, checksum: bool = True) -> None:
        """Writes a block; with `checksum` its checksum is put right by `finish`."""
        assert len(data) == self.block_size
        self.device.write(self.geometry.block_offset(number), [data])
        if checksum:
            self._changed.add(number)

    @contextmanager
    def edit(self, number: int, *, checksum: bool = True) -> Iterator[bytearray]:
        """A block to be changed in place."""
        data = bytearray(self.block(number))
        yield data
        self.put(number, data, checksum=checksum)

    def words(self, number: int) -> list[int]:
        """An indirect block."""
        return pointers_from(self.block(number), "<").tolist()

    def set_word(self, number: int, index: int, value: int) -> None:
        """Changes one word of a block."""
        words = pointers_from(self.block(number), "<")
        words[index] = value
        self.put(number, pointers_to(words, "<"))

    # --- space ---

    def set_bit(self, number: int, value: int) -> None:
        """Changes a block's bit in the bitmap, and the count of free blocks with it."""
        index, bit = divmod(number, self.block_size * 8)
        with self.edit(self.leaf(self.superblock.bitmap, index)) as page:
            mask = 1 << (bit & 7)
            assert bool(page[bit >> 3] & mask) != bool(value)
            page[bit >> 3] ^= mask
        self.superblock.free_blocks += -1 if value else 1

    def take_block(self, data: bytes = b"") -> int:
        """A free block, marked in use, with these contents."""
        number = self.free_block()
        self.set_bit(number, 1)
        self.put(number, data.ljust(self.block_size, b"\0"))
        return number

    def free_block(self) -> int:
        """The lowest free block: others near it are in use, so bitmap and checksums have leaves there."""
        page = self.block(self.leaf(self.superblock.bitmap, 0))
        return next(n for n in range(len(page) * 8) if not page[n >> 3] >> (n & 7) & 1)

    def set_reference(self, number: int, count: int) -> None:
        """Changes a block's count of extra parents; makes the leaf, and the blocks above it, where there are none."""
        index, at = divmod(number, self.block_size // f.REFERENCE_SIZE)
        self.set_word(self.system_leaf(self.extension.references, index), at, count)

    def system_leaf(self, root: f.RootNode, index: int) -> int:
        """A leaf of one of the volume's own trees, which gets a block, and blocks above it, if it is a hole."""
        span: int = self.geometry.fanout**root.levels
        slot, index = divmod(index, span)
        pointer = self._filled(root.ptr[slot], root.levels)
        root.ptr = (*root.ptr[:slot], pointer, *root.ptr[slot + 1 :])
        for level in range(root.levels - 1, -1, -1):
            span //= self.geometry.fanout
            slot, index = divmod(index, span)
            child = self._filled(self.words(pointer)[slot], level)
            self.set_word(pointer, slot, child)
            pointer = child
        return pointer

    def _filled(self, pointer: int, level: int) -> int:
        if pointer not in self.zero_blocks:
            return pointer
        self.extension.system_blocks += 1
        return self.take_block(self.block(self.zero_blocks[level]))

    def use_system_tree(self, name: str, data: bytes) -> f.RootNode:
        """Makes one of the empty trees of the extension area a tree with the contents `data`, at most 16 blocks."""
        pieces = [data[at : at + self.block_size] for at in range(0, len(data), self.block_size)]
        blocks = tuple(self.take_block(piece) for piece in pieces)
        self.extension.system_blocks += len(blocks)
        root = f.RootNode(len(data), blocks + f.NO_BLOCK_POINTERS[len(blocks) :], 0)
        setattr(self.extension, name, root)
        return root

    # --- trees, inodes, names ---

    def leaf(self, root: Root, index: int) -> int:
        """The block of a leaf."""
        span: int = self.geometry.fanout**root.levels
        slot, index = divmod(index, span)
        pointer = root.ptr[slot]
        while span > 1:
            span //= self.geometry.fanout
            slot, index = divmod(index, span)
            pointer = self.words(pointer)[slot]
        return pointer

    def inode(self, number: int) -> f.DiskInode:
        """An inode."""
        block, offset = self._inode_place(number)
        return f.DiskInode.unpack(self.block(block), offset)

    def set_inode(self, number: int, inode: f.DiskInode) -> None:
        """Stores an inode."""
        block, offset = self._inode_place(number)
        with self.edit(block) as data:
            data[offset : offset + f.INODE_SIZE] = inode.pack()

    @contextmanager
    def edit_inode(self, number: int) -> Iterator[f.DiskInode]:
        """An inode to be changed in place."""
        inode = self.inode(number)
        yield inode
        self.set_inode(number, inode)

    def new_inode(self, inode: f.DiskInode) -> int:
        """Stores an inode in the lowest free place."""
        for number in range(1, self.superblock.num_inodes + 1):
            block, offset = self._inode_place(number)
            if self.block(block)[offset : offset + f.INODE_SIZE] == f.FREE_INODE_BYTES:
                self.set_inode(number, inode)
                self.superblock.free_inodes -= 1
                return number
        raise AssertionError("no free inode in the sample")

    def _inode_place(self, number: int) -> tuple[int, int]:
        index, place = divmod(number - 1, self.geometry.inodes_per_block)
        return self.leaf(self.superblock.inode, index), place * f.INODE_SIZE

    def data_block(self, number: int, index: int = 0) -> int:
        """A block of an inode's contents."""
        return self.leaf(self.inode(number), index)

    def entry_place(self, directory: int, name: bytes) -> tuple[int, int]:
        """Block and byte of a directory entry with this name; an empty name: the first free place."""
        inode = self.inode(directory)
        for index in range(inode.size // self.block_size):
            block = self.leaf(inode, index)
            data = self.block(block)
            for offset in range(0, self.block_size, f.DIRECTORY_ENTRY_SIZE):
                entry = f.ShortEntry.unpack(data, offset)
                if not entry.inode:
                    found = b""
                elif entry.length == f.LONG_NAME_MARK:
                    found = self.long_name(f.LongEntry.unpack(data, offset).slot)
                else:
                    found = entry.name[: entry.length]
                if found == name:
                    return block, offset
        raise AssertionError(f"no entry {name!r} in inode {directory}")

    def set_entry(self, directory: int, name: bytes, entry: f.ShortEntry | f.LongEntry) -> None:
        """Replaces the directory entry with this name (an empty name: adds one)."""
        block, offset = self.entry_place(directory, name)
        with self.edit(block) as data:
            data[offset : offset + f.DIRECTORY_ENTRY_SIZE] = entry.pack()

    def long_entry(self, directory: int, name: bytes) -> f.LongEntry:
        """The long entry with this name."""
        block, offset = self.entry_place(directory, name)
        return f.LongEntry.unpack(self.block(block), offset)

    def long_name(self, slot: int) -> bytes:
        """The name in a slot."""
        data = self.block(self.leaf(self.superblock.longfile, slot))
        length = f.LongNameHeader.unpack(data).length
        return data[f.LONG_NAME_HEADER_SIZE : f.LONG_NAME_HEADER_SIZE + length]

    def set_orphans(self, numbers: list[int]) -> None:
        """Makes the orphan list, empty before, hold these inodes."""
        data = b"".join(number.to_bytes(f.ORPHAN_ENTRY_SIZE, "little") for number in numbers)
        with self.edit_inode(f.ORPHAN_INODE) as inode:
            inode.size, inode.blocks = len(data), 1
            inode.ptr = (self.take_block(data), *inode.ptr[1:])

    def add_snapshots(self, records: list[f.SnapshotRecord]) -> None:
        """Makes a snapshot table, and counts the records as parents of the blocks that their roots name."""
        self.use_system_tree("snapshots", b"".join(record.pack() for record in records))
        entries = [
            f.SnapshotIndexEntry(crc32c(record.name), place + 1)
            for place, record in enumerate(records)
            if not record.flags & f.SNAPSHOT_INTERNAL
        ]
        self.set_index(entries)
        self.extension.snapshot_count = len(records)
        self.extension.snapshot_id = 1 + max(record.id for record in records)
        parents: dict[int, int] = {}
        for record in records:
            for pointer in (*record.inode.ptr, *record.longfile.ptr):
                if pointer != f.NO_BLOCK and pointer not in self.zero_blocks:
                    parents[pointer] = parents.get(pointer, 0) + 1
        for pointer, count in parents.items():
            self.set_reference(pointer, count)

    def set_index(self, entries: list[f.SnapshotIndexEntry], slots: int = 64) -> None:
        """Makes the index of the snapshot table hold these, each in the first free slot from its home on."""
        table = [f.SnapshotIndexEntry()] * slots
        for entry in entries:
            slot = entry.hash % slots
            while table[slot].place:
                slot = (slot + 1) % slots
            table[slot] = entry
        self.use_system_tree("snapshot_index", b"".join(entry.pack() for entry in table))

    def snapshot(self, number: int, name: bytes) -> f.SnapshotRecord:
        """The live tree as a snapshot."""
        superblock = self.superblock
        return f.SnapshotRecord(
            id=number,
            num_inodes=superblock.num_inodes,
            free_inodes=superblock.free_inodes,
            inode=superblock.inode,
            longfile=superblock.longfile,
            name_length=len(name),
            name=name,
        )

    # --- the end ---

    def finish(self) -> None:
        """Puts all checksums right and writes both slots: slot 1 is the newer one."""
        self.fix_checksums()
        self.write_slot(1)
        self.write_slot(2)

    def fix_checksums(self) -> None:
        """Enters the checksums of the changed blocks, and of the checksum tree."""
        root = self.extension.checksums
        sums = {number: crc32c(self.block(number)) for number in self._changed}
        own: set[int] = set()
        checks = [
            self._fix_tree(pointer, root.levels, slot * self._checked_fanout**root.levels, sums, own)
            for slot, pointer in enumerate(root.ptr)
        ]
        self.extension.checksum_checks = tuple(checks)
        assert not set(sums) - own, "a changed block has no place for its checksum"
        self._changed.clear()

    def checksum_blocks(self) -> set[int]:
        """The blocks of the checksum tree."""
        found = {block for block in self.extension.checksums.ptr if block != f.NO_BLOCK}
        level = found
        for _ in range(self.extension.checksums.levels):
            level = {child for block in level for child in self.words(block)[::2] if child != f.NO_BLOCK}
            found |= level
        return found

    @property
    def _checked_fanout(self) -> int:
        return self.block_size // f.CHECKED_POINTER_SIZE

    def _fix_tree(self, block: int, level: int, first: int, sums: dict[int, int], done: set[int]) -> int:
        if block == f.NO_BLOCK:
            return 0
        words = pointers_from(self.block(block), "<")
        if level == 0:
            base = first * len(words)
            for number, value in sums.items():
                if base <= number < base + len(words):
                    words[number - base] = value
                    done.add(number)
        else:
            span = self._checked_fanout ** (level - 1)
            for slot in range(self._checked_fanout):
                words[2 * slot + 1] = self._fix_tree(words[2 * slot], level - 1, first + slot * span, sums, done)
        data = pointers_to(words, "<")
        self.put(block, data, checksum=False)
        return crc32c(data)

    def write_slot(
        self,
        number: int,
        *,
        serial: int | None = None,
        change: Callable[[f.Superblock, f.Extension], None] = lambda superblock, extension: None,
    ) -> None:
        """Writes slot 1 or 2 with right checksums; `change` is applied to the records before."""
        superblock = f.Superblock.unpack(self.superblock.pack())
        extension = f.Extension.unpack(self.extension.pack())
        superblock.serial = extension.serial = self.superblock.serial - (number - 1) if serial is None else serial
        change(superblock, extension)
        entries = b"".join(entry.pack() for entry in self.manifest)
        area = extension.pack() + f.ManifestHeader(len(self.manifest)).pack() + entries
        area = area.ljust(f.EXTENSION_SIZE, b"\0")
        superblock.anchor.checksum = crc32c(area)
        superblock.checksum = qnx_crc(superblock.pack()[f.CRC_START :])
        self.device.write(self.geometry.slot_offsets[number - 1], [superblock.pack() + area])


def long_entry(number: int, slot: int, name: bytes) -> f.LongEntry:
    """An entry for a long name."""
    return f.LongEntry(inode=number, slot=slot, checksum=long_name_checksum(name))


def short_entry(number: int, name: bytes) -> f.ShortEntry:
    """An entry for a short name."""
    return f.ShortEntry(number, len(name), name)
