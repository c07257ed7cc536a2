"""A full volume with a policy that may thin: the requests of the door, the scheduler of commits and the policy, in process."""

from __future__ import annotations

import errno
import functools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
import trio
from pyfuse3 import FUSEError

from cowfs.control.host import Offline
from cowfs.errors import NoSpace, SpaceShort
from cowfs.fs import Caller, usage
from cowfs.fs.retention import SECOND, Policy, expendable
from cowfs.fs.snapshot import Snapshots
from cowfs.fs.steps import Steps
from cowfs.fuse.commits import CommitScheduler
from cowfs.fuse.handlers import changes
from cowfs.storage.volume import Volume
from tests.support import MIB, Clock, assert_sound, new_device

HOUR = 3600 * SECOND
NOON = 1_795_521_600 * SECOND
PIECE = 64 << 10

R = TypeVar("R")


class Door(Offline):
    """What a mount has of the daemon, without FUSE: it is the door of requests and the host of the policy."""

    def __init__(self, *, thin: bool = True, size: int = 16 * MIB) -> None:
        self.device = new_device(size)
        self.clock = Clock(NOON)
        self.volume = Volume.open(self.device)
        self.trees = Snapshots(self.volume, clock=self.clock)
        super().__init__(self.trees.live, self.trees)
        self.commits = CommitScheduler(self.volume, interval=1000.0)
        self.commits.spare = lambda missing: self.rolling.make_space(self, missing)
        self.commits_each = False
        self.counted = 0  # computations, among them those that say what thinning frees
        self.on_work: Callable[[], None] = lambda: None
        self.volume.inline_commits = True
        self.rolling.set(Policy.parse("1h", "1000h", thin_when_short=thin))
        self.volume.inline_commits = False

    async def commit(self) -> None:
        await self.commits.commit()

    async def change(self, operation: Callable[[], R]) -> R:
        try:
            return operation()
        except SpaceShort:
            return await self.commits.retry(operation)
        except NoSpace as error:
            if not await self.commits.make_space(error):
                raise
            return await self.commits.retry(operation)

    async def work(self, steps: Steps[R]) -> R:
        self.counted += 1
        self.on_work()
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            await trio.lowlevel.checkpoint()

    async def aside(self, function: Callable[[], R]) -> R:
        return await trio.to_thread.run_sync(function)

    @changes
    def write(self, ino: int, offset: int, size: int) -> int:
        return self.trees.live.write(ino, offset, bytes([offset // PIECE % 255 + 1]) * size)

    @changes
    def create(self, name: bytes) -> int:
        return self.trees.live.create(1, name, 0o644, Caller()).ino

    async def fill(self, ino: int, start: int, stop: int) -> int:
        """Writes until it is done, or full: where that was."""
        for offset in range(start, stop, PIECE):
            try:
                await self.write(ino, offset, PIECE)
            except FUSEError as error:
                assert error.errno == errno.ENOSPC
                return offset
        return stop

    async def hours(self, count: int, size: int = MIB) -> int:
        """A file that is written anew each hour, with a snapshot after each."""
        ino = await self.create(b"file")
        for _ in range(count):
            assert await self.fill(ino, 0, size) == size
            await self.rolling.look(self)
            self.clock.now += HOUR
        return ino

    @property
    def names(self) -> list[str]:
        return [info.name.decode() for info in sorted(self.trees, key=lambda info: info.id)]

    def end(self) -> None:
        self.volume.inline_commits = True
        self.trees.close()
        self.volume.close()
        assert_sound(self.device)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        with trio.fail_after(60):
            await main()

    trio.run(limited)


def test_a_write_that_would_fail_thins_and_succeeds() -> None:
    door = Door()

    async def main() -> None:
        await door.hours(8)
        assert len(door.names) == 8
        before = door.names
        new = await door.create(b"new")
        size = 11 * MIB
        assert await door.fill(new, 0, size) == size
        assert 1 < len(door.names) < 8
        assert door.names == before[-len(door.names) :]  # the oldest went
        assert door.trees.live.read(new, size - PIECE, 2) == bytes([(size // PIECE - 1) % 255 + 1]) * 2

    run(main)
    door.end()


def test_without_the_option_it_fails_and_nothing_is_thinned() -> None:
    door = Door(thin=False)

    async def main() -> None:
        await door.hours(8)
        new = await door.create(b"new")
        assert await door.fill(new, 0, 11 * MIB) < 11 * MIB
        assert len(door.names) == 8

    run(main)
    door.end()


def test_no_more_go_than_have_to() -> None:
    door = Door()

    async def main() -> None:
        await door.hours(8)
        new = await door.create(b"new")
        offset, before = 0, len(door.names)
        while len(door.names) == before:
            await door.write(new, offset, PIECE)
            offset += PIECE
        # A megabyte is exclusive to each; a few blocks were missing.
        assert len(door.names) == before - 1
        assert await door.fill(new, offset, offset + MIB // 2) == offset + MIB // 2
        assert len(door.names) == before - 1

    run(main)
    door.end()


def test_the_newest_the_protected_and_the_users_own_stay() -> None:
    door = Door()

    async def main() -> None:
        await door.hours(3)
        door.trees.create(b"mine")
        ino = door.trees.live.lookup(1, b"file").ino
        for _ in range(3):
            await door.fill(ino, 0, MIB)
            await door.rolling.look(door)
            door.clock.now += HOUR
        names = door.names
        door.trees.protect(names[1].encode(), on=True)
        door.trees.rename(names[4].encode(), b"good")
        new = await door.create(b"new")
        assert await door.fill(new, 0, 32 * MIB) < 32 * MIB
        assert set(door.names) == {names[1], "mine", "good", names[-1]}

    run(main)
    door.end()


def test_nothing_is_thinned_where_that_would_not_help() -> None:
    door = Door()

    async def main() -> None:
        ino = await door.hours(1)
        other = await door.create(b"other")
        for number in range(6):  # each differs from the next in a few blocks of metadata
            await door.write(other, number, 1)
            await door.rolling.look(door)
            door.clock.now += HOUR
        await door.fill(other, 0, MIB)
        door.trees.create(b"mine")  # what the policy's have, this one has, too
        names = door.names
        stop = await door.fill(ino, MIB, 64 * MIB)
        assert stop < 64 * MIB
        left = len(door.names)
        # What is left cannot free a whole piece, however often that is tried.
        counted = door.counted
        for _ in range(20):
            with pytest.raises(FUSEError):
                await door.write(ino, stop, MIB)
        assert len(door.names) == left
        assert door.counted <= counted + 4  # and that is not computed each time
        assert names[-1] in door.names

    run(main)
    door.end()


def test_what_thinning_frees_is_what_was_counted() -> None:
    door = Door()

    async def main() -> None:
        await door.hours(8)
        await door.commit()
        taken = [(one.id, one.created) for one in door.trees.automatic]
        policy = door.rolling.policy
        assert policy is not None and door.volume.spacemap is not None
        places = {one.id: one.place for one in door.trees.automatic}
        order = expendable(policy, taken)[:3]
        size = door.volume.geometry.block_size
        freed = usage.freed_by(door.volume, [places[number] for number in order]) // size
        before = door.volume.spacemap.free
        assert await door.rolling.make_space(door, freed - door.volume.margin)
        while door.volume.reclaim_slice(64):
            await door.commit()
        await door.commit()
        assert len(door.names) == 5
        assert abs(door.volume.spacemap.free - before - freed) <= 4  # the pages of the volume's own trees

    run(main)
    door.end()


def test_many_writers_thin_once() -> None:
    door = Door()
    done: list[int] = []

    async def main() -> None:
        await door.hours(8)
        new = await door.create(b"new")
        offset = 0
        while True:  # to the brim
            available = door.volume.free_blocks_for_statfs()[1] * door.volume.geometry.block_size
            if available < 3 * PIECE or len(door.names) < 8:
                break
            await door.write(new, offset, PIECE)
            offset += PIECE
        assert len(door.names) == 8
        files = [await door.create(b"%d" % number) for number in range(12)]

        async def writer(ino: int) -> None:
            done.append(await door.write(ino, 0, PIECE))

        async with trio.open_nursery() as nursery:
            for ino in files:
                nursery.start_soon(writer, ino)
        assert done == [PIECE] * 12
        assert len(door.names) in (6, 7)  # a megabyte each

    run(main)
    door.end()


def test_a_failure_on_the_way_is_the_lack_of_space_that_it_was() -> None:
    door = Door()

    async def main() -> None:
        await door.hours(8)
        new = await door.create(b"new")

        def fail() -> None:
            raise NoSpace("something else went wrong")

        door.on_work = fail
        stop = await door.fill(new, 0, 64 * MIB)
        assert stop < 64 * MIB and len(door.names) == 8
        door.on_work = lambda: None
        assert await door.fill(new, stop, stop + 2 * MIB) == stop + 2 * MIB
        assert len(door.names) < 8

    run(main)
    door.end()


def test_snapshots_that_go_by_other_hands_meanwhile() -> None:
    door = Door()

    async def main() -> None:
        await door.hours(8)
        new = await door.create(b"new")

        def delete_the_first() -> None:
            if len(door.names) > 2 and door.counted % 2:
                door.trees.delete([door.names[0].encode()])

        door.on_work = delete_the_first
        stop = await door.fill(new, 0, 11 * MIB)
        assert stop == 11 * MIB
        assert len(door.names) >= 1

    run(main)
    door.end()


def test_other_lacks_than_of_blocks_thin_nothing() -> None:
    door = Door()

    async def main() -> None:
        await door.hours(3)

        def operation() -> Any:
            raise NoSpace("no free inode")

        with pytest.raises(NoSpace):
            await door.change(functools.partial(operation))
        assert len(door.names) == 3 and door.counted <= 4

    run(main)
    door.end()
