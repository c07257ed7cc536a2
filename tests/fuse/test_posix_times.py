"""Which call touches which time and which mode bits of what, on a real mount; and the range of times."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from mounting import Place
from users import acting_as

pytestmark = pytest.mark.fuse

SECOND = 1_000_000_000
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
OLD = 1_000_000_000 * SECOND

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes other users")

_libc = ctypes.CDLL(None, use_errno=True)


class Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def utimens(path: Path, atime: tuple[int, int], mtime: tuple[int, int]) -> int:
    """utimensat(2): 0 or the errno."""
    times = (Timespec * 2)(Timespec(*atime), Timespec(*mtime))
    return ctypes.get_errno() if _libc.utimensat(-100, os.fsencode(path), times, 0) else 0


def touched(watched: dict[str, Path], call: Callable[[], object]) -> set[str]:
    """Which times a call moves: 'f.m' is the mtime of what is called f, 'f.c' its ctime.

    All mtimes are set to the past before; a ctime of before is waited out, since the clock of files is coarse. It is asked for
    by making a file, which the daemon stamps: the kernel stamps what it changes up to a tick ahead of that clock, once a
    filesystem with finer times has stamped something (Linux 6.13, multigrain timestamps).
    """
    for path in watched.values():
        os.utime(path, ns=(OLD, OLD), follow_symlinks=False)
    before = {name: path.lstat() for name, path in watched.items()}
    probe = next(iter(watched.values())).parent / "probe-of-the-clock"
    while True:  # until the clock has moved
        probe.unlink(missing_ok=True)
        probe.touch()
        if probe.stat().st_ctime_ns > max(found.st_ctime_ns for found in before.values()):
            break
    call()
    result = set()
    for name, path in watched.items():
        try:
            after = path.lstat()
        except FileNotFoundError:
            continue
        if after.st_mtime_ns != before[name].st_mtime_ns:
            result.add(f"{name}.m")
        if after.st_ctime_ns != before[name].st_ctime_ns:
            result.add(f"{name}.c")
    return result


@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        (lambda p: (p / "parent/new").touch(), "parent.m parent.c"),
        (lambda p: (p / "parent/new").mkdir(), "parent.m parent.c"),
        (lambda p: (p / "parent/new").symlink_to("x"), "parent.m parent.c"),
        (lambda p: os.mkfifo(p / "parent/new"), "parent.m parent.c"),
        (lambda p: os.link(p / "f", p / "parent/new"), "parent.m parent.c f.c"),
        (lambda p: os.unlink(p / "parent/x"), "parent.m parent.c"),
        (lambda p: os.unlink(p / "parent/link"), "parent.m parent.c f.c"),
        (lambda p: os.rmdir(p / "parent/d"), "parent.m parent.c"),
        (lambda p: os.rename(p / "parent/x", p / "parent/y"), "parent.m parent.c"),
        (lambda p: os.rename(p / "f", p / "parent/y"), "parent.m parent.c"),
        (lambda p: os.rename(p / "parent/link", p / "other/y"), "parent.m parent.c other.m other.c f.c"),
        (lambda p: os.chmod(p / "f", 0o600), "f.c"),
        (lambda p: os.chown(p / "f", -1, -1), "f.c"),
        (lambda p: os.utime(p / "f", ns=(OLD, OLD)), "f.c"),
        (lambda p: os.setxattr(p / "f", "user.a", b"b"), "f.c"),
        (lambda p: os.truncate(p / "f", 3), "f.m f.c"),
        (lambda p: os.truncate(p / "f", 20), "f.m f.c"),
        (lambda p: os.truncate(p / "f", 10), ""),  # its size already; so on ext4
        (lambda p: (p / "f").write_bytes(b""), "f.m f.c"),
        (lambda p: append(p / "f"), "f.m f.c"),
        (lambda p: (p / "f").read_bytes(), ""),
        (lambda p: os.listdir(p / "parent"), ""),
        (lambda p: os.readlink(p / "symlink"), ""),
        (lambda p: os.close(os.open(p / "f", os.O_WRONLY | os.O_CREAT)), ""),
    ],
)
def test_who_is_touched(folder: Path, what: Callable[[Path], object], wanted: str) -> None:
    for name in ("parent", "other", "parent/d"):
        (folder / name).mkdir()
    (folder / "f").write_bytes(b"0123456789")
    (folder / "parent/x").touch()
    os.link(folder / "f", folder / "parent/link")
    (folder / "symlink").symlink_to("f")
    watched = {name: folder / name for name in ("parent", "other", "f", "symlink")}
    assert touched(watched, lambda: what(folder)) == set(wanted.split())


def append(path: Path) -> None:
    """write(2) of one byte."""
    with open(path, "ab") as file:
        file.write(b"x")


def test_a_new_file_has_one_time(folder: Path) -> None:
    (folder / "f").touch()
    found = (folder / "f").stat()
    assert found.st_atime_ns == found.st_mtime_ns == found.st_ctime_ns
    assert folder.stat().st_mtime_ns == found.st_mtime_ns, "and its directory the same"


TIMES = {
    0: 0,
    -1: -1,
    1_234_567_890_987_654_321: 1_234_567_890_987_654_321,
    -(1 << 31) * SECOND: -(1 << 31) * SECOND,
    -(1 << 31) * SECOND + 1: -(1 << 31) * SECOND + 1,
    -1_000_000_001: -1_000_000_001,
    ((1 << 31) - 1) * SECOND + 999_999_999: ((1 << 31) - 1) * SECOND + 999_999_999,
    (1 << 32) * SECOND: (1 << 32) * SECOND,
    15_032_385_535 * SECOND + 999_999_999: 15_032_385_535 * SECOND + 999_999_999,
    # What the format cannot hold becomes the nearest that it can.
    15_032_385_536 * SECOND: 15_032_385_535 * SECOND + 999_999_999,
    -(1 << 31) * SECOND - 1: -(1 << 31) * SECOND,
}


def test_times_from_1901_to_2446(mounted: Place) -> None:
    paths = [mounted.mountpoint / f"{number}" for number in range(len(TIMES))]
    for path, given in zip(paths, TIMES, strict=True):
        path.touch()
        os.utime(path, ns=(given, given))
    mounted.remount()
    found = [(path.stat().st_atime_ns, path.stat().st_mtime_ns) for path in paths]
    assert found == [(kept, kept) for kept in TIMES.values()]


def test_times_are_those_that_were_seen(mounted: Place) -> None:
    """The kernel writes back later than a program has written, and does not say again what it was told at the creation."""
    root = mounted.mountpoint
    seen = {}
    for number in range(300):
        path = root / str(number)
        path.write_bytes(b"x")
        status = path.stat()
        seen[path.name] = status.st_mtime_ns, status.st_ctime_ns
    mounted.command("snapshot create s")
    assert {path.name: path.stat().st_mtime_ns for path in (root / ".cowfs/snapshots/s").iterdir()} == {
        name: mtime for name, (mtime, _) in seen.items()
    }
    mounted.remount()
    found = {path.name: path.stat() for path in root.iterdir()}
    assert {name: (status.st_mtime_ns, status.st_ctime_ns) for name, status in found.items()} == seen


def test_now_and_omit(folder: Path) -> None:
    path = folder / "f"
    path.touch()
    os.utime(path, ns=(OLD, OLD))
    assert utimens(path, (0, UTIME_OMIT), (7, 8)) == 0
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (OLD, 7 * SECOND + 8)
    assert utimens(path, (5, 6), (0, UTIME_OMIT)) == 0
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (5 * SECOND + 6, 7 * SECOND + 8)
    assert utimens(path, (0, UTIME_NOW), (0, UTIME_OMIT)) == 0
    assert path.stat().st_atime_ns > OLD
    assert path.stat().st_mtime_ns == 7 * SECOND + 8
    before = path.stat().st_ctime_ns
    assert utimens(path, (0, UTIME_OMIT), (0, UTIME_OMIT)) == 0
    assert path.stat().st_ctime_ns == before, "nothing to do"
    assert utimens(path, (0, 1_000_000_000), (0, 0)) == errno.EINVAL
    assert utimens(folder / "no", (0, UTIME_NOW), (0, UTIME_NOW)) == errno.ENOENT


@only_root
def test_who_may_set_times(commons: Path) -> None:
    path = commons / "f"
    path.touch()
    path.chmod(0o666)
    with acting_as(1001, 1001):
        assert utimens(path, (0, UTIME_NOW), (0, UTIME_NOW)) == 0, "who may write may say now"
        assert utimens(path, (1, 1), (1, 1)) == errno.EPERM
    path.chmod(0o644)
    with acting_as(1001, 1001):
        assert utimens(path, (0, UTIME_NOW), (0, UTIME_NOW)) == errno.EACCES


# --- setuid and setgid ---


def truncating(path: Path) -> None:
    os.truncate(path, 5)


def opening(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


@only_root
@pytest.mark.parametrize("change", [append, truncating, opening])
@pytest.mark.parametrize(("mode", "left"), [(0o6777, 0o777), (0o4777, 0o777), (0o2777, 0o777), (0o2767, 0o2767)])
def test_a_strangers_change_takes_privileges_away(
    commons: Path, change: Callable[[Path], None], mode: int, left: int
) -> None:
    path = commons / "f"
    path.write_bytes(b"0123456789")
    os.chown(path, 1001, 1001)
    path.chmod(mode)
    with acting_as(1002, 1002):
        change(path)
        assert stat.S_IMODE(path.stat().st_mode) == left
    path.chmod(mode)
    change(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode, "root's does not"


@only_root
def test_a_new_owner_takes_privileges_away(commons: Path) -> None:
    path = commons / "f"
    path.touch()
    os.chown(path, 1001, 1001)
    path.chmod(0o6755)
    with acting_as(1001, 1001):
        os.chown(path, -1, 1001)
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
        assert path.stat().st_gid == 1001
        with pytest.raises(PermissionError):
            os.chown(path, 1002, -1)
        with pytest.raises(PermissionError):
            os.chown(path, -1, 1002)
    path.chmod(0o6755)
    os.chown(path, 1002, 1002)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755, "root's, too"
    directory = commons / "d"
    directory.mkdir()
    directory.chmod(0o6755)
    os.chown(directory, 1002, 1002)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o6755, "a directory keeps them"


@only_root
def test_setgid_is_for_members_only(commons: Path) -> None:
    path = commons / "f"
    path.touch()
    os.chown(path, 1001, 1002)
    with acting_as(1001, 1001):
        os.chmod(path, 0o2755)
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
    with acting_as(1001, 1002):
        os.chmod(path, 0o2755)
        assert stat.S_IMODE(path.stat().st_mode) == 0o2755
