"""Any byte changed, any block write lost or gone elsewhere: errors there may be, wrong answers never, and `check` tells.

What may go unnoticed is what no state needs (`noticed_bytes` counts for itself): the boot block but for its two records,
and every block that the newest state does not use, those that only the older slot's state uses included. In a block in use
there is no slack: its checksum covers every byte of it, behind the end of a file, too.

In CI: every byte of the boot block's records and of both slots, and of the blocks in use one byte of 32. `-m slow`: all.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from functools import cache

import pytest
from every_structure import (
    BLOCK_SIZE,
    GEOMETRY,
    ME,
    Patched,
    Step,
    boot_bytes,
    differences,
    resolve,
    sample,
    walk,
)
from support import Clock
from walker import State, newest_state, read_state

from cowfs.check import check_device
from cowfs.check.problem import Report
from cowfs.check.slots import choose, read_slots
from cowfs.errors import CowfsError
from cowfs.fs.snapshot import Snapshots
from cowfs.ondisk import format as f
from cowfs.storage.blockio import BlockStore
from cowfs.storage.blocktree import Root
from cowfs.storage.volume import Volume

SECONDS_MAX = 30
"""One look at a volume takes some hundredths of a second; more than this is a hang."""
SEED = 20260
STRIDE = 32
PARTS = 32
IN_USE_MAX = 128 << 10


@cache
def newest() -> State:
    """The state that opening takes, by the tests' own walk."""
    return newest_state(Patched(sample().image, {}), GEOMETRY)


def slot_bytes() -> list[range]:
    return [range(start, start + f.SLOT_AREA_SIZE) for start in GEOMETRY.slot_offsets]


def block_bytes(block: int) -> range:
    start = GEOMETRY.block_offset(block)
    return range(start, start + BLOCK_SIZE)


def noticed_bytes() -> list[range]:
    """The bytes of which no change may go unnoticed."""
    return [*boot_bytes(), *slot_bytes(), *map(block_bytes, sorted(newest().needed))]


def findings(report: Report) -> set[str]:
    return {problem.to_text() for problem in (*report.problems, *report.notes)}


@cache
def ordinary() -> set[str]:
    """What a check of the unchanged volume says."""
    report = check_device(Patched(sample().image, {}))
    assert report.clean, report.to_text()
    return findings(report)


def flipped(offset: int) -> bytes:
    """Another byte than the one at `offset`: one bit is changed, or several."""
    change = random.Random(offset).choice([1, 2, 4, 8, 16, 32, 64, 128, 255])
    return bytes([sample().image[offset] ^ change])


# --- what is tried ---


def look(image: bytes, patches: Mapping[int, bytes], *, read_only: bool) -> int | None:
    """Opens and reads everything; the serial of the state that was found, None where it could not be opened.

    Fails for any exception that is not ours, for any answer that is neither right nor EIO.
    """
    volume: Volume | None = None
    serial = None
    try:
        volume = Volume.open(Patched(image, patches), read_only=True)
        serial = volume.superblock.serial
        if not read_only:
            volume = Volume.open(Patched(image, patches), clock=Clock())
        trees = Snapshots(volume, clock=Clock())
    except CowfsError:
        return serial
    seen = walk(trees)
    wrong = seen.wrong + differences(seen.seen, sample().states[serial])
    assert not wrong, (patches.keys(), serial, wrong)
    if read_only:
        try:
            data = trees.live.read(sample().orphan, 0, 2000)
            assert serial < sample().orphan_since or data == sample().orphan_data, patches.keys()
        except CowfsError:
            pass
        return serial
    try:
        volume.reclaim_slice()
        trees.live.create(1, b"new", 0o100644, ME)
        trees.close()
    except CowfsError:
        pass
    return serial


def examine(image: bytes, patches: Mapping[int, bytes]) -> set[str]:
    """What a check finds, beside what is ordinary."""
    try:
        return findings(check_device(Patched(image, patches))) - ordinary()
    except CowfsError as error:
        return {str(error)}


