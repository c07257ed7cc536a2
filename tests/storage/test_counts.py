"""Formatting, opening and the first change cost a handful of device calls, however large the volume is."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from cowfs.check import check_image
from cowfs.fs import Caller, Filesystem
from cowfs.ondisk.format import ROOT_INODE
from cowfs.ondisk.geometry import geometry_for_size
from cowfs.storage.device import MemoryDevice
from cowfs.storage.mkvolume import make_volume
from cowfs.storage.volume import Volume

SMALL = 64 << 20
LARGE = {512: 1 << 40, 1024: 3 << 40, 2048: 4 << 40, 4096: 4 << 40}
"""By block size: 4 TiB, or the largest round size that blocks of this size reach to."""

FORMAT_WRITES_MAX = 10
FORMAT_BYTES_MAX = 128 << 10
OPEN_READS_MAX = 6
OPEN_BYTES_MAX = 32 << 10
CHANGE_READS_MAX = 16
CHANGE_BYTES_MAX = 96 << 10


class Counts(NamedTuple):
    """Device calls since the counters were last set to zero."""

    reads: int
    writes: int
    flushes: int
    bytes_read: int
    bytes_written: int

    @classmethod
    def taken_from(cls, device: MemoryDevice) -> Counts:
        counts = cls(device.reads, device.writes, device.flushes, device.bytes_read, device.bytes_written)
        device.reset_counters()
        return counts


def formatted(size: int, block_size: int) -> MemoryDevice:
    device = MemoryDevice(size)
    make_volume(device, geometry_for_size(size, block_size), label=b"", uuid=bytes(16), now_ns=0)
    return device


def change_something(volume: Volume) -> None:
    """The least change: the first block of the inode file, with all that a commit writes for it."""
    volume.admit(1)
    volume.trees.writable_leaf(volume.live.writable_inodes(), 0)
    volume.commit()


@pytest.mark.parametrize("block_size", sorted(LARGE))
def test_formatting(block_size: int) -> None:
    small = Counts.taken_from(formatted(SMALL, block_size))
    large = Counts.taken_from(formatted(LARGE[block_size], block_size))
    assert large.reads == small.reads == 0
    assert large.flushes == small.flushes
    assert 0 < small.writes <= FORMAT_WRITES_MAX
    assert large.writes <= small.writes + 2
    # The paths to the changed pages of the system trees are longer: by a few indirect blocks in each.
    assert large.bytes_written <= small.bytes_written + 16 * block_size
    assert large.bytes_written <= FORMAT_BYTES_MAX


@pytest.mark.parametrize("block_size", sorted(LARGE))
@pytest.mark.parametrize("read_only", [True, False])
def test_opening(block_size: int, *, read_only: bool) -> None:
    found = []
    for size in (SMALL, LARGE[block_size]):
        device = formatted(size, block_size)
        device.reset_counters()
        Volume.open(device, read_only=read_only)
        found.append(Counts.taken_from(device))
    assert found[0] == found[1]
    assert 0 < found[0].reads <= OPEN_READS_MAX
    assert found[0].bytes_read <= OPEN_BYTES_MAX
    assert found[0].writes == (0 if read_only else 1), "opening for writing makes one empty commit: a slot"


@pytest.mark.parametrize("block_size", sorted(LARGE))
def test_the_first_change_and_closing(block_size: int) -> None:
    found = []
    for size in (SMALL, LARGE[block_size]):
        device = formatted(size, block_size)
        volume = Volume.open(device)
        device.reset_counters()
        change_something(volume)
        first = Counts.taken_from(device)
        volume.close()
        found.append((first, Counts.taken_from(device)))
    for (small, large), reads_max in zip(zip(*found, strict=True), (CHANGE_READS_MAX, 0), strict=True):
        assert large.reads <= reads_max
        assert large.bytes_read <= CHANGE_BYTES_MAX
        assert large.writes <= small.writes + 4
        assert large.bytes_written <= small.bytes_written + 16 * block_size
        assert large.flushes == small.flushes


@pytest.mark.parametrize("read_only", [True, False])
def test_opening_a_volume_in_use(*, read_only: bool) -> None:
    device = formatted(SMALL, 512)
    filesystem = Filesystem(Volume.open(device))
    for number in range(500):
        name = f"file {number} with a long name, which lies elsewhere".encode()
        ino = filesystem.create(ROOT_INODE, name, 0o644, Caller()).ino
        filesystem.write(ino, 0, bytes([number % 255 + 1]) * 50_000)
    filesystem.close()
    assert filesystem.statfs().free < filesystem.statfs().blocks * 2 // 3
    device.reset_counters()
    volume = Volume.open(device, read_only=read_only)
    counts = Counts.taken_from(device)
    assert 0 < counts.reads <= OPEN_READS_MAX
    assert counts.bytes_read <= OPEN_BYTES_MAX
    assert Filesystem(volume).getattr(ROOT_INODE).links == 2
    assert Counts.taken_from(device).reads <= CHANGE_READS_MAX
    check_image(device)


def test_opening_after_a_crash_checks_the_manifest_only() -> None:
    found = []
    for size in (SMALL, LARGE[4096]):
        device = formatted(size, 4096)
        change_something(Volume.open(device))
        device.reset_counters()
        volume = Volume.open(device)
        assert volume.notes == []
        found.append(Counts.taken_from(device))
    small, large = found
    assert small.reads <= large.reads <= small.reads + 8
    assert large.bytes_read <= 2 * OPEN_BYTES_MAX
