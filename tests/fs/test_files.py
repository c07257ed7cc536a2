"""Data and attributes of files: sizes, holes, limits, privileges, times, space."""

from __future__ import annotations

import errno
import random
import stat
import time
from collections.abc import Callable, Iterator

import pytest
from support import MIB, START, Clock, close_filesystem, filesystem_on, new_device, open_filesystem, refused

from cowfs.errors import NoSpace
from cowfs.fs import AtimeMode, Caller, Filesystem
from cowfs.fs import filesystem as module
from cowfs.fs.clock import CLOCK_REALTIME_COARSE
from cowfs.ondisk import format as f
from cowfs.ondisk.times import TIME_MAX, TIME_MIN
from cowfs.storage.volume import Volume

SECOND = 1_000_000_000
USER = Caller(1000, 100)
ROOT_USER = Caller(0, 0)
DAY = 24 * 3600 * 10**9


@pytest.fixture(params=f.BLOCK_SIZES)
def filesystem(request: pytest.FixtureRequest) -> Iterator[Filesystem]:
    filesystem = open_filesystem(new_device(block_size=request.param))
    yield filesystem
    close_filesystem(filesystem)


def test_reading_and_writing_at_the_edges(filesystem: Filesystem) -> None:
    block = filesystem.getattr(1).block_size
    ino = filesystem.create(1, b"f", 0o644, USER).ino
    wanted = bytearray()
    choose = random.Random(1)
    for at in (0, 1, block - 1, block, block + 1, 16 * block - 1, 16 * block, 40 * block + 7):
        for size in (1, block - 1, block, 3 * block + 1):
            data = choose.randbytes(size)
            assert filesystem.write(ino, at, data) == size
            wanted += bytes(max(0, at + size - len(wanted)))
            wanted[at : at + size] = data
            assert filesystem.getattr(ino).size == len(wanted)
    assert filesystem.read(ino, 0, 1 << 30) == wanted
    assert filesystem.read(ino, len(wanted) - 3, 100) == wanted[-3:]
    assert filesystem.read(ino, len(wanted), 100) == filesystem.read(ino, 1 << 60, 1) == b""
    for _ in range(50):
        at, size = choose.randrange(len(wanted)), choose.randrange(5 * block)
        assert filesystem.read(ino, at, size) == wanted[at : at + size]


