"""The commit protocol under guard: the real one passes, and each wrong one is caught.

A test that never fails shows nothing; so every rule that `guard` knows is broken here once.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

import pytest
from guard import GuardDevice, ProtocolError
from plainfiles import BLOCK_SIZES, MIB, PlainFiles, new_device, random_change

from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import geometry_for_size
from cowfs.storage.commit import SealedCommit, Sealer
from cowfs.storage.device import MemoryDevice
from cowfs.storage.freed import Freed
from cowfs.storage.spacemap import SpaceMap
from cowfs.storage.volume import Volume

SIZE = 2 * MIB


@functools.cache
def formatted(block_size: int, size: int) -> bytes:
    return new_device(size, block_size).image()


@pytest.fixture(autouse=True)
def formatted_before_anything_is_broken() -> None:
    formatted(1024, SIZE)


def guarded(block_size: int = 1024, size: int = SIZE) -> GuardDevice:
    device = MemoryDevice.from_image(formatted(block_size, size))
    return GuardDevice(device, geometry_for_size(size, block_size))


def workload(device: GuardDevice, seed: int, steps: int = 60) -> PlainFiles:
    """Changes, commits of both kinds, sharing, reclaim, and sessions that end badly or well."""
    choose = random.Random(seed)
    files = PlainFiles(Volume.open(device), inode_leaves=20)
    size_max = files.volume.geometry.file_size_max
    numbers = [files.create() for _ in range(3)]

    def offsets() -> int:
        return choose.choice((0, choose.randrange(200_000), choose.randrange(size_max - 100_000)))

    for _ in range(steps):
        step = choose.random()
        if step < 0.6:
            random_change(files, choose.choice(numbers), 0, choose, offsets)
        elif step < 0.65:
            number = choose.choice(numbers)
            files.remove(number)
            numbers.remove(number)
            numbers.append(files.create())
        elif step < 0.7:
            files.remove(numbers.pop(0))
            numbers.append(files.clone(choose.choice(numbers)))
        elif step < 0.75:
            share_a_tree(files, choose, offsets)
        elif step < 0.9:
            files.volume.commit(complete=choose.random() < 0.3)
        elif step < 0.95:
            files.volume.reclaim_slice(choose.choice((10, 1000)))
        elif choose.random() < 0.5:  # a killed daemon: what was not committed is gone
            files.volume.commit()
            files = files.reopened()
        else:
            files.volume.settle()
            files = files.reopened()
    files.check()
    return files


def share_a_tree(files: PlainFiles, choose: random.Random, offsets: Callable[[], int]) -> None:
    """A snapshot comes or goes, or a file in one is changed."""
    trees = [tree for tree in files.all if tree]
    if len(trees) < 2:
        files.snapshot(choose.choice([0, *trees]))
    elif choose.random() < 0.5:
        files.drop_tree(choose.choice(trees))
    else:
        tree = choose.choice(trees)
        random_change(files, choose.choice(list(files.all[tree].files)), tree, choose, offsets)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_the_protocol_passes(block_size: int, seed: int) -> None:
    device = guarded(block_size)
    files = workload(device, seed)
    files.close()
    assert device.records > 10


def test_formatting_leaves_two_states_that_agree() -> None:
    device = guarded()
    assert {slot: state.needed for slot, state in device.states.items()} == {1: device.states[1].needed} | {
        2: device.states[1].needed
    }
    assert device.states[1].serial > device.states[2].serial


# --- wrong protocols ---


def caught(match: str) -> None:
    with pytest.raises(ProtocolError, match=match):
        for seed in range(8):
            workload(guarded(), seed)


@pytest.mark.interpreted
def test_reuse_in_the_same_generation_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = SpaceMap.free_run

    def free_run(self: SpaceMap, start: int, count: int) -> None:
        original(self, start, count)
        self.release(self.freed)
        self.freed = Freed(self._store.block_size)

    monkeypatch.setattr(SpaceMap, "free_run", free_run)
    caught("overwritten, which slot")


@pytest.mark.interpreted
def test_reuse_one_commit_too_early_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Volume.publish

    def publish(self: Volume, sealed: SealedCommit) -> None:
        original(self, sealed)
        assert self.spacemap is not None
        self.spacemap.release(self._held_back)
        self._held_back = Freed(self.geometry.block_size)

    monkeypatch.setattr(Volume, "publish", publish)
    caught("overwritten, which slot")


@pytest.mark.interpreted
def test_reuse_as_soon_as_it_is_sealed_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was freed a generation before, released by the seal and not by the publishing."""
    original = Volume.seal

    def seal(self: Volume, *, complete: bool = False) -> SealedCommit:
        sealed = original(self, complete=complete)
        assert self.spacemap is not None
        self.spacemap.release(self._held_back)
        self._held_back = Freed(self.geometry.block_size)
        return sealed

    monkeypatch.setattr(Volume, "seal", seal)
    files = PlainFiles(Volume.open(guarded()))
    number = files.create()
    with pytest.raises(ProtocolError, match="overwritten, which slot"):
        for step in range(40):
            files.write(number, 0, bytes([step]) * 5000)
            sealed = files.volume.seal()
            files.write(number, 10_000, bytes([step]) * 100_000)  # goes to the device while the commit does not yet
            sealed.write_out()
            files.volume.publish(sealed)


