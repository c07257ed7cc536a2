"""When a mounted volume commits, and who waits for it.

Duty: fsync, the timer and the control file ask for commits; callers share them. While one is being written, all who
come later wait for the next, which is sealed when the one before is published. Memory and space run short: commits are
started, or waited for, before more is accepted. Subtrees that wait to be dropped are dropped in slices in between. Where all
of that does not help, whoever knows what can be spared is asked (`spare`).

Invariants:
- `CommitScheduler.commit` returns only when a commit is durable that holds everything done before it was called.
- Only one commit is in flight.
- Sealing and publishing run in the trio thread, undisturbed, since they never await. Writing out is another thread's,
  unless the commit is small and the device quick (`writer`): then all of it is one step, and whoever asked never waits.
- Where that is so, and more requests wait to be read, they are served before: those that want a commit share this one.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from cowfs.errors import CowfsError, DeviceError, NoSpace, SpaceShort
from cowfs.fuse.writer import LARGE_BYTES, Pace, Writer
from cowfs.ondisk.geometry import Geometry
from cowfs.storage import resize
from cowfs.storage.commit import SealedCommit
from cowfs.storage.discard import punch
from cowfs.storage.volume import Volume

RECLAIM_SLICE_BLOCKS = 256
"""Small enough that a request waits a few milliseconds for a slice, in the worst case."""
RECLAIM_SLICES = 16
"""Slices that are dropped before the commit that brings their blocks forward, where an operation waits for space."""
EARLY_COMMIT_BYTES = 2 << 20
"""Dirty metadata after which work in the background has a commit made: sealing so much takes a few milliseconds."""
SPACE_ROUNDS_MAX = 64
"""How often an operation is tried again while the volume says that a commit brings space forward."""
GATHER_SECONDS = 0.002
"""How long a commit that would be made at once lets requests come before it: making another costs about as much."""

log = logging.getLogger(__name__)

R = TypeVar("R")


class _Round:
    """One commit: those who wait for it, and how it ended."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.complete = False
        self.error: CowfsError | None = None

    async def wait(self) -> None:
        await self.done.wait()
        self.result()

    def result(self) -> None:
        if self.error is not None:
            raise self.error


