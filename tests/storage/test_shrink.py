"""Shrinking: what lies behind the new end moves, sharing stays, and what does not fit is refused."""

from __future__ import annotations

import random

import pytest
from support import MIB, START, Clock, assert_sound

from cowfs.check.crashtest import read_trees
from cowfs.errors import CowfsError, InvalidArgument
from cowfs.fs import Caller
from cowfs.fs.snapshot import Snapshots
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import Geometry, geometry_for_size
from cowfs.storage.device import MemoryDevice
from cowfs.storage.mkvolume import make_volume
from cowfs.storage.shrink import least_geometry, plan, prepare, shrink
from cowfs.storage.volume import Volume

CALLER = Caller()


def opened(device: MemoryDevice) -> Snapshots:
    return Snapshots(Volume.open(device, clock=lambda: START), clock=Clock())


def made(size: int, block_size: int) -> MemoryDevice:
    geometry = geometry_for_size(size, block_size)
    device = MemoryDevice(geometry.end)
    make_volume(device, geometry, label=b"shrink", uuid=bytes(range(16)), now_ns=START)
    return device


def fill(trees: Snapshots, seed: int, *, hint: int) -> None:
    """Files, folders, long names, attributes, holes, and a history of snapshots and a clone, from block `hint` on."""
    rng = random.Random(seed)
    volume = trees.volume
    assert volume.spacemap is not None
    volume.spacemap.data_hint = hint
    files = trees.live
    folder = files.mkdir(f.ROOT_INODE, b"folder", 0o755, CALLER).ino
    for number in range(60):
        parent = rng.choice((f.ROOT_INODE, folder))
        name = b"%d" % number + b" with a name of more than 27 bytes" * (number % 2)
        ino = files.create(parent, name, 0o644, CALLER).ino
        files.write(ino, rng.choice((0, 0, 300_000)), rng.randbytes(rng.choice((0, 10, 5000, 40_000))))
        if number % 9 == 0:
            files.setxattr(ino, b"user.x", rng.randbytes(2000))
        if number % 12 == 0:
            volume.spacemap.metadata_hint = hint + number
            trees.create(b"snapshot %d" % number)
        if number % 5 == 0:
            files.sync()
    trees.create(b"clone", writable=True)
    files.symlink(f.ROOT_INODE, b"link", b"target", CALLER)
    files.sync()


def blocks_in_use(volume: Volume) -> int:
    assert volume.spacemap is not None
    return volume.geometry.num_blocks - volume.spacemap.free


