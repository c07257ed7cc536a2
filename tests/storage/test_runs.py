"""What is asked of and done to many blocks at once, against the same done block by block."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from plainfiles import BLOCK_SIZES, MIB, PlainFiles, random_change

from cowfs.errors import Corrupt, DeviceError, TooManyLinks
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c, crc32c_each
from cowfs.storage.device import MemoryDevice
from cowfs.storage.spacemap import SpaceMap
from cowfs.storage.transaction import Transaction


def volume_with_everything(block_size: int, seed: int) -> tuple[PlainFiles, SpaceMap]:
    """Old and new blocks, shared and not, in pieces."""
    choose = random.Random(seed)
    files = PlainFiles.make(32 * MIB, block_size)
    numbers = [files.create() for _ in range(3)]
    for step in range(60):
        if step % 20 == 10:
            files.volume.commit()
        elif step % 20 == 15:
            numbers.append(files.clone(choose.choice(numbers)))
        else:
            random_change(files, choose.choice(numbers), 0, choose, lambda: choose.randrange(300_000))
    spacemap = files.volume.spacemap
    assert spacemap is not None
    return files, spacemap


def each(pieces: Iterable[tuple[int, int, bool]]) -> dict[int, bool]:
    """The pieces' answer for each block; no block may be in two."""
    found: dict[int, bool] = {}
    for first, count, value in pieces:
        assert count > 0
        assert found.keys().isdisjoint(range(first, first + count))
        found |= dict.fromkeys(range(first, first + count), value)
    return found


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_pieces_say_what_each_block_says(block_size: int) -> None:
    files, spacemap = volume_with_everything(block_size, 1)
    choose = random.Random(2)
    used = [block for block in range(spacemap.num_blocks) if spacemap.in_use(block)]
    seen = set()
    for _ in range(80):
        start = choose.choice(used)
        count = choose.randint(1, min(spacemap.num_blocks - start, choose.choice((1, 3, 100, 20_000))))
        blocks = range(start, start + count)
        born = {block: spacemap.born(block) for block in blocks}
        extra = [spacemap.extra_parents(block) for block in blocks]
        assert each(spacemap.born_runs_of(start, count)) == born
        assert each(spacemap.shared_runs_of(start, count)) == {b: e > 0 for b, e in zip(blocks, extra, strict=True)}
        assert list(spacemap.extra_parents_each(start, count)) == extra
        assert spacemap.shared(start, count) == any(extra)
        seen |= {*born.values(), *extra}
    assert {0, 1} <= seen
    with pytest.raises(Corrupt, match="beyond the end"):
        spacemap.shared_runs_of(spacemap.num_blocks - 1, 2)
    files.check()


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_pointers_in_place_are_found_in_pieces(block_size: int) -> None:
    files, spacemap = volume_with_everything(block_size, 3)
    tx = files.volume.tx
    assert tx is not None
    choose = random.Random(4)
    pointers = [f.NO_BLOCK, *files.volume.zero_blocks]
    pointers += [block for block in range(spacemap.num_blocks) if spacemap.in_use(block) and block not in tx.holes]
    found = set()
    for _ in range(80):
        row: list[int] = []
        while len(row) < 20:
            at = choose.randrange(len(pointers))
            row += pointers[at : at + choose.randint(1, 30)]
        wanted = [block not in tx.holes and tx.writable_in_place(block) for block in row]
        assert [whether for count, whether in tx.in_place_pieces(row) for _ in range(count)] == wanted
        found |= set(wanted)
    assert found == {True, False}
    files.check()


def test_counts_of_a_run_change_together_or_not_at_all() -> None:
    files = PlainFiles.make(32 * MIB, 512)
    spacemap = files.volume.spacemap
    assert spacemap is not None
    start, count = 1000, 700  # several pages of counts
    spacemap.set_extra_parents(start + 5, 7)
    frozen = spacemap.freeze()
    spacemap.add_extra_parents(start, count, 1)
    assert [*spacemap.extra_parents_each(start - 1, count + 2)] == [0, *[1] * 5, 8, *[1] * (count - 6), 0]
    assert [*frozen.run(start + 4, 3)[:: f.REFERENCE_SIZE]] == [0, 7, 0]
    spacemap.set_extra_parents(start + 600, f.REFERENCE_MAX)
    for change, number in ((1, count), (-2, count), (-1, count + 1), (1, 601)):
        before = spacemap.extra_parents_each(start, count + 1)
        with pytest.raises(TooManyLinks):
            spacemap.add_extra_parents(start, number, change)
        assert spacemap.extra_parents_each(start, count + 1) == before
    spacemap.set_extra_parents(start + 600, 1)
    spacemap.add_extra_parents(start, count, -1)
    spacemap.set_extra_parents(start + 5, 0)
    spacemap.thaw(frozen)
    files.check()


