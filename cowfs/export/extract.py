"""Copies a tree out of a volume into a new folder.

I29 Nothing is ever written outside that folder, whatever the volume holds: every object is made new, under a single name, in a
directory that was made here and is held open; no path is looked up, and no link followed. What exists is never replaced, so
a second entry of the same name is an error of its own. Hard links are made from the folder's own descriptor along
directories made here.

Modes, times, owners (for root), extended attributes, hard links and holes are kept. Setuid and setgid are given only with
the owner that they speak of. Device nodes are made only when root asks for them; a volume made by QNX does not say which
device is meant. Directories get their modes and times when all that is in them is there.

Memory: one piece of a file; a path for each file with several names.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass, field
from typing import Final

from cowfs.errors import CowfsError, Exists, InvalidArgument, NotSupported
from cowfs.export.budget import Budget
from cowfs.export.contents import pieces
from cowfs.export.walk import OnProblem, Visit, is_directory, walk
from cowfs.fs import Filesystem
from cowfs.fs.attributes import Attributes
from cowfs.storage.device import StrPath

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_HOPELESS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS})
_PRIVILEGED: Final = stat.S_ISUID | stat.S_ISGID
_SPECIAL: Final = (stat.S_IFIFO, stat.S_IFSOCK)
_DEVICES: Final = (stat.S_IFCHR, stat.S_IFBLK)


@dataclass(slots=True)
class Done:
    """What was made: objects and bytes of data (holes left out)."""

    objects: int = 0
    data: int = 0


@dataclass(slots=True)
class Extraction:
    """One extraction. `owners`: give everything to the users it belongs to; `devices`: make device nodes."""

    filesystem: Filesystem
    on_problem: OnProblem
    owners: bool
    devices: bool
    budget: Budget
    done: Done = field(default_factory=Done)
    _links: dict[int, bytes] = field(default_factory=dict)
    _top: int = -1

    def directory(self, start: Attributes, destination: StrPath) -> Done:
        """Copies what is in the directory `start` into `destination`, which is made, or is empty.

        Raises Exists, Corrupt (the volume leads to more than it can hold), OSError where the folder cannot be written.
        """
        with contextlib.suppress(FileExistsError):
            os.mkdir(destination, 0o700)
        self._top = os.open(destination, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if os.listdir(self._top):
                raise Exists(f"{os.fsdecode(destination)} is not empty")
            self._all(start)
        finally:
            os.close(self._top)
        return self.done

    def single(self, attributes: Attributes, name: bytes, destination: StrPath) -> Done:
        """Copies something that is no directory to `destination`, or, where that is a directory, into it as `name`."""
        path = os.fsencode(destination)
        folder, _, last = path.rstrip(b"/").rpartition(b"/")
        if os.path.isdir(path):
            folder, last = path, name
        elif path.startswith(b"/") and not folder:
            folder = b"/"
        if last in (b"", b".", b".."):
            raise InvalidArgument(f"{os.fsdecode(path)} is no name for a file")
        self._top = os.open(folder or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._guarded(self._top, Visit(last, attributes))
        finally:
            os.close(self._top)
        return self.done

    def _all(self, start: Attributes) -> None:
        """Goes through the tree. Only the directory that is being filled is open; the way up is checked."""
        here = os.dup(self._top)
        above: list[tuple[int, int]] = []  # device and inode of the directories above `here`
        lost = 0  # directories on the way that could not be made: what is in them is left out
        try:
            for visit in walk(self.filesystem, start, self.on_problem, self.budget):
                if not is_directory(visit.attributes):
                    if not lost:
                        self._guarded(here, visit)
                elif not visit.leaving:
                    if not visit.path:
                        continue
                    if lost or not self._make_directory(here, visit):
                        lost += 1
                        continue
                    below = os.open(visit.name, _DIRECTORY, dir_fd=here)
                    above.append(_identity(here))
                    os.close(here)
                    here = below
                elif lost:
                    lost -= 1
                else:
                    self._dress(here, visit)
                    if visit.path:
                        here = _up(here, above.pop())
        finally:
            os.close(here)

    def _make_directory(self, here: int, visit: Visit) -> bool:
        try:
            os.mkdir(visit.name, 0o700, dir_fd=here)
        except OSError as error:
            self._failed(visit, error)
            return False
        self.done.objects += 1
        return True

    def _guarded(self, here: int, visit: Visit) -> None:
        """Makes an object that is no directory; what goes wrong with it alone is reported."""
        try:
            if not self._linked(here, visit):
                self._make(here, visit)
            self.done.objects += 1
        except CowfsError as error:
            self.on_problem(visit.path, error)
        except OSError as error:
            self._failed(visit, error)

    def _failed(self, visit: Visit, error: OSError) -> None:
        if error.errno in _HOPELESS:
            raise error
        self.on_problem(visit.path, _HostError(f"cannot be made: {error.strerror}"))

    def _linked(self, here: int, visit: Visit) -> bool:
        """Makes one more name of something that was made before; False where it is the first."""
        attributes = visit.attributes
        if attributes.links < 2:
            return False
        first = self._links.setdefault(attributes.ino, visit.path)
        if first is visit.path:
            return False
        os.link(first, visit.name, src_dir_fd=self._top, dst_dir_fd=here, follow_symlinks=False)
        return True

    def _make(self, here: int, visit: Visit) -> None:
        attributes, name = visit.attributes, visit.name
        kind = stat.S_IFMT(attributes.mode)
        if kind == stat.S_IFREG:
            descriptor = os.open(name, _NEW_FILE, 0o600, dir_fd=here)
            try:
                self._fill(descriptor, visit)
                self._dress(descriptor, visit)
            finally:
                os.close(descriptor)
            return
        if kind == stat.S_IFLNK:
            os.symlink(self.filesystem.readlink(attributes.ino), name, dir_fd=here)
        elif kind in _SPECIAL:
            os.mknod(name, kind | 0o600, dir_fd=here)
        elif not self.devices:
            raise NotSupported("a device node: left out")
        elif self.filesystem.volume.foreign:
            raise NotSupported("a device node, and volumes of QNX do not say of which device")
        else:
            os.mknod(name, kind | 0o600, attributes.rdev, dir_fd=here)
        self._dress_name(here, visit)

    def _fill(self, descriptor: int, visit: Visit) -> None:
        """Writes the contents. What cannot be read stays a hole, and is reported once, with the first error."""
        lost = 0
        first: CowfsError | None = None
        for piece in pieces(self.filesystem, visit.attributes.ino, self.budget):
            if piece.error is not None:
                first = first or piece.error
                lost += piece.length
            elif piece.data is not None:
                _write(descriptor, piece.data, piece.offset)
                self.done.data += piece.length
        os.ftruncate(descriptor, visit.attributes.size)
        if first is not None:
            self.on_problem(visit.path, _HostError(f"{lost} bytes cannot be read and are zeros ({first})"))

    def _dress(self, descriptor: int, visit: Visit) -> None:
        """Owner, extended attributes, mode and times, in the order in which none takes away another."""
        attributes = visit.attributes
        try:
            mode = attributes.mode & 0o7777
            if self.owners:
                os.chown(descriptor, attributes.uid, attributes.gid)
            else:
                mode &= ~_PRIVILEGED
            self._set_xattrs(descriptor, attributes)
            os.chmod(descriptor, mode)
            os.utime(descriptor, ns=(attributes.atime_ns, attributes.mtime_ns))
        except (OSError, OverflowError) as error:  # 2^32 - 1 is no user to the system
            self._undressed(visit, error)
        except CowfsError as error:
            self.on_problem(visit.path, error)

    def _dress_name(self, here: int, visit: Visit) -> None:
        """The same for what must not be opened."""
        attributes, name = visit.attributes, visit.name
        try:
            if self.owners:
                os.chown(name, attributes.uid, attributes.gid, dir_fd=here, follow_symlinks=False)
            if not stat.S_ISLNK(attributes.mode):
                mode = attributes.mode & 0o7777
                os.chmod(name, mode if self.owners else mode & ~_PRIVILEGED, dir_fd=here)
            times = (attributes.atime_ns, attributes.mtime_ns)
            os.utime(name, ns=times, dir_fd=here, follow_symlinks=False)
        except (OSError, OverflowError) as error:  # 2^32 - 1 is no user to the system
            self._undressed(visit, error)

    def _set_xattrs(self, descriptor: int, attributes: Attributes) -> None:
        """User attributes always; the others only with the owners, since only root may set them."""
        if self.filesystem.volume.foreign:
            return
        for name in self.filesystem.listxattr(attributes.ino):
            if name.startswith(b"user.") or self.owners:
                os.setxattr(descriptor, name, self.filesystem.getxattr(attributes.ino, name))

    def _undressed(self, visit: Visit, error: OSError | OverflowError) -> None:
        why = error.strerror if isinstance(error, OSError) else "no such user or group"
        self.on_problem(visit.path, _HostError(f"owner, mode, attributes or times cannot be set: {why}"))


class _HostError(CowfsError):
    """What went wrong in the folder that is written to."""


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _up(here: int, wanted: tuple[int, int]) -> int:
    """The directory above `here`, which is closed. Raises InvalidArgument where somebody has moved it meanwhile."""
    above = os.open("..", _DIRECTORY, dir_fd=here)
    if _identity(above) != wanted:
        os.close(above)
        raise InvalidArgument("the folder that is extracted to was moved meanwhile")
    os.close(here)
    return above
