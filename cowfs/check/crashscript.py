"""Scripts of operations on a volume in memory: the workloads of crash tests, in words, so that a failing one can be repeated.

A script is a row of steps, one a line or with `;` between them. Paths are absolute; NAME:/path is one in a snapshot or clone.
Numbers are decimal, sizes and offsets bytes.

    create PATH | mkdir PATH | symlink PATH TARGET | link OLD NEW | unlink PATH | rmdir PATH | rename OLD NEW
    exchange ONE OTHER | write PATH OFFSET SIZE | append PATH SIZE | truncate PATH SIZE | chmod PATH OCTAL
    setxattr PATH NAME SIZE | removexattr PATH NAME | read PATH | list PATH
    copy OLD NEW     a copy of a file that shares its data
    copytree OLD NEW [ENTRIES]   the same of a directory; with ENTRIES in slices of so many, and a commit after each
    hold PATH        opens the file and keeps it open; release PATH (the path it was opened by) closes it
    snapshot NAME | snapshot NAME SOURCE | clone NAME | clone NAME SOURCE | delete NAME...: all of these at once
    retitle NAME NEW: gives a snapshot or clone another name | protect NAME | unprotect NAME
    rollback NAME    discards the present; rollback NAME save: keeps it as a snapshot
    reset [NAME]     back from an overlay to its base; with NAME, the present is kept as a snapshot
    sync             fsync(2): a commit, with a manifest where that is possible
    commit           a commit without one, as the timer makes it
    seal, publish    the two ends of a commit, with steps of the next generation in between; seal complete: without a manifest
    during STEP      a step of the next generation that happens while `publish` is writing, between two writes
    reclaim          drops a slice of what waits to be dropped, and of what a copy left that was broken off
    kill             the process ends as it is, and another one opens the volume: unflushed writes are in the page cache
    die COUNT        the same, but only after so many more writes and flushes: in the middle of a commit or an opening
    remount          a clean unmount, and another process

What is written differs with each write. A step that is refused (no such file, no space) changes nothing, and is counted.

Locking: one thread.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from cowfs.check.crashdevice import RecordingDevice
from cowfs.check.crashtest import Ended, Layers, Synced, TreeState, Watch, observe, one_layer, open_watched
from cowfs.errors import CowfsError, CrossTree, InvalidArgument, NoSpace, NotFound, ReadOnly, SpaceShort
from cowfs.fs import RENAME_EXCHANGE, Caller, Filesystem
from cowfs.fs.snapshot import Snapshots
from cowfs.fs.treeclone import TreeClone
from cowfs.ondisk import format as f
from cowfs.storage.commit import SealedCommit
from cowfs.storage.tree import Tree

SPACE_ROUNDS_MAX: Final = 64
START: Final = 1_700_000_000_123_456_789
STEP: Final = 1_000_000_007
"""The clock of a script, nanoseconds: every look at it moves it on."""

CALLER: Final = Caller(1000, 100)
FATAL: Final = (errno.EIO, errno.EROFS, errno.ESTALE)
"""EIO, EROFS and ESTALE are no refusals."""


class Clock:
    """Nanoseconds since 1970, the same at each repetition."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        self.now += STEP
        return self.now


class Killed(BaseException):
    """The process has ended; nothing of it runs any more."""