class CommitScheduler:
    """Commits of one volume, which no longer commits by itself. All methods are for the trio thread."""

    def __init__(
        self,
        volume: Volume,
        *,
        interval: float,
        free_orphans: Callable[[], bool] = lambda: False,
        requests_wait: Callable[[], bool] = lambda: False,
        pace: Pace | None = None,
    ) -> None:
        """`interval` is the longest time, in seconds, that a change stays in memory only.

        `free_orphans` frees a slice of what could not be freed when its last user went, and of trees without a name; it
        says whether there is more. `requests_wait` says whether there are requests that nobody has read yet.
        """
        volume.inline_commits = False
        self.commits = 0
        self.spare: Callable[[int], Awaitable[bool]] | None = None
        """Deletes what can be spared where that frees so many blocks more; whether it did."""
        self._sparing = trio.Lock()
        self._spared = 0
        self._volume = volume
        self._interval = interval
        self._free_orphans = free_orphans
        self._next = _Round()
        self._current: _Round | None = None
        self._alone: trio.Event | None = None  # set when whoever makes all commits by itself has done so
        self._growing = trio.Lock()
        self._always_read_only = volume.read_only
        self._failure: CowfsError | None = None
        self._writer = (
            Writer()
        )  # not one of trio's threads: all of them may be waiting for requests that wait for a commit
        self._pace = pace or Pace()
        self._requests_wait = requests_wait
        self._gathering: trio.Event | None = None  # set when whoever lets requests come before its commit has done so
        self._wanted = trio.Event()
        self._reclaimable = trio.Event()
        self._reclaimable.set()
        self._discardable = trio.Event()

    async def run(self) -> None:
        """The timer, the commits that nobody waits for, and the reclaim; until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tick)
            nursery.start_soon(self._commit_when_wanted)
            nursery.start_soon(self._reclaim)
            nursery.start_soon(self._discard)

    async def commit(self, *, complete: bool = False) -> None:
        """Returns when all that was done before is durable. Raises DeviceError, or what else made the commit fail.

        `complete` asks for a commit without a manifest: two flushes, but later damage costs a block and not the commit.
        """
        if self._always_read_only:
            return
        self._check_alive()
        if not self._volume.dirty and not complete:
            if self._current is not None:
                await self._current.wait()
            return
        mine = self._next
        mine.complete |= complete
        gathered = False
        while not mine.done.is_set():
            self._check_alive()
            if self._current is not None:
                await self._current.done.wait()
            elif self._alone is not None:
                await self._alone.wait()
            elif self._gathering is not None:
                await self._gathering.wait()
            elif not gathered and self._pace.is_quick and self._requests_wait():
                gathered = True
                await self._gather()
            else:
                await self._perform()
        mine.result()

    async def _gather(self) -> None:
        """Lets requests be served that wait already, for a short time, so that those which want a commit join `_next`."""
        self._gathering = trio.Event()
        end = time.monotonic() + GATHER_SECONDS
        try:
            await trio.lowlevel.checkpoint()
            while self._requests_wait() and time.monotonic() < end:
                await trio.lowlevel.checkpoint()
        finally:
            self._gathering.set()
            self._gathering = None

    async def grow(self, geometry: Geometry) -> None:
        """Commits a larger size of the volume, whose device is as long already. Who waits for commits gets them meanwhile.

        Raises NoSpace, DeviceError, InvalidArgument where the volume has grown otherwise since that was checked.
        """
        async with self._growing:
            resize.check_growth(self._volume, geometry)
            for _ in range(SPACE_ROUNDS_MAX):
                try:
                    await self._grow(geometry)
                    return
                except SpaceShort:
                    with contextlib.suppress(SpaceShort):  # then commits have to come first, as they do
                        self._volume.reclaim_slice(RECLAIM_SLICE_BLOCKS)
                except NoSpace:
                    break
            resize.renounce(self._volume)
        raise NoSpace

    async def _grow(self, geometry: Geometry) -> None:
        """Only the commits made here, one behind the other, until the newest is in slot 1; then the one that grows."""
        self._check_alive()
        self._alone = trio.Event()
        try:
            while self._current is not None:
                await self._current.done.wait()
            resize.announce(self._volume)
            await self._perform(complete=True)
            self._check_alive()
            await self._perform(complete=True)
            while self._volume.newest_slot != 1:
                self._check_alive()
                await self._perform(complete=True)
            self._check_alive()
            sealed = resize.seal_grown(self._volume, geometry)
            (await self._perform(sealed=sealed)).result()
        finally:
            self._alone.set()
            self._alone = None

    def start(self) -> None:
        """Has a commit made in the background."""
        self._wanted.set()

    def start_reclaim(self) -> None:
        """Says that subtrees may be waiting to be dropped."""
        self._reclaimable.set()

    @property
    def crowded(self) -> bool:
        """Whether `make_room` has something to do."""
        return not self._always_read_only and self._volume.wants_commit

    async def make_room(self, *, early: bool = False) -> None:
        """Waits until the volume has less in memory than it must not exceed.

        `early`: for work in the background, a commit is begun sooner, so that none is a large one.
        """
        if self.crowded or (early and self._volume.dirty_bytes > EARLY_COMMIT_BYTES):
            self._wanted.set()
            if self._volume.must_wait and not self._volume.read_only:
                await self.commit()

    async def retry(self, operation: Callable[[], R]) -> R:
        """The result of an operation that was short of space once already, after commits and reclaim.

        Raises NoSpace when that helps no more.
        """
        for _ in range(SPACE_ROUNDS_MAX):
            self._volume.check_writable()
            with contextlib.suppress(SpaceShort):  # then a commit has to come first, as it does
                for _ in range(RECLAIM_SLICES):
                    if not self._volume.reclaim_slice(RECLAIM_SLICE_BLOCKS):
                        break
                    await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()  # a commit need not be one
            await self.commit(complete=not self._volume.dirty)
            try:
                return operation()
            except SpaceShort:
                continue
            except NoSpace as error:
                if not await self.make_space(error):
                    raise
        raise NoSpace

    async def make_space(self, error: NoSpace) -> bool:
        """After an operation failed for want of space: whether something was deleted, so that `retry` may help.

        Who waits while another operation has something deleted is told to try again.
        """
        if self.spare is None or error.missing is None or isinstance(error, SpaceShort):
            return False
        if self._sparing.statistics().owner is trio.lowlevel.current_task():
            return False  # what is short is the deletion itself
        spared = self._spared
        async with self._sparing:
            if self._spared != spared:
                return True
            helped = await self.spare(error.missing)
            self._spared += helped
            return helped

    def _check_alive(self) -> None:
        """Raises the failure after which nothing becomes durable any more, whoever met it."""
        if self._failure is None and self._volume.read_only:
            self._failure = DeviceError(self._volume.read_only_reason)
        if self._failure is not None:
            raise self._failure

    async def _perform(self, *, complete: bool = False, sealed: SealedCommit | None = None) -> _Round:
        """Makes one commit, of the open generation or of what was `sealed` just now, for all who have joined `_next`."""
        this = self._current = self._next
        self._next = _Round()
        try:
            await self._write(sealed or self._volume.seal(complete=complete or this.complete))
        except CowfsError as error:
            this.error = error
        except BaseException:
            this.error = DeviceError("a commit was broken off")
            raise
        finally:
            self._current = None
            this.done.set()
        return this

    async def _write(self, sealed: SealedCommit) -> None:
        volume = self._volume
        try:
            if not sealed.is_small:
                if sealed.born_bytes > LARGE_BYTES:
                    self._pace.interrupt()
                await self._writer.run(sealed.write_out)
            elif self._pace.is_quick:
                self._pace.measure(sealed.write_out, serving=True)
            else:
                await self._writer.run(lambda: self._pace.measure(sealed.write_out, serving=False))
        except CowfsError as error:
            self._fail(error)
            volume.publish_failed(sealed, error)
            raise
        except Exception as error:
            log.exception("a commit failed")
            failure = DeviceError(f"a commit failed: {error!r}")
            self._fail(failure)
            volume.publish_failed(sealed, failure)
            raise failure from error
        volume.publish(sealed)
        self.commits += 1
        if volume.discards is not None and volume.discards.waiting:
            self._discardable.set()

    def _fail(self, error: CowfsError) -> None:
        self._failure = error
        log.error("%s; read-only from here on", error)

    async def _tick(self) -> None:
        """Commits every `interval` seconds: what is dirty, else once more without a manifest when the last had one."""
        while True:
            await trio.sleep(self._interval)
            if self._volume.read_only:
                continue
            self._reclaimable.set()
            if self._volume.dirty or self._volume.manifest_pending:
                await self._commit_quietly(complete=True)

    async def _commit_when_wanted(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            if not self._volume.read_only:
                await self._commit_quietly()

    async def _commit_quietly(self, *, complete: bool = False) -> None:
        """A commit whose failure nobody waits for: the log has it, and the volume has turned read-only."""
        try:
            await self.commit(complete=complete)
        except CowfsError as error:
            log.debug("a commit in the background failed: %s", error)

    async def _discard(self) -> None:
        """Gives back to the medium what commits freed, in another thread; until cancelled."""
        while True:
            await self._discardable.wait()
            self._discardable = trio.Event()
            discards, volume = self._volume.discards, self._volume
            while discards is not None and discards.waiting:
                runs = discards.next()
                error: Exception | None = None
                try:
                    await trio.to_thread.run_sync(punch, volume.device, volume.geometry, runs)
                except CowfsError as failure:
                    error = failure
                finally:
                    discards.done(runs, error)

    @property
    def _may_reclaim(self) -> bool:
        """Whether there is no reason to let the queue grow: somebody counts what is in it, or below it."""
        return not self._volume.read_only and not self._volume.reclaim.holds

    async def _reclaim(self) -> None:
        """Drops what waits to be dropped, a slice at a time, with requests in between."""
        while True:
            await self._reclaimable.wait()
            self._reclaimable = trio.Event()
            try:
                rounds = 0
                more = True
                while more and rounds < SPACE_ROUNDS_MAX:
                    while self._may_reclaim and await self._reclaim_slice():
                        await self.make_room()
                        await trio.lowlevel.checkpoint()
                    try:
                        more = self._free_orphans()
                        rounds = 0
                    except SpaceShort:
                        rounds += 1
                        await self.commit(complete=not self._volume.dirty)
                    if more:
                        await self.make_room(early=True)
                        await trio.lowlevel.checkpoint()
            except CowfsError as error:
                log.error("reclaiming stopped: %s", error)

    async def _reclaim_slice(self) -> bool:
        """Drops a slice, after the commits that have to come first; True while more can be done."""
        for _ in range(SPACE_ROUNDS_MAX):
            try:
                return self._volume.reclaim_slice(RECLAIM_SLICE_BLOCKS)
            except SpaceShort:
                await trio.lowlevel.checkpoint()
                await self.commit(complete=not self._volume.dirty)
        return False
