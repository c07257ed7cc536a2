"""Fills a filesystem from a source, so that the same source gives the same bytes.

Duty: an `Entry` becomes an object with its mode, owner, time, contents, names and extended attributes. All times of an
object are the time of its contents; a directory keeps its own however late something is put into it. A block of zeros
becomes a hole, whether it was one in the source or not. An archive may bring an object twice: the later one counts; what
lies in a directory that no entry is for, gets one of mode 0755 that belongs to user and group 0.

Every failure names the path. Memory does not grow with the source: what waits for a commit, changed inodes above all, does
not wait for more than so many objects, and the filesystem bounds what it keeps besides.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from cowfs.errors import CowfsError, IsADirectory, NotFound
from cowfs.fs import Attributes, Caller, Filesystem
from cowfs.fs.attributes import AtimeMode
from cowfs.ondisk import format as f
from cowfs.storage.volume import Volume
from mkcowfs.source import Entry, SourceError

_NODES: Final = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
_PERMISSIONS: Final = 0o7777
COMMIT_OBJECTS: Final = 20_000
"""After so many objects there is a commit: each inode of theirs takes more than a KiB until then."""


@dataclass
class Wishes:
    """What to take over otherwise. `owner`: (uid, gid) of everything; `latest_ns`: no time is later than this."""

    owner: tuple[int, int] | None = None
    latest_ns: int | None = None


@dataclass
class Filled:
    """How much there is so far. `data` counts the bytes of contents that are no holes."""

    objects: int = 0
    data: int = 0


class Author:
    """Puts entries into the live tree of `volume`. `tell` is called now and then with what is done so far."""

    def __init__(self, volume: Volume, wishes: Wishes, made_ns: int, tell: Callable[[Filled], object]) -> None:
        self.filled = Filled()
        self._wishes = wishes
        self._made_ns = made_ns
        self._tell = tell
        self._now = made_ns
        self._filesystem = Filesystem(volume, clock=lambda: self._now, atime=AtimeMode.NOATIME)
        self._block_size = volume.geometry.block_size
        self._zeros = bytes(self._block_size)
        self._parent: tuple[bytes, int] = b"", f.ROOT_INODE  # the directory used last

    def fill(self, entries: Iterable[Entry]) -> Filled:
        """Takes over everything, and writes it to the device. Raises SourceError."""
        for entry in entries:
            try:
                self._put(entry)
            except SourceError:
                raise
            except CowfsError as error:
                raise SourceError(entry.path, str(error), error.errno) from error
            self.filled.objects += 1
            self._tell(self.filled)
            if self.filled.objects % COMMIT_OBJECTS == 0:
                self._filesystem.sync()
        self._now = self._made_ns
        self._filesystem.close()
        return self.filled

    def _put(self, entry: Entry) -> None:
        if self._wishes.owner is not None:
            entry.uid, entry.gid = self._wishes.owner
        if self._wishes.latest_ns is not None:
            entry.mtime_ns = min(entry.mtime_ns, self._wishes.latest_ns)
        if not entry.path:
            self._finish(entry, self._filesystem.getattr(f.ROOT_INODE))
            return
        above, _, name = entry.path.rpartition(b"/")
        where = self._directory(above)
        with self._keeping_times(where):
            self._now = entry.mtime_ns
            made = self._make(entry, where, name)
            if made is not None:
                self._finish(entry, made)

    @contextmanager
    def _keeping_times(self, directory: int) -> Iterator[None]:
        """Gives a directory its times back when something was put into it."""
        before = self._filesystem.getattr(directory)
        atime_ns, mtime_ns, ctime_ns = before.atime_ns, before.mtime_ns, before.ctime_ns
        yield
        self._filesystem.setattr(directory, atime_ns=atime_ns, mtime_ns=mtime_ns, ctime_ns=ctime_ns)

    def _directory(self, path: bytes) -> int:
        """The inode of a directory; those that are not there are made."""
        if path == self._parent[0]:
            return self._parent[1]
        number: int = f.ROOT_INODE
        for name in path.split(b"/") if path else ():
            try:
                number = self._filesystem.lookup(number, name).ino
            except NotFound:
                with self._keeping_times(number):
                    self._now = self._made_ns
                    owner = self._wishes.owner or (0, 0)
                    made = self._filesystem.mkdir(number, name, 0o755, Caller(*owner)).ino
                number = made
        self._parent = path, number
        return number

    def _make(self, entry: Entry, where: int, name: bytes) -> Attributes | None:
        """The new object, or the directory that is there already; None for a further name of another.

        What had the name before goes, but for a directory, which only a directory can follow.
        """
        filesystem, kind, caller = self._filesystem, stat.S_IFMT(entry.mode), Caller(entry.uid, entry.gid)
        linked = None if entry.link is None else self._find(entry.link)
        there = self._there(where, name)
        if there is not None and there.ino == linked:
            return None  # the same name of the same object once more
        if there is not None and stat.S_ISDIR(there.mode):
            if linked is not None or kind != stat.S_IFDIR:
                raise IsADirectory("a directory of that name came before it")
            return there
        if there is not None:
            filesystem.unlink(where, name)
        if linked is not None:
            before = filesystem.getattr(linked)
            ctime_ns = before.ctime_ns
            filesystem.link(linked, where, name)
            filesystem.setattr(linked, ctime_ns=ctime_ns)
            return None
        if kind == stat.S_IFDIR:
            return filesystem.mkdir(where, name, entry.mode, caller)
        if kind == stat.S_IFLNK:
            return filesystem.symlink(where, name, entry.target, caller)
        assert kind in _NODES
        made = filesystem.create(where, name, entry.mode, caller, rdev=entry.rdev)
        if kind == stat.S_IFREG:
            self._write(made.ino, entry)
        return filesystem.getattr(made.ino)

    def _find(self, path: bytes) -> int:
        number: int = f.ROOT_INODE
        for name in path.split(b"/"):
            try:
                number = self._filesystem.lookup(number, name).ino
            except NotFound:
                raise NotFound(f"it is a link to {os.fsdecode(path)}, which did not come before it") from None
        return number

    def _there(self, where: int, name: bytes) -> Attributes | None:
        """What has the name already."""
        try:
            return self._filesystem.lookup(where, name)
        except NotFound:
            return None

    def _write(self, ino: int, entry: Entry) -> None:
        """The contents, without the blocks that hold only zeros."""
        filesystem, size = self._filesystem, 0
        for offset, data in entry.data():
            view = memoryview(data)
            for start, end in self._runs(data):
                filesystem.write(ino, offset + start, view[start:end], kill_privileges=False)
                self.filled.data += end - start
                size = offset + end
            self._tell(self.filled)
        if size < entry.size:
            filesystem.truncate(ino, entry.size, kill_privileges=False)

    def _runs(self, data: bytes) -> list[tuple[int, int]]:
        """(from, to) of the runs of blocks that are not all zeros."""
        if data.count(0) == len(data):
            return []
        step, zeros = self._block_size, self._zeros
        runs: list[tuple[int, int]] = []
        for start in range(0, len(data), step):
            block = data[start : start + step]
            if block == zeros or (len(block) < step and not block.strip(b"\0")):
                continue
            if runs and runs[-1][1] == start:
                runs[-1] = runs[-1][0], start + len(block)
            else:
                runs.append((start, start + len(block)))
        return runs

    def _finish(self, entry: Entry, made: Attributes) -> None:
        """What making it has not given it: its attributes, and mode and owner where the directory above has a say."""
        filesystem, ino = self._filesystem, made.ino
        names = filesystem.listxattr(ino)
        for name in names:
            if name not in entry.xattrs:  # inherited, or of an earlier member of the same name
                filesystem.removexattr(ino, name)
        for name, value in entry.xattrs.items():
            filesystem.setxattr(ino, name, value)
        mode = entry.mode & _PERMISSIONS
        wanted = (mode, entry.uid, entry.gid, entry.mtime_ns)
        if stat.S_ISLNK(entry.mode):
            wanted = (0o777, *wanted[1:])
        now = filesystem.getattr(ino)
        if (now.mode & _PERMISSIONS, now.uid, now.gid, now.mtime_ns) != wanted or now.ctime_ns != now.mtime_ns:
            time_ns = entry.mtime_ns
            filesystem.setattr(
                ino, mode=wanted[0], uid=entry.uid, gid=entry.gid, atime_ns=time_ns, mtime_ns=time_ns, ctime_ns=time_ns
            )
