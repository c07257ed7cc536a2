"""Files on a mount, by the system calls and programs that everybody uses, and the same after the next mount."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mounting import Place, cowfs, errno_of, run

from cowfs.fuse import mounts

pytestmark = pytest.mark.fuse

ENDS_OF_TIME = (-(1 << 31), ((3 << 32) + (1 << 31)) - 1)


def as_a_stranger(directory: Path, act: Callable[[str], object], name: str) -> None:
    """Does something in a directory as a user with no rights of his own; the way there may be closed to him."""
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir(directory)
            os.setgroups([])
            os.setgid(65533)
            os.setuid(65533)
            act(name)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


STRANGERS_WAYS: dict[str, Callable[[str], object]] = {
    "write": lambda name: os.write(os.open(name, os.O_WRONLY), b"P"),
    "truncate": lambda name: os.truncate(name, 3),
    "open": lambda name: os.open(name, os.O_WRONLY | os.O_TRUNC),
}


def test_contents_survive(mounted: Place) -> None:
    root = mounted.mountpoint
    data = os.urandom(3_000_001)
    (root / "large").write_bytes(data)
    (root / "small").write_bytes(b"x")
    with open(root / "sparse", "wb") as file:
        file.seek(10 << 20)
        file.write(b"end")
    os.truncate(root / "sparse", 20 << 20)
    names = [b"n" * 27, b"l" * 255, "Zo\N{LATIN SMALL LETTER E WITH DIAERESIS}".encode(), b"\xff\xfe", b" "]
    for name in names:
        Path(os.fsdecode(os.path.join(os.fsencode(root), name))).write_bytes(name)
    mounted.remount()
    assert (root / "large").read_bytes() == data
    assert (root / "small").read_bytes() == b"x"
    sparse = (root / "sparse").read_bytes()
    assert len(sparse) == 20 << 20
    assert sparse.rstrip(b"\0").lstrip(b"\0") == b"end"
    assert sparse.index(b"end") == 10 << 20
    assert (root / "sparse").stat().st_blocks <= 64
    for name in names:
        assert Path(os.fsdecode(os.path.join(os.fsencode(root), name))).read_bytes() == name
    assert sorted(os.listdir(os.fsencode(root))) == sorted([b"large", b"small", b"sparse", *names])


def test_every_kind_of_object_survives(mounted: Place) -> None:
    root = mounted.mountpoint
    os.umask(old := os.umask(0))
    assert old != 0, "modes below rely on the umask"
    (root / "file").write_text("x")
    os.link(root / "file", root / "link")
    os.symlink("nowhere", root / "symlink")
    os.symlink("t" * 4095, root / "longest")
    os.mkfifo(root / "fifo", 0o640)
    os.mkdir(root / "directory", 0o750)
    os.mkdir(root / "sticky")
    os.chmod(root / "sticky", 0o1777)
    os.setxattr(root / "file", "user.name", b"value")
    os.setxattr(root / "directory", "user.large", bytes(60_000))
    kinds = {"file": "regular file", "symlink": "symbolic link", "fifo": "fifo", "directory": "directory"}
    if os.geteuid() == 0:
        os.mknod(root / "zero", stat.S_IFCHR | 0o600, os.makedev(1, 5))
        os.mknod(root / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 65536))
        os.chown(root / "symlink", 1234, 4321, follow_symlinks=False)
        kinds["zero"] = "character special file"
    for when in ("before", "after"):
        for name, kind in kinds.items():
            assert run("stat", "-c", "%F", root / name).stdout.strip() == kind, (when, name)
        assert (root / "file").stat().st_ino == (root / "link").stat().st_ino
        assert (root / "file").stat().st_nlink == 2
        assert (root / "file").stat().st_mode & 0o7777 == 0o666 & ~old
        assert (root / "directory").stat().st_mode & 0o7777 == 0o750 & ~old
        assert (root / "sticky").stat().st_mode & 0o7777 == 0o1777
        assert root.stat().st_nlink == 4
        assert os.readlink(root / "symlink") == "nowhere"
        assert os.readlink(root / "longest") == "t" * 4095
        assert os.getxattr(root / "file", "user.name") == b"value"
        assert os.listxattr(root / "file") == ["user.name"]
        assert os.getxattr(root / "directory", "user.large") == bytes(60_000)
        if os.geteuid() == 0:
            assert (root / "zero").stat().st_rdev == os.makedev(1, 5)
            assert (root / "disk").stat().st_rdev == os.makedev(259, 65536)
            status = os.lstat(root / "symlink")
            assert (status.st_uid, status.st_gid) == (1234, 4321)
        if when == "before":
            mounted.remount()


def test_times_survive(mounted: Place) -> None:
    root = mounted.mountpoint
    nanoseconds = 1_000_000_000
    wanted = {}
    for number, seconds in enumerate((*ENDS_OF_TIME, -1, 0, 1 << 32)):
        path = root / str(number)
        path.write_text("x")
        times = (seconds * nanoseconds + 123_456_789, seconds * nanoseconds + 987_654_321)
        os.utime(path, ns=times)
        wanted[path] = times
    for when in ("before", "after"):
        for path, times in wanted.items():
            status = path.stat()
            assert (status.st_atime_ns, status.st_mtime_ns) == times, when
        if when == "before":
            mounted.remount()


def test_a_touched_file_is_not_older_than_when_it_was_created(folder: Path) -> None:
    for number in range(50):
        path = folder / str(number)
        path.touch(exist_ok=False)
        created = path.stat().st_mtime_ns
        os.utime(path)
        assert created <= path.stat().st_mtime_ns


def test_a_write_moves_mtime_and_ctime_and_reading_atime(folder: Path) -> None:
    path = folder / "file"
    path.write_text("x")
    os.utime(path, (0, 0))
    before = time.time_ns()
    path.write_text("y")
    status = path.stat()
    assert status.st_mtime_ns >= before - 50_000_000
    assert status.st_ctime_ns >= before - 50_000_000
    assert status.st_atime_ns == 0
    folder_before = folder.stat()
    time.sleep(0.03)  # the clock of files has ticks of up to 10 ms
    (folder / "other").touch()
    assert folder.stat().st_mtime_ns > folder_before.st_mtime_ns


def test_rename_replaces_exchanges_and_refuses(folder: Path) -> None:
    (folder / "a").write_text("a")
    (folder / "b").write_text("b")
    os.rename(folder / "a", folder / "b")
    assert (folder / "b").read_text() == "a"
    assert not (folder / "a").exists()
    (folder / "c").write_text("c")
    run("mv", "--no-clobber", folder / "b", folder / "c", ok=False)
    assert (folder / "b").read_text() == "a"
    (folder / "dir").mkdir()
    assert errno_of(os.rename, folder / "b", folder / "dir") == errno.EISDIR
    assert errno_of(os.rename, folder / "dir", folder / "b") == errno.ENOTDIR
    os.rename(folder / "b", folder / "dir" / "b")
    assert (folder / "dir" / "b").read_text() == "a"
    assert errno_of(os.rmdir, folder / "dir") == errno.ENOTEMPTY
    assert errno_of(os.rename, folder / "dir", folder / "dir" / "below") == errno.EINVAL


def test_an_unlinked_file_lives_until_it_is_closed(folder: Path) -> None:
    path = folder / "file"
    with open(path, "w+b") as file:
        file.write(b"still here")
        file.flush()
        path.unlink()
        assert not path.exists()
        os.fsync(file.fileno())
        file.seek(0)
        assert file.read() == b"still here"
        assert os.fstat(file.fileno()).st_nlink == 0


def test_truncated_bytes_come_back_as_zeros(folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(b"x" * 10_000)
    os.truncate(path, 5_000)
    os.truncate(path, 12_000)
    assert path.read_bytes() == b"x" * 5_000 + bytes(7_000)
    with open(path, "w") as file:
        assert os.fstat(file.fileno()).st_size == 0


def test_shared_memory_maps_see_and_make_changes(folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(bytes(20_000))
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 20_000) as mapping:
        mapping[8_190:8_200] = b"0123456789"
        mapping.flush()
        assert os.pread(file.fileno(), 10, 8_190) == b"0123456789"
    assert path.read_bytes()[8_190:8_200] == b"0123456789"


def test_a_growing_directory_is_listed_once(folder: Path) -> None:
    names = {f"entry-{number:04}-{'x' * (number % 40)}" for number in range(1500)}
    for name in names:
        (folder / name).touch()
    assert sorted(os.listdir(folder)) == sorted(names)
    seen: list[str] = []
    with os.scandir(folder) as listing:
        for number, entry in enumerate(listing):
            seen.append(entry.name)
            if number % 3 == 0:
                os.unlink(entry.path)
                (folder / f"new-{number}").touch()
    assert len(seen) == len(set(seen))
    assert names <= set(seen)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        first = os.listdir(descriptor)
        (folder / "late").touch()
        again = os.listdir(descriptor)
    finally:
        os.close(descriptor)
    assert set(again) - set(first) == {"late"}, "rewinding shows what is there now"


def test_the_control_directory_is_in_no_listing(shared: Place) -> None:
    assert ".cowfs" not in os.listdir(shared.mountpoint)
    assert os.listdir(shared.mountpoint / ".cowfs") == ["control", "query", "snapshots"]
    found = run("find", shared.mountpoint, "-name", "control").stdout
    assert found == ""


def test_sizes_beyond_the_limit_are_refused(folder: Path) -> None:
    path = folder / "file"
    with open(path, "wb") as file:
        for size in ((1 << 63) - 1, 1 << 62, (1 << 50) + 1):
            assert errno_of(os.ftruncate, file.fileno(), size) == errno.EFBIG
    assert path.stat().st_size == 0
    with open(path, "rb") as file:
        assert os.pread(file.fileno(), 10, (1 << 63) - 11) == b""


def test_names_have_limits(folder: Path) -> None:
    (folder / ("n" * 510)).touch()
    assert errno_of((folder / ("n" * 511)).touch) == errno.ENAMETOOLONG
    os.unlink(folder / ("n" * 510))
    assert errno_of(os.symlink, "t" * 4096, folder / "s") == errno.ENAMETOOLONG


def test_statvfs_counts_what_is_written(shared: Place, folder: Path) -> None:
    before = os.statvfs(folder)
    assert before.f_bsize == 4096
    assert before.f_namemax == 510
    (folder / "file").write_bytes(os.urandom(8 << 20))
    shared.command("sync")
    after = os.statvfs(folder)
    used = (before.f_bfree - after.f_bfree) * before.f_bsize
    assert 8 << 20 <= used <= 9 << 20
    assert after.f_bavail < before.f_bavail
    assert os.statvfs(folder).f_files - os.statvfs(folder).f_ffree >= 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes owners and becomes someone else")
def test_setuid_goes_with_a_strangers_write(shared: Place, folder: Path) -> None:
    shared.umount()
    shared.mount("-o", "allow_other")
    for way, act in STRANGERS_WAYS.items():
        path = folder / way
        path.write_bytes(b"program")
        os.chown(path, 65534, 65534)
        os.chmod(path, 0o6777)
        assert path.stat().st_mode & 0o7777 == 0o6777
        as_a_stranger(folder, act, way)
        assert path.stat().st_mode & 0o7777 == 0o777, way
        os.chmod(path, 0o6777)
        os.chown(path, 0, 0)
        assert path.stat().st_mode & 0o7777 == 0o777, "a new owner takes them, too"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root keeps setuid when it writes")
def test_setuid_stays_with_roots_write(folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(b"program")
    os.chmod(path, 0o4755)
    with open(path, "r+b") as file:
        file.write(b"P")
    assert path.stat().st_mode & 0o7777 == 0o4755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a program capabilities")
def test_capabilities_go_with_a_write(folder: Path) -> None:
    """The kernel asks for them once, not before each write(2), and must notice when a file gets some."""
    name, value = "security.capability", bytes.fromhex("0100000200040000000000000000000000000000")
    path = folder / "file"
    for _ in range(2):
        path.write_bytes(b"program")
        os.setxattr(path, name, value)
        with open(path, "r+b") as file:
            file.write(b"P")
        with pytest.raises(OSError, match="No data available"):
            os.getxattr(path, name)


def test_proc_mounts_shows_image_and_type(place: Place) -> None:
    directory = place.directory / "a, b\\c \N{SNOWMAN}"
    directory.mkdir()
    place.image = directory / "vol=ume.img"
    place.make(1)
    place.mount()
    mount = mounts.at(str(place.mountpoint))
    assert mount is not None
    assert mount.source == str(place.image)
    assert mount.type == "fuse.cowfs"
    assert mounts.of_image(str(place.image)) == [mount]
    assert str(place.image).encode() in Path(f"/proc/{place.pid}/cmdline").read_bytes().split(b"\0")
    place.umount()


def test_the_daemon_keeps_the_environment(place: Place) -> None:
    place.make(1)
    os.environ["COWFS_TEST_MARK"] = "kept"
    try:
        place.mount()
    finally:
        del os.environ["COWFS_TEST_MARK"]
    assert b"COWFS_TEST_MARK=kept" in Path(f"/proc/{place.pid}/environ").read_bytes().split(b"\0")
    assert os.readlink(f"/proc/{place.pid}/cwd") == "/"
    for descriptor in range(3):
        assert os.readlink(f"/proc/{place.pid}/fd/{descriptor}") == "/dev/null"


def test_read_only(place: Place) -> None:
    place.make(4)
    place.mount()
    (place.mountpoint / "file").write_text("x")
    place.umount()
    before = place.image.read_bytes()
    os.chmod(place.image, 0o444)
    place.mount("-o", "ro")
    assert (place.mountpoint / "file").read_text() == "x"
    for call in (
        lambda: (place.mountpoint / "file").write_text("y"),
        (place.mountpoint / "new").mkdir,
        (place.mountpoint / "file").unlink,
        lambda: os.chmod(place.mountpoint / "file", 0o600),
    ):
        assert errno_of(call) == errno.EROFS
    assert errno_of(place.control.write_text, "sync") == errno.EROFS
    cowfs("sync", place.mountpoint)
    assert cowfs("info", place.mountpoint).stdout.count("opened read-only") == 1
    place.umount()
    assert place.image.read_bytes() == before


def test_noxattr(place: Place) -> None:
    place.make(4)
    place.mount("-o", "noxattr")
    path = place.mountpoint / "file"
    path.write_text("x")
    assert errno_of(os.setxattr, path, "user.a", b"b") == errno.EOPNOTSUPP
    assert errno_of(os.getxattr, path, "user.a") == errno.EOPNOTSUPP
    assert errno_of(os.listxattr, path) in (errno.EOPNOTSUPP, None)


def test_noatime(place: Place) -> None:
    place.make(4)
    for options, moves in (("noatime", False), ("relatime", True)):
        place.mount("-o", options)
        path = place.mountpoint / options
        path.write_text("x")
        os.utime(path, (1, 1))
        place.remount("-o", options)
        assert path.read_text() == "x"
        assert (path.stat().st_atime != 1) is moves, options
        place.umount()


def test_a_read_ahead_of_a_megabyte_where_root_may_set_it(shared: Place) -> None:
    device = shared.mountpoint.stat().st_dev
    path = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    if os.geteuid() != 0 or not path.exists():
        pytest.skip("only root sets it, where sysfs is mounted")
    assert path.read_text().strip() == "1024"


def test_mount_helpers_call_without_a_command(place: Place) -> None:
    place.make(1)
    cowfs(place.image, place.mountpoint, "-o", f"rw,noexec,x-note=1,log={place.log}")
    place.pids.append(place.info()["mount"]["pid"])
    (place.mountpoint / "script").write_text("#!/bin/sh\n")
    os.chmod(place.mountpoint / "script", 0o755)
    with pytest.raises(PermissionError):
        subprocess.run([place.mountpoint / "script"], check=False)


def test_changes_reach_the_image_within_the_commit_time(place: Place) -> None:
    place.make(4)
    place.mount("-o", "commit=0.1,nowriteback")
    before = place.info()["serial"]
    (place.mountpoint / "file").write_text("x")
    deadline = time.monotonic() + 10
    while place.info()["serial"] <= before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    place.kill()
    cowfs("umount", place.mountpoint)
    place.mount()
    assert (place.mountpoint / "file").read_text() == "x"


def test_sync_makes_each_change_durable_before_it_is_answered(place: Place) -> None:
    place.make(4)
    place.mount("-o", "sync,commit=3600")
    path = place.mountpoint / "file"
    with open(path, "wb", buffering=0) as file:
        file.write(b"written")
        os.mkdir(place.mountpoint / "directory")
        place.kill()
    cowfs("umount", place.mountpoint)
    place.mount()
    assert path.read_bytes() == b"written"
    assert (place.mountpoint / "directory").is_dir()
