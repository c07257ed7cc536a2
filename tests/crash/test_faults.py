"""Faults: each read, write and flush of a workload fails in turn. Nothing but our own errors, and nothing synced is lost.

After a failed write or flush nothing may be written any more until the volume is opened again. What a failed flush leaves on
the medium is a matter of chance (`Fate`), and the system goes on showing what it lost until its cache is dropped.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from workloads import image_after

from cowfs.check.crashdevice import Fault, FaultyDevice, Thoroughness
from cowfs.check.crashscript import ScriptRun, split
from cowfs.check.crashtest import Judge, verify
from cowfs.errors import CowfsError

BASE = (
    "mkdir /A; mkdir /B; create /A/foo; write /A/foo 0 3000; create /B/bar; write /B/bar 0 9000; setxattr /B user.x 100"
)
WARM = """
    create /A/new; append /A/new 700; sync; link /A/foo /B/link; rename /B/bar /A/bar; setxattr /A/foo user.y 600
    seal; write /A/foo 600 1500; during append /A/bar 9000; publish; commit; remount
    hold /A/foo; unlink /A/foo; unlink /B/link; sync; truncate /A/bar 700; mkdir /B/sub; symlink /B/s target
    seal complete; release /A/foo; chmod /A/bar 600; publish; removexattr /B user.x; sync
    write /A/new 300 9000; reclaim; commit; exchange /A/new /B/s; rmdir /B/sub; sync; remount; unlink /A/bar; reclaim; sync
"""
"""Few reads, since what is read is soon in memory."""
COLD = "; remount; ".join(
    (
        "create /A/new; sync",
        "write /A/foo 100 500; sync",
        "append /B/bar 2000; read /B/bar; list /B; sync",
        "unlink /A/foo; sync",
        "setxattr /B/bar user.y 600; sync",
        "rename /A/new /B/bar; commit",
        "truncate /B/bar 0; mkdir /A/sub; sync",
    )
)
"""Another process after each change: everything is read from the device."""

FEW = Thoroughness(exhaustive_max=1, samples=1, near_misses=1, tears=1, second_chances=0.2)
STEPS_AFTER = 4
"""Steps that are still tried after the fault."""
REFUSALS = (errno.EROFS, errno.ENOENT, errno.EEXIST, errno.ENODATA)
"""How steps end that follow a failed one: the volume is read-only, or what they need was not made."""


class FaultyRun:
    """A workload with one fault, and what came of it. Whoever cannot open the volume tries once more."""

    def __init__(self, workload: str, fault: Fault | None) -> None:
        self.device = FaultyDevice(image_after(BASE), fault)
        self.errors: Counter[int] = Counter()
        self.failed_at = 0
        self.run: ScriptRun | None = None
        if not self.attempt(self.start) and not self.attempt(self.start):
            return
        assert self.run is not None
        after = 0
        for step in split(workload):
            after += bool(self.device.failures)
            if after > STEPS_AFTER:
                return
            done = self.attempt(partial(self.run.perform, step))
            if step == "remount" and not done and not self.attempt(self.run.reopen):
                return

    def start(self) -> None:
        self.run = ScriptRun(self.device, strict=True)

    def attempt(self, action: Callable[[], None]) -> bool:
        """Runs an action; any exception that is not ours gets out."""
        before, position = self.device.failures, len(self.device.log)
        try:
            action()
        except CowfsError as error:
            self.errors[error.errno] += 1
            if self.device.failures > before:
                assert error.errno == errno.EIO, error
                self.check_latch()
            else:
                assert self.device.failures, error
                assert error.errno in REFUSALS, error
            return False
        finally:
            if self.device.failures and not self.failed_at:
                self.failed_at = position
        return True

    def check_latch(self) -> None:
        """A failed write or flush turns the volume read-only. (Where there is none, it was being opened or closed.)"""
        assert self.device.fault is not None
        if self.run is not None and self.device.fault.kind != "read":
            volume = self.run.filesystem.volume
            assert volume.read_only or not volume.dirty

    def verify(self, judge: Judge, about: str) -> None:
        """Another process on the same system opens the volume and uses it; then every image since the fault is looked at."""
        self.device.fault = None
        if self.run is None:
            self.start()
        assert self.run is not None
        self.run.perform("kill")
        assert not self.run.filesystem.volume.read_only
        self.run.run("create /after; append /after 600; sync")
        self.run.stop()
        verify(self.device, judge, thoroughness=FEW, start=self.failed_at, about=about)


def faults_of_writes(count: int) -> Iterator[Fault]:
    """Each write fails in some way: nothing of it is there, or its first sector, or the host's disk is full from then on."""
    for number in range(count):
        yield (
            Fault("write", number),
            Fault("write", number, written=512),
            Fault("write", number, reason="No space left on device (ENOSPC)", lasting=True),
        )[number % 3]


def faults_of_flushes(count: int) -> Iterator[Fault]:
    """Each flush fails, once or from then on."""
    for number in range(count):
        yield Fault("flush", number, lasting=number % 2 == 1)


def faults_of_reads(count: int) -> Iterator[Fault]:
    """Each read fails, once or from then on."""
    for number in range(count):
        yield Fault("read", number, lasting=number % 2 == 1)


def inject(workload: str, faults: Iterator[Fault], kind: str) -> None:
    judge = Judge(recovery_share=1)
    seen = injected = 0
    errors: Counter[int] = Counter()
    for fault in faults:
        run = FaultyRun(workload, fault)
        injected += 1
        seen += bool(run.errors[errno.EIO])
        errors += run.errors
        run.verify(judge, f"FaultyRun(..., {fault})")
    print(f"\n{injected} {kind} faults, {seen} seen as EIO; {dict(errors)}; {judge.counts}")
    assert seen == injected or kind == "read"  # a slot has three ways to it, so some reads can do without


@pytest.mark.parametrize("workload", [WARM, COLD], ids=["warm", "cold"])
def test_without_a_fault(workload: str) -> None:
    run = FaultyRun(workload, None)
    assert not run.errors
    run.verify(Judge(), "no fault")


def test_each_write_fails() -> None:
    count = FaultyRun(WARM, None).device.calls["write"]
    assert count > 30
    inject(WARM, faults_of_writes(count), "write")


def test_each_flush_fails() -> None:
    count = FaultyRun(WARM, None).device.calls["flush"]
    assert count > 15
    inject(WARM, faults_of_flushes(count), "flush")


def test_each_read_fails() -> None:
    count = FaultyRun(COLD, None).device.calls["read"]
    assert count > 60
    inject(COLD, faults_of_reads(count), "read")
