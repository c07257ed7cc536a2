"""Who writes a commit out: the thread that serves where the device is quick, another where it is not; counted, not timed."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Awaitable, Callable, Sequence

import pytest
import trio
import trio.testing
from support import MIB, assert_sound, new_device, open_filesystem

from cowfs.errors import DeviceError
from cowfs.fs.attributes import Caller
from cowfs.fs.filesystem import Filesystem
from cowfs.fuse.commits import CommitScheduler
from cowfs.fuse.writer import FRESH_SECONDS, LARGE_BYTES, QUICK_SECONDS, RELIEF, STREAK_MAX, STREAK_MIN, Pace, Writer
from cowfs.ondisk import format as f
from cowfs.ondisk.records import Buffer
from cowfs.storage.commit import SMALL_BYTES
from cowfs.storage.device import MemoryDevice

SLOW = QUICK_SECONDS * 2


class Clock:
    """Seconds that pass when somebody says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class TimedDevice:
    """A device that remembers which thread flushes it, whose flushes take time by a clock, and that may fail."""

    def __init__(self, device_below: MemoryDevice, clock: Clock) -> None:
        self.device_below = device_below
        self.clock = clock
        self.seconds = 0.0
        self.broken = False
        self.flushers: list[bool] = []  # whether it was the main thread
        self.name = device_below.name
        self.read_only = False
        for name in ("size", "read", "discard", "resize", "lock", "drop_cache", "close"):
            setattr(self, name, getattr(device_below, name))

    def write(self, offset: int, pieces: Sequence[Buffer]) -> None:
        if self.broken:
            raise DeviceError("the disk is gone")
        self.device_below.write(offset, pieces)

    def flush(self) -> None:
        self.flushers.append(threading.current_thread() is threading.main_thread())
        self.clock.now += self.seconds
        self.device_below.flush()