@pytest.mark.interpreted
@pytest.mark.parametrize("shared", [False, True])
def test_overwriting_takes_steps_for_runs_and_not_for_blocks(monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    files = PlainFiles.make(64 * MIB)
    number = files.create()
    data = bytes(range(256)) * 4096
    for at in range(8):
        files.write(number, at * MIB, data)
    if shared:
        files.snapshot(0)
    files.volume.commit()
    steps = 0

    def counted(owner: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def call(*arguments: Any) -> Any:
            nonlocal steps
            steps += 1
            return original(*arguments)

        monkeypatch.setattr(owner, name, call)

    for name in ("born", "extra_parents", "set_extra_parents", "add_extra_parents", "free_run", "allocate"):
        counted(SpaceMap, name)
    for name in ("is_hole", "writable_in_place", "drop_data", "shadow"):
        counted(Transaction, name)
    for _ in range(2):  # moved to new places, then written where they lie
        for at in range(8):
            files.write(number, at * MIB, data)
    blocks = 2 * 8 * MIB // 4096
    assert steps < blocks // 8, "Python would run for each block"
    monkeypatch.undo()
    files.check()


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_runs_read_together_are_what_each_run_is(block_size: int) -> None:
    files, spacemap = volume_with_everything(block_size, 5)
    store = files.volume.store
    choose = random.Random(6)
    used = [block for block in range(spacemap.num_blocks - 4) if spacemap.in_use(block)]

    def readable(block: int, count: int) -> bool:
        try:
            store.read_run(block, count)
        except Corrupt:  # of the tree of checksums, which says what its blocks are by itself
            return False
        return True

    for _ in range(40):
        at = choose.randrange(max(1, len(used) - 40))
        runs = [(block, choose.choice((1, 1, 2, 4))) for block in choose.sample(used[at : at + 40], 8)]
        runs = [run for run in runs if readable(*run)] + [(f.NO_BLOCK, 2)]
        wanted = [bytes(2 * block_size) if block == f.NO_BLOCK else store.read_run(block, n) for block, n in runs]
        assert store.read_runs(runs) == wanted


def test_scattered_blocks_are_read_with_few_calls_and_each_is_verified() -> None:
    files = PlainFiles.make(8 * MIB, 4096)
    device = files.volume.device
    assert isinstance(device, MemoryDevice)
    one, other = files.create(), files.create()
    for index in range(40):
        for number in (one, other):
            files.write(number, index * 4096, bytes([index + 1]) * 4096)
            files.volume.trees.settle()
    files.volume.commit()
    root, store = files.root(one), files.volume.store
    assert len(list(files.volume.trees.runs(root, 0, 40))) == 40, "they lie apart"
    data = files.volume.trees.read(root, 0, 40 * 4096)
    device.reset_counters()
    assert files.volume.trees.read(root, 0, 40 * 4096) == data
    assert device.reads <= 2

    bad = files.volume.trees.pointer(root, 17)
    place = files.volume.geometry.block_offset(bad)
    device.write(place, [bytes([device.read(place, 1)[0] ^ 1])])
    with pytest.raises(Corrupt) as caught:
        files.volume.trees.read(root, 0, 40 * 4096)
    assert caught.value.block == bad
    between = files.volume.trees.pointer(files.root(other), 5)
    read = device.read

    def cannot(offset: int, length: int) -> bytes:
        if offset <= store.geometry.block_offset(between) < offset + length:
            raise DeviceError("a bad sector")
        return read(offset, length)

    device.read = cannot  # type: ignore[method-assign]
    assert files.volume.trees.read(root, 0, 17 * 4096) == data[: 17 * 4096], "another file's bad sector"


@pytest.mark.parametrize("count", [0, 1, 2, 7, 256])
def test_sums_of_many_blocks_are_those_of_each(count: int) -> None:
    data = random.Random(count).randbytes(count * 512)
    assert crc32c_each(memoryview(data), 512) == [crc32c(data[at : at + 512]) for at in range(0, len(data), 512)]
