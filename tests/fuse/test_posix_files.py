"""What POSIX and Linux say of files, call by call, on a real mount: opening, appending, mapping, locking, holes."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import random
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounting import Place, cowfs, errno_of, run

pytestmark = pytest.mark.fuse

BLOCK = 4096
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
AT_FDCWD = -100
AT_SYMLINK_FOLLOW = 0x400
F_OFD_SETLK = 37
F_OFD_GETLK = 36


@contextlib.contextmanager
def opened(path: Path, flags: int, mode: int = 0o644) -> Iterator[int]:
    """A descriptor."""
    descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


# --- open ---


def test_create_and_exclusive(folder: Path) -> None:
    path = folder / "f"
    assert errno_of(lambda: os.open(path, os.O_RDONLY)) == errno.ENOENT
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o400))
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert errno_of(lambda: os.open(path, os.O_CREAT | os.O_EXCL)) == errno.EEXIST
    (folder / "dangling").symlink_to("nowhere")
    assert errno_of(lambda: os.open(folder / "dangling", os.O_CREAT | os.O_EXCL)) == errno.EEXIST
    os.close(os.open(folder / "dangling", os.O_CREAT | os.O_WRONLY))
    assert (folder / "nowhere").exists()


def test_exclusive_creation_has_one_winner(folder: Path) -> None:
    results: dict[Path, list[int]] = {folder / f"f{number}": [] for number in range(20)}

    def create_all() -> None:
        for path, seen in results.items():
            seen.append(errno_of(lambda path=path: os.close(os.open(path, os.O_CREAT | os.O_EXCL))))  # type: ignore[misc]

    threads = [threading.Thread(target=create_all) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [sorted(seen) for seen in results.values()] == [[0] + [errno.EEXIST] * 7] * 20


def test_a_file_made_read_only_is_written_by_its_maker(folder: Path) -> None:
    with opened(folder / "f", os.O_CREAT | os.O_RDWR, 0) as descriptor:
        assert os.write(descriptor, b"mine") == 4
        assert os.pread(descriptor, 10, 0) == b"mine"


def test_truncation_at_open(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"x" * 10000)
    with opened(path, os.O_RDONLY) as reader:
        with opened(path, os.O_WRONLY | os.O_TRUNC):
            assert path.stat().st_size == 0
        assert os.read(reader, 10) == b""
    assert path.stat().st_blocks == 0


def test_what_cannot_be_opened_so(folder: Path) -> None:
    (folder / "link").symlink_to("f")
    (folder / "f").touch()
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "fifo")
    assert errno_of(lambda: os.open(folder / "link", os.O_NOFOLLOW)) == errno.ELOOP
    assert errno_of(lambda: os.open(folder / "loop", os.O_RDONLY)) == errno.ELOOP
    assert errno_of(lambda: os.open(folder, os.O_WRONLY)) == errno.EISDIR
    assert errno_of(lambda: os.open(folder / "f", os.O_DIRECTORY)) == errno.ENOTDIR
    assert errno_of(lambda: os.open(folder / "f" / "g", os.O_RDONLY)) == errno.ENOTDIR
    assert errno_of(lambda: os.open(folder / "fifo", os.O_WRONLY | os.O_NONBLOCK)) == errno.ENXIO
    assert errno_of(lambda: os.open(folder, os.O_TMPFILE | os.O_RDWR)) == errno.EOPNOTSUPP
    assert errno_of(lambda: os.read(os.open(folder, os.O_RDONLY), 1)) == errno.EISDIR


def test_a_program_that_runs_is_not_written(folder: Path) -> None:
    path = folder / "program"
    path.write_bytes(Path("/bin/sleep").read_bytes())
    path.chmod(0o755)
    with opened(path, os.O_WRONLY):
        with pytest.raises(OSError) as caught:
            subprocess.run([path, "0"], check=True)
        assert caught.value.errno == errno.ETXTBSY
    process = subprocess.Popen([path, "60"])
    try:
        assert errno_of(lambda: os.open(path, os.O_WRONLY)) == errno.ETXTBSY
        assert errno_of(lambda: os.truncate(path, 0)) == errno.ETXTBSY
    finally:
        process.kill()
        process.wait()
    run(path, "0")


# --- reading and writing ---


@pytest.mark.parametrize("words", ["nowriteback", "async"])
def test_nothing_appended_is_lost_or_torn(place: Place, words: str) -> None:
    place.make()
    place.mount("-o", words)
    path = place.mountpoint / "log"
    code = """
import os, sys
name, path = sys.argv[1:]
fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
for number in range(300):
    line = f"{name} {number} ".ljust(20 + number % 200, name) + "\\n"
    assert os.write(fd, line.encode()) == len(line)
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, name, path]) for name in "abcd"]
    assert [writer.wait() for writer in writers] == [0] * 4
    lines = path.read_text().splitlines()
    assert len(lines) == 1200
    assert "".join(lines).strip("abcd 0123456789") == ""
    for name in "abcd":
        mine = [line for line in lines if line[0] == name]
        assert mine == [f"{name} {number} ".ljust(20 + number % 200, name) for number in range(300)]


