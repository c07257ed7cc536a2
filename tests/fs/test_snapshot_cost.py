"""What taking, rolling back and dropping trees costs, in blocks: the same for a few files and for many, early and late."""

from __future__ import annotations

import pytest

from cowfs.fs import Caller
from cowfs.fs.snapshot import Snapshots
from cowfs.storage.device import MemoryDevice
from cowfs.storage.volume import Volume
from tests.support import MIB, assert_sound, new_device

BLOCK = 4096
OPERATIONS = ("create", "rollback", "delete")


def filled(files: int, snapshots: int) -> tuple[MemoryDevice, Snapshots]:
    """A volume with so many files in directories of 100, and so many snapshots."""
    device = new_device(max(256, files // 100) * MIB, BLOCK)
    trees = Snapshots(Volume.open(device))
    live = trees.live
    directory = 1
    for number in range(files):
        if number % 100 == 0:
            directory = live.mkdir(1, b"directory %d" % number, 0o755, Caller()).ino
        ino = live.create(directory, b"file %d" % number, 0o644, Caller()).ino
        live.write(ino, 0, b"%d" % number)
        if trees.volume.wants_commit:
            trees.volume.commit()
    for number in range(snapshots):
        trees.create(b"older %d" % number)
        if number % 50 == 0:
            trees.volume.commit()
    trees.close()
    return device, trees


def measured(files: int, snapshots: int) -> dict[str, tuple[int, int]]:
    """Blocks read and written by each operation, with its commit, on a volume opened anew."""
    device, _ = filled(files, snapshots)
    costs = {}
    for operation in OPERATIONS:
        trees = Snapshots(Volume.open(device))
        if operation != "create":
            trees.find(b"the one")
        device.reset_counters()
        if operation == "create":
            trees.create(b"the one")
        elif operation == "rollback":
            trees.roll_back(b"the one")
        else:
            trees.delete([b"the one"])
        trees.volume.commit()
        costs[operation] = device.bytes_read // BLOCK, device.bytes_written // BLOCK
        trees.close()
    assert_sound(device)
    return costs


@pytest.fixture(scope="module")
def base() -> dict[str, tuple[int, int]]:
    return measured(10, 0)


@pytest.mark.parametrize(("files", "snapshots"), [(5000, 0), (10, 300), (5000, 300)])
def test_the_cost_does_not_grow(base: dict[str, tuple[int, int]], files: int, snapshots: int) -> None:
    for operation, (read, written) in measured(files, snapshots).items():
        few_read, few_written = base[operation]
        # A deeper tree has a block more on a path: of the inode file, the table, its index, the bitmap, the checksums.
        assert read <= few_read + 8, operation
        assert written <= few_written + 8, operation


@pytest.mark.slow
def test_the_cost_does_not_grow_for_many(base: dict[str, tuple[int, int]]) -> None:
    # Counts, bitmap and checksums have several pages now, each with one of checksums: three of counts are looked at for the
    # tops of trees that gain a parent, and up to four of the bitmap until one has room.
    for operation, (read, written) in measured(100_000, 1000).items():
        assert read <= base[operation][0] + 16, operation
        assert written <= base[operation][1] + 12, operation


def test_many_rollbacks_in_a_second_look_for_a_free_name_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    device = new_device(16 * MIB, BLOCK)
    trees = Snapshots(Volume.open(device), clock=lambda: 1_700_000_000 * 10**9)
    trees.create(b"base")
    table = trees.volume.forest.table
    checked: list[bytes] = []
    check = table.check_new_name
    monkeypatch.setattr(table, "check_new_name", lambda name: (checked.append(name), check(name))[1])
    names = []
    for _ in range(20):
        saved = trees.roll_back(b"base")
        assert saved is not None
        names.append(saved.name)
    first = b"before-rollback-2023-11-14T22:13:20Z"
    assert names == [first, *(first + b"-%d" % number for number in range(2, 21))]
    assert len(checked) <= 4 * 20
    trees.delete([names[-1]])
    saved = trees.roll_back(b"base")
    assert saved is not None and saved.name == names[-1], "a name that is free again"
    trees.close()
    assert_sound(device)
