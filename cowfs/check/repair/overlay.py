"""A device that keeps in memory what is written to it: what a repair does is tried, and checked, before it is done.

Reads of what was not written go to the device below, which is never changed. `sectors` of 512 bytes are the unit. Memory:
what was written, and some 100 bytes for each sector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cowfs.errors import DeviceError
from cowfs.ondisk.records import Buffer
from cowfs.storage.device import Device

SECTOR: Final = 512
_REGION: Final = 1 << 20  # where nothing was written within a region, reading costs nothing more


class OverlayDevice:
    """The device `base` with what was written since; `size` may be longer than the base's, by zeros."""

    def __init__(self, base: Device) -> None:
        self.name = base.name
        self.device_below = base
        self.read_only = False
        self._base = base
        self._base_size = base.size()
        self._size = self._base_size
        self._sectors: dict[int, bytes] = {}
        self._regions: set[int] = set()

    @property
    def grown(self) -> bool:
        """Whether it has become longer than the device below."""
        return self._size > self._base_size

    def size(self) -> int:
        """Length in bytes."""
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. Raises DeviceError, as the device below does for what was not written here."""
        if offset < 0 or offset + length > self._size:
            raise DeviceError(f"{self.name}: cannot read {length} bytes at {offset}: it ends at {self._size}")
        touched = any(
            region in self._regions for region in range(offset // _REGION, (offset + length - 1) // _REGION + 1)
        )
        if not touched:
            return self._below(offset, length)
        first, end = offset // SECTOR, -(-(offset + length) // SECTOR)
        known = {number: self._sectors[number] for number in range(first, end) if number in self._sectors}
        if len(known) == end - first:
            data = bytearray(b"".join(known.values()))
        else:
            start = first * SECTOR
            data = bytearray(self._below(start, min(end * SECTOR, self._size) - start))
            for number, sector in known.items():
                data[(number - first) * SECTOR : (number - first + 1) * SECTOR] = sector
        skip = offset - first * SECTOR
        return bytes(data[skip : skip + length])

    def _below(self, offset: int, length: int) -> bytes:
        inside = max(0, min(length, self._base_size - offset))
        data = self._base.read(offset, inside) if inside else b""
        return data.ljust(length, b"\0")

    def write(self, offset: int, pieces: Sequence[Buffer]) -> None:
        """Keeps whole sectors."""
        data = b"".join(pieces)
        if offset % SECTOR or len(data) % SECTOR or offset < 0 or offset + len(data) > self._size:
            raise DeviceError(f"{self.name}: cannot write {len(data)} bytes at {offset}")
        for at in range(0, len(data), SECTOR):
            self._sectors[(offset + at) // SECTOR] = data[at : at + SECTOR]
            self._regions.add((offset + at) // _REGION)

    def pieces(self, start: int, end: int, size: int) -> list[int]:
        """Offsets of the pieces of `size` bytes, from byte `start` to `end`, that something was written to, in order."""
        inside = (number * SECTOR for number in self._sectors if start <= number * SECTOR < end)
        return sorted({start + (offset - start) // size * size for offset in inside})

    def flush(self) -> None:
        """Nothing is anywhere but in memory."""

    def discard(self, offset: int, length: int) -> None:
        """Does nothing."""

    def resize(self, size: int) -> None:
        """Makes it longer."""
        self._size = max(self._size, size)

    def lock(self, *, exclusive: bool, timeout: float = 0.0) -> None:
        """Whoever has the device below has locked it."""

    def drop_cache(self) -> None:
        """Nothing is cached."""

    def close(self) -> None:
        """The device below stays open."""