def test_appending_ignores_the_position(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"0123456789")
    with opened(path, os.O_RDWR | os.O_APPEND) as descriptor:
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, b"end")
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 13
        os.pwrite(descriptor, b"!", 2)  # Linux appends here, too
    assert path.read_bytes() == b"0123456789end!"


def test_past_caches_at_any_offset(folder: Path) -> None:
    """O_DIRECT: aligned or not, in memory and in the file, mixed with ordinary writes and reads of the same bytes."""
    random_ = random.Random(1)
    path = folder / "f"
    model = bytearray()
    memory = mmap.mmap(-1, 1 << 20)
    direct = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o644)
    plain = os.open(path, os.O_RDWR)
    try:
        for step in range(200):
            offset, size = 512 * random_.randrange(200), BLOCK
            if step % 2:
                offset, size = random_.randrange(90000), random_.randrange(1, 20000)
            data = bytes([step]) * size
            start = random_.choice([0, 1, 512])
            memory[start : start + size] = data
            writer = random_.choice([direct, plain])
            assert os.pwritev(writer, [memoryview(memory)[start : start + size]], offset) == size
            model.extend(bytes(max(0, offset + size - len(model))))
            model[offset : offset + size] = data
            at = random_.randrange(len(model))
            wanted = bytes(model[at : at + 5000])
            for reader in (direct, plain):
                got = os.preadv(reader, [memoryview(memory)[start : start + 5000]], at)
                assert memory[start : start + got] == wanted, step
    finally:
        os.close(direct)
        os.close(plain)
    assert path.read_bytes() == model


def test_reads_and_writes_of_no_bytes(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"x")
    before = path.stat()
    with opened(path, os.O_RDWR) as descriptor:
        assert os.write(descriptor, b"") == 0
        assert os.pwrite(descriptor, b"", 1 << 40) == 0
        assert os.read(descriptor, 0) == b""
        assert os.pread(descriptor, 1, 1 << 40) == b""
        assert errno_of(lambda: os.pread(descriptor, 1, -1)) == errno.EINVAL
    assert path.stat().st_size == before.st_size
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_truncate_and_its_errors(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"x" * 9000)
    os.truncate(path, 5000)
    os.truncate(path, 9000)
    assert path.read_bytes() == b"x" * 5000 + bytes(4000)
    assert errno_of(lambda: os.truncate(path, -1)) == errno.EINVAL
    assert errno_of(lambda: os.truncate(folder, 0)) == errno.EISDIR
    with opened(path, os.O_RDONLY) as descriptor:
        assert errno_of(lambda: os.ftruncate(descriptor, 0)) == errno.EINVAL
        assert errno_of(lambda: os.write(descriptor, b"x")) == errno.EBADF


# --- mapping ---


def test_shared_and_private_maps(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(bytes(3 * BLOCK))
    with opened(path, os.O_RDWR) as descriptor:
        with mmap.mmap(descriptor, 0) as shared, mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE) as private:
            private[0:4] = b"mine"
            shared[BLOCK : BLOCK + 4] = b"ours"
            assert os.pread(descriptor, 4, BLOCK) == b"ours", "one cache for maps and reads"
            assert private[BLOCK : BLOCK + 4] == b"ours", "not copied yet"
            assert os.pread(descriptor, 4, 0) == bytes(4)
            os.pwrite(descriptor, b"read", 2 * BLOCK)
            assert shared[2 * BLOCK : 2 * BLOCK + 4] == b"read"
            shared.flush()
        with opened(path, os.O_RDONLY | os.O_DIRECT) as direct:
            memory = mmap.mmap(-1, 3 * BLOCK)
            os.preadv(direct, [memory], 0)
            assert memory[BLOCK : BLOCK + 4] == b"ours"


def test_msync_makes_a_map_durable(place: Place) -> None:
    place.make()
    place.mount()
    path = place.mountpoint / "f"
    path.write_bytes(bytes(BLOCK))
    with opened(path, os.O_RDWR) as descriptor, mmap.mmap(descriptor, 0) as shared:
        shared[10:14] = b"kept"
        shared.flush()
        place.kill()
    cowfs("umount", place.mountpoint)
    place.mount()
    assert path.read_bytes()[10:14] == b"kept"


def test_a_map_moves_mtime_and_sees_truncation(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"x" * 2 * BLOCK)
    os.utime(path, ns=(0, 0))
    with opened(path, os.O_RDWR) as descriptor, mmap.mmap(descriptor, 0) as shared:
        shared[0] = 1
        shared.flush()
        assert path.stat().st_mtime_ns != 0
        os.ftruncate(descriptor, 10)
        os.ftruncate(descriptor, 2 * BLOCK)
        assert shared[10:] == bytes(2 * BLOCK - 10)


# --- locks ---