def test_holes_cost_nothing_and_read_as_zeros(filesystem: Filesystem) -> None:
    block = filesystem.getattr(1).block_size
    ino = filesystem.create(1, b"f", 0o644, USER).ino
    end = filesystem.volume.geometry.file_size_max
    free = filesystem.statfs().free
    filesystem.truncate(ino, end)
    assert filesystem.getattr(ino).blocks == 0
    assert filesystem.statfs().free >= free - 10
    assert filesystem.read(ino, end - 10, 100) == bytes(10)
    filesystem.write(ino, end // 2 + 5, b"middle")
    attributes = filesystem.getattr(ino)
    assert (attributes.size, attributes.blocks) == (end, block // 512)
    assert filesystem.read(ino, end // 2, 20) == b"\0" * 5 + b"middle" + bytes(9)
    filesystem.truncate(ino, 0)
    assert filesystem.getattr(ino).blocks == 0


def test_no_byte_comes_back_after_truncating(filesystem: Filesystem) -> None:
    ino = filesystem.create(1, b"f", 0o644, USER).ino
    for size in (0, 1, 100, 511, 512, 4095, 4096, 20_000):
        filesystem.write(ino, 0, b"\xff" * 40_000)
        filesystem.truncate(ino, size)
        filesystem.truncate(ino, 40_000)
        assert filesystem.read(ino, 0, 40_000) == b"\xff" * size + bytes(40_000 - size)
        filesystem.truncate(ino, size)
        filesystem.write(ino, 39_999, b"x")
        assert filesystem.read(ino, 0, 40_000) == b"\xff" * size + bytes(39_999 - size) + b"x"


def test_the_largest_file(filesystem: Filesystem) -> None:
    end = filesystem.volume.geometry.file_size_max
    ino = filesystem.create(1, b"f", 0o644, USER).ino
    assert filesystem.write(ino, end - 3, b"12345") == 3
    assert filesystem.getattr(ino).size == end
    assert filesystem.read(ino, end - 5, 10) == b"\0\x00123"
    for offset in (end, 1 << 63):
        refused(errno.EFBIG, lambda offset=offset: filesystem.write(ino, offset, b"x"))
        refused(errno.EFBIG, lambda offset=offset: filesystem.truncate(ino, offset + 1))
        refused(errno.EFBIG, lambda offset=offset: filesystem.setattr(ino, size=offset + 1))
    assert filesystem.write(ino, 1 << 63, b"") == 0
    refused(errno.EINVAL, lambda: filesystem.write(ino, -1, b"x"))
    refused(errno.EINVAL, lambda: filesystem.truncate(ino, -1))


def test_only_files_have_data(filesystem: Filesystem) -> None:
    ino = filesystem.mkdir(1, b"d", 0o755, USER).ino
    for operation in (
        lambda: filesystem.read(ino, 0, 1),
        lambda: filesystem.write(ino, 0, b"x"),
        lambda: filesystem.truncate(ino, 0),
        lambda: filesystem.setattr(ino, size=0),
    ):
        refused(errno.EISDIR, operation)
    for number in (0, -1, 2, 99, 1 << 40):
        refused(errno.ESTALE, lambda number=number: filesystem.getattr(number))
        refused(errno.ESTALE, lambda number=number: filesystem.read(number, 0, 1))


def test_a_large_file_gives_everything_back(filesystem: Filesystem) -> None:
    free = []
    for _ in range(4):  # until all of the volume was used once, its own trees grow
        ino = filesystem.create(1, b"f", 0o644, USER).ino
        for number in range(8):
            filesystem.write(ino, number * MIB, bytes([number + 1]) * MIB)
        filesystem.sync()
        filesystem.unlink(1, b"f")
        refused(errno.ESTALE, lambda ino=ino: filesystem.getattr(ino))
        while filesystem.volume.reclaim_slice():
            pass
        filesystem.sync()
        free.append(filesystem.statfs().free)
    assert free[2] == free[3]


# --- privileges ---


@pytest.mark.parametrize(("mode", "without"), [(0o6755, 0o755), (0o6745, 0o2745), (0o2755, 0o755), (0o755, 0o755)])
def test_who_writes_takes_the_privileges(filesystem: Filesystem, mode: int, without: int) -> None:
    ino = filesystem.create(1, b"f", 0o644, USER).ino

    def after(operation: Callable[[], object]) -> int:
        filesystem.setattr(ino, mode=mode)
        operation()
        return stat.S_IMODE(filesystem.getattr(ino).mode)

    assert after(lambda: filesystem.write(ino, 0, b"x")) == without
    assert after(lambda: filesystem.write(ino, 0, b"x", kill_privileges=False)) == mode
    assert after(lambda: filesystem.write(ino, 0, b"")) == mode
    assert after(lambda: filesystem.truncate(ino, 0)) == without
    assert after(lambda: filesystem.truncate(ino, 0, kill_privileges=False)) == mode
    assert after(lambda: filesystem.setattr(ino, size=5, caller=USER)) == without
    assert after(lambda: filesystem.setattr(ino, size=5, caller=ROOT_USER)) == mode
    assert after(lambda: filesystem.setattr(ino, uid=7)) == without
    assert after(lambda: filesystem.setattr(ino, gid=7, caller=ROOT_USER)) == without
    assert after(lambda: filesystem.setattr(ino, uid=7, mode=0o6711)) == 0o6711
    assert after(lambda: filesystem.setattr(ino, mtime_ns=0)) == mode


def test_directories_keep_theirs(filesystem: Filesystem) -> None:
    ino = filesystem.mkdir(1, b"d", 0o2775, USER).ino
    assert filesystem.setattr(ino, uid=7, gid=8).mode == stat.S_IFDIR | 0o2775
    assert filesystem.setattr(ino, mode=stat.S_IFREG | 0o1777).mode == stat.S_IFDIR | 0o1777


# --- times ---


@pytest.mark.parametrize("moment", [0, -1, START, TIME_MIN, TIME_MAX, -(1 << 31) * 10**9, 4_294_967_296_000_000_001])
def test_times_are_kept_to_the_nanosecond(filesystem: Filesystem, moment: int) -> None:
    ino = filesystem.create(1, b"f", 0o644, USER).ino
    filesystem.setattr(ino, atime_ns=moment, mtime_ns=moment, ctime_ns=moment)
    filesystem.sync()
    attributes = open_filesystem(filesystem.volume.device, read_only=True).getattr(ino)  # type: ignore[arg-type]
    assert (attributes.atime_ns, attributes.mtime_ns, attributes.ctime_ns) == (moment, moment, moment)
    assert attributes == filesystem.getattr(ino)


def test_times_out_of_range_become_the_nearest(filesystem: Filesystem) -> None:
    assert filesystem.setattr(1, mtime_ns=1 << 90).mtime_ns == TIME_MAX
    assert filesystem.setattr(1, mtime_ns=-(1 << 90)).mtime_ns == TIME_MIN


def test_times_never_run_ahead_of_the_kernels() -> None:
    """The kernel stamps what it writes back with the time of its last tick: it would set a newer file's time back."""
    filesystem = Filesystem(Volume.open(new_device()))
    for number in range(200):
        changed = filesystem.create(1, b"%d" % number, 0o644, USER).ctime_ns
        assert changed <= time.clock_gettime_ns(CLOCK_REALTIME_COARSE)


def test_relatime() -> None:
    clock = Clock()
    with filesystem_on(new_device(), clock=clock) as filesystem:
        ino = filesystem.create(1, b"f", 0o644, USER).ino

        def touched() -> bool:
            clock.now += 10
            before = filesystem.getattr(ino).atime_ns
            filesystem.touch_atime(ino)
            return filesystem.getattr(ino).atime_ns != before

        assert touched(), "not read since it was made"
        assert not touched()
        filesystem.write(ino, 0, b"x")
        assert touched()
        assert not touched()
        filesystem.setattr(ino, mode=0o600)
        assert touched()
        clock.now += DAY
        assert touched()
        assert not touched()


@pytest.mark.parametrize(("mode", "moves"), [(AtimeMode.NOATIME, False), (AtimeMode.STRICT, True)])
def test_other_atime_modes(mode: AtimeMode, moves: bool) -> None:
    device = new_device()
    filesystem = open_filesystem(device, atime=mode)
    for _ in range(3):
        before = filesystem.getattr(1).atime_ns
        filesystem.touch_atime(1)
        assert (filesystem.getattr(1).atime_ns != before) is moves
    close_filesystem(filesystem)


def test_access_times_are_written_late() -> None:
    device = new_device(block_size=512)
    with filesystem_on(device) as filesystem:
        inos = [filesystem.create(1, b"%d" % number, 0o644, USER).ino for number in range(40)]
    filesystem = open_filesystem(device, clock=Clock(START + DAY))
    before = [filesystem.getattr(ino).atime_ns for ino in inos]
    for ino in inos:
        filesystem.touch_atime(ino)
    assert not filesystem.volume.dirty, "reading alone writes nothing"
    filesystem.setattr(inos[0], mode=0o600)
    filesystem.sync()
    again = open_filesystem(device, read_only=True)
    assert again.getattr(inos[0]).atime_ns != before[0]
    assert again.getattr(inos[-1]).atime_ns == before[-1], "far from anything that was written"
    filesystem = open_filesystem(device, clock=Clock(START + DAY))
    wanted = []
    for ino in inos:
        filesystem.touch_atime(ino)
        wanted.append(filesystem.getattr(ino).atime_ns)
    close_filesystem(filesystem)
    assert [open_filesystem(device).getattr(ino).atime_ns for ino in inos] == wanted


def test_waiting_access_times_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LATE_ATIMES_MAX", 10)
    with filesystem_on(new_device()) as filesystem:
        inos = [filesystem.create(1, b"%d" % number, 0o644, USER).ino for number in range(40)]
        filesystem.sync()
        for ino in inos:
            filesystem.touch_atime(ino)
            assert len(filesystem.inodes._late_atimes) <= 10
        assert filesystem.volume.dirty


# --- space ---


@pytest.mark.parametrize("block_size", [512, 4096])
def test_a_full_volume_still_lets_go(block_size: int) -> None:
    device = new_device(2 * MIB, block_size)
    with filesystem_on(device) as filesystem:
        names = []
        with pytest.raises(NoSpace):
            for number in range(10_000):
                ino = filesystem.create(1, b"%d" % number, 0o644, USER).ino
                names.append(b"%d" % number)
                filesystem.write(ino, 0, bytes([number % 255 + 1]) * 8192)
        assert not filesystem.volume.read_only
        with pytest.raises(NoSpace):
            for number in range(10_000):
                filesystem.mkdir(1, b"d%d" % number, 0o755, USER)
        filesystem.sync()
        first = filesystem.lookup(1, names[0]).ino
        filesystem.setattr(first, mode=0o600)
        filesystem.truncate(first, 100)
        assert filesystem.read(first, 0, 200) == b"\1" * 100
        for name in names[1:]:
            filesystem.unlink(1, name)
        refused(errno.ENOENT, lambda: filesystem.lookup(1, names[1]))
        filesystem.write(first, 0, b"x" * MIB)
        assert filesystem.read(first, 0, 2 * MIB) == b"x" * MIB


def test_statfs(filesystem: Filesystem) -> None:
    before = filesystem.statfs()
    assert before.block_size == filesystem.volume.geometry.block_size
    assert before.blocks == filesystem.volume.geometry.num_blocks
    assert 0 < before.available < before.free < before.blocks
    assert before.name_max == 510
    filesystem.create(1, b"f", 0o644, USER)
    after = filesystem.statfs()
    assert after.files - after.files_free == before.files - before.files_free + 1


def test_a_read_only_volume_is_read() -> None:
    device = new_device()
    with filesystem_on(device) as filesystem:
        ino = filesystem.create(1, b"f", 0o644, USER).ino
        filesystem.write(ino, 0, b"data")
        filesystem.setxattr(ino, b"user.x", b"value")
    before = device.image()
    filesystem = open_filesystem(device, read_only=True)
    assert filesystem.read(ino, 0, 10) == b"data"
    assert filesystem.getxattr(ino, b"user.x") == b"value"
    refused(errno.EROFS, lambda: filesystem.write(ino, 0, b"x"))
    refused(errno.EROFS, lambda: filesystem.create(1, b"g", 0o644, USER))
    refused(errno.EROFS, lambda: filesystem.setxattr(ino, b"user.y", b""))
    filesystem.sync()
    filesystem.touch_atime(ino)
    filesystem.close()
    assert device.image() == before


def test_a_write_from_the_kernels_cache_leaves_young_times_alone() -> None:
    clock = Clock()
    filesystem = open_filesystem(new_device(), clock=clock)
    ino = filesystem.create(1, b"f", 0o644, USER).ino
    made = filesystem.getattr(ino).mtime_ns
    clock.now += 30 * SECOND
    filesystem.write(ino, 0, b"x", was_cached=True)
    assert (filesystem.getattr(ino).mtime_ns, filesystem.getattr(ino).ctime_ns) == (made, made)
    clock.now += 31 * SECOND
    filesystem.write(ino, 0, b"x", was_cached=True)
    assert filesystem.getattr(ino).mtime_ns == filesystem.getattr(ino).ctime_ns >= made + 60 * SECOND
    filesystem.setattr(ino, mtime_ns=clock.now + SECOND)  # of another clock
    filesystem.write(ino, 0, b"x", was_cached=True)
    assert filesystem.getattr(ino).mtime_ns < clock.now + 10
    clock.now += 1
    filesystem.write(ino, 0, b"x")
    assert filesystem.getattr(ino).mtime_ns > clock.now - 10
    close_filesystem(filesystem)