class ScriptRun:
    """A script being run on a recording device, by one process after the other.

    `refused` counts refusals by errno. With `strict` they are raised. EIO, EROFS and ESTALE are raised in any case.
    """

    def __init__(
        self,
        device: RecordingDevice,
        *,
        strict: bool = False,
        watch_class: type[Watch] = Watch,
        clock: Callable[[], int] | None = None,
        layers: Layers = one_layer,
    ) -> None:
        self.device = device
        self._layers = layers
        self.steps: list[str] = []
        self.refused: Counter[int] = Counter()
        self.performed: Counter[str] = Counter()
        self._strict = strict
        self._watch_class = watch_class
        self._clock = clock or Clock()
        self._writes = 0
        self._held: dict[str, list[tuple[Filesystem, int]]] = {}
        self._in_flight: SealedCommit | None = None
        self._waiting: TreeState | None = None
        self._during: deque[str] = deque()
        self._publishing = False
        self._calls_left = -1  # until the process is killed
        device.before_call = self._before_call
        self.trees = self._open()

    @property
    def filesystem(self) -> Filesystem:
        """The live tree's."""
        return self.trees.live

    def run(self, script: str) -> None:
        """Performs a script. Raises InvalidArgument for words that mean nothing."""
        for step in split(script):
            self.perform(step)

    def perform(self, step: str) -> None:
        """Performs one step."""
        self.steps.append(step)
        word, _, rest = step.partition(" ")
        if word == "during":
            self._action(rest)
            self._during.append(rest)
            return
        action = self._action(step)
        try:
            self._with_space(action)
        except CowfsError as error:
            self.refused[error.errno] += 1
            if self._strict or self._is_fatal(error):
                raise
        except Killed:
            self.performed["killed"] += 1
            self._calls_left = -1
            self.reopen()
        else:
            self.performed[word] += 1

    def _is_fatal(self, error: CowfsError) -> bool:
        """Whether a failure is one of the volume, and not of a step that makes no sense, as writing into a snapshot."""
        return error.errno in FATAL and not (isinstance(error, ReadOnly) and not self.trees.volume.read_only)

    def _action(self, step: str) -> Callable[[], object]:
        word, *arguments = step.split()
        action: Callable[..., object] | None = getattr(self, f"_do_{word}", None)
        if action is None or len(arguments) not in _ARGUMENTS.get(word, ()):
            raise InvalidArgument(f"no step of a script: {step}")
        return functools.partial(action, *arguments)

    def write_bytes(self, path: str, offset: int, data: bytes) -> None:
        """Writes given bytes, which a script cannot say."""
        self.steps.append(f"write {path} {offset} {len(data)}")
        files, ino = self.find(path)
        self._with_space(lambda: files.write(ino, offset, data))

    def read_bytes(self, path: str) -> bytes:
        """A file's contents. Raises NotFound."""
        files, ino = self.find(path)
        return files.read(ino, 0, files.getattr(ino).size)

    def find(self, path: str) -> tuple[Filesystem, int]:
        """Tree and inode that a path leads to. Raises NotFound, NotADirectory."""
        tree, _, rest = path.rpartition(":")
        files = self.trees.filesystem(self.trees.find(tree.encode())) if tree else self.trees.live
        ino: int = f.ROOT_INODE
        for name in rest.split("/"):
            if name:
                ino = files.lookup(ino, name.encode()).ino
        return files, ino

    def held(self) -> list[str]:
        """The paths by which files are held."""
        return [path for path, numbers in self._held.items() if numbers]

    def reopen(self) -> None:
        """A new process opens the volume. Raises what that raises; then there is none."""
        self.stop()
        self.trees = self._open()

    def stop(self) -> None:
        """The process is no more: what it has not written yet is gone."""
        self._in_flight = None
        self._waiting = None
        self._publishing = False
        self._held.clear()
        self._during.clear()

    # --- processes ---

    def _open(self) -> Snapshots:
        while True:
            self.device.mark(Ended())
            try:
                trees, self.watch = open_watched(
                    self.device, clock=self._clock, watch_class=self._watch_class, layers=self._layers
                )
            except Killed:
                self.performed["killed"] += 1
                self._calls_left = -1
            else:
                trees.volume.inline_commits = False
                return trees

    def _with_space(self, operation: Callable[[], object]) -> None:
        """As the FUSE server does it: what is short of space is tried again after reclaim and commits."""
        for _ in range(SPACE_ROUNDS_MAX):
            try:
                operation()
            except SpaceShort:
                self._finish()
                self._reclaim()
                self._commit(complete=not self.trees.volume.dirty)
            else:
                return
        raise NoSpace

    def _reclaim(self) -> None:
        try:
            self.trees.volume.reclaim_slice(16)
            for files in self.trees.all_open():
                files.release_slice(2)
        except SpaceShort:
            self._finish()
            self._commit(complete=not self.trees.volume.dirty)

    def _commit(self, *, complete: bool) -> None:
        self._seal(complete)
        self._finish()

    def _seal(self, complete: bool) -> None:
        self._finish()
        self._in_flight = self.trees.volume.seal(complete=complete)

    def _finish(self) -> None:
        """Writes out and publishes what is sealed."""
        sealed = self._in_flight
        if sealed is None:
            return
        self._in_flight = None
        volume = self.trees.volume
        self._publishing = True
        try:
            sealed.write_out()
        except BaseException as error:
            volume.publish_failed(sealed, error)
            raise
        finally:
            self._publishing = False
        volume.publish(sealed)
        self._answer()
        late, self._during = self._during, deque()
        for step in late:
            self.perform(step)

    def _answer(self) -> None:
        """Who waits for a sync is told that it is done."""
        if self._waiting is not None:
            self.device.mark(Synced(self._waiting))
            self._waiting = None

    def _before_call(self, kind: str) -> None:
        """Before the device writes or flushes: the process may be killed; another thread may do something meanwhile."""
        if self._calls_left == 0:
            raise Killed
        self._calls_left -= self._calls_left > 0
        if kind == "write" and self._publishing and self._during:
            self._publishing = False
            self._meanwhile(self._during.popleft())
            self._publishing = True

    def _meanwhile(self, step: str) -> None:
        try:
            self._action(step)()
        except SpaceShort:
            self._during.append(step)
        except CowfsError as error:
            self.refused[error.errno] += 1
            if self._is_fatal(error):
                raise
        else:
            self.performed["during"] += 1

    # --- steps: commits and processes ---

    def _do_sync(self) -> None:
        self.trees.volume.check_writable()
        self._finish()
        self._waiting = observe(self.trees)
        if self.trees.volume.dirty:
            self._commit(complete=False)
        else:
            self._answer()

    def _do_commit(self) -> None:
        self._commit(complete=True)

    def _do_seal(self, how: str = "") -> None:
        if how not in ("", "complete"):
            raise InvalidArgument(f"seal {how}")
        self._seal(how == "complete")

    def _do_publish(self) -> None:
        self._finish()

    def _do_reclaim(self) -> None:
        self._reclaim()

    def _do_kill(self) -> None:
        self.reopen()

    def _do_die(self, count: str) -> None:
        self._calls_left = int(count)

    def _do_remount(self) -> None:
        self._finish()
        for path in self.held():
            while self._held[path]:
                self._do_release(path)
        self.trees.close()
        self.reopen()

    # --- steps: trees ---

    def _do_snapshot(self, name: str, source: str = "") -> None:
        self.trees.create(name.encode(), source=source.encode() or None)

    def _do_clone(self, name: str, source: str = "") -> None:
        self.trees.create(name.encode(), writable=True, source=source.encode() or None)

    def _do_delete(self, *names: str) -> None:
        self.trees.delete([name.encode() for name in names])
        self._let_go()

    def _do_retitle(self, name: str, new: str) -> None:
        self.trees.rename(name.encode(), new.encode())

    def _do_protect(self, name: str) -> None:
        self.trees.protect(name.encode(), on=True)

    def _do_unprotect(self, name: str) -> None:
        self.trees.protect(name.encode(), on=False)

    def _do_rollback(self, name: str, how: str = "") -> None:
        if how not in ("", "save"):
            raise InvalidArgument(f"rollback {how}")
        self.trees.roll_back(name.encode(), discard=not how)
        self._let_go()

    def _do_reset(self, keep: str = "") -> None:
        self.trees.reset(keep.encode() or None)
        self._let_go()

    # --- steps: files ---

    def _place(self, path: str) -> tuple[Filesystem, int, bytes]:
        parent, _, name = path.rpartition("/")
        return *self.find(parent), name.encode()

    def _places(self, one: str, other: str) -> tuple[Filesystem, tuple[int, bytes, int, bytes]]:
        files, parent, name = self._place(one)
        other_files, other_parent, other_name = self._place(other)
        if files is not other_files:
            raise CrossTree
        return files, (parent, name, other_parent, other_name)

    def _do_create(self, path: str) -> None:
        files, parent, name = self._place(path)
        files.create(parent, name, 0o644, CALLER)

    def _do_mkdir(self, path: str) -> None:
        files, parent, name = self._place(path)
        files.mkdir(parent, name, 0o755, CALLER)

    def _do_symlink(self, path: str, target: str) -> None:
        files, parent, name = self._place(path)
        files.symlink(parent, name, target.encode(), CALLER)

    def _do_link(self, old: str, new: str) -> None:
        files, ino = self.find(old)
        new_files, parent, name = self._place(new)
        if files is not new_files:
            raise CrossTree
        files.link(ino, parent, name)

    def _do_copy(self, old: str, new: str) -> None:
        source, ino = self.find(old)
        files, parent, name = self._place(new)
        files.clone_file(source, ino, parent, name)

    def _do_copytree(self, old: str, new: str, entries: str = "") -> None:
        source, ino = self.find(old)
        files, parent, name = self._place(new)
        trees = self.trees
        meanwhile = trees.volume.committing and self._in_flight is None  # then nothing else can be committed
        kept: list[Tree] = []
        self._slice(meanwhile, lambda: kept.append(trees.pin(source.tree)))
        pinned = Filesystem(trees.volume, clock=self._clock, tree=kept[0])
        work = TreeClone(pinned, ino, files, parent, name, entries=int(entries or 4))
        try:
            more = [True]
            while more[-1]:
                self._slice(meanwhile, lambda: more.append(work.step()))
                if entries and not meanwhile:
                    self._commit(complete=False)
            self._slice(meanwhile, work.finish)
        except CowfsError:
            work.abandon()
            raise
        finally:
            if self.trees is trees and self._calls_left:
                with contextlib.suppress(NoSpace):  # it stays until the volume is closed
                    self._slice(meanwhile, lambda: trees.unpin(kept[0]))

    def _slice(self, meanwhile: bool, operation: Callable[[], object]) -> None:
        if meanwhile:
            operation()
        else:
            self._with_space(operation)

    def _do_unlink(self, path: str) -> None:
        files, parent, name = self._place(path)
        files.unlink(parent, name)

    def _do_rmdir(self, path: str) -> None:
        files, parent, name = self._place(path)
        files.rmdir(parent, name)

    def _do_rename(self, old: str, new: str) -> None:
        files, places = self._places(old, new)
        files.rename(*places)

    def _do_exchange(self, one: str, other: str) -> None:
        files, places = self._places(one, other)
        files.rename(*places, RENAME_EXCHANGE)

    def _do_write(self, path: str, offset: str, size: str) -> None:
        files, ino = self.find(path)
        files.write(ino, int(offset), self._content(int(size)))

    def _do_append(self, path: str, size: str) -> None:
        files, ino = self.find(path)
        files.write(ino, files.getattr(ino).size, self._content(int(size)))

    def _content(self, size: int) -> bytes:
        self._writes += 1
        return random.Random(self._writes).randbytes(size)

    def _do_truncate(self, path: str, size: str) -> None:
        files, ino = self.find(path)
        files.truncate(ino, int(size))

    def _do_chmod(self, path: str, mode: str) -> None:
        files, ino = self.find(path)
        files.setattr(ino, mode=int(mode, 8))

    def _do_setxattr(self, path: str, name: str, size: str) -> None:
        files, ino = self.find(path)
        files.setxattr(ino, name.encode(), self._content(int(size)))

    def _do_removexattr(self, path: str, name: str) -> None:
        files, ino = self.find(path)
        files.removexattr(ino, name.encode())

    def _do_read(self, path: str) -> None:
        self.read_bytes(path)

    def _do_list(self, path: str) -> None:
        files, ino = self.find(path)
        for _, _, _, attributes in files.listing(ino).entries():
            attributes()

    def _do_hold(self, path: str) -> None:
        files, ino = self.find(path)
        files.hold(ino)
        self._held.setdefault(path, []).append((files, ino))

    def _do_release(self, path: str) -> None:
        if not self._held.get(path):
            raise NotFound
        files, ino = self._held[path].pop()
        files.unhold(ino)

    def _let_go(self) -> None:
        """Forgets what is held in trees that are no more."""
        alive = self.trees.all_open()
        for path, held in self._held.items():
            self._held[path] = [(files, ino) for files, ino in held if files in alive]


_ARGUMENTS: Final[dict[str, tuple[int, ...]]] = {
    **dict.fromkeys(("sync", "commit", "publish", "reclaim", "kill", "remount"), (0,)),
    **dict.fromkeys(
        ("create", "mkdir", "unlink", "rmdir", "read", "list", "hold", "release", "die", "protect", "unprotect"), (1,)
    ),
    **dict.fromkeys(
        ("symlink", "link", "rename", "exchange", "append", "truncate", "chmod", "removexattr", "retitle"), (2,)
    ),
    **dict.fromkeys(("write", "setxattr"), (3,)),
    **dict.fromkeys(("snapshot", "clone", "rollback"), (1, 2)),
    "reset": (0, 1),
    "delete": tuple(range(1, 17)),
    "copytree": (2, 3),
    "copy": (2,),
    "seal": (0, 1),
}
"""How many arguments each step takes."""


def split(script: str) -> list[str]:
    """The steps of a script."""
    steps = (step.strip() for line in script.splitlines() for step in line.split("#")[0].split(";"))
    return [step for step in steps if step]
