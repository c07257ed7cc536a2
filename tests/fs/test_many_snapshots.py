"""Very many snapshots on one volume: each step costs the same blocks however many there are, and none takes long."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowfs.control.wire import encode_reply, encode_steps
from cowfs.errors import NotFound, NotPermitted
from cowfs.fs import Caller
from cowfs.fs.snapshot import Snapshots
from cowfs.fs.steps import TICKS, finish
from cowfs.ondisk import format as f
from cowfs.storage import snapshots as table_module
from cowfs.storage.volume import Volume
from tests.support import MIB, assert_sound, new_device

GROWTH_BLOCKS_MAX = 28
"""Blocks more than with few snapshots: paths are longer in five trees, and what lay in one block of each lies anywhere there.
To delete one of 100,000 takes 25 blocks read, one of 20 takes 2."""
STEP_BLOCKS_MAX = 40
"""Blocks that one step with its commit may read or write: a dozen pages of system trees and the paths above them."""


class Many:
    """A volume that gets more and more snapshots; a dictionary knows which, by name the id and whether it is protected."""

    def __init__(self, count: int, block_size: int) -> None:
        self.random = random.Random(count + block_size)
        self.device = new_device(count * 6 * 1024 + 64 * MIB, block_size)
        self.block_size = block_size
        self.known: dict[bytes, int] = {}
        self.names: list[bytes] = []
        self.counter = 0
        self.open()
        self.file = self.trees.live.create(1, b"file", 0o644, Caller()).ino
        self.trees.volume.commit()

    def open(self) -> None:
        self.trees = Snapshots(Volume.open(self.device))

    def close(self) -> None:
        self.trees.close()
        self.trees.volume.close()

    def create(self) -> None:
        self.counter += 1
        name = b"snapshot %d" % self.counter
        self.known[name] = self.trees.create(name, description=b"one of many").id
        self.names.append(name)

    def take_name(self) -> bytes:
        """Any of the names, which is no longer one."""
        place = self.random.randrange(len(self.names))
        self.names[place], self.names[-1] = self.names[-1], self.names[place]
        return self.names.pop()

    def rename(self) -> None:
        self.counter += 1
        old, new = self.take_name(), b"renamed %d" % self.counter
        self.known[new] = self.known.pop(old)
        self.names.append(new)
        assert self.trees.rename(old, new).id == self.known[new]

    def delete(self) -> None:
        name = self.take_name()
        del self.known[name]
        assert [info.name for info in self.trees.delete([name])] == [name]

    def look_up(self) -> None:
        name = self.random.choice(self.names)
        assert self.trees.find(name).id == self.known[name]
        with pytest.raises(NotFound):
            self.trees.find(name + b"?")

    def protect(self) -> None:
        name = self.random.choice(self.names)
        assert self.trees.protect(name, on=True).protected
        with pytest.raises(NotPermitted):
            self.trees.delete([name])
        assert not self.trees.protect(name, on=False).protected

    def costs(self) -> dict[str, tuple[int, int]]:
        """Blocks read and written by each step and its commit, on a volume opened anew; the file changes in between."""
        found = {}
        for step in (self.create, self.look_up, self.rename, self.protect, self.delete):
            self.close()
            self.open()
            self.trees.live.write(self.file, 0, self.random.randbytes(100))
            self.trees.volume.commit()
            self.device.reset_counters()
            step()
            self.trees.volume.commit()
            found[step.__name__] = (
                self.device.bytes_read // self.block_size,
                self.device.bytes_written // self.block_size,
            )
        return found

    def grow_to(self, count: int) -> None:
        while len(self.names) < count:
            steps = [self.create, self.create, self.create, self.rename, self.delete]
            self.random.choice(steps[:3] if len(self.names) <= 10 else steps)()
            if self.counter % 10 == 0:
                self.trees.live.write(self.file, 0, b"%d" % self.counter)
            if self.counter % 50 == 0:
                self.trees.volume.commit()
                self.trees.volume.reclaim_slice(512)

    def compare(self) -> None:
        infos = finish(self.trees.list_steps())
        assert [info.id for info in infos] == sorted(self.known.values())
        assert {info.name: info.id for info in infos} == self.known


def memory() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def many(count: int, block_size: int) -> None:
    """Everything with so many; all are deleted at the end, in any order."""
    volume = Many(count, block_size)
    volume.grow_to(20)
    few = volume.costs()
    before = memory()
    volume.grow_to(count)
    grown = memory() - before
    for step, (read, written) in volume.costs().items():
        assert read <= few[step][0] + GROWTH_BLOCKS_MAX, (step, read)
        assert written <= few[step][1] + GROWTH_BLOCKS_MAX, (step, written)
        assert max(read, written) <= STEP_BLOCKS_MAX, step
    for _ in range(300):
        volume.random.choice((volume.create, volume.look_up, volume.rename, volume.delete, volume.protect))()
    volume.compare()
    volume.close()
    assert_sound(volume.device)
    volume.open()
    volume.compare()
    while volume.names:
        volume.delete()
        if len(volume.names) % 50 == 0:
            volume.trees.volume.commit()
            volume.trees.volume.reclaim_slice(512)
    while volume.trees.volume.reclaim_slice():
        volume.trees.volume.commit()
    volume.compare()
    volume.trees.volume.commit()
    volume.trees.volume.commit()
    assert not volume.trees.volume.references.occupied
    available = volume.trees.volume.free_blocks_for_statfs()[1]
    volume.close()
    assert_sound(volume.device)
    fresh = Volume.open(new_device(volume.device.size(), block_size)).free_blocks_for_statfs()[1]
    assert available >= fresh - 64, "the room of deleted snapshots is set aside for ever"
    print(f"\n{count} snapshots: {few} at first; {grown >> 20} MiB more in memory, the device included")


@pytest.mark.parametrize("block_size", [512, 4096])
def test_two_thousand(block_size: int) -> None:
    many(2000, block_size)


@pytest.mark.slow
def test_a_hundred_thousand() -> None:
    many(100_000, 4096)


def test_the_index_doubles_with_all_names_in_it() -> None:
    """Also where the end of the old one was full, so that names had gone on at its beginning."""
    volume = Many(200, 512)
    for _ in range(table_module.INDEX_PLACES_MIN * 2):
        volume.create()
        for name, number in volume.known.items():
            assert volume.trees.find(name).id == number
    volume.close()
    assert_sound(volume.device)


def test_a_listing_is_made_in_short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice looks at so many places at most; what goes and comes meanwhile leaves no gap and nothing twice."""
    volume = Many(1000, 4096)
    volume.grow_to(1000)
    kept = volume.names[200:]
    looked = [0]
    original = table_module.SnapshotTable.is_empty

    def is_empty(self: table_module.SnapshotTable, place: int) -> bool:
        looked[0] += 1
        return original(self, place)

    monkeypatch.setattr(table_module.SnapshotTable, "is_empty", is_empty)
    steps = volume.trees.list_steps()
    slices, infos = 0, []
    while True:
        looked[0] = 0
        try:
            next(steps)
        except StopIteration as end:
            infos = end.value
            break
        assert looked[0] <= TICKS
        slices += 1
        if slices < 6:
            volume.trees.delete([volume.names[slices]])
            volume.create()
    assert slices > 10
    found = [info.name for info in infos]
    assert set(kept) <= set(found)
    assert len(set(found)) == len(found)
    assert [info.id for info in infos] == sorted(info.id for info in infos)


