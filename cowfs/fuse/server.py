"""A mount from its beginning to its end: the session, the commits, the signals, and the clean end.

`serve` returns when the mount is gone, by whatever way: umount(8), fusermount3 -u, SIGTERM, SIGINT, SIGHUP. Before it
returns, everything is committed and the volume is settled and closed, so the image is unlocked when the process ends.
One process serves one mount (pyfuse3 knows only one session).
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import pyfuse3
import trio

from cowfs.control import Reply
from cowfs.errors import Busy, CowfsError, NoSpace, NotSupported, SpaceShort
from cowfs.fs.filesystem import Filesystem
from cowfs.fs.snapshot import Snapshots
from cowfs.fs.steps import Steps
from cowfs.fuse import late, loop, mounts
from cowfs.fuse.commits import CommitScheduler
from cowfs.fuse.jobs import carry_out_policy, run_job
from cowfs.fuse.operations import Operations
from cowfs.fuse.options import MountOptions, fuse_options
from cowfs.fuse.trees import ROOT_NODE, Trees, forget_all_names, forget_attributes, forget_entry, in_thread, root_names
from cowfs.ondisk.geometry import Geometry
from cowfs.storage import resize
from cowfs.storage.discard import Discards
from cowfs.storage.shrink import Plan
from cowfs.storage.volume import Volume

if TYPE_CHECKING:
    from cowfs.check.scrub import Work
    from cowfs.control.policy import Rolling
    from cowfs.control.scrub import Scrubber

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WORKERS_IDLE = 4
WORKERS_MAX = 256
"""Requests in progress at once: those that wait for a commit must leave room for those that need not wait. Each one holds
a receive buffer of up to 1 MiB."""
READ_AHEAD_KILOBYTES = 1024
RECLAIM_POLL_SECONDS = 0.05
COLLECTOR_THRESHOLDS = (50_000, 50, 1_000)
SWITCH_INTERVAL_SECONDS = 0.0005
"""How soon the trio thread gets the interpreter back while a commit is being written out by another thread."""

log = logging.getLogger(__name__)

R = TypeVar("R")


class MountFailed(CowfsError):
    """The kernel, libfuse or fusermount3 refused the mount; the message is theirs."""


class Server:
    """The daemon's side of one mount. It is the host of the commands that arrive through the control file."""

    def __init__(
        self, volume: Volume, mountpoint: str, options: MountOptions, on_ready: Callable[[], None] | None
    ) -> None:
        volume.limit_caches(options.cache_mebibytes << 20)
        self._snapshots: Snapshots | None = None
        if volume.foreign:
            foreign = Filesystem(volume, atime=options.atime)
            self.trees = Trees(lambda: foreign, None)
        else:
            snapshots = self._snapshots = Snapshots(volume, atime=options.atime)
            self.trees = Trees(_top(snapshots, options), snapshots)
        self.commits = CommitScheduler(
            volume,
            interval=options.commit_seconds,
            free_orphans=self._free_orphans,
            requests_wait=loop.requests_wait,
        )
        self.mount: Reply | None = {
            "mountpoint": mountpoint,
            "pid": os.getpid(),
            "options": ",".join(options.words()),
        }
        self._mountpoint = mountpoint
        self._device = -1
        self._stopping = False
        self._on_ready = on_ready
        self._scrubber: Scrubber | None = None
        self._rolling: Rolling | None = None
        self._nursery: trio.Nursery | None = None
        self.operations = Operations(self.trees, self._snapshots, self.commits, self, options)
        if self._snapshots is not None and options.snapshot is None and not volume.read_only:
            self.commits.spare = self._spare
        if options.discard and not volume.read_only:
            volume.discards = Discards(volume)

    @property
    def filesystem(self) -> Filesystem:
        """The tree that is mounted as the root."""
        return self.trees.root

    @property
    def snapshots(self) -> Snapshots:
        """All trees. Raises NotSupported on a foreign volume."""
        if self._snapshots is None:
            raise NotSupported("a foreign volume has no snapshots")
        return self._snapshots

    @property
    def rolling(self) -> Rolling:
        """The rolling snapshots of the volume. Raises NotSupported on a foreign volume."""
        if self._rolling is None:
            from cowfs.control.policy import Rolling  # most volumes have no policy

            self._rolling = Rolling(self.snapshots)
            if self.commits.spare is not None and self._nursery is not None:
                self._rolling.carried_out = True
                self._nursery.start_soon(carry_out_policy, self._rolling, self)
        return self._rolling

    async def _spare(self, missing: int) -> bool:
        return await self.rolling.make_space(self, missing)

    @property
    def has_open_files(self) -> bool:
        """Whether the kernel has a file open; when it closes one, it writes back what it kept of it."""
        return self.operations.has_open_files

    async def aside(self, function: Callable[[], R]) -> R:
        """Computes it in another thread."""
        return await trio.to_thread.run_sync(function)

    @property
    def scrubber(self) -> Scrubber:
        """The scrubs of the volume. Raises NotSupported on a foreign volume."""
        if self._scrubber is None:
            from cowfs.control.scrub import Scrubber  # for the first command of a scrub

            self._scrubber = Scrubber(self.filesystem.volume)
        return self._scrubber

    def start_job(self, work: Work) -> None:
        """Carries out work in slices while requests go on; unmounting ends it."""
        assert self._nursery is not None
        self._nursery.start_soon(run_job, self.filesystem.volume.device, work)

    async def change(self, operation: Callable[[], R]) -> R:
        """Carries out a change, at once or after the commits that bring space for it forward."""
        try:
            result = operation()
        except SpaceShort:
            result = await self.commits.retry(operation)
        except NoSpace as error:
            if not await self.commits.make_space(error):
                raise
            result = await self.commits.retry(operation)
        self.commits.start_reclaim()
        return result

    async def change_in_slices(self, step: Callable[[], bool]) -> None:
        """Carries them out with requests, and rather small commits, in between: a large one would seal for too long."""
        while await self.change(step):
            await self.commits.make_room(early=True)
            await trio.lowlevel.checkpoint()

    def files_of(self, name: bytes) -> Filesystem:
        """The files of a snapshot or clone, ready to have nodes."""
        return self.trees.root_of(self.snapshots.find(name))

    async def appeared(self, files: Filesystem, parent: int, name: bytes) -> None:
        """Has the kernel ask for the directory's attributes again, and look the name up anew where it may remember it."""
        node = self.trees.node(files, parent)
        forget_attributes(node)
        if self.operations.missing.may_be_remembered(node, name):
            await trio.to_thread.run_sync(forget_entry, node, name)

    def start_release(self) -> None:
        """In the background."""
        self.commits.start_reclaim()

    async def reclaimed(self) -> None:
        """Waits for the reclaim in the background."""
        volume = self.filesystem.volume
        while volume.reclaim.ready and not volume.read_only:
            self.commits.start_reclaim()
            await trio.sleep(RECLAIM_POLL_SECONDS)
        volume.check_writable()

    async def work(self, steps: Steps[R]) -> R:
        """Computes it a slice at a time, with requests in between."""
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            await trio.lowlevel.checkpoint()

    async def bring_forward(self) -> None:
        """Commits twice."""
        for _ in range(2):
            await self.commits.commit(complete=True)

    async def shrink(self, geometry: Geometry) -> Plan:
        """Raises Busy: open files remember where their blocks are."""
        raise Busy("a mounted volume can only grow: unmount it to make it smaller")

    async def grow(self, geometry: Geometry, *, preallocate: bool) -> None:
        """Makes the device longer in another thread; then there is one commit with the new size, requests going on."""
        device = self.filesystem.volume.device
        await trio.to_thread.run_sync(lambda: resize.reserve(device, geometry, preallocate=preallocate))
        await self.commits.grow(geometry)

    async def roll_back(self, operation: Callable[[], R]) -> R:
        """Carries out a rollback; afterwards the kernel knows nothing of the old tree any more."""
        old = self.trees.root
        epochs = forget_all_names()
        names = [] if epochs else root_names(old)  # which takes the longer the more there are

        def exchange() -> R:
            result = operation()
            self.trees.exchange()
            return result

        result = await self.change(exchange)
        if self.trees.root is not old:
            names += [] if epochs else root_names(self.trees.root)
            nodes = self.operations.open_nodes(old)
            if names or nodes:
                await in_thread(names, nodes)
            else:  # no name and no contents: that is told without waiting for anything
                forget_all_names()
                forget_attributes(ROOT_NODE)
        return result

    def close(self) -> None:
        """Everything that waits in memory goes into the volume, which is settled."""
        if self._snapshots is None:
            self.trees.root.close()
        else:
            self._snapshots.close()

    def _free_orphans(self) -> bool:
        """Frees what no name leads to, a slice of it; whether there is more."""
        more = False
        for filesystem in [self.trees.root] if self._snapshots is None else self._snapshots.all_open():
            filesystem.free_orphans()
            more |= filesystem.release_slice()
        return more

    async def flush_dirty_pages(self) -> None:
        """syncfs(2) on the own mount, by a thread, while other workers serve the WRITEs that it makes the kernel send.

        Where no file is open the kernel has written back all that it had of any.
        """
        if not self.has_open_files:
            return
        try:
            await trio.to_thread.run_sync(mounts.syncfs, self._mountpoint, self._device)
        except OSError as error:
            # After a rollback: what somebody wrote to a file of the old tree, and lost. All else was written back.
            if error.errno != errno.ESTALE:
                raise

    async def commit(self) -> None:
        """See CommitScheduler.commit."""
        await self.commits.commit()

    async def run(self) -> None:
        """Serves requests until the mount is gone."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self.commits.run)
            nursery.start_soon(self._stop_on_signals)
            nursery.start_soon(self._announce)
            await pyfuse3.main(WORKERS_IDLE, WORKERS_MAX)
            nursery.cancel_scope.cancel()

    async def _announce(self) -> None:
        """Says that the mount answers, once it does."""
        status = await trio.to_thread.run_sync(os.stat, self._mountpoint, abandon_on_cancel=True)
        self._device = status.st_dev
        mounts.raise_read_ahead(self._device, READ_AHEAD_KILOBYTES)
        log.info("%s is mounted on %s", self.filesystem.volume.device.name, self._mountpoint)
        if self._on_ready is not None:
            self._on_ready()
        if self._nursery is not None:
            if self.commits.spare is not None and self.filesystem.volume.settings.size:
                _ = (
                    self.rolling
                )  # there may be a policy to carry out; without one, the first command about it comes here
            self._nursery.start_soon(late.load_soon, self)

    async def _stop_on_signals(self) -> None:
        # While no receiver is open, a late signal must not break off the clean end.
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        async with trio.open_nursery() as nursery:
            with trio.open_signal_receiver(*STOP_SIGNALS) as received:
                async for which in received:
                    if not self._stopping:
                        self._stopping = True
                        log.info("unmounting after %s", signal.Signals(which).name)
                        nursery.start_soon(self._stop)

    async def _stop(self) -> None:
        """Unmounts. Where someone still uses the mount, what was written is saved, and then it is taken away."""
        try:
            try:
                await trio.to_thread.run_sync(mounts.unmount, self._mountpoint, abandon_on_cancel=True)
                return
            except Busy:
                log.warning("%s is in use; taking it away all the same", self._mountpoint)
            await self.flush_dirty_pages()
            await self.commits.commit()
            await trio.to_thread.run_sync(_unmount_lazily, self._mountpoint, abandon_on_cancel=True)
        except (CowfsError, OSError) as error:
            log.error("unmounting: %s", error)
        pyfuse3.terminate()


def _top(snapshots: Snapshots, options: MountOptions) -> Callable[[], Filesystem]:
    """Finds the tree that is mounted as the root. Raises NotFound, Corrupt."""
    if options.snapshot is None:
        return lambda: snapshots.live
    found = snapshots.filesystem(snapshots.find(options.snapshot))
    return lambda: found


def _unmount_lazily(mountpoint: str) -> None:
    mounts.unmount(mountpoint, lazy=True)


def serve(
    volume: Volume, mountpoint: str, options: MountOptions, *, on_ready: Callable[[], None] | None = None
) -> None:
    """Mounts `volume` on `mountpoint` (an absolute path) and serves it until it is unmounted; then settles and closes it.

    `on_ready` is called once the mount answers. Raises MountFailed, and CowfsError when the last commit fails. Only for
    the main thread, since it handles signals.
    """
    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    os.umask(0)  # objects are made with the umask of who asks
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    server: Server | None = None
    try:
        server = Server(volume, mountpoint, options, on_ready)
        words = fuse_options(options, volume.device.name, privileged=os.geteuid() == 0)
        if volume.read_only or not server.filesystem.tree.writable:
            words.add("ro")
        _mount(server.operations, mountpoint, words)
        try:
            loop.install()
            loop.shake_hands()
            _calm_collector()
            trio.run(server.run)
        finally:
            pyfuse3.close()
            log.info("%s is unmounted", mountpoint)
    finally:
        _settle(volume, server)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _calm_collector() -> None:
    """What is there stays, and garbage in cycles is rare here: a full collection would only make requests wait.

    Nor is there one now, which would take a tenth of the mount's time for what garbage importing leaves.
    """
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


def _settle(volume: Volume, server: Server | None) -> None:
    volume.inline_commits = True
    try:
        if server is not None:
            server.close()
    finally:
        volume.close()


def _mount(operations: Operations, mountpoint: str, words: set[str]) -> None:
    """The mount itself. libfuse and fusermount3 say on standard error why they fail."""
    with _caught_stderr() as said:
        try:
            pyfuse3.init(operations, mountpoint, words)
        except RuntimeError as error:
            failure: Any = error
        else:
            return
    lines = [line.strip() for line in said() if line.strip()]
    reason = lines[0] if lines else str(failure)
    for prefix in ("fusermount3: ", "fuse: "):
        reason = reason.removeprefix(prefix)
    raise MountFailed(f"cannot mount on {mountpoint}: {reason}")


@contextlib.contextmanager
def _caught_stderr() -> Iterator[Callable[[], list[str]]]:
    """Keeps what C code and child processes write to descriptor 2; the function gives its lines, afterwards, too."""
    with tempfile.TemporaryFile() as file:
        lines: list[str] = []
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: lines
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()
