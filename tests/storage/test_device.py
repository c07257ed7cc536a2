"""Devices: what is written is read back, failures are named, locks exclude, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cowfs.errors import Busy, DeviceError, Exists, InvalidArgument, NotSupported, ReadOnly
from cowfs.ondisk.records import Buffer
from cowfs.storage.device import Device, FileDevice, MemoryDevice

SIZE = 1 << 20
LOCKER = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(descriptor, fcntl.LOCK_EX if sys.argv[2] == "exclusive" else fcntl.LOCK_SH)
print("locked", flush=True)
sys.stdin.readline()
"""


@pytest.fixture(params=["file", "memory"])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FileDevice | MemoryDevice]:
    made = MemoryDevice(SIZE) if request.param == "memory" else FileDevice.create(tmp_path / "image", SIZE)
    yield made
    made.close()


@pytest.fixture
def file_device(tmp_path: Path) -> Iterator[FileDevice]:
    made = FileDevice.create(tmp_path / "image", SIZE)
    yield made
    made.close()


@pytest.fixture
def locker() -> Iterator[Callable[[str, str], subprocess.Popen[str]]]:
    """Starts a process that holds a lock until its standard input is closed."""
    started: list[subprocess.Popen[str]] = []

    def start(path: str, kind: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", LOCKER, path, kind]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        return process

    yield start
    for process in started:
        process.communicate()


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[str]:
    """A block device of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("a loop device needs root")
    image = tmp_path / "loop-image"
    image.write_bytes(bytes(SIZE))
    found = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(f"no loop device: {found.stderr.strip()}")
    yield found.stdout.strip()
    subprocess.run(["losetup", "--detach", found.stdout.strip()], check=True)


def fail_with(number: int) -> Callable[..., int]:
    def call(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return call


def test_both_are_devices(device: Device) -> None:
    assert device.size() == SIZE
    assert not device.read_only


def test_what_is_written_is_read_back(device: Device) -> None:
    pieces: list[Buffer] = [b"one", bytearray(b"two"), memoryview(b"three"), b""]
    device.write(65530, pieces)
    assert device.read(65530, 11) == b"onetwothree"
    assert device.read(65529, 13) == b"\0onetwothree\0"
    assert device.read(0, SIZE) == bytes(65530) + b"onetwothree" + bytes(SIZE - 65541)
    device.write(0, [])
    assert device.read(10, 0) == b""
    device.flush()
    device.drop_cache()
    assert device.read(65530, 11) == b"onetwothree"


def test_more_pieces_than_one_call_takes(device: Device) -> None:
    pieces = [bytes([n % 251]) * (n % 7) for n in range(5000)]
    device.write(3, pieces)
    wanted = b"".join(pieces)
    assert device.read(3, len(wanted)) == wanted
    assert device.read(3 + len(wanted), 100) == bytes(100)


def test_nothing_outside_the_device(device: Device) -> None:
    with pytest.raises(DeviceError, match=f"cannot read 2 bytes at offset {SIZE - 1}: it ends at {SIZE}"):
        device.read(SIZE - 1, 2)
    with pytest.raises(DeviceError, match=f"cannot write 2 bytes at offset {SIZE - 1}: it ends at {SIZE}"):
        device.write(SIZE - 1, [b"a", b"b"])
    with pytest.raises(DeviceError, match="cannot write 1 bytes at offset -1"):
        device.write(-1, [b"a"])
    assert device.size() == SIZE
    assert device.read(SIZE - 1, 1) == b"\0"


def test_read_only_refuses_writes(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"x" * 4096)
    path.chmod(0o444)
    memory = MemoryDevice.from_image(b"x" * 4096)
    memory.read_only = True
    file = FileDevice.open(path, read_only=True)
    readers: Sequence[Device] = (memory, file)
    for reader in readers:
        with pytest.raises(ReadOnly, match="open for reading only"):
            reader.write(0, [b"y"])
        reader.drop_cache()
        assert reader.read(0, 4096) == b"x" * 4096
        reader.close()
    with pytest.raises(ReadOnly):
        file.resize(1)
    with pytest.raises(ReadOnly):
        file.discard(0, 1)


def test_resize_and_discard(device: Device) -> None:
    device.write(0, [b"x" * SIZE])
    device.discard(4096, 200_000)
    assert device.read(0, 4096) == b"x" * 4096
    assert device.read(4096, 200_000) == bytes(200_000)
    assert device.read(204_096, 1) == b"x"
    device.resize(SIZE - 5000)
    device.resize(SIZE)
    assert device.size() == SIZE
    assert device.read(SIZE - 5001, 5001) == b"x" + bytes(5000)
    device.discard(SIZE - 10, 4096)
    assert device.size() == SIZE


def test_discard_frees_space(file_device: FileDevice) -> None:
    file_device.write(0, [b"x" * SIZE])
    file_device.flush()
    before = os.stat(file_device.name).st_blocks
    file_device.discard(0, SIZE // 2)
    assert os.stat(file_device.name).st_blocks <= before // 2 + 16


def test_discard_of_a_medium_that_cannot(file_device: FileDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    file_device.write(0, [b"kept"])
    monkeypatch.setattr("cowfs.storage.device._punch_hole", fail_with(errno.EOPNOTSUPP))
    with pytest.raises(NotSupported, match="cannot give space back"):
        file_device.discard(0, 4096)
    assert file_device.read(0, 4) == b"kept"
    monkeypatch.setattr("cowfs.storage.device._punch_hole", fail_with(errno.EIO))
    with pytest.raises(DeviceError, match=r"cannot discard 4096 bytes at offset 0: .*EIO"):
        file_device.discard(0, 4096)


def test_memory_device_is_sparse_and_counts() -> None:
    device = MemoryDevice(1 << 42)
    device.write((1 << 42) - 3, [b"a", b"bc"])
    device.write(5, [b"d"])
    device.flush()
    assert device.read((1 << 42) - 4, 4) == b"\0abc"
    assert (device.reads, device.writes, device.flushes) == (1, 2, 1)
    assert (device.bytes_read, device.bytes_written) == (4, 4)
    device.discard(0, 1 << 42)
    assert device.read(5, 1) == b"\0"
    device.reset_counters()
    assert (device.reads, device.writes, device.flushes, device.bytes_read, device.bytes_written) == (0,) * 5


def test_memory_device_from_image() -> None:
    image = bytes(range(256)) * 400
    device = MemoryDevice.from_image(image)
    assert device.image() == image
    device.write(0, [b"new"])
    assert device.image() == b"new" + image[3:]


def test_short_reads_and_writes_are_continued(file_device: FileDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    write, read = os.pwritev, os.pread
    sizes: list[int] = []

    def short_write(descriptor: int, pieces: Sequence[memoryview], offset: int) -> int:
        sizes.append(len(pieces))
        return write(descriptor, [b"".join(pieces)[:7]], offset)

    monkeypatch.setattr(os, "pwritev", short_write)
    monkeypatch.setattr(os, "pread", lambda descriptor, length, offset: read(descriptor, min(length, 5), offset))
    data = bytes(range(100))
    file_device.write(11, [data[:3], data[3:20], data[20:21], data[21:]])
    assert file_device.read(11, 100) == data
    assert len(sizes) == 15
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with pytest.raises(DeviceError, match="EIO"):
        file_device.write(0, [b"never"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_failures_are_named(file_device: FileDevice, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    actions: list[tuple[str, str, Callable[[], object]]] = [
        ("pwritev", "write 3 bytes at offset 512", lambda: file_device.write(512, [b"abc"])),
        ("pread", "read 3 bytes at offset 512", lambda: file_device.read(512, 3)),
        ("fdatasync", "flush it", file_device.flush),
        ("fsync", "flush it", file_device.drop_cache),
        ("posix_fadvise", "forget its cached pages", file_device.drop_cache),
        ("ftruncate", "give it 4096 bytes", lambda: file_device.resize(4096)),
        ("posix_fallocate", f"set {SIZE} bytes aside", file_device.allocate),
        ("lseek", "find its size", file_device.size),
    ]
    for function, action, call in actions:
        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail_with(number))
            with pytest.raises(DeviceError) as caught:
                call()
        wanted = f"{file_device.name}: cannot {action}: {os.strerror(number)} ({errno.errorcode[number]})"
        assert str(caught.value) == wanted
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == number


def test_opening_what_is_no_device(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"missing: cannot open it: No such file or directory \(ENOENT\)"):
        FileDevice.open(tmp_path / "missing", read_only=True)
    with pytest.raises(InvalidArgument, match="neither a regular file nor a block device"):
        FileDevice.open(tmp_path, read_only=True)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InvalidArgument, match="neither a regular file nor a block device"):
        FileDevice.open(tmp_path / "fifo", read_only=False)


def test_names_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    FileDevice.create("image", 4096).close()
    device = FileDevice.open(b"image", read_only=False)
    assert device.name == str(tmp_path / "image")
    assert not os.get_inheritable(device._descriptor)
    device.close()
    device.close()


def test_create_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"mine")
    with pytest.raises(Exists):
        FileDevice.create(path, SIZE)
    assert path.read_bytes() == b"mine"
    path.unlink()
    with pytest.raises(DeviceError, match="ENOENT"):
        FileDevice.create(tmp_path / "missing" / "image", SIZE)
    for function in ("ftruncate", "posix_fallocate", "lseek"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail_with(errno.ENOSPC))
            with pytest.raises(DeviceError, match=r"No space left on device \(ENOSPC\)"):
                FileDevice.create(path, SIZE, preallocate=True)
        assert not path.exists()


def test_create_is_sparse_unless_told_otherwise(tmp_path: Path) -> None:
    FileDevice.create(tmp_path / "sparse", SIZE).close()
    FileDevice.create(tmp_path / "full", SIZE, preallocate=True).close()
    assert (tmp_path / "sparse").stat().st_blocks * 512 < SIZE // 8
    assert (tmp_path / "full").stat().st_blocks * 512 >= SIZE


@pytest.mark.parametrize("kind", ["exclusive", "shared"])
def test_locks_between_processes(
    file_device: FileDevice, locker: Callable[[str, str], subprocess.Popen[str]], kind: str
) -> None:
    assert file_device.holder() is None
    process = locker(file_device.name, kind)
    assert file_device.holder() == process.pid
    in_use = f"^{file_device.name} is in use by process {process.pid}$"
    with pytest.raises(Busy, match=in_use):
        file_device.lock(exclusive=True)
    reader = FileDevice.open(file_device.name, read_only=True)
    if kind == "exclusive":
        with pytest.raises(Busy, match=in_use):
            reader.lock(exclusive=False)
    else:
        reader.lock(exclusive=False)
    reader.close()
    process.communicate()
    file_device.lock(exclusive=True)


def test_a_lock_is_waited_for(file_device: FileDevice, locker: Callable[[str, str], subprocess.Popen[str]]) -> None:
    process = locker(file_device.name, "exclusive")
    start = time.monotonic()
    with pytest.raises(Busy):
        file_device.lock(exclusive=True, timeout=0.2)
    assert time.monotonic() - start >= 0.2
    timer = threading.Timer(0.3, process.communicate)
    timer.start()
    file_device.lock(exclusive=True, timeout=60)
    timer.join()


def test_a_lock_without_a_known_holder(file_device: FileDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    second = FileDevice.open(file_device.name, read_only=False)
    second.lock(exclusive=True)
    assert file_device.holder() is None
    with pytest.raises(Busy, match=f"^{file_device.name} is in use$"):
        file_device.lock(exclusive=False)
    second.close()
    file_device.lock(exclusive=False)


def test_a_lock_outlives_a_fork(file_device: FileDevice) -> None:
    parent = FileDevice.open(file_device.name, read_only=False)
    parent.lock(exclusive=True)
    inherited = os.dup(parent._descriptor)  # what a forked child has
    parent.close()
    with pytest.raises(Busy):
        file_device.lock(exclusive=True)
    os.close(inherited)
    file_device.lock(exclusive=True)


def test_a_lock_that_the_filesystem_refuses(file_device: FileDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", fail_with(errno.ENOLCK))
    with pytest.raises(DeviceError, match=r"cannot lock it: .*ENOLCK"):
        file_device.lock(exclusive=True)


def test_block_device(loop_device: str) -> None:
    device = FileDevice.open(loop_device, read_only=False)
    assert device.is_block_device
    assert device.size() == SIZE
    device.lock(exclusive=True)
    device.lock(exclusive=True)
    device.write(SIZE - 3, [b"end"])
    device.flush()
    device.drop_cache()
    assert device.read(SIZE - 4, 4) == b"\0end"
    with pytest.raises(NotSupported, match="its size is given"):
        device.resize(SIZE)
    with pytest.raises(DeviceError, match="it ends at"):
        device.write(SIZE, [b"x"])
    device.allocate()
    device.write(0, [b"x" * 8192])
    device.flush()
    device.discard(100, 8000)
    assert device.read(0, 4096) == b"x" * 4096
    with pytest.raises(Busy, match="in use"):
        FileDevice.open(loop_device, read_only=True).lock(exclusive=False)
    device.close()


def test_block_device_that_is_claimed(loop_device: str) -> None:
    device = FileDevice.open(loop_device, read_only=False)
    claim = os.open(loop_device, os.O_RDONLY | os.O_EXCL)  # what a kernel filesystem does when it is mounted
    with pytest.raises(Busy, match=f"^{loop_device} is mounted or in use$"):
        device.lock(exclusive=True)
    reader = FileDevice.open(loop_device, read_only=True)
    reader.lock(exclusive=False)
    reader.close()
    os.close(claim)
    device.lock(exclusive=True)
    device.close()


def test_reading_leaves_no_access_time_where_that_may_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the owner of a file may ask for it; for others the file is opened all the same."""
    path = tmp_path / "image"
    path.write_bytes(b"contents")
    really_open, flags = os.open, list[int]()

    def of_somebody_else(name: str, how: int, *more: int) -> int:
        flags.append(how)
        if how & os.O_NOATIME:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return really_open(name, how, *more)

    monkeypatch.setattr(os, "open", of_somebody_else)
    device = FileDevice.open(path, read_only=True)
    assert device.read(0, 8) == b"contents"
    device.close()
    assert [bool(how & os.O_NOATIME) for how in flags] == [True, False]
    FileDevice.open(path, read_only=False).close()
    assert not flags[-1] & os.O_NOATIME


def test_a_file_is_removed_only_while_its_name_is_its_own(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"contents")
    device = FileDevice.open(path, read_only=False)
    path.rename(tmp_path / "moved")
    path.write_bytes(b"somebody else's")
    with pytest.raises(DeviceError, match="another file by now"):
        device.unlink()
    assert path.read_bytes() == b"somebody else's"
    (tmp_path / "moved").replace(path)
    device.unlink()
    device.close()
    assert not path.exists()
