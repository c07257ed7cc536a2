"""Commits: sealed blocks stay as they are while the next generation changes, and the accounts of space are right."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter

import pytest
from guard import GuardDevice
from plainfiles import BLOCK_SIZES, MIB, Contents, PlainFiles, new_device, random_change
from walker import State, newest_state, problems, read_state

from cowfs.errors import NoSpace
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c
from cowfs.ondisk.geometry import geometry_for_size
from cowfs.storage.device import MemoryDevice
from cowfs.storage.pagedtree import PagedTree
from cowfs.storage.volume import Volume

SIZE = 2 * MIB


def guarded(block_size: int, size: int = SIZE) -> GuardDevice:
    return GuardDevice(new_device(size, block_size), geometry_for_size(size, block_size))


def models(files: PlainFiles) -> dict[int, Contents]:
    return {number: contents.copy() for number, contents in files.live.files.items()}


def verify_image(device: MemoryDevice, wanted: dict[int, Contents]) -> None:
    """What a power cut now would leave: the volume opens without a word and holds what it should."""
    files = PlainFiles(Volume.open(MemoryDevice.from_image(device.image())))
    assert files.volume.notes == []
    files.live.files = wanted
    files.verify()
    assert problems(files.volume.device, newest_state(files.volume.device, files.volume.geometry)) == []


def account(files: PlainFiles) -> None:
    """I4, counted bit by bit: free blocks, those held back, and those that were born."""
    spacemap = files.volume.spacemap
    assert spacemap is not None
    free = held = born = 0
    size = files.block_size * 8
    for index in range(-(-spacemap.num_blocks // size)):
        page = spacemap._page(index)
        bits, busy = int.from_bytes(page.bits, "little"), int.from_bytes(page.busy, "little")
        assert bits & ~busy == 0, "a block in use could be given out"
        before = bits if page.committed is None else int.from_bytes(page.committed, "little")
        free += size - bits.bit_count()
        held += (busy & ~bits).bit_count()
        born += (bits & ~before).bit_count()
        assert page.held == (busy & ~bits).bit_count()
    assert (spacemap.free, spacemap.held, spacemap.available) == (free, held, free - held)
    assert spacemap.born_count >= born
    assert spacemap.freed.count == sum(count for _, count in spacemap.freed.runs())
    in_flight = files.volume._in_flight
    sealed = in_flight.freed.count if in_flight else 0
    assert held == spacemap.freed.count + sealed + files.volume._held_back.count


# --- interleaved with the next generation ---


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_the_next_generation_goes_on_while_one_is_written(block_size: int, seed: int) -> None:
    choose = random.Random(seed)
    device = guarded(block_size)
    files = PlainFiles(Volume.open(device), inode_leaves=20)
    volume = files.volume
    numbers = [files.create() for _ in range(3)]
    size_max = volume.geometry.file_size_max

    def offsets() -> int:
        return choose.choice((0, choose.randrange(150_000), choose.randrange(size_max - 100_000)))

    def change(times: int) -> None:
        for _ in range(choose.randrange(times)):
            with contextlib.suppress(NoSpace):
                random_change(files, choose.choice(numbers), 0, choose, offsets)
            account(files)

    volume.commit()
    durable = models(files)
    volume.inline_commits = False
    for _ in range(15):
        change(6)
        wanted = models(files)
        sealed = volume.seal(complete=choose.random() < 0.3)
        contents = {block: bytes(data) for block, data in sealed.blocks.items()}
        assert volume.committing
        change(4)
        files.verify()
        verify_image(device, durable)
        sealed.write_out()
        verify_image(device, wanted)
        change(4)
        assert {block: bytes(data) for block, data in sealed.blocks.items()} == contents
        volume.publish(sealed)
        assert not volume.committing
        account(files)
        files.verify()
        durable = wanted
        if choose.random() < 0.3:
            with contextlib.suppress(NoSpace):
                volume.reclaim_slice(choose.choice((1, 100)))
    volume.inline_commits = True
    files.check()
    files.close()


def test_a_commit_is_written_by_another_thread() -> None:
    choose = random.Random(5)
    device = new_device(16 * MIB)
    files = PlainFiles(Volume.open(device))
    numbers = [files.create() for _ in range(4)]
    files.volume.commit()
    files.volume.inline_commits = False
    for round_ in range(10):
        for number in numbers:
            files.write(number, choose.randrange(1_000_000), choose.randbytes(150_000))
        wanted = models(files)
        sealed = files.volume.seal(complete=round_ % 2 == 0)
        writer = threading.Thread(target=sealed.write_out)
        writer.start()
        while writer.is_alive():
            random_change(files, choose.choice(numbers), 0, choose, lambda: choose.randrange(1_000_000))
        writer.join()
        files.volume.publish(sealed)
        verify_image(device, wanted)
    files.verify()


def test_one_commit_at_a_time() -> None:
    files = PlainFiles.make()
    sealed = files.volume.seal()
    with pytest.raises(AssertionError, match="one commit at a time"):
        files.volume.seal()
    sealed.write_out()
    files.volume.publish(sealed)
    with pytest.raises(AssertionError):
        files.volume.publish(sealed)


def test_tokens_die_with_their_generation() -> None:
    files = PlainFiles.make()
    number = files.create()
    with files.change(number) as token:
        files.trees.write(token, 0, b"x")
    files.volume.commit()
    with pytest.raises(AssertionError, match="an earlier generation"):
        files.trees.write(token, 0, b"y")


def test_hooks_run_before_anything_is_sealed() -> None:
    files = PlainFiles.make()
    number = files.create()
    files.volume.commit()
    calls: list[int] = []

    def hook() -> None:
        calls.append(len(calls))
        if len(calls) == 1:
            files.write(number, 0, b"from the hook")

    files.volume.before_seal.append(hook)
    files.volume.commit()
    assert calls == [0]
    assert not files.volume.dirty
    files.volume.before_seal.clear()
    verify_image(files.volume.device, models(files))  # type: ignore[arg-type]


# --- when nothing has changed, and at the end ---


def states(device: MemoryDevice, files: PlainFiles) -> tuple[State, State]:
    found = [read_state(device, files.volume.geometry, slot) for slot in (1, 2)]
    assert found[0] is not None
    assert found[1] is not None
    return found[0], found[1]


def test_an_empty_commit_writes_a_slot_and_nothing_else() -> None:
    device = new_device()
    files = PlainFiles(Volume.open(device))
    files.write(files.create(), 0, b"x" * 100_000)
    files.volume.commit()
    before = states(device, files)
    slot, serial = files.volume.newest_slot, files.volume.serial
    device.reset_counters()
    files.volume.commit()
    assert (device.writes, device.bytes_written, device.flushes, device.reads) == (1, f.SLOT_AREA_SIZE, 1, 0)
    assert (files.volume.newest_slot, files.volume.serial) == (3 - slot, serial + 1)
    after = states(device, files)
    assert after[2 - slot].needed == before[slot - 1].needed
    assert files.volume.slots_agree


@pytest.mark.parametrize("dirty", [False, True])
@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("commits", range(5))
def test_settle(commits: int, complete: bool, dirty: bool) -> None:
    """From wherever it begins: both slots the same state, slot 1 the newest, no manifest; then nothing is left to do."""
    device = guarded(1024)
    files = PlainFiles(Volume.open(device))
    number = files.create()
    for step in range(commits):
        if step < 3:
            files.write(number, 0, bytes([step + 1]) * 3000)
        files.volume.commit(complete=complete)
    if dirty:
        files.write(number, 1000, b"dirty")
    files.volume.settle()
    first, second = states(device, files)
    assert first.serial > second.serial
    assert (first.manifest, second.manifest) == ({}, {})
    for name in ("inode", "bitmap", "longfile", "free_blocks", "num_inodes", "free_inodes"):
        assert getattr(first.superblock, name) == getattr(second.superblock, name)
    for name in f.EXTENSION_ROOTS:
        assert getattr(first.extension, name) == getattr(second.extension, name)
    assert not files.volume.dirty
    device.reset_counters()
    files.volume.settle()
    assert device.writes == 0
    verify_image(device, models(files))
    files.check()


def test_opening_and_closing_changes_no_block() -> None:
    device = new_device()
    files = PlainFiles(Volume.open(device))
    files.write(files.create(), 0, b"x" * 10_000)
    files.volume.close()
    shape = files.volume.geometry
    area = shape.data_start, shape.num_blocks * shape.block_size
    before = device.read(*area)
    for _ in range(4):
        Volume.open(device).close()
    Volume.open(device, read_only=True).close()
    assert device.read(*area) == before


def test_a_volume_opened_for_reading_writes_nothing() -> None:
    device = new_device()
    files = PlainFiles(Volume.open(device))
    files.write(files.create(), 0, b"x" * 10_000)
    files.volume.commit()
    before = device.image()
    volume = Volume.open(device, read_only=True)
    reader = PlainFiles(volume)
    reader.live.files = files.live.files
    reader.verify()
    volume.settle()
    assert volume.reclaim_slice() is False
    volume.close()
    assert device.image() == before


# --- reuse, and the end of the worklist ---


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_a_freed_block_waits_for_two_commits(block_size: int) -> None:
    """I2, asked of the space map: what was freed in g is given out when g + 1 is durable, and not before."""
    files = PlainFiles.make(MIB, block_size)
    spacemap = files.volume.spacemap
    assert spacemap is not None
    number = files.create()
    files.write(number, 0, b"x" * block_size)
    files.volume.commit()
    old = files.trees.pointer(files.root(number), 0)

    def can_be_given_out() -> bool:
        index, bit = divmod(old, block_size * 8)
        return not spacemap._page(index).busy[bit // 8] >> bit % 8 & 1

    files.write(number, 0, b"y" * block_size)  # freed in g
    assert not spacemap.in_use(old)
    assert not can_be_given_out()
    sealed = files.volume.seal()
    sealed.write_out()
    assert not can_be_given_out()
    files.volume.publish(sealed)  # g is durable
    assert not can_be_given_out()
    sealed = files.volume.seal()
    sealed.write_out()
    assert not can_be_given_out()
    files.volume.publish(sealed)  # g + 1 is durable
    assert can_be_given_out()


def test_a_block_born_and_freed_in_one_generation_is_free_at_once() -> None:
    files = PlainFiles.make(block_size=1024)
    spacemap = files.volume.spacemap
    assert spacemap is not None
    number = files.create()
    files.volume.commit()
    files.volume.commit()
    files.write(number, 0, b"x")  # the inode's leaf is copied
    available = spacemap.available
    files.write(number, 0, b"x" * 16 * 1024)
    files.resize(number, 1)
    assert spacemap.available == available
    account(files)
    files.check()


def fragment(files: PlainFiles, choose: random.Random) -> list[int]:
    """Fills a volume, then frees every other block or so: single blocks are all that is left to be had."""
    numbers = []
    with contextlib.suppress(NoSpace):
        while True:
            numbers.append(files.create())
            files.write(numbers[-1], 0, choose.randbytes(16 * files.block_size))
    for number in numbers:
        blocks = files.live.files[number].size // files.block_size
        with files.change(number) as token:
            for index in range(choose.randrange(2), blocks, 2):
                files.trees.punch(token, index)
                files.live.files[number].write(index * files.block_size, bytes(files.block_size))
    return numbers


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("block_size", "size"), [(512, MIB), (512, 2 * MIB), (1024, MIB), (2048, MIB), (4096, MIB), (4096, 4 * MIB)]
)
def test_the_worklist_ends(block_size: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page gets a block at most once per seal, and becomes a hole at most once before, however space is scattered."""
    choose = random.Random(block_size)
    files = PlainFiles(Volume.open(guarded(block_size, size)))
    numbers = fragment(files, choose)
    placed: Counter[tuple[str, int, int, bool]] = Counter()
    original = PagedTree._set_pointer

    def set_pointer(self: PagedTree, key: tuple[int, int], block: int) -> None:
        placed[self.name, *key, self._is_hole(block, key[0])] += 1
        original(self, key, block)

    monkeypatch.setattr(PagedTree, "_set_pointer", set_pointer)
    for step in range(12):
        for number in choose.sample(numbers, min(4, len(numbers))):
            with contextlib.suppress(NoSpace):
                files.write(number, choose.randrange(16) * block_size, choose.randbytes(block_size * 2))
        placed.clear()
        files.volume.commit(complete=step % 2 == 0)
        assert set(placed.values()) <= {1}
        account(files)
    for number in numbers:
        files.remove(number)
        placed.clear()
    files.drain()
    files.check()
    files.close()