@pytest.mark.parametrize(("block_size", "size"), [(512, 4 * MIB), (1024, 6 * MIB), (4096, 24 * MIB)])
def test_everything_moves_and_stays_what_it_is(block_size: int, size: int) -> None:
    """To the smallest size that is said to be possible; with all snapshots, and what they share shared as before."""
    device = made(size, block_size)
    trees = opened(device)
    geometry = trees.volume.geometry
    fill(trees, block_size, hint=geometry.num_blocks * 2 // 3)
    volume = trees.volume
    wanted = read_trees(trees)
    prepare(volume)
    used = blocks_in_use(volume)
    least = least_geometry(volume)
    assert least.num_blocks < geometry.num_blocks * 2 // 3
    found = shrink(volume, least)
    assert found.rewritten >= found.moved > 100
    assert blocks_in_use(volume) <= used + 4, "what was shared is shared"
    assert device.size() == least.end == volume.geometry.end
    volume.close()
    assert_sound(device)
    again = opened(device)
    assert read_trees(again).digest == wanted.digest
    files = again.live
    ino = files.create(f.ROOT_INODE, b"new", 0o644, CALLER).ino
    files.write(ino, 0, b"x" * 4 * block_size)
    for info in list(again):
        again.delete([info.name])
    while again.volume.reclaim_slice():
        pass
    again.close()
    assert_sound(device)


def test_a_hundred_snapshots_of_one_tree_move_once() -> None:
    device = made(16 * MIB, 4096)
    trees = opened(device)
    volume = trees.volume
    assert volume.spacemap is not None
    end = volume.geometry.num_blocks
    volume.spacemap.data_hint = volume.spacemap.metadata_hint = end - 1400
    ino = trees.live.create(f.ROOT_INODE, b"file", 0o644, CALLER).ino
    trees.live.write(ino, 0, b"x" * MIB)
    for number in range(100):
        trees.create(b"%d" % number)
    trees.live.sync()
    prepare(volume)
    found = plan(volume, Geometry(4096, end - 1500))
    assert 256 <= found.moved <= found.rewritten <= 256 + 12
    used = blocks_in_use(volume)
    shrink(volume, Geometry(4096, end - 1500))
    assert abs(blocks_in_use(volume) - used) <= 4
    trees.close()
    assert_sound(device)


@pytest.mark.parametrize("block_size", [512, 1024])
def test_down_by_many_sizes_and_up_again(block_size: int) -> None:
    """Ends in the middle of a page of the bitmap, at its end, and with trees of fewer levels."""
    from cowfs.storage.resize import grow

    page = block_size * 8
    device = made((7 * page + 100) * block_size, block_size)
    trees = opened(device)
    fill(trees, 5, hint=1000)
    volume = trees.volume
    wanted = read_trees(trees)
    for blocks in (6 * page + 5, 6 * page - 3, 5 * page, 4 * page + 77, 4 * page - 900):
        prepare(volume)
        shrink(volume, Geometry(block_size, blocks))
        assert device.size() == volume.geometry.end
        assert_sound(MemoryDevice.from_image(device.image()))
    grow(volume, Geometry(block_size, 9 * page))
    volume.close()
    assert_sound(device)
    assert read_trees(opened(device)).digest == wanted.digest


def test_an_empty_terabyte_shrinks_by_a_few_blocks() -> None:
    device = made(1 << 40, 4096)
    volume = Volume.open(device, clock=lambda: START)
    prepare(volume)
    device.reset_counters()
    shrink(volume, geometry_for_size(64 * MIB, 4096))
    assert device.bytes_written < 80 * 4096
    assert device.reads < 200
    volume.close()
    assert_sound(device)
    assert device.size() == geometry_for_size(64 * MIB, 4096).end


def test_too_small_is_refused_with_what_is_possible() -> None:
    device = made(8 * MIB, 1024)
    trees = opened(device)
    fill(trees, 1, hint=100)
    ino = trees.live.create(f.ROOT_INODE, b"large", 0o644, CALLER).ino
    trees.live.write(ino, 0, b"x" * 3 * MIB)
    volume = trees.volume
    prepare(volume)
    least = least_geometry(volume)
    with pytest.raises(InvalidArgument, match="at least") as caught:
        shrink(volume, geometry_for_size(MIB, 1024))
    words = str(caught.value).split()
    size = int(words[words.index("least") + 1])
    assert size == least.end
    assert not volume.read_only
    prepare(volume)
    shrink(volume, Geometry(1024, least.num_blocks))
    trees.close()
    assert_sound(device)


def test_damage_leaves_the_volume_as_it_was() -> None:
    """A block of metadata that cannot be trusted: nothing is changed on the device but free blocks and the slots."""
    device = made(8 * MIB, 1024)
    trees = opened(device)
    fill(trees, 3, hint=5000)
    trees.close()
    volume = Volume.open(device)
    block = next(p for p in volume.live.inodes.ptr if p not in (f.NO_BLOCK, *volume.zero_blocks))
    offset = volume.geometry.block_offset(block)
    volume.close()
    device.write(offset + 40, [b"damage"])
    volume = Volume.open(device)
    with pytest.raises(CowfsError):
        prepare(volume)
        shrink(volume, geometry_for_size(5 * MIB, 1024))
    assert Volume.open(device, read_only=True).geometry.end == geometry_for_size(8 * MIB, 1024).end
