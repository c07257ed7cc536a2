"""Time stamps: nanoseconds since 1970 in memory; 32 bits of seconds plus 32 bits of epoch and nanoseconds on disk.

The 32 bits of seconds are the true seconds modulo 2^32, so that a driver that reads them as unsigned (Linux's qnx6) is
right from 1970 to 2106. With the two epoch bits the range is 1901-12-13 .. 2446-05-10, as ext4's.
"""

from __future__ import annotations

from typing import Final

NANOSECONDS: Final = 1_000_000_000
TIME_MIN: Final = -(1 << 31) * NANOSECONDS
TIME_MAX: Final = ((3 << 32) + (1 << 31)) * NANOSECONDS - 1
_NANOSECOND_BITS: Final = 30
_NANOSECOND_MASK: Final = (1 << _NANOSECOND_BITS) - 1


def encode_time(time_ns: int) -> tuple[int, int]:
    """(seconds word, extra word) of a time; a time out of range becomes the nearest that the format can hold."""
    seconds, nanoseconds = divmod(min(max(time_ns, TIME_MIN), TIME_MAX), NANOSECONDS)
    epoch = (seconds + (1 << 31)) >> 32
    return seconds & 0xFFFFFFFF, epoch << _NANOSECOND_BITS | nanoseconds


def decode_time(seconds: int, extra: int) -> int:
    """The time in nanoseconds since 1970. Nanoseconds beyond 999,999,999 (damage) count as the highest valid value."""
    signed = seconds - (1 << 32) if seconds >= 1 << 31 else seconds
    epoch = extra >> _NANOSECOND_BITS
    return (signed + (epoch << 32)) * NANOSECONDS + min(extra & _NANOSECOND_MASK, NANOSECONDS - 1)
