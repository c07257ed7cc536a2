"""Who writes a commit out: the thread that serves, where that takes hardly longer than handing it over, else another one.

Duty. Handing something to another thread and waiting for it costs about as much as sealing a small commit, and nothing else
is done meanwhile by whoever waits for the disk anyway. So a small commit is written out where it was sealed, as long as the
device has shown that it is quick. `Pace` keeps these books, `Writer` is the other thread.

Invariants:
- A device is asked in the thread that serves only after a streak of quick answers, the last of them just now. One slow answer
  ends that at once, and so does a large commit. How long the streak has to be doubles with each slow answer that held up the
  thread that serves, and is halved only after a multiple of it: a device that is slow now and then holds up one commit in
  `RELIEF * STREAK_MIN * 2`.
- `Writer.run` returns only when the job has ended, however often its caller is cancelled.

Locking rule: all methods are for the trio thread. A job is the other thread's from `run` on until that returns.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from typing import Final

import trio

QUICK_SECONDS: Final = 0.002
"""A commit that was written out within this time was quick. Requests that come meanwhile wait as long."""
STREAK_MIN: Final = 16
STREAK_MAX: Final = 4096
"""Quick commits in a row after which the next is trusted to be quick: as few, and as many, as it may take."""
RELIEF: Final = 8
"""After so many times the streak without a slow one, the streak needed is halved."""
LARGE_BYTES: Final = 8 << 20
"""After a commit of more the device has, for a while, more to do than small ones show."""
FRESH_SECONDS: Final = 10.0
"""What was measured longer ago says nothing: the disk may have gone to sleep."""


class Pace:
    """How quick a device is with small commits. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._needed = STREAK_MIN
        self._streak = 0
        self._last = clock()

    @property
    def is_quick(self) -> bool:
        """Whether the thread that serves may wait for the next small commit itself."""
        return self._streak >= self._needed and self._clock() - self._last <= FRESH_SECONDS

    def interrupt(self) -> None:
        """More than `LARGE_BYTES` are written out: a new streak is needed."""
        self._streak = 0

    def measure(self, write_out: Callable[[], None], *, serving: bool) -> None:
        """Has a small commit written out, and takes the time; `serving` says whether by the thread that serves.

        Raises what `write_out` raises; then nothing is learnt, as nothing is written any more.
        """
        begin = self._clock()
        write_out()
        end = self._clock()
        if end - begin > QUICK_SECONDS or end - self._last > FRESH_SECONDS:
            self._streak = 0
        self._last = end
        if end - begin <= QUICK_SECONDS:
            self._streak += 1
            if self._needed > STREAK_MIN and self._streak >= RELIEF * self._needed:
                self._needed //= 2
                self._streak = self._needed
        elif serving:
            self._needed = min(self._needed * 2, STREAK_MAX)


class _Job:
    """Something to be done by the other thread, and how it ended."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.ended = False
        self.error: BaseException | None = None


class Writer:
    """A thread that does one job at a time. It is started with the first, and ends with this object.

    Its end is told through an eventfd that trio waits for: no trip through trio's queue of calls from other threads.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] | None = None
        self._ended = -1

    async def run(self, work: Callable[[], None]) -> None:
        """Returns, or raises, what `work` does in the other thread. For one task at a time."""
        jobs = self._jobs or self._start()
        job = _Job(work)
        jobs.put(job)
        with trio.CancelScope(shield=True):
            while True:
                await trio.lowlevel.wait_readable(self._ended)
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._ended)
                if job.ended:  # else the wake-up was that of a job whose caller was torn away
                    break
        if job.error is not None:
            raise job.error

    def _start(self) -> queue.SimpleQueue[_Job | None]:
        jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        ended = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            threading.Thread(target=_work, args=(jobs, ended), name="cowfs-writer", daemon=True).start()
        except BaseException:
            os.close(ended)
            raise
        self._jobs, self._ended = jobs, ended
        weakref.finalize(self, jobs.put, None)
        return jobs


def _work(jobs: queue.SimpleQueue[_Job | None], ended: int) -> None:
    """The thread: jobs until there is none."""
    while (job := jobs.get()) is not None:
        try:
            job.work()
        except BaseException as error:
            job.error = error
        job.ended = True
        del job  # what it holds is not kept until the next
        os.eventfd_write(ended, 1)
    os.close(ended)
