"""Which bytes of a large file are compared: all readers choose the same. Nothing of cowfs is needed here."""

from __future__ import annotations

from typing import Final

WHOLE_MAX: Final = 1 << 20  # bytes of a file that is compared as a whole; of larger ones windows (guest.c has the same)
WINDOW_BLOCKS: Final = 8
SPREAD: Final = 12
REACH: Final = 0x7FFFFFFF  # blocks of a file: the guest's way to what lies behind has no larger numbers
POINTER_COUNT: Final = 16
POINTER_SIZE: Final = 4


def windows(size: int, block_size: int) -> list[tuple[int, int]]:
    """(offset, length) of what is compared of a file: around the reach of each level, at the ends, and in between."""
    if size <= WHOLE_MAX:
        return [(0, size)]
    blocks = -(-size // block_size)
    last = min(blocks, REACH) - WINDOW_BLOCKS
    fanout = block_size // POINTER_SIZE
    starts = [POINTER_COUNT * fanout**level - WINDOW_BLOCKS // 2 for level in range(4)]
    starts += [last // (SPREAD - 1) * number for number in range(SPREAD)]
    starts.append(last)
    chosen = sorted(min(start, last) for start in starts)
    return [(start * block_size, min(WINDOW_BLOCKS * block_size, size - start * block_size)) for start in chosen]
