"""Large numbers through a mount: entries of a directory, open files. What is larger still is tested in process (tests/fs)."""

from __future__ import annotations

import os
import resource
import stat
from pathlib import Path

import pytest
from mounting import Place

pytestmark = pytest.mark.fuse

LARGE = pytest.param(1_000_000, marks=[pytest.mark.exhaustive, pytest.mark.timeout(7200)])
RESIDENT_MAX_MEBIBYTES = 512


def resident_peak(pid: int) -> int:
    """Most MiB that a process has had in memory."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) >> 10


@pytest.mark.parametrize("count", [20_000, pytest.param(200_000, marks=pytest.mark.large), LARGE])
def test_a_large_directory(place: Place, count: int) -> None:
    place.make(64 + count // 300)
    place.mount()
    directory = place.mountpoint / "large"
    directory.mkdir()
    for number in range(count):
        os.mknod(directory / f"{number}", stat.S_IFREG | 0o644)
    assert len(set(os.listdir(directory))) == count
    place.remount()  # the kernel knows nothing any more
    for number in range(0, count, 10):
        assert (directory / f"{number}").stat().st_size == 0
    assert resident_peak(place.pid) < RESIDENT_MAX_MEBIBYTES
    for number in range(count):
        os.unlink(directory / f"{number}")
    directory.rmdir()


def test_ten_thousand_open_files(place: Place) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 10_200:
        pytest.skip("this process may not open so many")
    place.make(128)
    place.mount()
    resource.setrlimit(resource.RLIMIT_NOFILE, (10_200, hard))
    descriptors: list[int] = []
    try:
        for number in range(10_000):
            descriptors.append(os.open(place.mountpoint / f"{number}", os.O_RDWR | os.O_CREAT, 0o644))
            os.unlink(place.mountpoint / f"{number}")
        assert os.listdir(place.mountpoint) == []
        for number in (0, 5_000, 9_999):
            os.write(descriptors[number], b"%d" % number)
            assert os.pread(descriptors[number], 10, 0) == b"%d" % number
        os.fsync(descriptors[0])
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    place.remount()
    space = os.statvfs(place.mountpoint)
    assert space.f_files - space.f_ffree < 10, "all are free again"
