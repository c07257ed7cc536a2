"""Pins: trees that are kept for one computation, and for no longer than a session."""

from __future__ import annotations

import pytest

from cowfs.control.host import Offline, finish
from cowfs.control.pins import pinned
from cowfs.errors import NotFound
from cowfs.fs import Caller, Filesystem
from cowfs.fs.snapshot import Snapshots
from cowfs.storage.device import MemoryDevice
from cowfs.storage.tree import Tree
from cowfs.storage.volume import Volume
from tests.support import MIB, assert_sound, new_device

BLOCK = 4096


def opened(device: MemoryDevice) -> Snapshots:
    return Snapshots(Volume.open(device))


def write(live: Filesystem, name: bytes, data: bytes) -> int:
    ino = live.create(1, name, 0o644, Caller()).ino
    live.write(ino, 0, data)
    return ino


def read(trees: Snapshots, tree: Tree, ino: int) -> bytes:
    return Filesystem(trees.volume, tree=tree).read(ino, 0, MIB)


def blocks_in_use(trees: Snapshots) -> int:
    while trees.volume.reclaim_slice():
        pass
    trees.volume.commit()
    assert trees.volume.spacemap is not None
    return trees.volume.geometry.num_blocks - trees.volume.spacemap.free


def test_a_pin_keeps_what_was_there() -> None:
    device = new_device()
    trees = opened(device)
    ino = write(trees.live, b"file", b"old")  # nothing of it is committed
    before = trees.pin(trees.volume.live)
    trees.live.write(ino, 0, b"new")
    after = trees.pin(trees.volume.live)
    trees.live.unlink(1, b"file")
    assert read(trees, before, ino) == b"old"
    assert read(trees, after, ino) == b"new"
    trees.unpin(before)
    assert read(trees, after, ino) == b"new"
    trees.close()
    assert_sound(device)


def test_a_pin_is_no_snapshot() -> None:
    device = new_device()
    trees = opened(device)
    trees.create(b"one")
    trees.pin(trees.volume.live)
    assert len(trees) == 1
    assert [info.name for info in trees] == [b"one"]
    with pytest.raises(NotFound):
        trees.find(b"")
    assert trees.delete([b"one"]) and len(trees) == 0
    trees.close()
    assert_sound(device)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_pins_go_in_any_order(order: tuple[int, ...]) -> None:
    device = new_device()
    trees = opened(device)
    trees.volume.commit()
    space = blocks_in_use(trees)
    ino = write(trees.live, b"file", b"0")
    pins = []
    for number in range(3):
        trees.live.write(ino, 0, b"%d" % number)
        pins.append(trees.pin(trees.volume.live))
    trees.live.unlink(1, b"file")
    left = set(order)
    for number in order:
        trees.unpin(pins[number])
        left.remove(number)
        for other in left:
            assert read(trees, pins[other], ino) == b"%d" % other
        trees.volume.commit()
        assert_sound(device)
    assert trees.volume.extension is not None and trees.volume.extension.first_pin == 0
    assert blocks_in_use(trees) <= space + 2  # the page of the table, and a leaf of references
    trees.close()
    assert_sound(device)


def test_a_crash_leaves_pins_and_opening_drops_them() -> None:
    device = new_device()
    trees = opened(device)
    write(trees.live, b"file", bytes(50 * BLOCK))
    trees.create(b"named")
    for _ in range(3):
        trees.pin(trees.volume.live)
        trees.volume.commit()
    reader = Snapshots(Volume.open(device, read_only=True))
    assert len(reader) == 1 and reader.volume.forest.table.count == 4
    again = opened(device)
    assert again.volume.forest.table.count == 1
    assert not again.volume.notes
    again.close()
    assert_sound(device)


def test_opening_finds_pins_without_looking_at_snapshots() -> None:
    read_by_opening = []
    for snapshots in (1, 600):
        device = new_device(64 * MIB)
        trees = opened(device)
        for number in range(snapshots):
            trees.create(b"snapshot %d" % number)
        trees.pin(trees.volume.live)
        trees.volume.commit(complete=True)
        device.reset_counters()
        again = Volume.open(device)
        read_by_opening.append(device.bytes_read // BLOCK)
        assert again.extension is not None and again.extension.pin_count == 0
        assert again.forest.table.count == snapshots
    assert read_by_opening[1] <= read_by_opening[0] + 4  # the table has a level more


def test_a_broken_chain_does_not_keep_the_volume_from_opening() -> None:
    device = new_device()
    trees = opened(device)
    trees.create(b"named")
    trees.pin(trees.volume.live)
    assert trees.volume.extension is not None
    trees.volume.extension.first_pin = trees.find(b"named").place + 1
    trees.volume.commit()
    again = opened(device)
    assert any("stays" in note for note in again.volume.notes)
    assert not again.volume.read_only
    assert [info.name for info in again] == [b"named"]


def test_a_rollback_does_not_move_a_pin() -> None:
    device = new_device()
    trees = opened(device)
    ino = write(trees.live, b"file", b"old")
    trees.create(b"old")
    trees.live.write(ino, 0, b"new")
    pin = trees.pin(trees.volume.live)
    trees.roll_back(b"old", discard=True)
    assert read(trees, pin, ino) == b"new"
    trees.unpin(pin)
    trees.close()
    assert_sound(device)


def test_a_pinned_tree_of_a_command() -> None:
    device = new_device()
    trees = opened(device)
    ino = write(trees.live, b"file", b"old")
    host = Offline(trees.live, trees)

    async def command() -> bytes:
        async with pinned(host, trees.volume.live) as tree:
            trees.live.write(ino, 0, b"new")
            return read(trees, tree, ino)

    assert finish(command()) == b"old"
    assert trees.volume.forest.table.count == 0
    trees.close()
    assert_sound(device)


def test_the_cost_does_not_grow() -> None:
    costs = []
    for files in (10, 3000):
        device = new_device(64 * MIB)
        trees = opened(device)
        for number in range(files):
            write(trees.live, b"file %d" % number, b"x")
        trees.close()
        trees = opened(device)
        device.reset_counters()
        pin = trees.pin(trees.volume.live)
        trees.volume.commit()
        trees.unpin(pin)
        trees.volume.commit()
        costs.append((device.bytes_read // BLOCK, device.bytes_written // BLOCK))
    assert costs[1][0] <= costs[0][0] + 8
    assert costs[1][1] <= costs[0][1] + 8