def test_pages_of_a_table_with_gaps() -> None:
    volume = Many(600, 512)
    volume.grow_to(600)
    for name in volume.names[50:550]:
        volume.trees.delete([name])
    found, place = [], 0
    while True:
        infos, place = finish(volume.trees.page_steps(place, 7))
        if not infos:
            break
        assert len(infos) <= 7
        found += infos
    assert {info.name for info in found} == set(volume.names[:50] + volume.names[550:])
    assert volume.trees.volume.forest.table.is_empty(1) or found[1].place == 1
    assert f.SnapshotRecord.SIZE > 512, "a record lies in two pages"


def test_a_long_reply_is_encoded_in_slices() -> None:
    rows = [{"name": f"snapshot {number} \udcff", "id": number} for number in range(1000)]
    replies: list[dict[str, object]] = [
        {"snapshots": rows},
        {"before": [1], "rows": rows[: TICKS + 1], "after": {"x": []}},
        {"few": rows[:TICKS]},
        {"none": []},
        {},
    ]
    for reply in replies:
        assert decoded(encode_reply(reply)) == reply
    assert sum(1 for _ in slices_of(replies[0])) == -(-len(rows) // TICKS)


def slices_of(reply: dict[str, object]) -> Iterator[None]:
    yield from encode_steps(reply)


def decoded(data: bytes) -> object:
    assert data.endswith(b"\n")
    assert data.count(b"\n") == 1
    return json.loads(data)


def test_looking_at_clones_takes_no_room() -> None:
    """What a seal may need for a clone is set aside while the clone is changed, not because somebody looked at it."""
    volume = Many(300, 4096)
    for number in range(100):
        volume.trees.create(b"clone %d" % number, writable=True)
    volume.trees.volume.commit()
    available = volume.trees.volume._available
    for number in range(100):
        files = volume.trees.filesystem(volume.trees.find(b"clone %d" % number))
        assert files.lookup(1, b"file").ino == volume.file
        if number < 3:
            files.write(volume.file, 0, b"of clone %d" % number)
    assert available - 3 * 40 <= volume.trees.volume._available < available
    for _ in range(3):
        volume.trees.live.write(volume.file, 0, b"live")
        volume.trees.volume.commit()
    assert available - 3 * 20 <= volume.trees.volume._available, "what was written takes room, and nothing else"
    for number in (0, 1, 2, 99):
        volume.trees.filesystem(volume.trees.find(b"clone %d" % number)).write(volume.file, 4, b"again")
    volume.close()
    assert_sound(volume.device)
    volume.open()
    for number in range(4):
        files = volume.trees.filesystem(volume.trees.find(b"clone %d" % number))
        assert files.read(volume.file, 0, 20) == (b"of cagain%d" % number if number < 3 else b"")
    files = volume.trees.filesystem(volume.trees.find(b"clone 99"))
    assert files.read(volume.file, 0, 20) == bytes(4) + b"again"
    volume.close()
