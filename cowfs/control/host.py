"""What a command may ask of whoever carries it out: the daemon behind a mount, or the opener of an image."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from cowfs.control.wire import Reply
from cowfs.errors import NotSupported
from cowfs.fs.filesystem import Filesystem
from cowfs.fs.snapshot import Snapshots
from cowfs.fs.steps import Steps
from cowfs.fs.steps import finish as run_steps
from cowfs.ondisk.geometry import Geometry
from cowfs.storage.resize import grow
from cowfs.storage.shrink import Plan, prepare, shrink

if TYPE_CHECKING:  # a mount, and most commands, start without them
    from cowfs.check.scrub import Work
    from cowfs.control.policy import Rolling
    from cowfs.control.scrub import Scrubber

R = TypeVar("R")


class Host(Protocol):
    """What carries commands out."""

    @property
    def filesystem(self) -> Filesystem:
        """The live tree."""
        ...

    @property
    def snapshots(self) -> Snapshots:
        """All trees. Raises NotSupported on a foreign volume."""
        ...

    @property
    def mount(self) -> Reply | None:
        """Where and how the volume is mounted; None for an image that is not."""
        ...

    @property
    def has_open_files(self) -> bool:
        """Whether a file is open: without one, there is nothing that `flush_dirty_pages` could find."""
        ...

    async def flush_dirty_pages(self) -> None:
        """Brings what write(2) has returned, and the kernel still keeps, into the volume."""
        ...

    async def commit(self) -> None:
        """Returns when everything done so far is durable."""
        ...

    async def change(self, operation: Callable[[], R]) -> R:
        """The result of a change, carried out at once, or after the commits that bring space for it forward."""
        ...

    async def change_in_slices(self, step: Callable[[], bool]) -> None:
        """Repeats a change until it returns False, with other requests and commits in between. See `change`."""
        ...

    def files_of(self, name: bytes) -> Filesystem:
        """The files of a snapshot or clone. Raises NotFound, NotSupported, Corrupt."""
        ...

    async def appeared(self, files: Filesystem, parent: int, name: bytes) -> None:
        """Says that a directory got an entry by a command: whoever remembers that there was none forgets that."""
        ...

    def start_release(self) -> None:
        """Says that trees without a name may be waiting to be released."""
        ...

    async def reclaimed(self) -> None:
        """Returns when what was deleted is free. Raises ReadOnly where it will not be."""
        ...

    async def work(self, steps: Steps[R]) -> R:
        """The result of a long computation that changes nothing, with other requests between its slices."""
        ...

    async def aside(self, function: Callable[[], R]) -> R:
        """The result of a function that knows nothing of the volume and may take a while."""
        ...

    @property
    def rolling(self) -> Rolling:
        """The rolling snapshots of the volume. Raises NotSupported on a foreign volume."""
        ...

    @property
    def scrubber(self) -> Scrubber:
        """The scrubs of the volume. Raises NotSupported on a foreign volume."""
        ...

    def start_job(self, work: Work) -> None:
        """Carries out work in slices, in the background where that is possible."""
        ...

    async def bring_forward(self) -> None:
        """Commits until what was freed up to now can be given out."""
        ...

    async def grow(self, geometry: Geometry, *, preallocate: bool) -> None:
        """Gives the volume more blocks, durably. Raises NoSpace, NotSupported, DeviceError."""
        ...

    async def shrink(self, geometry: Geometry) -> Plan:
        """Takes blocks away from a volume that is not mounted. Raises InvalidArgument, NotSupported, Corrupt, DeviceError."""
        ...

    async def roll_back(self, operation: Callable[[], R]) -> R:
        """As `change`, for one that exchanges the live tree: whoever cached something of it forgets that."""
        ...


class Offline:
    """The host of commands on an image that is not mounted; `snapshots` is None for a foreign volume."""

    def __init__(self, filesystem: Filesystem, snapshots: Snapshots | None = None) -> None:
        self._filesystem = filesystem
        self._snapshots = snapshots
        self._scrubber: Scrubber | None = None
        self._rolling: Rolling | None = None
        self.has_open_files = False
        self.mount: Reply | None = None

    @property
    def filesystem(self) -> Filesystem:
        """The live tree, which a rollback makes another object."""
        return self._filesystem if self._snapshots is None else self._snapshots.live

    @property
    def snapshots(self) -> Snapshots:
        """All trees."""
        if self._snapshots is None:
            raise NotSupported("a foreign volume has no snapshots")
        return self._snapshots

    async def flush_dirty_pages(self) -> None:
        """There is no kernel in between."""

    async def commit(self) -> None:
        """Commits at once."""
        self.filesystem.sync()

    async def change(self, operation: Callable[[], R]) -> R:
        """Carries it out; the volume makes room by itself."""
        return operation()

    async def change_in_slices(self, step: Callable[[], bool]) -> None:
        """Carries them out one after the other."""
        while step():
            pass

    def files_of(self, name: bytes) -> Filesystem:
        """The files of a snapshot or clone."""
        return self.snapshots.filesystem(self.snapshots.find(name))

    async def appeared(self, files: Filesystem, parent: int, name: bytes) -> None:
        """Nobody remembers anything."""

    def start_release(self) -> None:
        """Does it now."""
        for files in self.snapshots.all_open():
            while files.release_slice():
                pass

    async def reclaimed(self) -> None:
        """Does it now."""
        while self.filesystem.volume.reclaim_slice():
            self.filesystem.sync()
        self.filesystem.sync()

    async def work(self, steps: Steps[R]) -> R:
        """Computes it in one go."""
        return run_steps(steps)

    async def aside(self, function: Callable[[], R]) -> R:
        """Computes it here and now."""
        return function()

    @property
    def rolling(self) -> Rolling:
        """The rolling snapshots of the volume, which nobody carries out while it is not mounted."""
        from cowfs.control.policy import Rolling

        if self._rolling is None:
            self._rolling = Rolling(self.snapshots)
        return self._rolling

    @property
    def scrubber(self) -> Scrubber:
        """The scrubs of the volume."""
        from cowfs.control.scrub import Scrubber

        if self._scrubber is None:
            self._scrubber = Scrubber(self.filesystem.volume)
        return self._scrubber

    def start_job(self, work: Work) -> None:
        """Carries all of it out at once."""
        from cowfs.check.scrub import answered

        for _ in answered(self.filesystem.volume.device, work, time.sleep):
            pass

    async def bring_forward(self) -> None:
        """Commits twice."""
        for _ in range(2):
            self.filesystem.volume.commit(complete=True)

    async def grow(self, geometry: Geometry, *, preallocate: bool) -> None:
        """At once."""
        grow(self.filesystem.volume, geometry, preallocate=preallocate)

    async def shrink(self, geometry: Geometry) -> Plan:
        """At once. What the trees of files remember of places is void afterwards: nothing but closing may follow."""
        self.filesystem.sync()
        prepare(self.filesystem.volume)
        return shrink(self.filesystem.volume, geometry)

    async def roll_back(self, operation: Callable[[], R]) -> R:
        """As `change`: nobody has cached anything."""
        return operation()


def finish(coroutine: Coroutine[Any, Any, R]) -> R:
    """The result of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    coroutine.close()
    raise AssertionError("a command waited where nothing can be waited for")
