"""What many tests need: volumes in memory, filesystems on them, and the check that every filesystem test ends in."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cowfs.check import check_image
from cowfs.errors import CowfsError
from cowfs.fs import AtimeMode, Filesystem
from cowfs.ondisk.geometry import geometry_for_size
from cowfs.storage.device import MemoryDevice
from cowfs.storage.mkvolume import make_volume
from cowfs.storage.volume import Volume

MIB = 1 << 20
Outcome = tuple[int, str, str]
"""Of a command: exit code, standard output, standard error."""
Run = Callable[..., Outcome]
START = 1_700_000_000_123_456_789
"""When the volumes of tests are formatted: nanoseconds since 1970."""


def new_device(size: int = 16 * MIB, block_size: int = 4096) -> MemoryDevice:
    """A freshly formatted volume in memory."""
    device = MemoryDevice(size)
    make_volume(device, geometry_for_size(size, block_size), label=b"test", uuid=bytes(range(16)), now_ns=START)
    return device


def refused(number: int, operation: Callable[[], object]) -> None:
    """An operation must fail with this errno."""
    with pytest.raises(CowfsError) as caught:
        operation()
    assert errno.errorcode[caught.value.errno] == errno.errorcode[number]


class Clock:
    """A clock that a test moves: nanoseconds since 1970. Every look at it moves it by one nanosecond."""

    def __init__(self, now: int = START) -> None:
        self.now = now

    def __call__(self) -> int:
        self.now += 1
        return self.now


def open_filesystem(
    device: MemoryDevice,
    *,
    clock: Callable[[], int] | None = None,
    atime: AtimeMode = AtimeMode.RELATIME,
    read_only: bool = False,
) -> Filesystem:
    """The filesystem of the volume on `device`."""
    return Filesystem(Volume.open(device, read_only=read_only), clock=clock or Clock(), atime=atime)


def close_filesystem(filesystem: Filesystem) -> None:
    """A clean unmount, and the check."""
    filesystem.close()
    filesystem.volume.close()
    assert_sound(filesystem.volume.device)  # type: ignore[arg-type]


def assert_sound(device: MemoryDevice) -> None:
    """Raises with all problems of the volume unless it is clean."""
    check_image(device)


@contextmanager
def filesystem_on(device: MemoryDevice, *, clock: Callable[[], int] | None = None) -> Iterator[Filesystem]:
    """A filesystem that is unmounted cleanly and checked at the end."""
    filesystem = open_filesystem(device, clock=clock)
    yield filesystem
    close_filesystem(filesystem)
