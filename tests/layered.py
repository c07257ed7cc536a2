"""Overlays in memory, for tests: a base that nobody may write, and overlays on it."""

from __future__ import annotations

from collections.abc import Sequence

from cowfs.ondisk.geometry import Geometry
from cowfs.ondisk.records import Buffer
from cowfs.storage.device import Device, MemoryDevice
from cowfs.storage.layers import LayeredDevice
from cowfs.storage.overlay import default_size, make_overlay, overlay_geometry, stack
from cowfs.storage.superblock import read_slots
from tests.support import START


class Base(MemoryDevice):
    """A base in memory: whoever writes to it, or flushes it, fails the test."""

    @classmethod
    def of(cls, device: MemoryDevice) -> Base:
        """The same contents, and never others."""
        base = cls(device.size(), name="base")
        base._chunks = {number: bytearray(chunk) for number, chunk in device._chunks.items()}
        base.read_only = True
        return base

    def write(self, offset: int, pieces: Sequence[Buffer]) -> None:
        raise AssertionError(f"{sum(map(len, pieces))} bytes are written to the base at offset {offset}")

    def flush(self) -> None:
        raise AssertionError("the base is flushed")

    def resize(self, size: int) -> None:
        raise AssertionError("the base gets another size")

    def discard(self, offset: int, length: int) -> None:
        raise AssertionError("blocks of the base are discarded")


def new_overlay(
    base: Device,
    *,
    size: int | None = None,
    number: int = 1,
    top: MemoryDevice | None = None,
    geometry: Geometry | None = None,
) -> LayeredDevice:
    """A new overlay on a base; by default as large as mkcowfs makes it. `number` goes into its UUID."""
    geometry = geometry or overlay_geometry(base, size or default_size(base))
    top = top or MemoryDevice(geometry.end, name=f"overlay {number}")
    return make_overlay(top, base, geometry, path=b"base", uuid=bytes([number] * 16), now_ns=START)


def again(device: LayeredDevice) -> LayeredDevice:
    """The same layers, found anew, as when the overlay is opened by another process."""
    extension = read_slots(device.top).newest.extension
    assert extension is not None
    base = again(device.base) if isinstance(device.base, LayeredDevice) else device.base
    return stack(device.top, base, extension.overlay)