def probe(image: bytes, patches: Mapping[int, bytes]) -> set[str]:
    """All of it, in time; what the check found."""
    begin = time.monotonic()
    look(image, patches, read_only=True)
    look(image, patches, read_only=False)
    found = examine(image, patches)
    assert time.monotonic() - begin < SECONDS_MAX, patches.keys()
    return found


def flip(offset: int) -> None:
    """One byte of a block in use."""
    assert probe(sample().image, {offset: flipped(offset)}), f"byte {offset} was changed, and nobody noticed"


def flip_in_slot(offset: int) -> None:
    """One byte of a slot or of the boot block. Whatever is opened then is a state whose blocks are as they were."""
    device = Patched(sample().image, {offset: flipped(offset)})
    begin = time.monotonic()
    volume = Volume.open(device, read_only=True)
    assert volume.extension is not None
    state = volume.superblock.pack() + volume.extension.pack()
    report = Report("patched")
    chosen = choose(device, read_slots(device), report, None)
    assert chosen is not None and chosen.extension is not None
    assert chosen.superblock.pack() + chosen.extension.pack() == state
    if state not in seen_states():
        seen_states().add(state)
        assert look(sample().image, {offset: flipped(offset)}, read_only=True) == volume.superblock.serial
        assert look(sample().image, {offset: flipped(offset)}, read_only=False) == volume.superblock.serial
        examine(sample().image, {offset: flipped(offset)})
    if not report.totals.keys() - {112}:
        assert examine(sample().image, {offset: flipped(offset)}), f"byte {offset} was changed, and nobody noticed"
    assert time.monotonic() - begin < SECONDS_MAX, offset


@cache
def seen_states() -> set[bytes]:
    """The states, as their slots say them, of which everything has been read."""
    return set()


# --- the tests ---


def test_the_volume_has_every_structure() -> None:
    state = newest()
    superblock, extension = state.superblock, state.extension
    assert len(state.needed) * BLOCK_SIZE <= IN_USE_MAX
    assert {"112", "315", "603"} == {text.split()[0] for text in ordinary()}  # not settled, an orphan, a queue
    assert state.manifest and extension.snapshot_count == 2 and extension.reclaim_count > 0
    assert max(state.parents.values()) > 1 and state.references
    for root in (superblock.inode, superblock.longfile, superblock.bitmap):
        assert root.size
    for name in f.EXTENSION_ROOTS:
        assert getattr(extension, name).size, name
    assert extension.checksums.levels > 0
    device = Patched(sample().image, {})
    trees = Snapshots(Volume.open(device, read_only=True), clock=Clock())
    assert {attributes.levels for attributes in levels_of_files(trees)} == {0, 1, 2}
    seen = walk(trees)
    assert not seen.errors and not seen.wrong
    assert seen.seen == sample().states[state.serial]
    for path, data in sample().contents.items():
        attributes = resolve(trees.live, path)
        assert trees.live.read(attributes, 0, len(data) + 1) == data, path


def levels_of_files(trees: Snapshots) -> list[Root]:
    return [trees.live.inode(resolve(trees.live, path)).root for path in sample().contents]


@pytest.mark.parametrize("number", [1, 2])
def test_every_byte_of_a_slot(number: int) -> None:
    for offset in slot_bytes()[number - 1]:
        flip_in_slot(offset)


def test_every_byte_of_the_boot_block() -> None:
    for where in boot_bytes():
        for offset in where:
            flip_in_slot(offset)


@pytest.mark.parametrize("part", range(4))
def test_bytes_of_all_blocks(part: int) -> None:
    rng = random.Random(SEED + part)
    for block in sorted(newest().needed)[part::4]:
        where = block_bytes(block)
        for start in range(where.start, where.stop, STRIDE):
            flip(rng.randrange(start, start + STRIDE))


