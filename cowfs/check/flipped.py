"""Turning back a single flipped bit of a block whose right checksum is known."""

from __future__ import annotations

from typing import Final

from cowfs.ondisk.checksums import crc32c

_SYNDROMES: Final[dict[int, dict[int, int]]] = {}


def without_flipped_bit(data: bytes, wanted: int, found: int) -> bytes | None:
    """`data` with the one bit turned back that makes its crc32c the wanted one; None if there is none.

    CRC-32C tells all single bits of a block apart. Damage that is larger looks like a single bit in one case of 100,000.
    """
    size = len(data)
    table = _SYNDROMES.get(size)
    if table is None:
        nothing = crc32c(bytes(size))
        probe = bytearray(size)
        table = {}
        for at in range(size):
            for bit in range(8):
                probe[at] = 1 << bit
                table[crc32c(probe) ^ nothing] = at * 8 + bit
            probe[at] = 0
        _SYNDROMES[size] = table
    position = table.get(wanted ^ found)
    if position is None:
        return None
    mended = bytearray(data)
    mended[position >> 3] ^= 1 << (position & 7)
    return bytes(mended) if crc32c(mended) == wanted else None
