"""The scheduler of commits, with a volume and a device that only keep books: who waits for what, and what is shared."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from cowfs.errors import DeviceError, NoSpace, ReadOnly, SpaceShort
from cowfs.fuse.commits import CommitScheduler


class Books:
    """A volume's part in a commit. `changes` counts what was done, `durable` how much of it is safe."""

    def __init__(self) -> None:
        self.inline_commits = True
        self.read_only = False
        self.manifest_pending = False
        self.discards = None
        self.changes = 0
        self.durable = 0
        self.sealed_changes = 0
        self.in_flight = False
        self.log: list[str] = []
        self.let_write = threading.Event()
        self.let_write.set()
        self.writing = threading.Event()
        self.failure: Exception | None = None
        self.seal_failure: Exception | None = None
        self.full = 0  # commits until there is space again
        self.crowd = 0
        self.reclaimable = 0
        self.reclaim_waits = 0  # commits that have to come before anything can be reclaimed
        self.reclaim = SimpleNamespace(holds=0)

    @property
    def dirty(self) -> bool:
        return self.changes > self.sealed_changes

    @property
    def wants_commit(self) -> bool:
        return self.crowd >= 1

    @property
    def must_wait(self) -> bool:
        return self.crowd >= 2

    def check_writable(self) -> None:
        if self.read_only:
            raise ReadOnly

    def seal(self, *, complete: bool = False) -> Sealed:
        assert not self.in_flight, "two commits in flight"
        if self.seal_failure is not None:
            raise self.seal_failure
        self.in_flight = True
        self.sealed_changes = self.changes
        self.log.append("complete" if complete else "seal")
        return Sealed(self, self.changes, complete)

    def publish(self, sealed: Sealed) -> None:
        self.in_flight = False
        self.durable = sealed.changes
        self.manifest_pending = not sealed.complete
        self.full = max(0, self.full - 1)
        self.reclaim_waits = max(0, self.reclaim_waits - 1)
        self.crowd = 0

    def publish_failed(self, sealed: Sealed, error: BaseException) -> None:
        self.in_flight = False
        self.read_only = True

    def reclaim_slice(self, blocks: int) -> bool:
        if self.reclaim_waits:
            raise SpaceShort
        self.reclaimable = max(0, self.reclaimable - 1)
        return self.reclaimable > 0

    def operation(self) -> str:
        if self.full:
            raise SpaceShort
        self.changes += 1
        return "done"


class Sealed:
    def __init__(self, books: Books, changes: int, complete: bool) -> None:
        self.books = books
        self.changes = changes
        self.complete = complete
        self.is_small = False
        self.born_bytes = 0

    def write_out(self) -> None:
        assert threading.current_thread() is not threading.main_thread()
        self.books.writing.set()
        assert self.books.let_write.wait(10)
        if self.books.failure is not None:
            raise self.books.failure


def scheduler(books: Any, interval: float = 1000.0) -> CommitScheduler:
    return CommitScheduler(books, interval=interval)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        with trio.fail_after(20):
            await main()

    trio.run(limited)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.001)


def test_the_volume_no_longer_commits_by_itself() -> None:
    books = Books()
    scheduler(books)
    assert not books.inline_commits


def test_a_clean_volume_needs_no_commit() -> None:
    books = Books()
    run(scheduler(books).commit)
    assert books.log == []


def test_a_commit_makes_durable_what_was_done_before() -> None:
    books = Books()
    books.changes = 3
    run(scheduler(books).commit)
    assert books.durable == 3
    assert books.log == ["seal"]


def test_all_who_come_while_one_is_in_flight_share_the_next() -> None:
    books = Books()
    commits = scheduler(books)
    seen: list[int] = []

    async def fsync() -> None:
        books.changes += 1
        mine = books.changes
        await commits.commit()
        assert books.durable >= mine
        seen.append(mine)

    async def main() -> None:
        books.let_write.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fsync)
            await until(books.writing.is_set)
            for _ in range(31):
                nursery.start_soon(fsync)
            await until(lambda: books.changes == 32)
            books.let_write.set()

    run(main)
    assert len(seen) == 32
    assert commits.commits == 2
    assert books.log == ["seal", "seal"]


