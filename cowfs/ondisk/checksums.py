"""Sums over bytes: the three that the format uses.

`crc32c` (Castagnoli, reflected, as in iSCSI and ext4) checks blocks and our own records; `qnx_crc` checks the superblock
record; `long_name_checksum` stands in directory entries.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import operator
import sys
import zlib
from types import ModuleType
from typing import Any, Final

from cowfs.ondisk.records import Buffer

_REVERSED_BITS: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _load_crc32c() -> ModuleType:
    """The compiled module of the package crc32c alone, where it is as we know it.

    The package itself looks its version up among all that is installed: a sixth of what a mount takes to start.
    """
    name = "crc32c._crc32c"
    package = importlib.util.find_spec("crc32c")
    places = None if package is None else package.submodule_search_locations
    found = None if name in sys.modules else importlib.machinery.PathFinder.find_spec(name, places)
    if found is None or found.loader is None:
        import crc32c as whole

        return whole
    module = sys.modules[name] = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


crc32c = _load_crc32c().crc32c
"""crc32c(data) -> int: 32 bits."""


def crc32c_each(data: memoryview, size: int) -> list[int]:
    """The crc32c of each piece of `size` bytes; `data` is a number of whole pieces."""
    length = len(data)
    if length <= size:
        return [crc32c(data)] if length else []
    return list(map(crc32c, _pieces(length, size)(data)))


@functools.lru_cache(maxsize=64)
def _pieces(length: int, size: int) -> operator.itemgetter[Any]:
    """What cuts so many bytes into pieces of that size: more than one, without a step of the interpreter for each."""
    return operator.itemgetter(*(slice(at, at + size) for at in range(0, length, size)))


def qnx_crc(data: Buffer) -> int:
    """CRC-32 with polynomial 0x04C11DB7, most significant bit first, start 0, no final xor (Linux: crc32_be(0, ...)).

    zlib's CRC is the same polynomial with the bits of every byte, and of the result, the other way round.
    """
    reflected = zlib.crc32(bytes(data).translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(reflected.to_bytes(4, "little").translate(_REVERSED_BITS), "big")


def long_name_checksum(name: bytes) -> int:
    """The rotating sum of a long name: rotate right by one, add the byte (as unsigned), 32 bits."""
    total = 0
    for byte in name:
        total = (((total >> 1) | ((total & 1) << 31)) + byte) & 0xFFFFFFFF
    return total
