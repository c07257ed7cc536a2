"""docs/LIMITS.md, line by line: what a program sees of what cannot be served. Should a line come to work, change it there."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import select
import sqlite3
import struct
from pathlib import Path

import pytest
from mounting import Place, cowfs, errno_of
from users import acting_as

pytestmark = pytest.mark.fuse

KERNEL = tuple(int(word) for word in platform.release().split("-")[0].split(".")[:2])
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FIEMAP = 0xC020660B
FICLONE = 0x40049409
FIFREEZE = 0xC0045877
FITRIM = 0xC0185879
STATX_BTIME = 0x800
AT_FDCWD = -100
WHITEOUT = 4
HANDLE_MAX = 128
NAMES_CHANGED = 0x3C0  # IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE

_libc = ctypes.CDLL(None, use_errno=True)


def libc_errno(name: str, *arguments: object) -> int:
    """The errno that a function of the C library fails with, 0 where it does not."""
    return ctypes.get_errno() if getattr(_libc, name)(*arguments) < 0 else 0


@pytest.fixture
def file(folder: Path) -> Path:
    """A file of 100,000 bytes."""
    path = folder / "f"
    path.write_bytes(b"x" * 100_000)
    return path


@pytest.mark.parametrize(
    ("request_", "size", "wanted"),
    [
        (FS_IOC_GETFLAGS, 8, errno.ENOTTY),
        (FS_IOC_FSGETXATTR, 28, errno.ENOTTY),
        (FITRIM, 24, errno.ENOTTY),
        (FS_IOC_FIEMAP, 32, errno.EOPNOTSUPP),
        (FIFREEZE, 4, errno.EOPNOTSUPP),
    ],
)
def test_ioctls(file: Path, request_: int, size: int, wanted: int) -> None:
    if request_ == FIFREEZE and os.geteuid() != 0:
        wanted = errno.EPERM
    with open(file, "rb") as opened:
        assert errno_of(lambda: fcntl.ioctl(opened, request_, bytes(size))) == wanted


def test_cloning_and_copying_ranges(file: Path) -> None:
    with open(file, "rb") as source, open(file.with_name("copy"), "w+b") as target:
        assert errno_of(lambda: fcntl.ioctl(target, FICLONE, source.fileno())) == errno.EOPNOTSUPP
        assert os.copy_file_range(source.fileno(), target.fileno(), 100_000) == 100_000
        assert os.pread(target.fileno(), 200_000, 0) == b"x" * 100_000


def test_reserving(file: Path) -> None:
    with open(file, "r+b") as opened:
        for mode in (0, 1, 3, 8, 16):
            offset, length = ctypes.c_long(0), ctypes.c_long(4096)
            assert libc_errno("fallocate", opened.fileno(), mode, offset, length) == errno.EOPNOTSUPP
    with open(file.with_name("reserved"), "wb") as opened:
        os.posix_fallocate(opened.fileno(), 0, 1 << 20)
    assert file.with_name("reserved").stat().st_blocks == 2048, "a block of zeros is a block"


def test_seeking_holes(file: Path) -> None:
    os.truncate(file, 1 << 30)
    with open(file, "rb") as opened:
        assert os.lseek(opened.fileno(), 1 << 29, os.SEEK_DATA) == 1 << 29
        assert os.lseek(opened.fileno(), 0, os.SEEK_HOLE) == 1 << 30


def test_nameless_files_and_whiteouts(file: Path) -> None:
    assert errno_of(lambda: os.open(file.parent, os.O_TMPFILE | os.O_RDWR)) == errno.EOPNOTSUPP
    old, new = os.fsencode(file), os.fsencode(file.with_name("new"))
    assert libc_errno("renameat2", AT_FDCWD, old, AT_FDCWD, new, WHITEOUT) == errno.EINVAL


def test_birth_time_is_not_told(file: Path) -> None:
    buffer = ctypes.create_string_buffer(256)
    assert libc_errno("statx", AT_FDCWD, os.fsencode(file), 0, 0xFFF, buffer) == 0
    assert not struct.unpack_from("I", buffer)[0] & STATX_BTIME


def test_syncfs_succeeds_and_commits_nothing_itself(mounted: Place) -> None:
    (mounted.mountpoint / "f").write_bytes(b"x" * 100_000)
    before = mounted.info()["serial"]
    descriptor = os.open(mounted.mountpoint, os.O_RDONLY)
    assert libc_errno("syncfs", descriptor) == 0
    os.close(descriptor)
    assert mounted.info()["serial"] == before
    cowfs("sync", mounted.mountpoint)
    assert mounted.info()["serial"] > before


def test_blocks_of_an_open_file_are_late_and_of_a_closed_one_right(file: Path) -> None:
    path = file.with_name("growing")
    with open(path, "wb", buffering=0) as opened:
        os.fstat(opened.fileno())
        opened.write(b"x" * 100_000)
        os.fstat(opened.fileno())
    assert path.stat().st_blocks == 200


def test_names_and_links(file: Path) -> None:
    assert os.pathconf(file.parent, "PC_NAME_MAX") == os.statvfs(file).f_namemax == 510
    (file.parent / ("n" * 510)).touch()
    assert "n" * 510 in os.listdir(file.parent)
    assert os.pathconf(file.parent, "PC_LINK_MAX") == 127, "glibc's number for what it does not know"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes other users")
@pytest.mark.skipif(KERNEL < (6, 6), reason="older kernels map no file that bypasses their cache")
def test_a_file_that_bypasses_the_cache_is_mapped(commons: Path) -> None:
    path = commons / "f"
    path.write_bytes(bytes(8192))
    path.chmod(0o4777)  # a stranger's writes take the bit away at once, so they bypass the cache
    with acting_as(1002, 1002), open(path, "r+b", buffering=0) as opened, mmap.mmap(opened.fileno(), 8192) as shared:
        shared[0:4] = b"maps"
        assert os.pread(opened.fileno(), 4, 0) == b"maps"
        os.pwrite(opened.fileno(), b"file", 4096)
        assert shared[4096:4100] == b"file"
    assert path.read_bytes()[:4] == b"maps"
    assert path.stat().st_mode & 0o7777 == 0o777


def test_a_nearly_full_volume_maps_and_runs_sqlite(place: Place) -> None:
    """With little space left (see test_space) databases notice nothing."""
    place.make(64)
    place.mount()
    root = place.mountpoint
    free = os.statvfs(root).f_bavail * os.statvfs(root).f_bsize
    (root / "filler").write_bytes(os.urandom(1 << 20) * ((free >> 20) - 4))
    cowfs("sync", root)
    with open(root / "mapped", "w+b", buffering=0) as opened:
        opened.write(bytes(8192))
        with mmap.mmap(opened.fileno(), 8192) as shared:
            shared[0:4] = b"maps"
            assert os.pread(opened.fileno(), 4, 0) == b"maps"
            os.pwrite(opened.fileno(), b"file", 4096)
            assert shared[4096:4100] == b"file"
    one, two = sqlite3.connect(root / "db"), sqlite3.connect(root / "db")
    try:
        assert one.execute("pragma journal_mode=wal").fetchone() == ("wal",)
        one.execute("create table numbers(number)")
        one.executemany("insert into numbers values (?)", [(number,) for number in range(1000)])
        one.commit()
        assert two.execute("select count(*) from numbers").fetchone() == (1000,)
        assert two.execute("pragma integrity_check").fetchone() == ("ok",)
    finally:
        one.close()
        two.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root opens files by handle, and has the kernel forget")
def test_file_handles_outlive_the_kernels_memory(mounted: Place) -> None:
    root = mounted.mountpoint
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "f").write_text("found")
    handles = {}
    for name in ("a/b/f", "a/b"):
        handle = ctypes.create_string_buffer(8 + HANDLE_MAX)
        struct.pack_into("Ii", handle, 0, HANDLE_MAX, 0)
        where = ctypes.c_int()
        assert libc_errno("name_to_handle_at", AT_FDCWD, os.fsencode(root / name), handle, ctypes.byref(where), 0) == 0
        handles[name] = handle
    cowfs("sync", root)
    Path("/proc/sys/vm/drop_caches").write_text("2")
    top = os.open(root, os.O_RDONLY)
    try:
        opened = {name: _libc.open_by_handle_at(top, handle, os.O_RDONLY) for name, handle in handles.items()}
        assert os.read(opened["a/b/f"], 10) == b"found"
        assert os.listdir(opened["a/b"]) == ["f"]
        for descriptor in opened.values():
            os.close(descriptor)
    finally:
        os.close(top)


def test_a_rollback_tells_no_watcher_and_leaves_old_descriptors_stale(mounted: Place) -> None:
    root = mounted.mountpoint
    (root / "d").mkdir()
    (root / "d" / "f").touch()
    cowfs("snapshot", "create", root, "then")
    watch = _libc.inotify_init1(os.O_NONBLOCK)
    assert _libc.inotify_add_watch(watch, os.fsencode(root / "d"), 0xFFF) > 0
    (root / "d" / "g").touch()
    assert select.select([watch], [], [], 10)[0], "what is done here is told"
    os.read(watch, 1 << 16)
    descriptor = os.open(root / "d", os.O_RDONLY)
    try:
        cowfs("rollback", root, "then")
        told = [struct.unpack_from("I", event, 4)[0] for event in events(watch)]
        assert not [mask for mask in told if mask & NAMES_CHANGED]
        assert errno_of(lambda: os.listdir(descriptor)) == errno.ESTALE
    finally:
        os.close(descriptor)
        os.close(watch)
    assert os.listdir(root / "d") == ["f"]


def events(watch: int) -> list[bytes]:
    """The events that wait."""
    try:
        data = os.read(watch, 1 << 16)
    except BlockingIOError:
        return []
    found, at = [], 0
    while at < len(data):
        size = 16 + struct.unpack_from("I", data, at + 12)[0]
        found.append(data[at : at + size])
        at += size
    return found