class Mounted:
    """A filesystem and its scheduler on a device that is timed; `fsync` is what a program's write and fsync come to."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.memory = new_device(16 * MIB)
        self.device = TimedDevice(self.memory, self.clock)
        self.filesystem: Filesystem = open_filesystem(self.device)  # type: ignore[arg-type]
        self.ino = self.filesystem.create(f.ROOT_INODE, b"file", 0o600, Caller()).ino
        self.waiting = 0
        self.asked = 0
        self.volume = self.filesystem.volume
        self.commits = CommitScheduler(
            self.volume, interval=1000.0, pace=Pace(self.clock), requests_wait=self._requests_wait
        )
        self.device.flushers.clear()

    def _requests_wait(self) -> bool:
        self.asked += 1
        return self.waiting > 0

    def write(self, count: int = 1, size: int = 4096) -> None:
        for number in range(count):
            self.filesystem.write(self.ino, number * size, os.urandom(size))

    async def fsync(self) -> None:
        self.write()
        await self.commits.commit()

    async def become_quick(self) -> None:
        for _ in range(STREAK_MIN):
            await self.fsync()
        assert self.device.flushers == [False] * STREAK_MIN
        self.device.flushers.clear()


class Steps(trio.abc.Instrument):
    """How often tasks suspended."""

    def __init__(self) -> None:
        self.count = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        with trio.fail_after(30):
            await main()

    trio.run(limited)


# A scheduler with a device


def test_small_commits_on_a_quick_device_never_suspend() -> None:
    mounted = Mounted()

    async def main() -> None:
        await mounted.become_quick()
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        for _ in range(50):
            await mounted.fsync()
        assert steps.count == 0
        assert not mounted.volume.dirty

    run(main)
    assert mounted.device.flushers == [True] * 50
    assert mounted.commits.commits == STREAK_MIN + 50
    mounted.volume.inline_commits = True
    mounted.filesystem.close()
    assert_sound(mounted.memory)


def test_a_slow_flush_sends_the_next_to_the_other_thread_at_once() -> None:
    mounted = Mounted()

    async def main() -> None:
        await mounted.become_quick()
        mounted.device.seconds = SLOW
        for _ in range(20):
            await mounted.fsync()

    run(main)
    assert mounted.device.flushers == [True] + [False] * 19


def test_a_slow_device_is_never_waited_for_by_the_thread_that_serves() -> None:
    mounted = Mounted()
    mounted.device.seconds = SLOW

    async def main() -> None:
        for _ in range(STREAK_MIN * 3):
            await mounted.fsync()

    run(main)
    assert not any(mounted.device.flushers)


def test_a_large_commit_goes_to_the_other_thread_whatever_was_written_before_it() -> None:
    mounted = Mounted()

    async def main() -> None:
        await mounted.become_quick()
        mounted.write(1, SMALL_BYTES)  # long runs are on the device before the commit, but not flushed
        await mounted.commits.commit()
        mounted.write(SMALL_BYTES // 4096)
        await mounted.commits.commit()
        mounted.write()
        await mounted.commits.commit(complete=True)  # two flushes
        mounted.write(1, SMALL_BYTES)
        mounted.filesystem.truncate(mounted.ino, 0)  # what was freed again has been written all the same
        await mounted.commits.commit()
        assert not any(mounted.device.flushers)
        await mounted.fsync()
        assert mounted.device.flushers[-1]

    run(main)


def test_after_much_was_written_small_commits_go_to_the_other_thread_for_a_while() -> None:
    mounted = Mounted()

    async def main() -> None:
        await mounted.become_quick()
        mounted.write(LARGE_BYTES // MIB + 1, MIB)
        await mounted.commits.commit()
        mounted.device.flushers.clear()
        for _ in range(STREAK_MIN + 1):
            await mounted.fsync()
        assert mounted.device.flushers == [False] * STREAK_MIN + [True]

    run(main)


def test_a_failure_in_the_thread_that_serves_fails_all_who_wait_and_come() -> None:
    mounted = Mounted()
    failures: list[str] = []

    async def fsync() -> None:
        with pytest.raises(DeviceError) as caught:
            await mounted.commits.commit()
        failures.append(str(caught.value))

    async def main() -> None:
        await mounted.become_quick()
        mounted.write()
        mounted.device.broken = True
        mounted.waiting = 1
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(fsync)
            await trio.lowlevel.checkpoint()
            mounted.waiting = 0
        mounted.device.broken = False
        await fsync()

    run(main)
    assert failures == ["the disk is gone"] * 4
    assert mounted.volume.latched
    assert not mounted.device.flushers


def test_requests_that_wait_are_let_in_before_and_share_the_commit() -> None:
    mounted = Mounted()
    done: list[int] = []

    async def fsync(number: int) -> None:
        mounted.waiting -= 1
        await mounted.fsync()
        done.append(number)

    async def serve(nursery: trio.Nursery) -> None:
        for number in range(32):  # as workers do: the next reads a request once the one before waits
            nursery.start_soon(fsync, number)
            await trio.lowlevel.checkpoint()

    async def main() -> None:
        await mounted.become_quick()
        mounted.waiting = 32
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, nursery)

    run(main)
    assert len(done) == 32
    assert mounted.device.flushers == [True] * len(mounted.device.flushers)
    assert len(mounted.device.flushers) <= 8


def test_requests_that_never_cease_do_not_hold_a_commit_up() -> None:
    mounted = Mounted()

    async def main() -> None:
        await mounted.become_quick()
        mounted.waiting = 1
        await mounted.fsync()

    run(main)
    assert mounted.device.flushers == [True]
    assert mounted.asked >= 1


def test_who_is_cancelled_while_requests_are_let_in_leaves_the_commit_to_the_others() -> None:
    mounted = Mounted()
    done: list[str] = []

    async def main() -> None:
        await mounted.become_quick()
        mounted.write()
        mounted.waiting = 1
        scope = trio.CancelScope()

        async def first() -> None:
            with scope:
                await mounted.commits.commit()
                done.append("first")

        async def second() -> None:
            await mounted.commits.commit()
            done.append("second")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            await trio.lowlevel.checkpoint()
            scope.cancel()
            nursery.start_soon(second)
            await trio.lowlevel.checkpoint()
            mounted.waiting = 0

    run(main)
    assert done == ["second"]
    assert len(mounted.device.flushers) == 1
    assert not mounted.volume.dirty


# The books


def measured(pace: Pace, clock: Clock, seconds: float, *, serving: bool | None = None) -> None:
    def write_out() -> None:
        clock.now += seconds

    pace.measure(write_out, serving=pace.is_quick if serving is None else serving)


def test_it_takes_a_streak_to_be_quick() -> None:
    clock = Clock()
    pace = Pace(clock)
    for seconds in [0.0] * (STREAK_MIN - 1) + [SLOW] + [QUICK_SECONDS / 2] * STREAK_MIN:
        assert not pace.is_quick
        measured(pace, clock, seconds)
    assert pace.is_quick


def test_a_large_commit_ends_a_streak() -> None:
    clock = Clock()
    pace = Pace(clock)
    for _ in range(2):
        for _ in range(STREAK_MIN):
            assert not pace.is_quick
            measured(pace, clock, 0.0)
        assert pace.is_quick
        pace.interrupt()


def test_what_was_measured_long_ago_says_nothing() -> None:
    clock = Clock()
    pace = Pace(clock)
    for _ in range(STREAK_MIN):
        measured(pace, clock, 0.0)
    clock.now += FRESH_SECONDS + 1
    assert not pace.is_quick
    measured(pace, clock, 0.0)
    assert not pace.is_quick, "a single one after the pause is no streak"
    for _ in range(STREAK_MIN - 1):
        measured(pace, clock, 0.0)
    assert pace.is_quick


def stalls(one_in: int, commits: int) -> int:
    """How many slow commits the thread that serves waits for where one in so many is slow."""
    clock = Clock()
    pace = Pace(clock)
    found = 0
    for number in range(1, commits + 1):
        slow = number % one_in == 0
        found += slow and pace.is_quick
        measured(pace, clock, SLOW if slow else 0.0)
    return found


def test_a_device_that_is_slow_now_and_then_holds_up_few() -> None:
    commits = 50_000
    assert stalls(one_in=STREAK_MIN, commits=commits) == 0
    for one_in in (17, 50, RELIEF * STREAK_MIN, 200, 300, 1_000):
        assert stalls(one_in, commits) <= commits // (RELIEF * STREAK_MIN) // 2
    assert stalls(one_in=1_000, commits=commits) == commits // 1_000, "which is not worth being slow for"


def test_a_device_that_has_become_quick_is_trusted_again() -> None:
    clock = Clock()
    pace = Pace(clock)
    for _ in range(20):
        for _ in range(STREAK_MAX):
            measured(pace, clock, 0.0)
        measured(pace, clock, SLOW)
    for _ in range(2 * RELIEF * STREAK_MAX):
        measured(pace, clock, 0.0)
    measured(pace, clock, SLOW, serving=False)
    for _ in range(STREAK_MIN):
        measured(pace, clock, 0.0)
    assert pace.is_quick


# The other thread


def eventfds() -> set[str]:
    """The descriptors of this process that are eventfds, as the writer's is."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            if "eventfd" in os.readlink(f"/proc/self/fd/{name}"):
                found.add(name)
    return found


def test_jobs_are_done_by_one_other_thread_which_ends_with_the_writer() -> None:
    threads: set[threading.Thread] = set()
    gc.collect()  # what other tests left
    before = eventfds()

    async def main() -> None:
        writer = Writer()
        for _ in range(20):
            await writer.run(lambda: threads.add(threading.current_thread()))

    run(main)
    gc.collect()
    (thread,) = threads
    thread.join(10)
    assert not thread.is_alive()
    assert eventfds() <= before, "those of others may be closed meanwhile"


def test_a_writer_goes_on_after_a_failure() -> None:
    def fail() -> None:
        raise DeviceError("the disk is gone")

    async def main() -> None:
        writer = Writer()
        done: list[bool] = []
        with pytest.raises(DeviceError, match="gone"):
            await writer.run(fail)
        await writer.run(lambda: done.append(True))
        assert done

    run(main)


def test_a_cancelled_caller_waits_for_the_end_of_its_job() -> None:
    async def main() -> None:
        writer = Writer()
        begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

        def work() -> None:
            begun.set()
            may_end.wait(10)
            ended.set()

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(writer.run, work)
                while not begun.is_set():
                    await trio.sleep(0.001)
                scope.cancel()
                may_end.set()
        assert ended.is_set()

    run(main)
