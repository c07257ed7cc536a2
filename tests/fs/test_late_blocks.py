"""Late blocks: what small writes cost, and that a file with late blocks is the file it will be."""

from __future__ import annotations

import random

import pytest
from support import MIB, assert_sound, close_filesystem, new_device, open_filesystem

from cowfs.errors import DeviceError, NoSpace, UnreadableData
from cowfs.fs import Caller, Filesystem
from cowfs.fs.snapshot import Snapshots
from cowfs.storage.device import MemoryDevice
from cowfs.storage.spacemap import SpaceMap
from cowfs.storage.volume import Volume

CALLER = Caller()
ROOT = 1
BLOCK = 4096
SIZE = 8 * MIB
BLOCKS = SIZE // BLOCK


def data(number: int, length: int = BLOCK) -> bytes:
    return random.Random(number).randbytes(length)


def made(device: MemoryDevice, size: int = SIZE) -> tuple[Filesystem, int, bytearray]:
    """A filesystem with a file, committed; its number and contents."""
    filesystem = open_filesystem(device)
    ino = filesystem.create(ROOT, b"file", 0o644, CALLER).ino
    content = data(0, size)
    for at in range(0, size, MIB):
        filesystem.write(ino, at, content[at : at + MIB])
    filesystem.sync()
    return filesystem, ino, bytearray(content)


def overwrite(filesystem: Filesystem, ino: int, content: bytearray, blocks: list[int]) -> None:
    for number in blocks:
        piece = data(number + 1)
        filesystem.write(ino, number * BLOCK, piece)
        content[number * BLOCK : (number + 1) * BLOCK] = piece


def spacemap_of(filesystem: Filesystem) -> SpaceMap:
    spacemap = filesystem.volume.spacemap
    assert spacemap is not None
    return spacemap


@pytest.mark.interpreted
def test_a_thousand_random_writes_are_few_writes_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    device = new_device(64 * MIB)
    filesystem, ino, content = made(device)
    searches: list[int] = []
    find = SpaceMap._find

    def counting(self: SpaceMap, count: int, hint: int) -> tuple[int, int]:
        searches.append(count)
        return find(self, count, hint)

    monkeypatch.setattr(SpaceMap, "_find", counting)
    places = random.Random(1).sample(range(BLOCKS), 1000)
    device.reset_counters()
    overwrite(filesystem, ino, content, places)
    limit = filesystem.volume.store.spill_max
    assert device.writes == 1000 // (limit + 1), "each time there are too many: one run"
    assert len(searches) < device.writes + 8, "and one search, beside those for a few indirect blocks"
    before = device.writes
    filesystem.volume.commit()
    assert device.writes < before + 8
    assert device.bytes_written < 1000 * BLOCK + 100 * BLOCK
    assert filesystem.read(ino, 0, SIZE) == content
    close_filesystem(filesystem)


def test_what_is_overwritten_before_it_has_a_place_never_gets_one() -> None:
    device = new_device(64 * MIB)
    filesystem, ino, content = made(device)
    spacemap = spacemap_of(filesystem)
    born = spacemap.born_count
    for _ in range(20):
        overwrite(filesystem, ino, content, list(range(10, 20)))
    for name in range(30):
        other = filesystem.create(ROOT, b"%d" % name, 0o644, CALLER).ino
        filesystem.write(other, 0, data(name))
        filesystem.unlink(ROOT, b"%d" % name)
    device.reset_counters()
    filesystem.volume.commit()
    assert spacemap.born_count == 0
    assert device.bytes_written < 40 * BLOCK
    assert born == 0
    assert filesystem.read(ino, 0, SIZE) == content
    close_filesystem(filesystem)