@pytest.mark.interpreted
def test_a_record_without_a_flush_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def write_out(self: SealedCommit) -> None:
        for offset, pieces in self.runs:
            self.device.write(offset, pieces)
        self.device.write(self.slot_offset, [self.record, self.area])
        self.device.flush()

    monkeypatch.setattr(SealedCommit, "write_out", write_out)
    caught(r"before blocks .* are flushed")


@pytest.mark.interpreted
def test_a_record_before_its_blocks_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def write_out(self: SealedCommit) -> None:
        self.device.write(self.slot_offset, [self.record, self.area])
        self.device.flush()
        for offset, pieces in self.runs:
            self.device.write(offset, pieces)
        self.device.flush()

    monkeypatch.setattr(SealedCommit, "write_out", write_out)
    with pytest.raises(AssertionError):  # what the record leads to is not there yet
        workload(guarded(), 0)


@pytest.mark.interpreted
def test_a_record_before_its_area_is_flushed_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def write_out(self: SealedCommit) -> None:
        for offset, pieces in self.runs:
            self.device.write(offset, pieces)
        self.device.flush()
        self.device.write(self.slot_offset + f.EXTENSION_OFFSET, [self.area])
        self.device.write(self.slot_offset, [self.record])
        self.device.flush()

    monkeypatch.setattr(SealedCommit, "write_out", write_out)
    caught("before its extension area")


@pytest.mark.interpreted
def test_no_flush_at_the_end_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next commit overwrites the other slot while this one's may still be lost (I13)."""

    def write_out(self: SealedCommit) -> None:
        for offset, pieces in self.runs:
            self.device.write(offset, pieces)
        self.device.flush()
        self.device.write(self.slot_offset, [self.record, self.area])

    monkeypatch.setattr(SealedCommit, "write_out", write_out)
    caught(r"is not safe|overwritten, which slot")


@pytest.mark.interpreted
def test_a_manifest_that_misses_a_block_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Sealer._born

    def born(self: Sealer, sums: dict[int, int]) -> dict[int, int] | None:
        found = original(self, sums)
        if found:
            del found[max(found)]
        return found

    monkeypatch.setattr(Sealer, "_born", born)
    caught(r"before blocks .* are flushed")


@pytest.mark.interpreted
def test_a_manifest_without_early_data_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long runs of file data are written before the commit, so they are not among the commit's own blocks."""
    monkeypatch.setattr(Sealer, "_born", lambda self, sums: dict(sums))
    files = PlainFiles(Volume.open(guarded()))
    number = files.create()
    files.write(number, 0, random.Random(0).randbytes(100_000))
    with pytest.raises(ProtocolError, match=r"before blocks .* are flushed"):
        files.volume.commit()


@pytest.mark.interpreted
def test_one_slot_only_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Volume.publish

    def publish(self: Volume, sealed: SealedCommit) -> None:
        original(self, sealed)
        self.newest_slot = 2

    monkeypatch.setattr(Volume, "publish", publish)
    caught("holds the newest state")


@pytest.mark.interpreted
def test_opening_without_an_empty_commit_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Volume, "commit_empty", lambda self: None)
    caught("overwritten, which slot")


@pytest.mark.interpreted
def test_a_serial_that_does_not_grow_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Volume.publish

    def publish(self: Volume, sealed: SealedCommit) -> None:
        original(self, sealed)
        self.serial -= 1

    monkeypatch.setattr(Volume, "publish", publish)
    caught("is not higher")


def boot_block(device: GuardDevice) -> int:
    return 0


def behind_the_volume(device: GuardDevice) -> int:
    return device.geometry.end


def between_two_blocks(device: GuardDevice) -> int:
    return device.geometry.block_offset(device.geometry.num_blocks // 2) + 512


@pytest.mark.parametrize("place", [boot_block, behind_the_volume, between_two_blocks])
def test_a_write_elsewhere_is_caught(place: Callable[[GuardDevice], int]) -> None:
    device = guarded(size=SIZE + 8192)
    device.geometry = geometry_for_size(SIZE, 1024)
    with pytest.raises(ProtocolError, match="neither whole blocks"):
        device.write(place(device), [bytes(1024)])


@pytest.mark.parametrize("part", [(0x200, 512), (0x100, 512), (0, 1024)])
def test_a_piece_of_a_slot_is_caught(part: tuple[int, int]) -> None:
    device = guarded()
    at, length = part
    with pytest.raises(ProtocolError, match="bytes at byte"):
        device.write(device.geometry.slot_offsets[1] + at, [bytes(length)])


@pytest.mark.interpreted
def test_the_wrong_protocols_are_caught_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patching is not what makes the guard strike: the same hooks, doing nothing."""
    original = SealedCommit.write_out

    def write_out(self: SealedCommit) -> None:
        original(self)

    monkeypatch.setattr(SealedCommit, "write_out", write_out)
    for seed in range(8):
        workload(guarded(), seed, steps=20).close()
