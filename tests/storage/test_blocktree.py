"""Block trees against a model, from an empty file to the largest offset there is; and what reading and writing costs."""

from __future__ import annotations

import random

import pytest
from plainfiles import BLOCK_SIZES, MIB, PlainFiles, random_change

from cowfs.errors import Corrupt, FileTooBig, UnreadableData
from cowfs.ondisk import format as f
from cowfs.storage.blocktree import Root
from cowfs.storage.device import MemoryDevice
from cowfs.storage.volume import Volume


def made(block_size: int = 4096, size: int = 8 * MIB) -> PlainFiles:
    return PlainFiles.make(size, block_size)


def largest(files: PlainFiles) -> int:
    return files.volume.geometry.file_size_max


@pytest.mark.parametrize("levels", range(4))
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_against_a_model(block_size: int, levels: int) -> None:
    """Writes, truncations and holes anywhere in a file of so many levels, with commits and reclaim in between."""
    choose = random.Random(f"{block_size}.{levels}")
    files = made(block_size)
    before = files.blocks_in_use()
    number = files.create()
    capacity = min(16 * (block_size // 4) ** levels * block_size, largest(files))
    centres = [0, capacity // 3, capacity // 2, capacity - 30_000 if capacity > 60_000 else 0]

    def offsets() -> int:
        return min(choose.choice(centres) + choose.randrange(25_000), capacity - 1)

    for step in range(100):
        action = choose.random()
        size = files.live.files[number].size
        if action < 0.75:
            random_change(files, number, 0, choose, offsets)
        elif action < 0.85 and size:
            punch(files, number, min(offsets(), size - 1) // block_size)
        elif action < 0.93:
            files.volume.commit()
        else:
            files.volume.reclaim_slice(choose.choice((1, 30)))
        if step % 25 == 24:
            files.check()
    files.check()
    files.remove(number)
    files.drain()
    files.check()
    assert files.blocks_in_use() == before
    files.close()


def punch(files: PlainFiles, number: int, index: int) -> None:
    files.volume.admit(8)
    with files.change(number) as token:
        files.trees.punch(token, index)
    size = files.live.files[number].size
    at = index * files.block_size
    files.live.files[number].write(at, bytes(min(files.block_size, size - at)))


# --- limits ---


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_the_largest_file(block_size: int) -> None:
    files = made(block_size)
    number = files.create()
    files.write(number, largest(files) - 1, b"x")
    assert files.live.files[number].size == largest(files)
    assert files.root(number).levels == 3
    for offset in (largest(files), largest(files) - 1, 1 << 62, (1 << 63) - 1):
        with pytest.raises(FileTooBig), files.change(number) as token:
            files.trees.write(token, offset, b"xy")
    for size in (largest(files) + 1, 1 << 62, (1 << 63) - 1):
        with pytest.raises(FileTooBig), files.change(number) as token:
            files.trees.resize(token, size)
    files.check()
    files.resize(number, largest(files) - 1)
    files.resize(number, largest(files))
    assert files.read(number, largest(files) - 1, 1) == b"\0"
    files.check()


def test_an_empty_write_changes_nothing() -> None:
    files = made()
    number = files.create()
    with files.change(number) as token:
        files.trees.write(token, 1000, b"")
    assert files.root(number).size == 0
    files.check()


def test_reading_ends_at_the_end() -> None:
    files = made(512)
    number = files.create()
    files.write(number, 0, b"0123456789")
    assert files.read(number, 8, 100) == b"89"
    assert files.read(number, 10, 1) == files.read(number, 1 << 62, 1) == files.read(number, 0, 0) == b""
    assert files.read(number, -1, 5) == b""
    files.resize(number, 100_000)
    assert files.read(number, 5, 1 << 40) == b"56789" + bytes(99_990)


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_what_was_cut_off_does_not_come_back(block_size: int) -> None:
    """I10: down to the middle of a block and up again; also where the block is a hole, and where it is born just now."""
    files = made(block_size)
    for commit in (False, True):
        for keep in (1, block_size - 1, block_size, block_size + 1, 17 * block_size + 3):
            number = files.create()
            files.write(number, 0, b"\xff" * 20 * block_size)
            if commit:
                files.volume.commit()
            files.resize(number, keep)
            files.resize(number, 30 * block_size)
            files.write(number, 40 * block_size + 5, b"end")
            cut = 40 * block_size + 5 - keep
            assert files.read(number, keep, 1 << 20) == bytes(cut) + b"end"
            files.verify()
    files.check()


def test_metadata_leaves_are_changed_in_place_within_a_generation() -> None:
    files = made(512)
    number = files.create()
    with files.change(number) as token:
        files.trees.resize(token, 5000 * 512)
        first = files.trees.writable_leaf(token, 3000)
        first[:5] = b"first"
        again = files.trees.writable_leaf(token, 3000)
        assert again is first
        assert token.root.blocks == 1
        files.trees.writable_leaf(token, 0)[:3] = b"two"
        assert bytes(files.trees.leaf(token.root, 3000)[:5]) == b"first"
        assert files.trees.leaf(token.root, 2999) == bytes(512)
        assert files.trees.leaf(token.root, 1 << 50) == bytes(512)
        files.trees.punch(token, 3000)
        files.trees.punch(token, 3000)
        assert token.root.blocks == 1
        assert files.trees.leaf(token.root, 3000) == bytes(512)
    files.live.files[number].resize(5000 * 512)
    files.live.files[number].write(0, b"two")
    files.check()


# --- damage ---


def damaged(files: PlainFiles, block: int) -> PlainFiles:
    """The same volume with a byte of a block changed, opened again."""
    files.close()
    device = files.volume.device
    assert isinstance(device, MemoryDevice)
    offset = files.volume.geometry.block_offset(block)
    device.write(offset, [bytes([device.read(offset, 1)[0] ^ 1])])
    other = PlainFiles(Volume.open(device))
    other.live.files = files.live.files
    return other


@pytest.mark.parametrize("what", ["head", "tail", "above"])
def test_a_change_that_meets_damage_changes_nothing(what: str) -> None:
    files = made(512)
    number = files.create()
    files.write(number, 0, bytes(range(256)) * 200)
    root = files.root(number)
    block = root.ptr[0] if what == "above" else files.trees.pointer(root, 10 if what == "head" else 19)
    files = damaged(files, block)
    with pytest.raises(UnreadableData, match="checksum"):
        files.write(number, 10 * 512 + 100, b"x" * 9 * 512)
    with pytest.raises(UnreadableData, match="checksum"):
        files.resize(number, (10 if what == "head" else 19) * 512 + 7)
    assert files.root(number).size == root.size
    assert not files.volume.latched
    if what != "above":
        whole = 10 if what == "head" else 19
        files.write(number, whole * 512, b"y" * 512)  # who writes all of it needs not read it
        files.check()
    files.remove(number)
    files.volume.commit()
    assert not files.volume.latched


def test_counting_for_a_truncation_meets_damage() -> None:
    """A file with holes: what goes has to be counted, and cannot."""
    files = made(512)
    number = files.create()
    for index in range(0, 4000, 300):
        files.write(number, index * 512, b"x" * 512)
    words = files.trees.store.words(files.trees.store.read(files.root(number).ptr[0])).tolist()
    bad = [pointer for pointer in words if not files.trees.is_hole(pointer)][-1]
    files = damaged(files, bad)
    with pytest.raises(UnreadableData, match=f"block {bad}: checksum"):
        files.resize(number, 512 * 5)
    files.resize(number, 0)  # nothing has to be counted
    files.volume.commit()
    assert not files.volume.latched


@pytest.mark.parametrize("occupied", [False, True])
@pytest.mark.parametrize("pointer", [0xFFFFFFF0, 0xFFFFFFFE, 1 << 31, 16_352])
def test_pointers_that_lead_nowhere(pointer: int, occupied: bool) -> None:
    """Corrupt, whatever is done with them, and whether or not anything is shared."""
    files = made(512)
    assert files.volume.geometry.num_blocks == 16_352
    if occupied:
        shared = files.create()
        files.write(shared, 0, b"x")
        files.clone(shared)
    trees = files.trees
    store = files.volume.tx
    assert store is not None
    for kind in range(f.KIND_COUNT):
        for level in range(4):
            with pytest.raises(Corrupt):
                store.shadow(pointer, kind, level)
            with pytest.raises(Corrupt):
                store.drop(pointer, kind, level)
            with pytest.raises(Corrupt):
                store.drop_now(pointer, kind, level)
            with pytest.raises(Corrupt):
                store.add_parents([(pointer, kind, level)])
    with pytest.raises(Corrupt):
        store.drop_data(pointer, 3)
    root = Root(f.KIND_FILE, 5000, [pointer] + [f.NO_BLOCK] * 15)
    with pytest.raises(Corrupt):
        trees.read(root, 0, 512)
    with pytest.raises(Corrupt):
        trees.leaf(root, 0)


# --- what it costs ---


def counted(files: PlainFiles) -> MemoryDevice:
    device = files.volume.device
    assert isinstance(device, MemoryDevice)
    device.reset_counters()
    return device


def warm(block_size: int, blocks: int) -> tuple[PlainFiles, int]:
    """A volume with a file of contiguous blocks; what is above them is in memory."""
    files = made(block_size, 32 * MIB)
    number = files.create()
    files.write(number, 0, random.Random(0).randbytes(blocks * block_size))
    files.volume.commit()
    files.volume.commit()
    files.read(number, 0, blocks * block_size)
    return files, number


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_a_run_is_written_in_one_call(block_size: int) -> None:
    """Also where it crosses indirect blocks, and where it overwrites; and no block of the file is read for it."""
    blocks = (1 << 20) // block_size
    files, number = warm(block_size, blocks)
    for offset in (0, blocks * block_size, 37 * block_size):
        data = random.Random(offset).randbytes(blocks * block_size)
        files.volume.admit(3 * blocks)
        with files.change(number) as token:
            device = counted(files)
            files.trees.write(token, offset, data)
            assert (device.writes, device.bytes_written) == (1, len(data))
            assert device.reads == 0
        files.live.files[number].write(offset, data)
        assert len(list(files.trees.runs(files.root(number), offset // block_size, blocks))) == 1
    files.check()


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_a_run_is_read_in_one_call(block_size: int) -> None:
    blocks = (1 << 20) // block_size
    files, number = warm(block_size, blocks)
    device = counted(files)
    files.read(number, 0, blocks * block_size)
    assert (device.reads, device.bytes_read) == (1, blocks * block_size)
    device.reset_counters()
    files.read(number, 3 * block_size + 1, block_size)
    assert (device.reads, device.bytes_read) == (1, 2 * block_size)


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_blocks_that_are_written_as_a_whole_are_not_read(block_size: int) -> None:
    files, number = warm(block_size, 40)
    for offset, length, reads in (
        (0, 1, 0),
        (5, 1, 0),
        (0, 7, 0),
        (3, 5, 0),
        (0.5, 1, 2),
        (2.25, 0.5, 1),
        (1, 1.5, 1),
        (6.5, 3.5, 1),
    ):
        files.volume.commit()
        with files.change(number) as token:
            device = counted(files)
            data = random.Random(offset).randbytes(int(length * block_size))
            files.trees.write(token, int(offset * block_size), data)
            assert (device.reads, device.bytes_read) == (reads, reads * block_size)
            assert device.writes == 0  # small pieces wait for the commit
        files.live.files[number].write(int(offset * block_size), data)
    files.check()


def test_small_pieces_go_out_with_the_commit_run_by_run() -> None:
    files, number = warm(4096, 200)
    files.volume.commit()
    for index in range(50):
        files.write(number, index * 4096, b"x" * 4096)
    device = counted(files)
    files.volume.commit()
    # the new data blocks are one run; metadata and system pages, at the front, few; and the slot
    assert device.writes <= 6
    assert device.bytes_written >= 50 * 4096


@pytest.mark.parametrize("piece", [512, 4096, 10_000, 70_000, 131_072])
@pytest.mark.parametrize("block_size", [512, 4096])
def test_appending_keeps_a_file_together(block_size: int, piece: int) -> None:
    """One piece after the other, with commits in between: metadata does not get between the data."""
    files = made(block_size, 16 * MIB)
    number = files.create()
    for step in range(2_000_000 // piece if piece > 5000 else 120):
        files.write(number, step * piece, random.Random(step).randbytes(piece))
        if step % 10 == 9:
            files.volume.commit()
    root = files.root(number)
    runs = list(files.trees.runs(root, 0, -(-root.size // block_size)))
    # A commit may fall into the middle of a block, which then moves when the rest of it comes.
    allowed = 1 if piece % block_size == 0 else 2 + root.size // (10 * piece)
    assert len(runs) <= 2 * allowed
    files.check()


# --- the end ---


def ends(block_size: int) -> list[int]:
    """Numbers of leaves around the reach of each block and each level."""
    fanout = block_size // f.POINTER_SIZE
    reaches = [0, 1, 16, 20]
    for level in (1, 2, 3):
        reaches += [16 * fanout**level, 5 * fanout**level, 3 * fanout**level + 7 * fanout ** (level - 1)]
    return sorted({max(0, reach + shift) for reach in reaches for shift in (-1, 0, 1)})


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_the_form_of_the_end(block_size: int) -> None:
    """I9, from any size to any other: by truncation, by a write behind the end and by one at it, with shared blocks, too."""
    choose = random.Random(block_size)
    files = made(block_size)
    counts = [count for count in ends(block_size) if count * block_size <= largest(files)]
    numbers = [files.create() for _ in range(3)]
    for step in range(180):
        number = choose.choice(numbers)
        size = choose.choice(counts) * block_size - choose.choice((0, 0, 1))
        now = files.live.files[number].size
        if size <= 0 or choose.random() < 0.5:
            files.resize(number, max(0, size))
        elif choose.random() < 0.7:
            files.write(number, max(0, size - 600), choose.randbytes(min(size, 600)))
        elif now + 3 * block_size < largest(files):
            files.write(number, now, choose.randbytes(choose.choice((1, block_size, 3 * block_size))))
        if step % 20 == 19:
            other = files.clone(number)
            files.remove(numbers.pop(0))
            numbers.append(other)
        if choose.random() < 0.3:
            files.volume.commit()
        files.verify()
        if step % 60 == 59:
            files.check()
    files.close()


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_growing_and_cutting_a_sparse_file_costs_the_paths_to_its_ends(block_size: int) -> None:
    files = made(block_size)
    number = files.create()
    spacemap = files.volume.spacemap
    assert spacemap is not None
    for count in (*ends(block_size), *reversed(ends(block_size))):
        if count * block_size > largest(files):
            continue
        files.volume.commit()
        grows = count * block_size > files.live.files[number].size
        with files.change(number) as token:
            born = spacemap.born_count
            files.trees.resize(token, count * block_size)
            assert spacemap.born_count - born <= (6 if grows else 3)
        files.live.files[number].resize(count * block_size)
        files.verify()
    files.check()
