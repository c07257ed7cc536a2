"""The reclaim queue: last in, first out; what the device could not read changes places with the lowest one, and waits."""

from __future__ import annotations

from support import new_device

from cowfs.ondisk import format as f
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
