"""Mounts as the kernel lists them: finding them, taking them away, and waiting until their daemon has gone.

Needs neither pyfuse3 nor trio, so that the command line stays quick. A dead mount, whose daemon was killed, answers
every look at it with ENOTCONN; nothing here looks at a mount point itself before it knows.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import select
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from cowfs.errors import Busy, CowfsError, InvalidArgument, NotPermitted

FILESYSTEM_TYPE = "fuse.cowfs"
MOUNTINFO = "/proc/self/mountinfo"
MNT_DETACH = 2
PROGRAM = "fusermount3"

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Mount:
    """One line of /proc/self/mountinfo. `device` is the st_dev of the files in it."""

    mountpoint: str
    type: str
    source: str
    device: int

    @property
    def is_cowfs(self) -> bool:
        """Whether a daemon of ours made it."""
        return self.type == FILESYSTEM_TYPE


def mounts() -> list[Mount]:
    """All mounts of this namespace, in the order in which they were made."""
    with open(MOUNTINFO, encoding="utf-8", errors="surrogateescape") as file:
        return list(_parse(file.read()))


def _parse(text: str) -> Iterator[Mount]:
    for line in text.split("\n"):
        head, dash, tail = line.partition(" - ")
        words, kind = head.split(" "), tail.split(" ")
        if dash and len(words) >= 5 and len(kind) >= 2:
            major, _, minor = words[2].partition(":")
            yield Mount(_unescape(words[4]), kind[0], _unescape(kind[1]), os.makedev(int(major), int(minor)))


def _unescape(text: str) -> str:
    """The kernel writes space, tab, newline, backslash and # as a backslash and three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def real_path(path: str) -> str:
    """The absolute path without symbolic links, found without a look at a dead mount's contents."""
    return os.path.realpath(path)


def at(path: str) -> Mount | None:
    """The topmost mount at exactly this path, or None."""
    wanted = real_path(path)
    return next((mount for mount in reversed(mounts()) if mount.mountpoint == wanted), None)


def containing(path: str) -> Mount | None:
    """The mount that a path lies in, if it is one of ours."""
    wanted = real_path(path)
    found = None
    for mount in mounts():
        prefix = mount.mountpoint.rstrip("/") + "/"
        if (wanted + "/").startswith(prefix) and (found is None or len(mount.mountpoint) >= len(found.mountpoint)):
            found = mount
    return found if found is not None and found.is_cowfs else None


def of_image(path: str) -> list[Mount]:
    """Our mounts of an image."""
    wanted = real_path(path)
    return [mount for mount in mounts() if mount.is_cowfs and mount.source == wanted]


def is_dead(mount: Mount) -> bool:
    """Whether the daemon behind a mount has gone without unmounting."""
    try:
        os.stat(mount.mountpoint)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def require_mountpoint(path: str) -> str:
    """The real path of a directory that something can be mounted on. Raises InvalidArgument, Busy and others."""
    mountpoint = real_path(path)
    existing = at(mountpoint)
    if existing is not None and existing.is_cowfs and is_dead(existing):
        raise Busy(f"{path} is a dead mount of {existing.source}; 'cowfs umount' clears it")
    if existing is not None:
        raise Busy(f"{path} is already a mount point (of {existing.source})")
    try:
        if not os.path.isdir(mountpoint):
            os.stat(mountpoint)
            raise InvalidArgument(f"mount point {path} is not a directory")
    except OSError as error:
        raise InvalidArgument(f"mount point {path}: {error.strerror}") from error
    return mountpoint


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """Takes a mount away. May block until the daemon has taken all dirty data. Raises Busy, NotPermitted, CowfsError.

    `lazy` hides it at once, for those who still use it, too.
    """
    if os.geteuid() == 0:
        code = _umount2(mountpoint, MNT_DETACH if lazy else 0)
        if code == 0:
            return
        if code != errno.EPERM:  # root of a container may have to ask as everybody else
            raise _failure(mountpoint, code)
    command = [PROGRAM, "-u", *(["-z"] if lazy else []), "--", mountpoint]
    environment = os.environ | {"LC_ALL": "C"}
    try:
        result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    except OSError as error:
        raise CowfsError(f"cannot run {PROGRAM}: {error.strerror}") from error
    if result.returncode != 0:
        message = result.stderr.strip().split("\n")[-1]
        if "busy" in message:
            raise _failure(mountpoint, errno.EBUSY)
        raise NotPermitted(message.removeprefix(f"{PROGRAM}: ") or f"{PROGRAM} failed to unmount {mountpoint}")


def _umount2(mountpoint: str, flags: int) -> int:
    """umount2(2): 0 or the errno. Other threads go on meanwhile."""
    if _libc.umount2(os.fsencode(mountpoint), flags) == 0:
        return 0
    return ctypes.get_errno()


def _failure(mountpoint: str, code: int) -> CowfsError:
    if code == errno.EBUSY:
        return Busy(f"{mountpoint} is busy: a process has a file open in it, or works in it")
    if code == errno.EINVAL:
        return InvalidArgument(f"{mountpoint} is not mounted")
    return CowfsError(f"cannot unmount {mountpoint}: {os.strerror(code)}")


def syncfs(path: str, device: int) -> None:
    """syncfs(2) on the mount at `path`, if it is still that of `device`. Only for threads that serve no requests.

    Raises OSError: what writing back dirty pages met.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_dev != device:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), path)
        if _libc.syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def exit_of(pid: int | None) -> Iterator[_Exit]:
    """Holds on to a process, whose number may be given to another one when it ends, to wait for its end."""
    descriptor = -1
    if pid is not None:
        with contextlib.suppress(OSError):
            descriptor = os.pidfd_open(pid)
    try:
        yield _Exit(descriptor)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


class _Exit:
    """The end of a process, to be waited for."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def wait(self) -> None:
        """Returns when the process has ended, at once if it was not to be found."""
        if self._descriptor >= 0:
            poll = select.poll()
            poll.register(self._descriptor, select.POLLIN)
            poll.poll()


def raise_read_ahead(device: int, kilobytes: int) -> None:
    """Lets the kernel read ahead further on a mount. Only root may, and nothing depends on it."""
    path = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
    with contextlib.suppress(OSError), open(path, "w", encoding="ascii") as file:
        file.write(str(kilobytes))
