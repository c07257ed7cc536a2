"""Layers: a device whose blocks lie in an overlay, but for those that a layer below it has in use.

An overlay and its base have the same block numbers, and block n lies at the same byte of both. A block is *buried* if a
layer below has it in use, or if it lies under slot 2 of one: its contents, if it has any, are those of the layer below, and
it is never given out above. So one bit says where a block lies, and it is that of the base's own bitmap, which is read page
by page through the base's checked trees when it is asked for. There is no table, and nothing is ever copied up.

Invariants (docs/DESIGN.md, section 15):
- I30 What is buried is never written: `LayeredDevice.write` refuses it, whoever asks.
- I31 The bits of a base do not change while a layer above is open: the base is locked, and was compared with what the
  overlay says of it.

Locking: as all devices, a `LayeredDevice` may be read and written by any thread. The bits are read by a volume, which is for
one thread, so they are asked for under a lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final

from cowfs.errors import Corrupt, DeviceError
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import Geometry
from cowfs.ondisk.records import Buffer
from cowfs.storage.device import Device, read_medium

BaseKey = tuple[bytes, int, tuple[int, ...]]
"""Which state of which volume: UUID, serial, checks of both slots."""
CACHE_BYTES: Final = 8 << 20
"""Pages of bits that are kept: those of 256 GiB at 4 KiB blocks."""


class Buried:
    """Which blocks are buried: the union of the bitmaps of all layers below. `extent`: no block from there on is."""

    def __init__(self, base: Geometry, bitmap_page: Callable[[int], Buffer], below: Buried | None) -> None:
        """`bitmap_page` gives pages of the base's own bitmap; `below` is what is buried in the base, an overlay itself."""
        self.base = base
        self.block_size = base.block_size
        self.extent = base.num_blocks + -(-f.SLOT_AREA_SIZE // base.block_size)
        self._bitmap_page = bitmap_page
        self._below = below
        self._page_bits = base.block_size * 8
        self._pages: dict[int, bytes] = {}
        self._page_max = max(16, CACHE_BYTES // base.block_size)
        self._nothing = bytes(base.block_size)
        self._mutex = threading.Lock()

    def page(self, index: int) -> bytes:
        """A page of bits, as in a bitmap: 1 for a buried block. Raises Corrupt, DeviceError: the base cannot be read."""
        if index * self._page_bits >= self.extent:
            return self._nothing
        with self._mutex:
            page = self._pages.pop(index, None)
            if page is None:
                page = self._compute(index)
                if len(self._pages) >= self._page_max:
                    del self._pages[next(iter(self._pages))]
            self._pages[index] = page
            return page

    def has(self, block: int) -> bool:
        """Whether a block is buried."""
        index, bit = divmod(block, self._page_bits)
        return bool(self.page(index)[bit >> 3] >> (bit & 7) & 1)

    def runs(self, start: int, count: int) -> list[tuple[int, int, bool]]:
        """The blocks as runs: (first, number, whether they are buried)."""
        found: list[tuple[int, int, bool]] = []
        while count > 0:
            index, bit = divmod(start, self._page_bits)
            number = min(count, self._page_bits - bit)
            for at, length, buried in bit_runs(self.page(index), bit, number):
                if found and found[-1][2] == buried:
                    first, before, _ = found.pop()
                    found.append((first, before + length, buried))
                else:
                    found.append((index * self._page_bits + at, length, buried))
            start += number
            count -= number
        return found

    def _compute(self, index: int) -> bytes:
        first = index * self._page_bits
        inside = min(max(self.base.num_blocks - first, 0), self._page_bits)
        bits = 0
        if inside:
            bits = int.from_bytes(self._bitmap_page(index), "little") & (1 << inside) - 1
            if self._below is not None:
                bits |= int.from_bytes(self._below.page(index), "little")
        bits |= (1 << min(self.extent - first, self._page_bits)) - 1 ^ (1 << inside) - 1  # under slot 2
        return bits.to_bytes(self.block_size, "little")


class LayeredDevice:
    """`top`, the overlay's own image, over `base`: an image, or another layered device. Offsets are those of both.

    It owns both devices, and closes them. All but reading blocks that are buried goes to the top.
    """

    def __init__(self, top: Device, base: Device, buried: Buried, key: BaseKey) -> None:
        """`key` says which state of the base was found there."""
        self.key = key
        self.top = top
        self.base = base
        self.buried = buried
        self.name = top.name
        self.read_only = top.read_only
        self._start = buried.base.data_start
        self._end = buried.base.slot_offsets[1]
        self._block_size = buried.block_size

    def size(self) -> int:
        """Length of the top in bytes."""
        return self.top.size()

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes, each from the layer that it lies in. Raises DeviceError."""
        return self._read(offset, length, lambda device, at, count: device.read(at, count))

    def read_medium(self, offset: int, length: int) -> bytes:
        """As `read`, past the caches of the system."""
        return self._read(offset, length, read_medium)

    def _read(self, offset: int, length: int, read: Callable[[Device, int, int], bytes]) -> bytes:
        start, end = max(offset, self._start), min(offset + length, self._end)
        if start >= end:
            return read(self.top, offset, length)
        pieces: list[bytes] = []
        if offset < start:
            pieces.append(read(self.top, offset, start - offset))
        for at, count, buried in self._byte_runs(start, end):
            pieces.append(read(self.base if buried else self.top, at, count))
        if end < offset + length:
            pieces.append(read(self.top, end, offset + length - end))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _byte_runs(self, start: int, end: int) -> list[tuple[int, int, bool]]:
        """(offset, length, whether it is buried) of what lies in these bytes of the base's data area."""
        size = self._block_size
        first, last = (start - self._start) // size, (end - 1 - self._start) // size
        try:
            runs = self.buried.runs(first, last - first + 1)
        except Corrupt as error:
            raise DeviceError(f"{self.name}: its base cannot tell where blocks lie: {error}") from error
        found = []
        for block, count, buried in runs:
            at = max(start, self._start + block * size)
            found.append((at, min(end, self._start + (block + count) * size) - at, buried))
        return found

    def write(self, offset: int, pieces: Sequence[Buffer]) -> None:
        """Writes to the top. Raises DeviceError, also for bytes of a buried block (I30)."""
        length = sum(memoryview(piece).nbytes for piece in pieces)
        start, end = max(offset, self._start), min(offset + length, self._end)
        if start < end and any(buried for _, _, buried in self._byte_runs(start, end)):
            raise DeviceError(f"{self.name}: writing at offset {offset} would cover a block that its base uses")
        self.top.write(offset, pieces)

    def flush(self) -> None:
        """Flushes the top; nobody writes below it."""
        self.top.flush()

    def discard(self, offset: int, length: int) -> None:
        """Discards bytes of the top."""
        self.top.discard(offset, length)

    def resize(self, size: int) -> None:
        """Gives the top another size."""
        self.top.resize(size)

    def lock(self, *, exclusive: bool, timeout: float = 0.0) -> None:
        """Locks the top; whoever opened the base has locked it."""
        self.top.lock(exclusive=exclusive, timeout=timeout)

    def drop_cache(self) -> None:
        """Of the top."""
        self.top.drop_cache()

    def close(self) -> None:
        """Closes all layers."""
        self.top.close()
        self.base.close()


def overlay_key(overlay: f.OverlayState) -> BaseKey:
    """The state that an overlay was made on."""
    return bytes(overlay.base_uuid), overlay.base_serial, tuple(overlay.base_checks)


def layered(device: Device) -> LayeredDevice | None:
    """The layers of a device, which may be behind a device that wraps it (as `device_below`); None: there is one only."""
    found: object = device
    while found is not None and not isinstance(found, LayeredDevice):
        found = getattr(found, "device_below", None)
    return found


def own_device(device: Device) -> Device:
    """The device that a volume writes to: of an overlay its own image."""
    layers = layered(device)
    return device if layers is None else layers.top


def bit_runs(page: bytes | bytearray, bit: int, number: int) -> list[tuple[int, int, bool]]:
    """Bits of a bitmap's page as runs of equal value: (first bit, length, value)."""
    start, end = bit >> 3, bit + number + 7 >> 3
    mask = (1 << number) - 1
    window = int.from_bytes(page[start:end], "little") >> (bit & 7) & mask
    if window == mask:
        return [(bit, number, True)]
    if window == 0:
        return [(bit, number, False)]
    runs = []
    at = bit
    while number > 0:
        value = bool(window & 1)
        probe = ~window if value else window
        low = probe & -probe
        length = min(number, low.bit_length() - 1) if low else number
        runs.append((at, length, value))
        window >>= length
        at += length
        number -= length
    return runs
