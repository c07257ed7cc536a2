"""Reclaim goes on in slices whose work is bounded, however large what waits is and wherever it lies."""

from __future__ import annotations

import pytest

from cowfs.fs import Caller
from cowfs.fs.snapshot import Snapshots
from cowfs.fuse.commits import RECLAIM_SLICE_BLOCKS
from cowfs.storage.volume import Volume
from tests.support import MIB, assert_sound, new_device


def longest_slice(files: int, snapshots: int, block_size: int) -> tuple[int, int, int]:
    """Of deleting one snapshot that alone holds everything: (device reads, references and bits changed, slices)."""
    device = new_device(96 * MIB, block_size)
    trees = Snapshots(Volume.open(device))
    directory = 1
    names = []
    for number in range(files):
        if number % 100 == 0:
            directory = trees.live.mkdir(1, b"directory %d" % number, 0o755, Caller()).ino
        ino = trees.live.create(directory, b"file %d" % number, 0o644, Caller()).ino
        trees.live.write(ino, 0, bytes([number % 255 + 1]) * (block_size * (1 + number % 40)))
        names.append((directory, b"file %d" % number))
        if trees.volume.wants_commit:
            trees.volume.commit()
    trees.create(b"the one")
    for parent, name in names:
        trees.live.unlink(parent, name)
        if trees.volume.wants_commit:
            trees.volume.commit()
    for number in range(snapshots):
        trees.create(b"later %d" % number)
    trees.close()
    trees = Snapshots(Volume.open(device))
    volume = trees.volume
    device.reset_counters()
    trees.delete([b"the one"])
    assert device.reads <= 24, "deleting itself looks at nothing of what it deletes"
    volume.commit()
    most_reads = most_blocks = slices = 0
    assert volume.tx is not None
    dropped = [0]
    original = volume.tx._drop_all

    def counted(*arguments: object) -> int:
        count = original(*arguments)  # type: ignore[arg-type]
        dropped[0] += count
        return count

    volume.tx._drop_all = counted  # type: ignore[method-assign]
    more = True
    while more:
        device.reset_counters()
        dropped[0] = 0
        more = volume.reclaim_slice(RECLAIM_SLICE_BLOCKS)
        most_reads, most_blocks, slices = max(most_reads, device.reads), max(most_blocks, dropped[0]), slices + 1
        if volume.wants_commit:
            volume.commit()
    trees.close()
    assert_sound(device)
    return most_reads, most_blocks, slices


@pytest.mark.interpreted
@pytest.mark.parametrize("block_size", [512, 4096])
def test_a_slice_does_not_grow_with_what_is_deleted(block_size: int) -> None:
    """At most what a slice may look at, and the children of one more block."""
    limit = RECLAIM_SLICE_BLOCKS + max(block_size // 4, block_size // 128 * 16)
    few = longest_slice(100, 0, block_size)
    many = longest_slice(1000, 300, block_size)
    assert max(few[1], many[1]) <= limit
    # A block that is looked at takes one read, and a few of the system trees' pages besides.
    assert max(few[0], many[0]) <= 2 * RECLAIM_SLICE_BLOCKS
    assert many[2] > 3 * few[2], "more to delete is more slices, not longer ones"
