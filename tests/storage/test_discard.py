"""Giving free blocks back: which, when, and who waits for it."""

from __future__ import annotations

import random

import pytest
from support import MIB, Clock, assert_sound, new_device

from cowfs.errors import DeviceError, NoSpace, NotSupported
from cowfs.fs import Caller, Filesystem
from cowfs.ondisk import format as f
from cowfs.storage.device import MemoryDevice
from cowfs.storage.discard import Discards, Trim, punch
from cowfs.storage.volume import Tier, Volume

CALLER = Caller()


class Discarding(MemoryDevice):
    """Notes what is discarded, and may refuse."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.discarded: list[tuple[int, int]] = []
        self.failure: Exception | None = None

    def discard(self, offset: int, length: int) -> None:
        if self.failure is not None:
            raise self.failure
        self.discarded.append((offset, length))
        super().discard(offset, length)


def device_of(size: int = 8 * MIB, block_size: int = 4096) -> Discarding:
    device = Discarding(size)
    original = new_device(size, block_size)
    device._chunks = original._chunks
    return device


def opened(device: MemoryDevice) -> Filesystem:
    return Filesystem(Volume.open(device), clock=Clock())


def make(filesystem: Filesystem, name: bytes, data: bytes) -> int:
    ino = filesystem.create(f.ROOT_INODE, name, 0o644, CALLER).ino
    filesystem.write(ino, 0, data)
    return ino


def used_or_needed(volume: Volume) -> set[int]:
    """Blocks that must not be touched: in use, or freed but still named by a slot."""
    assert volume.spacemap is not None
    can_go: set[int] = set()
    position = 0
    while position < volume.geometry.num_blocks:
        runs, position = volume.spacemap.next_free(position, 1 << 32, least=1, most=1 << 32, pages=8)
        for start, count in runs:
            can_go.update(range(start, start + count))
    return set(range(volume.geometry.num_blocks)) - can_go


def trim_all(volume: Volume) -> int:
    trim = Trim(volume, 0, 1 << 32)
    total = 0
    while trim.more:
        runs = trim.take()
        punch(volume.device, volume.geometry, runs)
        trim.give_back(runs)
        total += sum(count for _, count in runs)
    return total


def blocks_of(volume: Volume, discarded: list[tuple[int, int]]) -> set[int]:
    geometry = volume.geometry
    found: set[int] = set()
    for offset, length in discarded:
        first = (offset - geometry.data_start) // geometry.block_size
        found.update(range(first, first + length // geometry.block_size))
    return found


@pytest.mark.parametrize("block_size", [512, 4096])
def test_a_trim_takes_what_neither_slot_needs(block_size: int) -> None:
    device = device_of(block_size=block_size)
    filesystem = opened(device)
    volume = filesystem.volume
    rng = random.Random(3)
    kept = {}
    for number in range(40):
        name = b"%d" % number
        kept[name] = rng.randbytes(rng.randrange(1, 100_000))
        make(filesystem, name, kept[name])
        if number % 7 == 0:
            filesystem.sync()
    for name in rng.sample(sorted(kept), 20):
        filesystem.unlink(f.ROOT_INODE, name)
        del kept[name]
    volume.commit()  # durable, but the slot before still names what was deleted
    held = volume.spacemap.held  # type: ignore[union-attr]
    assert held > 100
    needed = used_or_needed(volume)
    device.discarded.clear()
    trimmed = trim_all(volume)
    gone = blocks_of(volume, device.discarded)
    assert not gone & needed and len(gone) == trimmed
    assert trimmed == volume.geometry.num_blocks - len(needed)
    assert volume.spacemap.withheld == 0 and volume.spacemap.held == held  # type: ignore[union-attr]
    other = Filesystem(
        Volume.open(MemoryDevice.from_image(device.image()), read_only=True, superblock=volume.newest_slot ^ 3)
    )
    for _, name, number, _ in other.listing(f.ROOT_INODE).entries():
        if name not in (b".", b".."):
            other.read(number, 0, MIB)  # verified: the state before is whole
    volume.commit(complete=True)
    volume.commit(complete=True)
    assert trim_all(volume) >= trimmed + held - 20
    for name, data in kept.items():
        ino = filesystem.lookup(f.ROOT_INODE, name).ino
        assert filesystem.read(ino, 0, MIB) == data
    filesystem.close()
    volume.close()
    assert_sound(device)


def test_what_is_withheld_is_not_given_out() -> None:
    """Between the choice and the answer of the device nobody writes there; an operation that is short hears of it."""
    device = device_of(2 * MIB)
    filesystem = opened(device)
    volume = filesystem.volume
    volume.inline_commits = False
    spacemap = volume.spacemap
    assert spacemap is not None and volume.tx is not None
    trim = Trim(volume, 0, 1 << 32)
    runs = trim.take()
    away = {block for start, count in runs for block in range(start, start + count)}
    assert len(away) == spacemap.withheld > 100
    taken = volume.tx.allocate_data(spacemap.available, None)
    assert not away & {block for start, count in taken for block in range(start, start + count)}
    with pytest.raises(NoSpace) as caught:
        volume.admit(1)
    assert type(caught.value).__name__ == "SpaceShort"
    trim.give_back(runs)
    assert spacemap.withheld == 0 and spacemap.available == len(away)


def test_a_full_volume_keeps_its_reserve() -> None:
    device = device_of(2 * MIB)
    filesystem = opened(device)
    ino = make(filesystem, b"file", b"")
    with pytest.raises(NoSpace):
        for number in range(1000):
            filesystem.write(ino, number * 65536, b"x" * 65536)
    volume = filesystem.volume
    trim = Trim(volume, 0, 1 << 32)
    while trim.more:
        runs = trim.take()
        assert volume._available >= volume._floor(Tier.WRITE)
        trim.give_back(runs)
    assert volume.spare < 64
    filesystem.unlink(f.ROOT_INODE, b"file")
    filesystem.close()
    filesystem.volume.close()
    assert_sound(device)


def test_a_trim_reads_little_and_forgets_what_it_read() -> None:
    """An empty volume of 1 TiB: nothing of the bitmap is read but its last page, and it does not stay in memory."""
    from cowfs.ondisk.geometry import geometry_for_size
    from cowfs.storage.mkvolume import make_volume

    geometry = geometry_for_size(1 << 40, 4096)
    device = Discarding(geometry.end)
    make_volume(device, geometry, label=b"", uuid=bytes(16), now_ns=1)
    volume = Volume.open(device)
    device.reset_counters()
    trim = Trim(volume, 0, 1 << 32)
    slices = total = 0
    while trim.more:
        runs = trim.take()
        assert sum(count for _, count in runs) * 4096 <= 256 * MIB
        trim.give_back(runs)
        slices += 1
        total += sum(count for _, count in runs)
    assert total > 0.995 * geometry.num_blocks
    assert slices <= 4200
    assert device.reads <= 40
    assert len(volume.bitmap._pages) < 100


def test_short_runs_are_left_out_and_long_ones_are_taken_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """However the slices cut them: what counts is how long a run is, not how long a piece of it."""
    from cowfs.storage import discard

    device = device_of(64 * MIB)
    filesystem = opened(device)
    volume = filesystem.volume
    for number in range(40):
        make(filesystem, b"%d" % number, random.Random(number).randbytes(200_000))
    for number in range(0, 40, 2):
        filesystem.unlink(f.ROOT_INODE, b"%d" % number)
    for _ in range(3):
        volume.commit(complete=True)
    runs: list[tuple[int, int]] = []
    trim = Trim(volume, 0, 1 << 32)
    while trim.more:
        taken = trim.take()
        trim.give_back(taken)
        for run in taken:
            before = runs.pop() if runs and sum(runs[-1]) == run[0] else (run[0], 0)
            runs.append((before[0], before[1] + run[1]))
    lengths = sorted(count for _, count in runs)
    assert lengths[0] < 40 and 40 < lengths[-2] < lengths[-1] > 8000
    monkeypatch.setattr(discard, "PAGES_MAX", 1)
    for slice_bytes in (1 << 30, 150 * 4096, 30 * 4096):
        monkeypatch.setattr(discard, "SLICE_BYTES", slice_bytes)
        for least in (40, 200, 5000, lengths[-1] + 1):
            trim = Trim(volume, 0, 1 << 32, least=least)
            found = 0
            while trim.more:
                taken = trim.take()
                found += sum(count for _, count in taken)
                trim.give_back(taken)
            assert found == sum(count for count in lengths if count >= least), (slice_bytes, least)
    filesystem.close()
    volume.close()
    assert_sound(device)


# --- what commits free ---


def discarding() -> tuple[Discarding, Filesystem, Discards]:
    device = device_of()
    filesystem = opened(device)
    discards = filesystem.volume.discards = Discards(filesystem.volume)
    return device, filesystem, discards


def after_a_mebibyte_was_freed() -> tuple[Discarding, Filesystem, Discards]:
    """A file was written and removed; after the second commit nobody needs its blocks."""
    device, filesystem, discards = discarding()
    make(filesystem, b"file", b"x" * MIB)
    filesystem.sync()
    filesystem.unlink(f.ROOT_INODE, b"file")
    filesystem.volume.commit()
    assert not discards.waiting
    filesystem.volume.commit(complete=True)
    assert discards.waiting
    return device, filesystem, discards


def test_freed_runs_are_given_back_when_they_may_be_reused() -> None:
    device, filesystem, discards = after_a_mebibyte_was_freed()
    volume = filesystem.volume
    free = volume.spacemap.available  # type: ignore[union-attr]
    discards.finish()
    gone = blocks_of(volume, device.discarded)
    assert 256 <= len(gone) <= 270
    assert volume.spacemap.available - free == len(gone)  # type: ignore[union-attr]
    assert all(length >= 64 << 10 for _, length in device.discarded), "short ones are not worth it"
    filesystem.close()
    volume.close()
    assert_sound(device)


def test_nothing_goes_back_after_a_failure() -> None:
    """What turned read-only writes nothing, and a punch is a write."""
    device, filesystem, discards = after_a_mebibyte_was_freed()
    volume = filesystem.volume
    volume.latch(DeviceError("broken"))
    volume.close()
    assert not discards.waiting and not device.discarded


def test_who_needs_space_does_not_wait_for_the_medium() -> None:
    device, filesystem, discards = discarding()
    volume = filesystem.volume
    make(filesystem, b"file", b"x" * 5 * MIB)
    filesystem.sync()
    filesystem.unlink(f.ROOT_INODE, b"file")
    volume.commit()
    volume.commit(complete=True)
    withheld = volume.spacemap.withheld  # type: ignore[union-attr]
    assert discards.waiting and withheld > 500
    make(filesystem, b"other", b"y" * 6 * MIB)
    assert not discards.waiting
    filesystem.close()
    volume.close()
    assert_sound(device)


@pytest.mark.parametrize(
    ("failure", "lines", "again"),
    [(NotSupported("no holes here"), 1, False), (DeviceError("cannot discard"), 2, True)],
)
def test_failures(failure: Exception, lines: int, again: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A medium that cannot is said once; other errors cost the volume nothing."""
    device, filesystem, discards = discarding()
    volume = filesystem.volume
    device.failure = failure
    for name in (b"one", b"two"):
        make(filesystem, name, b"x" * MIB)
        filesystem.sync()
        filesystem.unlink(f.ROOT_INODE, name)
        volume.commit()
        volume.commit(complete=True)
        assert discards.waiting == (again or name == b"one")
        discards.finish()
    assert volume.spacemap.withheld == 0  # type: ignore[union-attr]
    assert len(caplog.records) == lines
    assert not volume.read_only
    filesystem.close()
    volume.close()
    assert_sound(device)
