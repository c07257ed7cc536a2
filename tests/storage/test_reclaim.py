"""The reclaim queue: last in, first out; what the device could not read changes places with the lowest one, and waits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support import MIB, new_device

from cowfs.ondisk import format as f
from cowfs.storage.device import MemoryDevice
from cowfs.storage.reclaim import ReclaimQueue
from cowfs.storage.volume import Volume


def blocks(queue: ReclaimQueue) -> list[int]:
    """The blocks that are popped, in order."""
    found = []
    while (entry := queue.pop()) is not None:
        found.append(entry.block)
    return found


def test_what_cannot_be_read_waits_for_the_next_session() -> None:
    queue = Volume.open(new_device()).reclaim
    for block in (11, 12, 13, 14):
        queue.push(block, f.KIND_FILE, 1)
    for wanted in (14, 11):
        entry = queue.pop()
        assert entry is not None
        assert entry.block == wanted
        queue.postpone(entry)
    assert (queue.count, queue.ready) == (4, 2)
    queue.push(15, f.KIND_FILE, 1)
    assert blocks(queue) == [15, 12, 13]
    assert (queue.count, queue.ready) == (2, 0)
    assert blocks(ReclaimQueue(queue.tree, queue.count)) == [11, 14]


def test_the_last_one_can_be_postponed() -> None:
    queue = Volume.open(new_device()).reclaim
    queue.push(11, f.KIND_INODES, 0)
    entry = queue.pop()
    assert entry is not None
    queue.postpone(entry)
    assert queue.pop() is None
    assert blocks(ReclaimQueue(queue.tree, queue.count)) == [11]


BLOCK = 4096


def queued(count: int = 3) -> MemoryDevice:
    """A volume whose reclaim queue holds some trees, each of an indirect block and a leaf."""
    device = new_device()
    volume = Volume.open(device)
    with volume.operation():
        volume.admit(1)
        assert volume.tx is not None
        for _ in range(count):
            top, _ = volume.tx.shadow(f.NO_BLOCK, f.KIND_FILE, 1)
            volume.tx.drop(top, f.KIND_FILE, 1)
    volume.commit(complete=True)
    assert volume.reclaim.count == count
    return device


def spoil_queue(device: MemoryDevice) -> None:
    volume = Volume.open(device, read_only=True)
    offset = volume.geometry.block_offset(volume.reclaim_tree._pointer((0, 0)))
    device.write(offset, [bytes([device.read(offset, 1)[0] ^ 1])])


def test_a_queue_that_rotted_is_left_alone() -> None:
    """Nobody waits for it to shrink, and nothing turns read-only for it: what it led to stays allocated."""
    device = queued()
    spoil_queue(device)
    volume = Volume.open(device)
    assert not volume.reclaim_slice()
    assert not volume.reclaim_slice()
    assert (volume.reclaim.count, volume.reclaim.ready) == (3, 0)
    assert not volume.read_only
    assert sum("until the volume is next opened" in note for note in volume.notes) == 1
    volume.admit(1)
    with volume.operation():
        assert volume.tx is not None
        top, _ = volume.tx.shadow(f.NO_BLOCK, f.KIND_FILE, 1)
        volume.tx.drop(top, f.KIND_FILE, 1)
    assert not volume.read_only
    assert any("stay allocated" in note for note in volume.notes)
    volume.commit()


def forge(change: Callable[[f.ReclaimEntry], object]) -> Volume:
    volume = Volume.open(queued())
    size = f.ReclaimEntry.SIZE
    entry = f.ReclaimEntry.unpack(volume.reclaim_tree.read(size, size))
    change(entry)
    volume.reclaim_tree.write(size, entry.pack())
    return volume


@pytest.mark.parametrize(
    ("field", "value"), [("kind", 77), ("level", 77), ("block", 16 * MIB // BLOCK), ("block", 0xFFFF_FFFF)]
)
def test_an_entry_that_cannot_be_is_passed_over(field: str, value: int) -> None:
    volume = forge(lambda entry: setattr(entry, field, value))
    assert not volume.reclaim_slice()
    assert volume.reclaim.count == 0
    assert not volume.read_only
    assert len(volume.notes) == 1
    volume.commit()