def test_pieces_written_at_the_end_lie_in_one_run() -> None:
    device = new_device(64 * MIB)
    filesystem = open_filesystem(device)
    ino = filesystem.create(ROOT, b"file", 0o644, CALLER).ino
    content = data(3, 3 * MIB + 77)
    for at in range(0, len(content), 1000):
        filesystem.write(ino, at, content[at : at + 1000])
        if at % 300_000 == 0:
            filesystem.sync()
    filesystem.sync()
    root = filesystem.inode(ino).root
    runs = list(filesystem.volume.trees.runs(root, 0, -(-root.size // BLOCK)))
    assert len(runs) < 30
    assert filesystem.read(ino, 0, len(content)) == content
    close_filesystem(filesystem)


def test_size_blocks_and_free_space_are_known_before() -> None:
    device = new_device(64 * MIB)
    filesystem, ino, content = made(device)
    other = filesystem.create(ROOT, b"other", 0o644, CALLER).ino
    filesystem.sync()
    before = filesystem.statfs().free
    overwrite(filesystem, ino, content, [5, 9, 700])
    filesystem.write(other, 3, b"x" * 5000)
    attributes = filesystem.getattr(other)
    assert (attributes.size, attributes.blocks) == (5003, 2 * 8)
    told = filesystem.statfs().free
    filesystem.volume.trees.settle()
    assert filesystem.statfs().free == told == before - 2
    close_filesystem(filesystem)


def test_a_block_in_a_snapshot_is_one_more() -> None:
    device = new_device(64 * MIB)
    snapshots = Snapshots(Volume.open(device))
    live = snapshots.live
    ino = live.create(ROOT, b"file", 0o644, CALLER).ino
    live.write(ino, 0, data(0, MIB))
    snapshots.create(b"old")
    live.write(ino, BLOCK, data(1))  # the path is copied with that
    live.volume.trees.settle()
    before = live.statfs().free
    for number in range(2, 12):
        live.write(ino, number * BLOCK, data(number))
    assert live.statfs().free == before - 10
    live.volume.trees.settle()
    assert live.statfs().free == before - 10
    old = snapshots.filesystem(next(iter(snapshots)))
    assert old.read(ino, 0, MIB) == data(0, MIB)
    snapshots.close()
    snapshots.volume.close()
    assert_sound(device)


def test_a_full_volume_is_full_at_the_same_place() -> None:
    """What is late counts as used: a write that was accepted finds its block."""
    device = new_device(2 * MIB)
    filesystem = open_filesystem(device)
    ino = filesystem.create(ROOT, b"file", 0o644, CALLER).ino
    number = 0
    with pytest.raises(NoSpace):
        while True:
            filesystem.write(ino, number * BLOCK, data(number))
            number += 1
    assert number > 300
    left = filesystem.volume.spare
    filesystem.sync()
    assert filesystem.volume.spare >= left, "nothing was promised that was not there"
    assert filesystem.read(ino, 5 * BLOCK, BLOCK) == data(5)
    close_filesystem(filesystem)


def test_damage_of_what_was_there_is_found_before_anything_changes() -> None:
    device = new_device(64 * MIB)
    filesystem, ino, content = made(device)
    volume = filesystem.volume
    overwrite(filesystem, ino, content, [1])
    volume.commit()
    root = filesystem.inode(ino).root
    block = volume.trees.pointer(root, 1500)
    spacemap = spacemap_of(filesystem)
    page = spacemap._page(block // (BLOCK * 8))
    page.bits[block % (BLOCK * 8) >> 3] &= ~(1 << (block & 7))
    overwrite(filesystem, ino, content, [1499])
    with pytest.raises(UnreadableData):
        filesystem.write(ino, 1500 * BLOCK, data(77))
    with pytest.raises(UnreadableData):
        filesystem.write(ino, 1499 * BLOCK, data(77, 2 * BLOCK))
    assert not volume.latched
    page.bits[block % (BLOCK * 8) >> 3] |= 1 << (block & 7)
    assert filesystem.read(ino, 0, SIZE) == content
    close_filesystem(filesystem)


def test_a_failing_device_latches(monkeypatch: pytest.MonkeyPatch) -> None:
    device = new_device(64 * MIB)
    filesystem, ino, content = made(device)

    def broken(offset: int, pieces: object) -> None:
        raise DeviceError("broken")

    monkeypatch.setattr(device, "write", broken)
    with pytest.raises(DeviceError):
        overwrite(filesystem, ino, content, list(range(1000)))
    assert filesystem.volume.latched


@pytest.mark.parametrize("block_size", [512, 1024, 4096])
@pytest.mark.parametrize("seed", range(3))
def test_random_histories(block_size: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small and large writes, cuts, growth, snapshots, copies and commits; what is read is what was written."""
    device = new_device(32 * MIB, block_size)
    snapshots = Snapshots(Volume.open(device))
    live, choose = snapshots.live, random.Random((block_size, seed).__repr__())
    monkeypatch.setattr(live.volume.store, "spill_max", 20)
    numbers = [live.create(ROOT, b"%d" % n, 0o644, CALLER).ino for n in range(4)]
    files = {ino: bytearray() for ino in numbers}
    copies: list[tuple[int, bytes]] = []
    kept: dict[bytes, dict[int, bytes]] = {}
    for step in range(400):
        ino = choose.choice(numbers)
        content = files[ino]
        action = choose.randrange(40)
        if action < 25:
            at = choose.randrange(len(content) + 1 + choose.choice((0, 0, 3000)))
            piece = choose.randbytes(choose.choice((1, 100, block_size, 2 * block_size, 3 * block_size + 5, 70_000)))
            if choose.random() < 0.6:
                at -= at % block_size
            live.write(ino, at, piece)
            content.extend(bytes(max(0, at + len(piece) - len(content))))
            content[at : at + len(piece)] = piece
        elif action < 28:
            size = choose.choice((0, choose.randrange(len(content) + 1), len(content) + choose.randrange(9000)))
            live.setattr(ino, size=size)
            content[size:] = bytes(max(0, size - len(content)))
        elif action < 32 and content:
            at, length = choose.randrange(len(content)), choose.randrange(1, 20_000)
            assert live.read(ino, at, length) == content[at : at + length]
        elif action < 34:
            live.volume.commit()
        elif action < 35:
            name = b"s%d" % step
            snapshots.create(name)
            kept[name] = {number: bytes(own) for number, own in files.items()}
        elif action < 37:
            copy = live.clone_file(live, ino, ROOT, b"copy %d" % step).ino
            copies.append((copy, bytes(content)))
        root = live.inode(ino).root
        assert root.size == len(content)
        assert live.volume.trees.count <= 20
    for ino, content in files.items():
        assert live.read(ino, 0, len(content) + 1) == content
    for copy, content in copies:
        assert live.read(copy, 0, len(content) + 1) == content
    for info in snapshots:
        for ino, content in kept[info.name].items():
            assert snapshots.filesystem(info).read(ino, 0, len(content) + 1) == content
    snapshots.close()
    snapshots.volume.close()
    assert_sound(device)


@pytest.mark.interpreted
def test_overwriting_a_fragmented_file_under_a_snapshot_changes_each_page_of_counts_a_few_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = new_device(64 * MIB)
    snapshots = Snapshots(Volume.open(device))
    live = snapshots.live
    ino = live.create(ROOT, b"file", 0o644, CALLER).ino
    live.write(ino, 0, data(0, 4 * MIB))
    places = list(range(4 * MIB // BLOCK))
    random.Random(1).shuffle(places)
    for place in places:
        live.write(ino, place * BLOCK, data(place))
        if place % 16 == 0:
            live.volume.commit()
    root = live.inode(ino).root
    assert len(list(live.volume.trees.runs(root, 0, 1024))) > 500, "it is not in fragments"
    snapshots.create(b"old")
    changed: list[int] = []
    references = live.volume.references
    change = references.page_for_write

    def counting(index: int) -> bytearray:
        changed.append(index)
        return change(index)

    monkeypatch.setattr(references, "page_for_write", counting)
    live.write(ino, 0, data(9, MIB))
    assert len(changed) < 100, "not twice for each block, as they are 256, and 1,024 below the indirect block"
    snapshots.close()
    snapshots.volume.close()
    assert_sound(device)