def test_nothing_new_waits_only_for_the_commit_in_flight() -> None:
    books = Books()
    commits = scheduler(books)
    ended: list[str] = []

    async def second() -> None:
        await commits.commit()
        ended.append("second")

    async def main() -> None:
        books.changes = 1
        books.let_write.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(commits.commit)
            await until(books.writing.is_set)
            nursery.start_soon(second)
            await trio.testing.wait_all_tasks_blocked()
            assert ended == []
            books.let_write.set()

    run(main)
    assert ended == ["second"]
    assert commits.commits == 1


def test_a_cancelled_caller_does_not_break_its_commit_off() -> None:
    books = Books()
    commits = scheduler(books)

    async def main() -> None:
        books.changes = 1
        books.let_write.clear()
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(_release_when_cancelled, scope, books)
                await commits.commit()
        assert books.durable == 1
        assert not books.in_flight
        books.changes = 2
        await commits.commit()

    run(main)
    assert books.durable == 2


async def _release_when_cancelled(scope: trio.CancelScope, books: Books) -> None:
    await until(books.writing.is_set)
    scope.cancel()
    await trio.testing.wait_all_tasks_blocked(0.01)
    books.let_write.set()


def test_a_commit_finds_a_thread_when_all_others_wait_for_it() -> None:
    """Many commands may have the kernel write back at once, and the WRITEs that it sends may need a commit to go on."""
    books = Books()
    commits = scheduler(books)
    written_back = threading.Event()
    durable: list[int] = []

    async def give_up() -> None:
        await trio.sleep(10)
        written_back.set()

    async def main() -> None:
        books.changes = 1
        threads = trio.to_thread.current_default_thread_limiter()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_up)
            for _ in range(int(threads.total_tokens)):
                nursery.start_soon(trio.to_thread.run_sync, written_back.wait)
            await until(lambda: threads.available_tokens == 0)
            await commits.commit()
            durable.append(0 if written_back.is_set() else books.durable)
            written_back.set()
            nursery.cancel_scope.cancel()

    run(main)
    assert durable == [1]


def test_a_failed_commit_fails_all_who_wait_and_all_who_come() -> None:
    books = Books()
    books.failure = DeviceError("the disk is gone")
    commits = scheduler(books)
    failures: list[str] = []

    async def fsync() -> None:
        books.changes += 1
        try:
            await commits.commit()
        except DeviceError as error:
            failures.append(str(error))

    async def main() -> None:
        books.let_write.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fsync)
            await until(books.writing.is_set)
            for _ in range(3):
                nursery.start_soon(fsync)
            await trio.testing.wait_all_tasks_blocked()
            books.let_write.set()
        await fsync()

    run(main)
    assert failures == ["the disk is gone"] * 5
    assert books.read_only
    assert books.log == ["seal"], "nothing is written after a failure"


def test_a_bug_while_writing_out_is_a_failed_commit() -> None:
    books = Books()
    books.changes = 1
    books.failure = KeyError("bug")
    with pytest.raises(DeviceError, match="KeyError"):
        run(scheduler(books).commit)
    assert books.read_only


def test_a_bug_while_sealing_lets_nobody_believe_in_the_commit() -> None:
    books = Books()
    books.seal_failure = AssertionError("bug")
    commits = scheduler(books)
    outcomes: list[str] = []

    async def fsync() -> None:
        books.changes += 1
        try:
            await commits.commit()
        except Exception as error:
            outcomes.append(type(error).__name__)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fsync)
            nursery.start_soon(fsync)

    run(main)
    assert len(outcomes) == 2


def test_a_read_only_mount_has_nothing_to_commit() -> None:
    books = Books()
    books.read_only = True
    run(scheduler(books).commit)
    assert books.log == []


def test_the_timer_commits_what_is_dirty_and_then_once_more_without_a_manifest() -> None:
    books = Books()
    commits = scheduler(books, interval=0.01)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(commits.run)
            books.changes = 1
            await until(lambda: books.durable == 1)
            books.changes = 2
            await commits.commit()
            await until(lambda: not books.manifest_pending)
            count = commits.commits
            await trio.sleep(0.1)
            assert commits.commits == count, "an idle volume is left alone"
            nursery.cancel_scope.cancel()

    run(main)
    assert books.log[0] == "complete"
    assert books.log[-1] == "complete"


