"""The session loop: a request reaches its handler without a trip through the scheduler.

Duty. pyfuse3 serves a mount with a few worker tasks. For every request a worker takes a lock and waits until the session
descriptor is readable, and looks both up in the module global ``pyfuse3.trio``. With trio's own lock and wait each request
costs two trips through the scheduler and epoll, which is most of what a small request costs. `install` puts something in
that place which is trio in all but two names: a lock that barges and a wait that polls first. One hot worker then serves
request after request, and the next worker takes over as soon as a handler really waits (for a commit, for a thread).

Invariants.

- One worker at a time waits for the descriptor: the one that holds the lock. It has released the lock before its handler
  runs.
- No lost wake-up: whenever a task has suspended while the lock is free and workers wait for it, one of them has been woken
  and has not run yet. A worker that takes the lock again before it suspends wakes nobody.
- Trio gets to run its other tasks, timers and descriptors after `YIELD_REQUESTS` requests or `YIELD_SECONDS`, whichever
  comes first, however busy the mount is. Added to that is at most the last handler's own running time, or
  `LINGER_SECONDS` when there was no request.
- A wait ends only with a poll of the same scheduling step that found something to read. pyfuse3 reads next, blocking and
  without letting other threads run, and what made the descriptor readable can be gone by the time a woken task runs: the
  reply to an interrupted request withdraws its interrupt.
- Waits and lock are cancellation points whenever they suspend, and a cancelled task leaves neither the lock nor a wake-up
  behind.

Locking rule: everything here belongs to the thread that runs trio.
"""

import select
import time
from collections.abc import Awaitable, Callable
from types import ModuleType, TracebackType
from typing import Any, Final

import pyfuse3
import trio

from cowfs.fuse.handshake import Handshake

YIELD_REQUESTS: Final = 64
"""Requests served in a row before trio's scheduler runs."""

YIELD_SECONDS: Final = 0.003
"""Time after which trio's scheduler runs between two requests, however few they were: not after each fsync."""

LINGER_SECONDS: Final = 0.0001
"""How long a worker that just served a request waits for the next one before it parks. A client takes some tens of
microseconds from a reply to its next request; parking and waking cost as much again."""


def install() -> None:
    """Make pyfuse3 use the loop of this module, for every session from now on. Calling it again changes nothing."""
    pyfuse3.trio = _loop_trio  # type: ignore[attr-defined]


def shake_hands() -> None:
    """Have the next session's first request pass through a `Handshake`. After `install`."""
    handshake = Handshake(_session_wait.wait_readable, lambda: _replace_wait(_session_wait.wait_readable))
    _replace_wait(handshake.wait_readable)


def _replace_wait(wait: Callable[[int], Awaitable[None]]) -> None:
    _loop_trio.lowlevel.wait_readable = wait


def session_fd() -> int:
    """The descriptor of /dev/fuse on which requests arrive and to which notifications are written; -1 before a worker
    first waited on it. pyfuse3 keeps it to itself."""
    return _session_wait.fd


def requests_wait() -> bool:
    """Whether there is a request that nobody has read yet. False before a worker first waited for one."""
    return _session_wait.requests_wait()


class BargingLock(trio.abc.Instrument):
    """A lock for ``async with`` that goes to whoever runs, not to whoever waited longest.

    Taking it when it is free never suspends. One waiter is woken if the lock is free when a task suspends, and none while
    one that was woken has not run; the woken waiter takes the lock only if it is still free when it runs, else it waits
    again. Not reentrant.
    """

    def __init__(self) -> None:
        self._held = False
        self._waiters = trio.lowlevel.ParkingLot()
        self._waking = False

    async def __aenter__(self) -> None:
        while self._held:
            trio.lowlevel.add_instrument(self)  # of the running scheduler, which may be another than last time
            # A cancelled waiter leaves the lot here. It cannot be the one that was woken: that one is out of the lot
            # already and always comes back to the next line, cancelled or not.
            await self._waiters.park()
            self._waking = False
        self._held = True

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._held = False

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Trio's call whenever a task has suspended or ended."""
        if not self._held and not self._waking and self._waiters:
            self._waking = True
            self._waiters.unpark()


class SessionWait:
    """The wait for the next request: poll, linger, park, in this order.

    `wait_readable` and `notify_closing` stand in for those of `trio.lowlevel`. One descriptor is waited for at a time,
    by one task at a time; another descriptor (the next session's) may follow.
    """

    def __init__(self, *, linger_seconds: float = LINGER_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self.fd = -1
        self._linger_seconds = linger_seconds
        self._clock = clock
        self._poll: Callable[[float], list[tuple[int, int]]] = select.poll().poll
        self._can_linger = False
        self._requests = 0
        self._yield_at = 0.0
        self._closings = 0
        self._last_idle: trio.lowlevel.Task | None = None

    async def wait_readable(self, fd: int) -> None:
        """Return when *fd* is readable or broken, so that a read from it does not block.

        Errors: `trio.ClosedResourceError` when `notify_closing` was called meanwhile.
        """
        if fd != self.fd:
            self._attach(fd)
        self._requests += 1
        if self._requests >= YIELD_REQUESTS or self._clock() >= self._yield_at:
            await self._yield_to_trio()
        if self._poll(0):
            return
        # Only the worker that ran dry last time lingers: any other is here because a handler gave up its turn to wait,
        # and what that handler waits for may be a matter of microseconds that only trio can see.
        task = trio.lowlevel.current_task()
        if task is self._last_idle and self._can_linger and select.select((fd,), (), (), self._linger_seconds)[0]:
            return
        self._last_idle = task
        await self._park()

    def requests_wait(self) -> bool:
        """Whether the descriptor is readable, or broken."""
        return self.fd >= 0 and bool(self._poll(0))

    def notify_closing(self, fd: int) -> None:
        """Make a `wait_readable` in progress raise `trio.ClosedResourceError`, wherever it is suspended."""
        self._closings += 1
        trio.lowlevel.notify_closing(fd)

    def _attach(self, fd: int) -> None:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        self._poll = poll.poll
        try:
            select.select((fd,), (), (), 0)
            self._can_linger = True
        except ValueError:  # select(2) does not take large descriptors
            self._can_linger = False
        self.fd = fd
        self._start_streak()

    def _start_streak(self) -> None:
        self._requests = 0
        self._yield_at = self._clock() + YIELD_SECONDS

    async def _yield_to_trio(self) -> None:
        closings = self._closings
        await trio.lowlevel.checkpoint()
        self._start_streak()
        self._check_open(closings)

    async def _park(self) -> None:
        closings = self._closings
        while True:
            await trio.lowlevel.wait_readable(self.fd)
            self._check_open(closings)
            if self._poll(0):
                break
        self._start_streak()

    def _check_open(self, closings: int) -> None:
        # Trio tells only tasks that are parked. One that had yielded, or was woken and had not run yet, would park
        # afterwards on a session that has ended.
        if closings != self._closings:
            raise trio.ClosedResourceError("the session is ending")


class _Overlay:
    """A module in which some names have another value."""

    def __init__(self, module: ModuleType, **names: object) -> None:
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


_session_wait = SessionWait()
_loop_trio = _Overlay(
    trio,
    Lock=BargingLock,
    lowlevel=_Overlay(
        trio.lowlevel,
        wait_readable=_session_wait.wait_readable,
        notify_closing=_session_wait.notify_closing,
    ),
)
