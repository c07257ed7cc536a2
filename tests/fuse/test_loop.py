"""The session loop's lock and wait; `test_loop_mount.py` has both under pyfuse3."""

from __future__ import annotations

import contextlib
import inspect
import os
import random
import select
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing

from cowfs.fuse import loop
from cowfs.fuse.loop import YIELD_REQUESTS, YIELD_SECONDS, BargingLock, SessionWait


def run_with_deadline(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run *main* on a clock that jumps when all tasks wait: who waits for ever fails at once."""

    async def limited() -> Any:
        with trio.fail_after(1000):
            return await main()

    return trio.run(limited, clock=trio.testing.MockClock(autojump_threshold=0))


class Passes(trio.abc.Instrument):
    """Counts the scheduler's passes, each of which asks epoll, and how often each task was made runnable."""

    def __init__(self) -> None:
        self.passes = 0
        self.scheduled: dict[trio.lowlevel.Task, int] = {}

    def before_io_wait(self, timeout: float) -> None:
        self.passes += 1

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self.scheduled[task] = self.scheduled.get(task, 0) + 1


# The lock


def test_a_free_lock_is_taken_without_suspending() -> None:
    async def main() -> None:
        lock = BargingLock()
        passes = Passes()
        trio.lowlevel.add_instrument(passes)
        for _ in range(100):
            async with lock:
                pass
        assert passes.passes == 0

    run_with_deadline(main)


def test_whoever_runs_takes_it_and_one_waiter_is_woken_once() -> None:
    async def main() -> None:
        lock = BargingLock()
        served = []
        passes = Passes()

        async def wait_for_it(number: int) -> None:
            async with lock:
                served.append(number)

        async with trio.open_nursery() as nursery:
            async with lock:
                for number in range(5):
                    nursery.start_soon(wait_for_it, number)
                await trio.testing.wait_all_tasks_blocked()
                trio.lowlevel.add_instrument(passes)
            for _ in range(100):
                async with lock:
                    assert served == []
            assert not passes.scheduled, "nobody is woken for a lock that is taken again"
            await trio.testing.wait_all_tasks_blocked()
            assert sorted(served) == [0, 1, 2, 3, 4]
            del passes.scheduled[trio.lowlevel.current_task()]
            assert list(passes.scheduled.values()) == [1] * 5

    run_with_deadline(main)


def test_a_waiter_that_comes_too_late_is_woken_by_the_next_release() -> None:
    async def main() -> None:
        lock = BargingLock()
        served = []

        async def wait_for_it() -> None:
            async with lock:
                served.append(True)

        async with trio.open_nursery() as nursery:
            async with lock:
                nursery.start_soon(wait_for_it)
                await trio.testing.wait_all_tasks_blocked()
            async with lock:  # the waiter is awake by now, and finds it taken
                await trio.testing.wait_all_tasks_blocked()
                assert served == []
            await trio.testing.wait_all_tasks_blocked()
            assert served == [True]

    run_with_deadline(main)


@pytest.mark.parametrize("cancel_first", [True, False], ids=["cancelled-then-released", "released-then-cancelled"])
def test_a_cancelled_waiter_does_not_keep_the_others_waiting(cancel_first: bool) -> None:
    async def main() -> None:
        lock = BargingLock()
        served = []

        async def wait_for_it(number: int, scope: trio.CancelScope) -> None:
            with scope:
                async with lock:
                    await trio.lowlevel.checkpoint()
                    served.append(number)

        async with trio.open_nursery() as nursery:
            scopes = [trio.CancelScope() for _ in range(3)]
            async with lock:
                for number, scope in enumerate(scopes):
                    nursery.start_soon(wait_for_it, number, scope)
                    await trio.testing.wait_all_tasks_blocked()
                if cancel_first:
                    scopes[0].cancel()
            scopes[0].cancel()
        assert served == [1, 2]

    run_with_deadline(main)


def test_an_exception_inside_releases_it() -> None:
    async def main() -> None:
        lock = BargingLock()
        with pytest.raises(ZeroDivisionError):
            async with lock:
                raise ZeroDivisionError
        async with lock:
            pass

    run_with_deadline(main)


class KeepsTheWakeUp(BargingLock):
    """Wrong: a waiter that finds the lock taken keeps the wake-up, so nobody is woken again."""

    async def __aenter__(self) -> None:
        while self._held:
            await self._waiters.park()
            self._waking = self._held
        self._held = True


class DropsTheWakeUp(BargingLock):
    """Wrong: a waiter can be cancelled between its wake-up and the lock, and hands nothing on."""

    async def __aenter__(self) -> None:
        while self._held:
            await self._waiters.park()
            self._waking = False
            await trio.lowlevel.checkpoint()
        self._held = True


class OverlooksTheEnd(BargingLock):
    """Wrong: a task that ends, or is cancelled and ends, wakes nobody."""

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if inspect.getcoroutinestate(task.coro) != inspect.CORO_CLOSED:
            super().after_task_step(task)


class AsksOnce(BargingLock):
    """Wrong: a woken waiter takes the lock without looking again."""

    async def __aenter__(self) -> None:
        if self._held:
            await self._waiters.park()
            self._waking = False
        self._held = True


def lock_goes_wrong(kind: type[BargingLock], seed: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run workers on a schedule given by *seed*: whether two held the lock at once, or some waited for ever."""
    choice = random.Random(seed)
    # The order in which trio runs the tasks of one pass is random, too.
    monkeypatch.setattr("trio._core._run._r", random.Random(seed))
    monkeypatch.setattr("trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING", True)
    lock = kind()
    rounds = choice.choice((1, 2, 20))  # short ones, too: later traffic makes good for a lost wake-up
    cancellable: list[trio.CancelScope] = []
    inside = 0
    at_once = 0

    async def pause() -> None:
        for _ in range(choice.randrange(3)):
            await trio.lowlevel.checkpoint()
        if choice.random() < 0.3:
            await trio.sleep(choice.randrange(4) / 4)

    async def work() -> None:
        nonlocal inside, at_once
        for _ in range(rounds):
            # Some attempts are cancelled, at some time or by another worker; all others must succeed.
            with trio.CancelScope() as scope:
                if choice.random() < 0.4:
                    scope.deadline = trio.current_time() + choice.randrange(8) / 4
                    cancellable.append(scope)
                async with lock:
                    inside += 1
                    at_once = max(at_once, inside)
                    try:
                        await pause()
                    finally:
                        inside -= 1
            if cancellable and choice.random() < 0.3:
                cancellable.pop(choice.randrange(len(cancellable))).cancel()
            await pause()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(work)

    try:
        run_with_deadline(main)
    except trio.TooSlowError:
        return True
    return at_once != 1


@pytest.mark.parametrize("seed", range(40))
def test_no_wake_up_is_lost_under_random_schedules(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not lock_goes_wrong(BargingLock, seed, monkeypatch)


@pytest.mark.parametrize("kind", [KeepsTheWakeUp, DropsTheWakeUp, OverlooksTheEnd, AsksOnce])
def test_random_schedules_find_a_wrong_lock(kind: type[BargingLock], monkeypatch: pytest.MonkeyPatch) -> None:
    assert any(lock_goes_wrong(kind, seed, monkeypatch) for seed in range(200))


# The wait


class Pipe:
    """A pipe whose reading end is waited for; *wait* has a clock that stands still unless it is moved by hand."""

    def __init__(self, linger_seconds: float = 0.0) -> None:
        self.reading, self.writing = os.pipe()
        self.now = 0.0
        self.wait = SessionWait(linger_seconds=linger_seconds, clock=lambda: self.now)

    async def wait_readable(self) -> None:
        await self.wait.wait_readable(self.reading)

    def put(self) -> None:
        os.write(self.writing, b"x")

    def take(self) -> None:
        os.read(self.reading, 1)

    def close(self) -> None:
        os.close(self.reading)
        os.close(self.writing)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


@contextlib.asynccontextmanager
async def in_background(task: Callable[[], Awaitable[None]]) -> AsyncIterator[trio.CancelScope]:
    """Run *task* beside the body and wait for it at the end; the scope cancels it."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(task)
        await trio.testing.wait_all_tasks_blocked()
        yield nursery.cancel_scope


def test_a_busy_descriptor_costs_one_pass_in_so_many_requests(pipe: Pipe) -> None:
    async def main() -> None:
        passes = Passes()
        trio.lowlevel.add_instrument(passes)
        pipe.put()
        for _ in range(10 * YIELD_REQUESTS):
            await pipe.wait_readable()
        assert passes.passes == 10

    run_with_deadline(main)


def test_slow_requests_let_trio_run_after_some_time(pipe: Pipe) -> None:
    async def main() -> None:
        passes = Passes()
        pipe.put()
        await pipe.wait_readable()
        trio.lowlevel.add_instrument(passes)
        for _ in range(40):
            pipe.now += YIELD_SECONDS * 0.3
            await pipe.wait_readable()
        assert passes.passes == 10

    run_with_deadline(main)


def test_other_tasks_and_timers_run_beside_a_hot_worker(pipe: Pipe) -> None:
    async def main() -> None:
        woken = []

        async def sleep() -> None:
            await trio.sleep(0)
            woken.append("checkpoint")
            await trio.sleep(1e-9)
            woken.append("timer")

        pipe.put()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sleep)
            for _ in range(10 * YIELD_REQUESTS):
                await pipe.wait_readable()
                pipe.now += 1e-6
            assert woken == ["checkpoint", "timer"]

    trio.run(main)


def test_an_idle_worker_parks_and_wakes_up(pipe: Pipe) -> None:
    async def main() -> None:
        async with in_background(pipe.wait_readable):
            pipe.put()

    trio.run(main)


def test_a_descriptor_drained_before_the_woken_worker_runs_is_waited_for_again(pipe: Pipe) -> None:
    class Thief(trio.abc.Instrument):
        """Takes the first thing there is to read, between epoll's report and the task that it wakes."""

        thefts = 0

        def after_io_wait(self, timeout: float) -> None:
            if self.thefts == 0 and select.select([pipe.reading], [], [], 0)[0]:
                pipe.take()
                self.thefts = 1

    async def main() -> None:
        thief = Thief()
        done = []

        async def wait() -> None:
            await pipe.wait_readable()
            done.append(True)

        async with in_background(wait):
            trio.lowlevel.add_instrument(thief)
            pipe.put()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert thief.thefts == 1
            assert done == []
            pipe.put()
        assert done == [True]

    trio.run(main)


def test_a_hung_up_descriptor_counts_as_readable(pipe: Pipe) -> None:
    async def main() -> None:
        async with in_background(pipe.wait_readable):
            os.close(pipe.writing)
            pipe.writing = os.dup(pipe.reading)
        await pipe.wait_readable()

    trio.run(main)


def test_a_cancelled_wait_leaves_the_descriptor_to_the_next(pipe: Pipe) -> None:
    async def main() -> None:
        for _ in range(3):
            async with in_background(pipe.wait_readable) as scope:
                scope.cancel()
        async with in_background(pipe.wait_readable):
            pipe.put()

    trio.run(main)


def test_a_hot_worker_is_cancelled_too(pipe: Pipe) -> None:
    async def main() -> None:
        pipe.put()
        with trio.CancelScope() as scope:
            scope.cancel()
            for _ in range(YIELD_REQUESTS):
                await pipe.wait_readable()
        assert scope.cancelled_caught

    run_with_deadline(main)


def test_closing_ends_a_parked_wait(pipe: Pipe) -> None:
    async def main() -> None:
        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await pipe.wait_readable()

        async with in_background(wait):
            pipe.wait.notify_closing(pipe.reading)

    run_with_deadline(main)


def test_closing_ends_a_wait_that_has_yielded(pipe: Pipe) -> None:
    """Trio does not know of such a wait; parking afterwards, it would never end."""

    class Closer(trio.abc.Instrument):
        """Closes when the wait has yielded."""

        waiting = False

        def after_task_step(self, task: trio.lowlevel.Task) -> None:
            if self.waiting:
                self.waiting = False
                pipe.wait.notify_closing(pipe.reading)

    async def main() -> None:
        closer = Closer()
        trio.lowlevel.add_instrument(closer)
        pipe.put()
        for _ in range(YIELD_REQUESTS - 1):
            await pipe.wait_readable()
        pipe.take()
        closer.waiting = True
        with pytest.raises(trio.ClosedResourceError):
            await pipe.wait_readable()

    run_with_deadline(main)


def test_closing_ends_a_wait_that_was_woken_for_nothing(pipe: Pipe) -> None:
    class Closer(trio.abc.Instrument):
        """Drains and closes between epoll's report and the task that it wakes."""

        def after_io_wait(self, timeout: float) -> None:
            if select.select([pipe.reading], [], [], 0)[0]:
                pipe.take()
                pipe.wait.notify_closing(pipe.reading)

    async def main() -> None:
        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await pipe.wait_readable()

        async with in_background(wait):
            trio.lowlevel.add_instrument(Closer())
            pipe.put()

    run_with_deadline(main)


def test_a_worker_that_runs_dry_lingers_before_it_parks(pipe: Pipe) -> None:
    async def main() -> None:
        passes = Passes()
        pipe.wait = SessionWait(linger_seconds=60)
        async with in_background(pipe.wait_readable):  # another worker ran dry before
            pipe.put()
        pipe.take()
        timer = threading.Timer(0.02, pipe.put)
        timer.start()
        await pipe.wait_readable()  # not the one that did so last: parks, though lingering would last long
        pipe.take()
        timer.join()
        trio.lowlevel.add_instrument(passes)
        for _ in range(3):
            timer = threading.Timer(0.02, pipe.put)
            timer.start()
            before = passes.passes
            await _without_yielding(pipe)
            assert passes.passes == before
            pipe.take()
            timer.join()

    async def _without_yielding(pipe: Pipe) -> None:
        pipe.wait._start_streak()
        await pipe.wait_readable()

    trio.run(main)


def test_workers_share_a_descriptor_through_the_lock(pipe: Pipe) -> None:
    async def main() -> None:
        lock = BargingLock()
        taken = []

        async def work(number: int) -> None:
            while True:
                async with lock:
                    await pipe.wait_readable()
                    pipe.take()
                taken.append(number)
                if len(taken) % 10 == 0:
                    await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(work, number)
            for _ in range(100):
                pipe.put()
            while len(taken) < 100:
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        assert len(taken) == 100
        # Who sleeps after its tenth request has left the rest to the others.
        assert len(set(taken)) > 1

    trio.run(main)


# Their place in pyfuse3


def test_installing_changes_two_names_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyfuse3, "trio", trio)
    loop.install()
    installed = pyfuse3.trio  # type: ignore[attr-defined]
    loop.install()
    assert pyfuse3.trio is installed  # type: ignore[attr-defined]
    assert installed.Lock is BargingLock
    for name in ("open_nursery", "ClosedResourceError", "from_thread", "run", "Cancelled"):
        assert getattr(installed, name) is getattr(trio, name)
    assert installed.lowlevel.wait_readable is not trio.lowlevel.wait_readable
    assert installed.lowlevel.notify_closing is not trio.lowlevel.notify_closing
    for name in ("current_task", "current_trio_token", "checkpoint"):
        assert getattr(installed.lowlevel, name) is getattr(trio.lowlevel, name)
    with pytest.raises(AttributeError):
        _ = installed.no_such_name
