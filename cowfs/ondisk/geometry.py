"""Geometry: where blocks and slots lie for a base offset, a block size, a block count and a byte order. Pure arithmetic."""

from __future__ import annotations

import array
import sys
from dataclasses import dataclass
from functools import cached_property

from cowfs.errors import InvalidArgument
from cowfs.ondisk import format as f
from cowfs.ondisk.records import ByteOrder

NATIVE_ORDER: ByteOrder = "<" if sys.byteorder == "little" else ">"


@dataclass(frozen=True)
class Geometry:
    """The shape of a volume.

    `base` is the byte offset of the volume on its device, `slot1` that of slot 1 inside the volume (0 for volumes without
    a boot block). All sizes and offsets are bytes; offsets returned are offsets on the device.
    """

    block_size: int
    num_blocks: int
    order: ByteOrder = "<"
    base: int = 0
    slot1: int = f.SLOT1_OFFSET

    @cached_property
    def data_start(self) -> int:
        """Offset of block 0. Block sizes over 4096 align it to a block."""
        start = self.slot1 + f.SLOT_AREA_SIZE
        if self.block_size > f.SLOT_AREA_SIZE:
            start = -(-start // self.block_size) * self.block_size
        return self.base + start

    @cached_property
    def slot_offsets(self) -> tuple[int, int]:
        """Offsets of slot 1 and slot 2."""
        return self.base + self.slot1, self.data_start + self.num_blocks * self.block_size

    @cached_property
    def end(self) -> int:
        """Offset of the first byte behind the volume."""
        return self.slot_offsets[1] + max(
            f.SLOT_AREA_SIZE, self.block_size if self.block_size > f.SLOT_AREA_SIZE else 0
        )

    @cached_property
    def fanout(self) -> int:
        """Pointers in an indirect block."""
        return self.block_size // f.POINTER_SIZE

    @cached_property
    def inodes_per_block(self) -> int:
        """Inodes in a block of the inode file."""
        return self.block_size // f.INODE_SIZE

    @cached_property
    def file_size_max(self) -> int:
        """Largest size of a file: what three levels can address, in bytes, and what the volume's block numbers can."""
        return min(f.POINTER_COUNT * self.fanout**f.LEVEL_MAX, f.BLOCK_COUNT_MAX) * self.block_size

    def block_offset(self, block: int) -> int:
        """Offset of a block; the caller has checked the number."""
        return self.data_start + block * self.block_size

    def blocks_of(self, size: int) -> int:
        """Blocks that `size` bytes need."""
        return -(-size // self.block_size)

    def levels_of(self, blocks: int, fanout: int | None = None) -> int:
        """Least number of indirect levels whose tree holds `blocks` leaves."""
        fanout = fanout or self.fanout
        levels = 0
        capacity = f.POINTER_COUNT
        while capacity < blocks:
            capacity *= fanout
            levels += 1
        return levels


def geometry_for_size(size: int, block_size: int) -> Geometry:
    """The geometry of a new volume that fills `size` bytes. Raises InvalidArgument for sizes that cannot be."""
    if block_size not in f.BLOCK_SIZES:
        raise InvalidArgument(f"block size {block_size} is not one of {', '.join(map(str, f.BLOCK_SIZES))}")
    if size < f.VOLUME_SIZE_MIN:
        raise InvalidArgument(f"a volume needs at least {f.VOLUME_SIZE_MIN} bytes, {size} is too small")
    blocks = (size - f.DATA_OFFSET - f.SLOT_AREA_SIZE) // block_size
    if blocks > f.BLOCK_COUNT_MAX:
        most = f.BLOCK_COUNT_MAX * block_size
        raise InvalidArgument(f"{size} bytes is too large: blocks of {block_size} bytes reach to {most} bytes")
    return Geometry(block_size, blocks)


def pointers_from(data: bytes | bytearray | memoryview, order: ByteOrder) -> array.array[int]:
    """The 32-bit words of an indirect block, in the machine's order."""
    words = array.array("I")
    words.frombytes(data)
    if order != NATIVE_ORDER:
        words.byteswap()
    return words


def pointers_to(words: array.array[int], order: ByteOrder) -> bytes:
    """The bytes of an indirect block."""
    if order == NATIVE_ORDER:
        return words.tobytes()
    swapped = array.array("I", words)
    swapped.byteswap()
    return swapped.tobytes()