def lock(kind: int, start: int, length: int) -> bytes:
    """A struct flock."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)


def locked_elsewhere(path: Path, start: int, length: int) -> bool:
    """Whether another process meets a POSIX lock in the range."""
    code = f"""
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, {length}, {start})
    except BlockingIOError:
        sys.exit(3)
"""
    return run(sys.executable, "-c", code, path, ok=False).returncode == 3


def test_posix_locks_are_by_process_and_range(folder: Path) -> None:
    path = folder / "f"
    path.touch()
    with open(path, "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 5)
        assert locked_elsewhere(path, 14, 5)
        assert not locked_elsewhere(path, 15, 5)
        fcntl.lockf(file, fcntl.LOCK_UN, 1, 10)
        assert not locked_elsewhere(path, 10, 1)
        with open(path, "rb"):
            pass  # closing any descriptor of the file lets go of the process's locks
        assert not locked_elsewhere(path, 0, 100)


def test_ofd_locks_and_flock_are_by_open_file(folder: Path) -> None:
    path = folder / "f"
    path.touch()
    with opened(path, os.O_RDWR) as one, opened(path, os.O_RDWR) as other:
        fcntl.fcntl(one, F_OFD_SETLK, lock(fcntl.F_WRLCK, 0, 10))
        assert errno_of(lambda: fcntl.fcntl(other, F_OFD_SETLK, lock(fcntl.F_RDLCK, 9, 1))) == errno.EAGAIN
        fcntl.fcntl(other, F_OFD_SETLK, lock(fcntl.F_WRLCK, 10, 1))
        found = struct.unpack("hhqqi4x", fcntl.fcntl(other, F_OFD_GETLK, lock(fcntl.F_WRLCK, 0, 0)))
        assert found[:4] == (fcntl.F_WRLCK, os.SEEK_SET, 0, 10)
        fcntl.flock(one, fcntl.LOCK_SH)
        fcntl.flock(other, fcntl.LOCK_SH)
        assert errno_of(lambda: fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)) == errno.EAGAIN
    with opened(path, os.O_RDWR) as one:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- holes ---


def test_sparse_files(folder: Path) -> None:
    path = folder / "f"
    with opened(path, os.O_RDWR | os.O_CREAT) as descriptor:
        os.pwrite(descriptor, b"end", 1 << 40)
        os.fsync(descriptor)
        assert os.fstat(descriptor).st_size == (1 << 40) + 3
        assert os.fstat(descriptor).st_blocks * 512 < 64 * BLOCK
        assert os.pread(descriptor, 100, 1 << 39) == bytes(100)


def test_seeking_data_and_holes_is_correct_if_coarse(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"x" * 10)
    os.truncate(path, 1 << 20)
    with opened(path, os.O_RDONLY) as descriptor:
        assert os.lseek(descriptor, 5, os.SEEK_DATA) == 5
        assert os.lseek(descriptor, 5, os.SEEK_HOLE) == 1 << 20
        assert errno_of(lambda: os.lseek(descriptor, 1 << 20, os.SEEK_DATA)) == errno.ENXIO
        assert errno_of(lambda: os.lseek(descriptor, 1 << 20, os.SEEK_HOLE)) == errno.ENXIO


def test_posix_fallocate_extends_and_keeps(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"kept")
    with opened(path, os.O_RDWR) as descriptor:
        os.posix_fallocate(descriptor, 0, 100_000)
        assert os.fstat(descriptor).st_size == 100_000
        assert os.pread(descriptor, 10, 0) == b"kept" + bytes(6)
        os.posix_fallocate(descriptor, 10, 20)
        assert os.fstat(descriptor).st_size == 100_000
        assert errno_of(lambda: os.posix_fallocate(descriptor, 0, 0)) == errno.EINVAL
        assert _libc.fallocate(descriptor, 0, ctypes.c_long(0), ctypes.c_long(10)) == -1
        assert ctypes.get_errno() == errno.EOPNOTSUPP


# --- life after the name ---


def test_an_unlinked_file_is_whole_until_it_is_closed(folder: Path) -> None:
    path = folder / "f"
    with opened(path, os.O_RDWR | os.O_CREAT) as descriptor:
        os.write(descriptor, b"x" * 100_000)
        path.unlink()
        assert os.fstat(descriptor).st_nlink == 0
        os.fchmod(descriptor, 0o600)
        os.ftruncate(descriptor, 50_000)
        os.pwrite(descriptor, b"y", 200_000)
        os.setxattr(descriptor, "user.a", b"b")
        os.fsync(descriptor)
        assert os.pread(descriptor, 1, 200_000) == b"y"
        with opened(Path(f"/proc/self/fd/{descriptor}"), os.O_RDONLY) as again:
            assert os.fstat(again).st_size == 200_001
        old, new = f"/proc/self/fd/{descriptor}".encode(), os.fsencode(folder / "back")
        assert _libc.linkat(AT_FDCWD, old, AT_FDCWD, new, AT_SYMLINK_FOLLOW) == -1
        assert ctypes.get_errno() == errno.ENOENT
