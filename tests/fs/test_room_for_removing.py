"""What is kept back for removing is there when it is needed: no change that only looks like one uses it up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support import MIB, Clock, assert_sound, close_filesystem, new_device, open_filesystem

from cowfs.errors import NoSpace
from cowfs.fs import Caller, Filesystem
from cowfs.fs.snapshot import Snapshots
from cowfs.ondisk.format import ROOT_INODE
from cowfs.storage.volume import Tier, Volume

CALLER = Caller()
PIECE = 16 << 10


def until_full(change: Callable[[int], object], most: int) -> int:
    """Repeats a change with 0, 1, 2... until there is no space; how often it could be done."""
    for number in range(most):
        try:
            change(number)
        except NoSpace:
            return number
    raise AssertionError("there always was space")


def fill(filesystem: Filesystem) -> None:
    """Fills the volume, with large pieces and then with small ones."""
    ballast = filesystem.create(ROOT_INODE, b"ballast", 0o600, CALLER).ino
    for piece in (PIECE, 1):
        end = filesystem.getattr(ballast).size
        until_full(lambda number, at=end, size=piece: filesystem.write(ballast, at + number * size, b"x" * size), 9999)


def assert_room(volume: Volume) -> None:
    """What removing needs is free once nothing waits for a commit."""
    for _ in range(3):
        volume.commit()
        while volume.reclaim_slice():
            pass
    assert volume._available >= volume._floor(Tier.REMOVE) + volume.margin


@pytest.mark.parametrize("shared", [False, True], ids=["in a hole", "in what a clone shares"])
@pytest.mark.parametrize("block_size", [512, 4096])
def test_cutting_a_file_takes_none_of_it(block_size: int, shared: bool) -> None:
    """A file that is cut in a hole, or where it shares all with another, gets a path to its new end for itself."""
    device = new_device(MIB, block_size)
    filesystem = open_filesystem(device)
    end = filesystem.volume.geometry.file_size_max
    data_at = end // 3 if shared else 0
    first = filesystem.create(ROOT_INODE, b"first", 0o600, CALLER).ino
    filesystem.write(first, data_at, b"data" * 2500)
    filesystem.truncate(first, end)
    names = [b"copy %d" % number for number in range(60)]
    copies = [filesystem.clone_file(filesystem, first, ROOT_INODE, name).ino for name in names]
    filesystem.mkdir(ROOT_INODE, b"directory", 0o755, CALLER)
    fill(filesystem)

    cut = until_full(
        lambda number: filesystem.truncate(copies[number], data_at + 5000 if shared else end // 2 + 5000), 59
    )
    assert filesystem.getattr(copies[cut]).size == end
    assert_room(filesystem.volume)
    filesystem.truncate(copies[cut], 0)  # this needs no path
    filesystem.rmdir(ROOT_INODE, b"directory")
    for name in names:
        filesystem.unlink(ROOT_INODE, name)
    close_filesystem(filesystem)


@pytest.mark.parametrize("block_size", [512, 4096])
def test_attributes_of_what_a_snapshot_has_take_none_of_it(block_size: int) -> None:
    """Each block of inodes becomes the tree's own when the first of them changes; the snapshot keeps the old one."""
    device = new_device(MIB, block_size)
    volume = Volume.open(device)
    trees = Snapshots(volume, clock=Clock())
    filesystem = trees.live
    per_block = volume.geometry.inodes_per_block
    made = [filesystem.create(ROOT_INODE, b"%d" % number, 0o600, CALLER).ino for number in range(60 * per_block)]
    some = made[::per_block]
    for ino in some[::2]:
        filesystem.setxattr(ino, b"user.one", b"1")
        filesystem.setxattr(ino, b"user.two", b"2")
    trees.create(b"snapshot")
    fill(filesystem)

    until_full(lambda number: filesystem.setattr(some[number], mode=0o644), len(some))
    until_full(lambda number: filesystem.removexattr(some[number * 2], b"user.one"), len(some) // 2)
    assert_room(volume)
    trees.delete([b"snapshot"])
    until_full(lambda number: filesystem.write(some[0], number * PIECE, b"y" * PIECE), 9999)
    for ino in some:  # now nobody has them, too: no more than removing may have
        filesystem.setattr(ino, mode=0o640)
    for number in range(len(made)):
        filesystem.unlink(ROOT_INODE, b"%d" % number)
    trees.close()
    volume.close()
    assert_sound(device)