def test_a_crowded_volume_commits_in_the_background() -> None:
    books = Books()
    commits = scheduler(books)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(commits.run)
            books.changes, books.crowd = 1, 1
            books.let_write.clear()
            assert commits.crowded
            await commits.make_room()
            await until(books.writing.is_set)
            books.let_write.set()
            await until(lambda: books.durable == 1)
            nursery.cancel_scope.cancel()

    run(main)


def test_an_overcrowded_volume_lets_nobody_in_before_a_commit() -> None:
    books = Books()
    commits = scheduler(books)

    async def main() -> None:
        books.changes, books.crowd = 1, 2
        await commits.make_room()

    run(main)
    assert books.durable == 1
    assert books.crowd == 0


def test_an_operation_short_of_space_is_repeated_after_commits() -> None:
    books = Books()
    books.full = 2
    commits = scheduler(books)
    results: list[str] = []

    async def main() -> None:
        results.append(await commits.retry(books.operation))

    run(main)
    assert results == ["done"]
    assert commits.commits == 2


def test_an_operation_that_stays_short_of_space_fails() -> None:
    books = Books()
    books.full = 1 << 20
    commits = scheduler(books)

    async def main() -> None:
        await commits.retry(books.operation)

    with pytest.raises(NoSpace):
        run(main)


def test_reclaim_rests_while_somebody_counts_unless_the_space_is_needed() -> None:
    books = Books()
    commits = scheduler(books)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(commits.run)
            books.reclaim.holds = 1
            books.reclaimable = 50
            commits.start_reclaim()
            await trio.testing.wait_all_tasks_blocked()
            assert books.reclaimable == 50
            books.full = 1
            await commits.retry(books.operation)
            assert books.reclaimable < 50
            books.reclaim.holds = 0
            commits.start_reclaim()
            await until(lambda: books.reclaimable == 0)
            nursery.cancel_scope.cancel()

    run(main)


def test_reclaim_goes_on_until_nothing_waits() -> None:
    books = Books()
    commits = scheduler(books)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(commits.run)
            books.reclaimable = 50
            commits.start_reclaim()
            await until(lambda: books.reclaimable == 0)
            nursery.cancel_scope.cancel()

    run(main)


def test_reclaim_that_needs_commits_first_gets_them() -> None:
    books = Books()
    commits = scheduler(books)
    books.full, books.reclaimable, books.reclaim_waits = 3, 5, 2
    assert_done(commits, books)
    books.reclaimable, books.reclaim_waits = 50, 3

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(commits.run)
            commits.start_reclaim()
            await until(lambda: books.reclaimable == 0)
            nursery.cancel_scope.cancel()

    run(main)


def assert_done(commits: CommitScheduler, books: Books) -> None:
    async def main() -> None:
        assert await commits.retry(books.operation) == "done"

    run(main)


def test_what_can_be_spared_is_asked_for_last_and_once_by_many() -> None:
    books = Books()
    commits = scheduler(books)
    asked: list[int] = []

    async def spare(missing: int) -> bool:
        asked.append(missing)
        await trio.sleep(0)
        return len(asked) < 3

    def operation() -> str:
        if len(asked) < 2:
            raise NoSpace(missing=7)
        return books.operation()

    async def one() -> None:
        assert await commits.retry(operation) == "done"

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one)
        assert asked == [7, 7]

        def hopeless() -> str:
            raise NoSpace(missing=9)

        with pytest.raises(NoSpace):
            await commits.retry(hopeless)
        assert asked == [7, 7, 9]

    commits.spare = spare
    run(main)


def test_sparing_does_not_wait_for_itself() -> None:
    books = Books()
    commits = scheduler(books)

    async def spare(missing: int) -> bool:
        assert not await commits.make_space(NoSpace(missing=1))
        return False

    commits.spare = spare

    async def main() -> None:
        assert not await commits.make_space(NoSpace(missing=1))
        assert not await commits.make_space(NoSpace("no free inode"))
        assert not await commits.make_space(SpaceShort(missing=1))

    run(main)
