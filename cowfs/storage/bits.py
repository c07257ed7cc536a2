"""Runs of bits in a page of a bitmap: pure arithmetic. The lowest bit of a byte is the first one."""

from __future__ import annotations


def _mask(bit: int, number: int) -> tuple[int, int, int]:
    return bit >> 3, bit + number + 7 >> 3, ((1 << number) - 1) << (bit & 7)


def set_bits(page: bytearray, bit: int, number: int) -> None:
    """Sets a run of bits."""
    if number == 1:
        page[bit >> 3] |= 1 << (bit & 7)
        return
    start, end, mask = _mask(bit, number)
    page[start:end] = (int.from_bytes(page[start:end], "little") | mask).to_bytes(end - start, "little")


def clear_bits(page: bytearray, bit: int, number: int) -> None:
    """Clears a run of bits."""
    if number == 1:
        page[bit >> 3] &= ~(1 << (bit & 7)) & 0xFF
        return
    start, end, mask = _mask(bit, number)
    page[start:end] = (int.from_bytes(page[start:end], "little") & ~mask).to_bytes(end - start, "little")


def either(page: bytearray, other: bytes) -> None:
    """Sets the bits that are set in the other page."""
    page[:] = (int.from_bytes(page, "little") | int.from_bytes(other, "little")).to_bytes(len(page), "little")


def all_set(page: bytes | bytearray, bit: int, number: int) -> bool:
    """Whether all bits of a run are set."""
    start, end, mask = _mask(bit, number)
    return int.from_bytes(page[start:end], "little") & mask == mask


def bits_of(page: bytes | bytearray, bit: int, number: int) -> int:
    """Bits of a page as a number, the first one lowest."""
    start, end, mask = _mask(bit, number)
    return (int.from_bytes(page[start:end], "little") & mask) >> (bit & 7)
