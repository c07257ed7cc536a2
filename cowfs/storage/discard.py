"""Giving free blocks back to the medium: holes in an image file, discarded sectors of a block device.

Invariant:
- I41 A block is given back only while it could be given out: no state in either slot names it, and nothing of it waits to be
  written. From the moment that it is chosen until the device has answered it is withheld from the allocator; a write that
  overtook the device would be lost.

Whether the device did it, or a part of it, is not known until the next flush, and makes no difference: nobody reads a free
block.

Locking: the core thread; `punch` is for any thread.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Final, TypeAlias

from cowfs.errors import DeviceError, NotSupported
from cowfs.ondisk.geometry import Geometry
from cowfs.storage.device import Device
from cowfs.storage.freed import Freed

if TYPE_CHECKING:
    from cowfs.storage.volume import Volume

SLICE_BYTES: Final = 256 << 20
"""Given back at once: what is withheld from writers meanwhile."""
DISCARD_BYTES_MIN: Final = 64 << 10
"""What is shorter is not worth a system call after each commit; `trim` takes everything."""
LEAST_MAX_BYTES: Final = 1 << 30
"""A run as long as this is never left out: finding out how long one is looks at so much of the bitmap around each slice."""
PAGES_MAX: Final = 64
"""Pages of the bitmap that a trim looks at in one slice."""

Runs: TypeAlias = "list[tuple[int, int]]"
"""(first block, count)"""

log = logging.getLogger(__name__)


def punch(device: Device, geometry: Geometry, runs: Runs) -> None:
    """Gives the blocks back. Raises NotSupported where the medium cannot, DeviceError."""
    for start, count in runs:
        device.discard(geometry.block_offset(start), count * geometry.block_size)


class Trim:
    """Gives back all free blocks of a range, a slice at a time: `take`, `punch`, `give_back`, as often as there is `more`."""

    def __init__(self, volume: Volume, first: int, end: int, *, least: int = 1) -> None:
        """Blocks from `first` to before `end`; free runs shorter than `least`, or LEAST_MAX_BYTES, are left out. Raises
        ReadOnly."""
        volume.check_writable()
        self.position = first
        self._volume = volume
        self._end = end
        self._least = min(least, LEAST_MAX_BYTES // volume.geometry.block_size)

    @property
    def more(self) -> bool:
        """Whether the end is not reached yet."""
        assert self._volume.spacemap is not None
        return self.position < min(self._end, self._volume.spacemap.num_blocks)

    def take(self) -> Runs:
        """The next blocks, withheld; perhaps none, also where space is short. Raises ReadOnly, Corrupt, DeviceError."""
        volume = self._volume
        volume.check_writable()
        spacemap = volume.spacemap
        assert spacemap is not None
        most = min(max(1, SLICE_BYTES // volume.geometry.block_size), volume.spare // 2)
        if not most:  # who waits for space must not wait for us
            self.position = self._end
            return []
        runs, self.position = spacemap.next_free(
            self.position, self._end, least=self._least, most=most, pages=PAGES_MAX
        )
        for start, count in runs:
            spacemap.withhold(start, count)
        return runs

    def give_back(self, runs: Runs) -> None:
        """The device has answered."""
        assert self._volume.spacemap is not None
        for start, count in runs:
            self._volume.spacemap.give_back(start, count)


class Discards:
    """What commits freed, on its way back to the medium."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._waiting: deque[tuple[int, int]] = deque()
        self._least = max(1, DISCARD_BYTES_MIN // volume.geometry.block_size)
        self._on = True

    @property
    def waiting(self) -> bool:
        """Whether there is something for `next`."""
        return bool(self._waiting)

    def take(self, freed: Freed) -> None:
        """Blocks that were just released: long runs of them are withheld, unless space is short."""
        spacemap = self._volume.spacemap
        assert spacemap is not None
        if not self._on or self._volume.read_only:
            return
        room = self._volume.spare // 2
        for start, length in freed.runs(self._least):
            count = min(length, room)
            if count >= self._least:
                spacemap.withhold(start, count)
                self._waiting.append((start, count))
                room -= count

    def next(self) -> Runs:
        """What to give back now. `done` has to follow."""
        if self._volume.read_only:  # nothing is written any more (I11)
            self.cancel()
        room = max(1, SLICE_BYTES // self._volume.geometry.block_size)
        runs: Runs = []
        while self._waiting and (not runs or self._waiting[0][1] <= room):
            runs.append(self._waiting.popleft())
            room -= runs[-1][1]
        return runs

    def done(self, runs: Runs, error: Exception | None = None) -> None:
        """The device has answered, or failed; that is said, and costs the volume nothing."""
        assert self._volume.spacemap is not None
        for start, count in runs:
            self._volume.spacemap.give_back(start, count)
        if isinstance(error, NotSupported):
            self._on = False
            self.cancel()
            log.warning("discard is off: %s", error)
        elif error is not None:
            log.error("freed blocks were not given back: %s", error)

    def cancel(self) -> bool:
        """Space is short: what waits is given out instead. Whether there was something."""
        runs, self._waiting = list(self._waiting), deque()
        self.done(runs)
        return bool(runs)

    def finish(self) -> None:
        """Gives back what waits, here and now."""
        while self._waiting:
            self.carry_out(self.next())

    def carry_out(self, runs: Runs) -> None:
        """Gives these back, here and now."""
        error: Exception | None = None
        try:
            punch(self._volume.device, self._volume.geometry, runs)
        except (DeviceError, NotSupported) as failure:
            error = failure
        self.done(runs, error)