def test_bytes_that_nobody_needs() -> None:
    """They may go unnoticed, and nothing is different for anybody."""
    noticed = {offset // BLOCK_SIZE for where in noticed_bytes() for offset in where}
    rng = random.Random(SEED)
    older = read_state(Patched(sample().image, {}), GEOMETRY, 3 - newest().slot)
    assert older is not None
    only_older = sorted(older.needed - newest().needed)
    assert only_older, "the older slot's state has blocks of its own"
    sectors = [block_bytes(block).start // BLOCK_SIZE for block in only_older]
    sectors += [n for n in rng.sample(range(len(sample().image) // BLOCK_SIZE), 30) if n not in noticed]
    for sector in sectors:
        offset = sector * BLOCK_SIZE + rng.randrange(BLOCK_SIZE)
        patches = {offset: flipped(offset)}
        assert look(sample().image, patches, read_only=True) == newest().serial
        assert not examine(sample().image, patches)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_byte_of_all_blocks(part: int) -> None:
    for block in sorted(newest().needed)[part::PARTS]:
        for offset in block_bytes(block):
            flip(offset)


# --- writes that were lost, or went elsewhere ---


def changed_pieces(step: Step) -> dict[int, int]:
    """What a commit wrote, as far as it is new: by offset, the length of each block, record and extension area."""
    pieces = {GEOMETRY.block_offset(block): BLOCK_SIZE for block in range(GEOMETRY.num_blocks)}
    for start in GEOMETRY.slot_offsets:
        pieces[start] = f.RECORD_SIZE
        pieces[start + f.EXTENSION_OFFSET] = f.EXTENSION_SIZE
    return {
        offset: length
        for offset, length in pieces.items()
        if step.before[offset : offset + length] != step.after[offset : offset + length]
    }


@pytest.mark.parametrize("number", [0, 1])
def test_a_write_that_never_happened(number: int) -> None:
    step = sample().steps[number]
    needed = needed_after(step)
    pieces = changed_pieces(step)
    assert len(pieces) > 8
    for offset, length in pieces.items():
        found = probe(step.after, {offset: step.before[offset : offset + length]})
        assert found or offset not in needed, offset


@pytest.mark.parametrize("number", [0, 1])
def test_a_write_that_landed_elsewhere(number: int) -> None:
    """On another block of the commit, on an old block, on a free one, in a slot."""
    step = sample().steps[number]
    needed = needed_after(step)
    pieces = changed_pieces(step)
    rng = random.Random(SEED + number)
    blocks = [GEOMETRY.block_offset(block) for block in range(GEOMETRY.num_blocks)]
    old = [offset for offset in blocks if offset in needed and offset not in pieces]
    free = [offset for offset in blocks if offset not in needed and offset not in pieces]
    for offset, length in pieces.items():
        data = step.after[offset : offset + length]
        others = [other for other in pieces if other != offset]
        for target in (rng.choice(others), rng.choice(old), rng.choice(free), *GEOMETRY.slot_offsets):
            if target == offset:
                continue
            found = probe(step.after, {offset: step.before[offset : offset + length], target: data})
            assert found or (offset not in needed and target not in needed), (offset, target)


def needed_after(step: Step) -> set[int]:
    """Offsets of the blocks that the state after a commit needs, and of the slots."""
    state = newest_state(Patched(step.after, {}), GEOMETRY)
    assert state.serial == step.serial
    return {GEOMETRY.block_offset(block) for block in state.needed}


@pytest.mark.interpreted
def test_a_reader_that_verifies_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test itself: with blocks unverified, a changed byte of a file's data is a wrong answer, and seen as one."""

    def read(store: BlockStore, block: int, count: int) -> bytes:
        return store.device.read(store.geometry.block_offset(block), count * store.block_size)

    trees = Snapshots(Volume.open(Patched(sample().image, {}), read_only=True), clock=Clock())
    root = trees.live.inode(resolve(trees.live, b"small")).root
    offset = GEOMETRY.block_offset(root.ptr[1]) + 7
    flip(offset)
    monkeypatch.setattr(BlockStore, "_read_device", read)
    with pytest.raises(AssertionError, match="data"):
        flip(offset)