def test_serials_and_counts_are_those_of_the_commit() -> None:
    device = new_device()
    files = PlainFiles(Volume.open(device, clock=lambda: 1_800_000_000_123_456_789))
    files.write(files.create(), 0, b"x" * 50_000)
    files.volume.commit()
    state = newest_state(device, files.volume.geometry)
    assert state.serial == files.volume.serial == state.extension.serial
    assert state.extension.commit_time == 1_800_000_000_123_456_789
    assert state.superblock.atime == 1_800_000_000
    assert files.volume.free_blocks_for_statfs()[0] == state.superblock.free_blocks


def test_the_manifest_and_the_flushes() -> None:
    """One flush where everything new fits the manifest, two and no manifest where it does not, or is not wanted."""
    device = new_device(8 * MIB, 1024)
    files = PlainFiles(Volume.open(device))
    number = files.create()
    files.volume.commit()
    seen = set()
    for blocks in (1, 5, 200, *range(285, 325), 1000):
        before = newest_state(device, files.volume.geometry)
        files.write(number, 0, random.Random(blocks).randbytes(blocks * 1024))
        device.reset_counters()
        files.volume.commit()
        flushes = device.flushes
        state = newest_state(device, files.volume.geometry)
        new = state.needed - before.needed
        fits = len(new) <= f.MANIFEST_ENTRY_MAX
        assert flushes == (1 if fits else 2)
        assert state.manifest.keys() == (new if fits else set())
        for block, check in state.manifest.items():
            assert crc32c(device.read(files.volume.geometry.block_offset(block), 1024)) == check
        seen.add(fits)
        files.write(number, 0, b"x" * 3000)
        device.reset_counters()
        files.volume.commit(complete=True)
        assert device.flushes == 2
        assert newest_state(device, files.volume.geometry).manifest == {}
    assert seen == {True, False}
