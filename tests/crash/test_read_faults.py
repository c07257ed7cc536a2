"""Each read inside one operation fails, on a volume of which nothing but the changes of the open generation is in memory.

Where the operation fails and the volume goes on, the operation has not happened: neither now nor after a commit. Where it had
begun, the volume must be read-only. Most operations find their blocks in memory, so reads in the middle are rare, and what
happens then is easily overlooked.
"""

from __future__ import annotations

import errno

import pytest
from workloads import image_after

from cowfs.check import check_device
from cowfs.check.crashdevice import Fault, FaultyDevice, RecordingDevice
from cowfs.check.crashscript import ScriptRun
from cowfs.check.crashtest import TreeState, observe, read_image
from cowfs.errors import CowfsError, DeviceError
from cowfs.fs import Filesystem

LONG = "a-name-that-is-too-long-for-a-short-entry"
BASE = "; ".join(
    (
        "mkdir /A; mkdir /B; mkdir /B/dir",
        *(f"create /A/f{number}" for number in range(16)),
        *(f"create /B/f{number}" for number in range(3)),
        f"create /A/{LONG}; create /B/{LONG}; symlink /A/link target",
        "write /A/f1 0 3000; write /B/f1 0 20000; write /A/f13 0 9000; setxattr /A/f1 user.x 400; setxattr /A/f13 user.x 9",
        "snapshot old; append /A/f1 10; clone copy",
    )
)
SPARE = "chmod /A 700; chmod /B 700; chmod /A/f1 600; chmod /A/f13 600; create /spare; unlink /spare"
OTHERS = ("", "chmod /A 700; chmod /B 700; append /A/f2 10; create /A/new; create /B/new", "chmod /A/f1 600")
"""What the open generation has changed already, so that some blocks are writable and some are not."""

OPERATIONS = (
    "create /A/x",
    f"create /A/{LONG}-2",
    "mkdir /B/x",
    "symlink /B/x target",
    "link /A/f1 /B/x",
    "unlink /A/f5",
    "unlink /A/f1",
    f"unlink /A/{LONG}",
    "unlink /B/f1",
    "rmdir /B/dir",
    "rename /A/f3 /B/x",
    "rename /A/f13 /B/f1",
    f"rename /A/{LONG} /B/{LONG}-3",
    "rename /B/dir /A/x",
    "exchange /A/f1 /B/f1",
    "write /A/f1 100 700",
    "write /B/f1 9000 3000",
    "append /A/f13 900",
    "truncate /B/f1 9100",
    "truncate /A/f1 0",
    "setxattr /A/f1 user.x 900",
    "setxattr /A/f2 user.x 900",
    "removexattr /A/f13 user.x",
    "chmod /A/f9 600",
    "append copy:/A/f1 900",
    "unlink copy:/A/f5",
    "snapshot new",
    "clone new copy",
    "delete old",
    "delete copy",
    "rollback old save",
)


def forget_all(run: ScriptRun) -> None:
    """Nothing stays in memory but what the next commit will write."""
    volume = run.trees.volume
    volume.store._cache.clear()
    for tree in volume.system_trees:
        tree._page_max = 0
        tree.trim_cache()
    for filesystem in run.trees.all_open():
        forget_files(filesystem)


def forget_files(filesystem: Filesystem) -> None:
    inodes, directories = filesystem.inodes, filesystem.directories
    inodes.forget_clean()
    for number in list(directories._hot):
        directories.forget(number)


class BadSectors(FaultyDevice):
    """Once a read has failed, every read of something of the same bytes does so, until they are mended."""

    bad = range(0)

    def read(self, offset: int, length: int) -> bytes:
        if offset < self.bad.stop and self.bad.start < offset + length:
            raise DeviceError(f"{self.name}: cannot read {length} bytes at offset {offset}: again")
        try:
            return super().read(offset, length)
        except DeviceError:
            self.bad = range(offset, offset + length)
            raise

    def mend(self) -> None:
        self.bad = range(0)


class Attempt:
    """One operation with its n-th read failing, and what reads the same bytes again meanwhile."""

    def __init__(self, before: str, operation: str, number: int) -> None:
        self.device = BadSectors(image_after(BASE, 512, 1024))
        self.run = ScriptRun(self.device, strict=True)
        self.run.run(before)
        self.state = observe(self.run.trees)
        forget_all(self.run)
        self.device.calls["read"] = 0
        self.device.fault = Fault("read", number)
        self.failed = False
        try:
            self.run.perform(operation)
        except CowfsError as error:
            assert error.errno == errno.EIO
            self.failed = True
        self.device.mend()

    def check(self) -> None:
        """If the volume goes on, what failed has not happened, and what is committed then is sound."""
        volume = self.run.trees.volume
        if volume.read_only:
            return
        assert observe(self.run.trees) == self.state
        self.run.perform("sync")
        self.run.perform("commit")
        self.run.stop()
        require_sound(self.device, self.state)


def require_sound(device: RecordingDevice, state: TreeState) -> None:
    report = check_device(device)
    assert report.clean, report.to_text()
    assert read_image(device) == state


def fail_each_read(before: str, operation: str) -> None:
    reads = failures = latched = 0
    while True:
        attempt = Attempt(before, operation, reads)
        if not attempt.device.failures:
            break
        reads += 1
        failures += attempt.failed
        latched += attempt.run.trees.volume.read_only
        if attempt.failed:
            attempt.check()
    print(f"\n{operation}: {reads} reads failed, {failures} times so did the operation, {latched} times for good")
    assert failures


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_read_of_an_operation_fails(operation: str) -> None:
    fail_each_read(SPARE, operation)


@pytest.mark.slow
@pytest.mark.parametrize("before", OTHERS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_read_of_an_operation_fails_on_a_cleaner_volume(operation: str, before: str) -> None:
    fail_each_read(before, operation)


def test_a_read_that_fails_in_reclaim_only_delays_it() -> None:
    """What the device cannot read of it, or of the queue, waits for the next session; then the space is back."""
    postponed = number = 0
    free = set()
    while True:
        attempt = Attempt("commit; delete old; unlink /B/f1; sync", "reclaim", number)
        if not attempt.device.failures:
            break
        number += 1
        assert not attempt.failed
        attempt.run.run("reclaim; sync; commit")
        queue = attempt.run.trees.volume.reclaim
        postponed += queue.count > queue.ready == 0
        attempt.run.stop()
        require_sound(attempt.device, attempt.state)
        attempt.run.run("kill; reclaim; reclaim; commit; remount")
        free.add(attempt.run.filesystem.statfs().free)
        require_sound(attempt.device, attempt.state)
    assert postponed
    assert len(free) == 1
