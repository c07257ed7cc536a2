"""Growing a volume: what it costs, what it keeps, and where it is refused."""

from __future__ import annotations

import random

import pytest
from support import MIB, START, Clock, assert_sound

from cowfs.check import check_device
from cowfs.errors import InvalidArgument, NoSpace
from cowfs.fs import Caller, Filesystem
from cowfs.fs.snapshot import Snapshots
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import Geometry, geometry_for_size
from cowfs.storage.device import MemoryDevice
from cowfs.storage.mkvolume import make_volume
from cowfs.storage.resize import GROW_COST, geometry_of, grow
from cowfs.storage.superblock import read_slots
from cowfs.storage.volume import Volume

CALLER = Caller()
GIB = 1 << 30


def new_volume(size: int, block_size: int) -> tuple[MemoryDevice, Volume]:
    geometry = geometry_for_size(size, block_size)
    device = MemoryDevice(geometry.end)
    make_volume(device, geometry, label=b"grow", uuid=bytes(range(16)), now_ns=START)
    return device, Volume.open(device, clock=lambda: START)


def put(filesystem: Filesystem, name: bytes, data: bytes) -> None:
    ino = filesystem.create(f.ROOT_INODE, name, 0o644, CALLER).ino
    filesystem.write(ino, 0, data)


def get(filesystem: Filesystem, name: bytes) -> bytes:
    ino = filesystem.lookup(f.ROOT_INODE, name).ino
    return filesystem.read(ino, 0, filesystem.getattr(ino).size)


def fill(filesystem: Filesystem) -> dict[bytes, bytes]:
    """Files until there is no space."""
    rng = random.Random(7)
    files: dict[bytes, bytes] = {}
    ino = 0
    try:
        while True:
            name = b"%d" % len(files)
            data = rng.randbytes(70_000)
            ino = filesystem.create(f.ROOT_INODE, name, 0o644, CALLER).ino
            filesystem.write(ino, 0, data)
            files[name] = data
    except NoSpace:
        if b"%d" % len(files) in [name for _, name, _, _ in filesystem.listing(f.ROOT_INODE).entries()]:
            filesystem.unlink(f.ROOT_INODE, b"%d" % len(files))
    filesystem.sync()
    return files


@pytest.mark.parametrize("block_size", [512, 1024, 2048, 4096])
def test_a_full_volume_grows_and_takes_more(block_size: int) -> None:
    """Again and again, by sizes that end in the middle of a bitmap page, at its end, and in the next one."""
    device, volume = new_volume(2 * MIB, block_size)
    snapshots = Snapshots(volume, clock=Clock())
    filesystem = snapshots.live
    files = fill(filesystem)
    page = block_size * 8
    for blocks in (volume.geometry.num_blocks + 200, 2 * page, 2 * page + 300, 5 * page + 1):
        if blocks - volume.geometry.num_blocks < 64:
            continue
        before = filesystem.statfs()
        grow(volume, Geometry(block_size, blocks))
        after = filesystem.statfs()
        assert after.blocks == blocks
        assert after.free - before.free in range(blocks - before.blocks - GROW_COST, blocks - before.blocks + 1)
        assert volume.newest_slot == 1
        put(filesystem, b"more %d" % blocks, b"x" * 150 * block_size)
        snapshots.create(b"at %d" % blocks)
        for name, data in files.items():
            assert get(filesystem, name) == data
    snapshots.close()
    assert_sound(device)
    reopened = Filesystem(Volume.open(device, read_only=True))
    assert all(get(reopened, name) == data for name, data in files.items())


def test_growing_costs_the_same_by_any_size() -> None:
    """1 GiB to 4 TiB: a handful of blocks, written and in use."""
    for size in (2 * GIB, 4 << 40):
        device, volume = new_volume(GIB, 4096)
        filesystem = Filesystem(volume, clock=Clock())
        put(filesystem, b"file", b"x" * 100_000)
        filesystem.sync()
        used = volume.geometry.num_blocks - volume.spacemap.free  # type: ignore[union-attr]
        device.reset_counters()
        geometry = geometry_of(volume, size)
        grow(volume, geometry)
        assert volume.geometry.num_blocks - volume.spacemap.free - used <= GROW_COST  # type: ignore[union-attr]
        assert device.bytes_written <= 40 * 4096
        assert device.reads <= 16
        assert device.flushes <= 9
        filesystem.close()
        volume.close()
        assert_sound(device)
        assert device.size() == geometry.end


def test_the_new_blocks_are_given_out_when_that_is_durable() -> None:
    """The place of the old slot 2 among them: until then a state needs it."""
    device, volume = new_volume(MIB, 512)
    old = volume.geometry.num_blocks
    spacemap = volume.spacemap
    assert spacemap is not None
    from cowfs.storage import resize

    geometry = Geometry(512, old + 900)
    resize.reserve(device, geometry)
    resize.announce(volume)
    volume.commit(complete=True)
    while volume.newest_slot != 1:
        volume.commit(complete=True)
    sealed = resize.seal_grown(volume, geometry)
    with volume.operation():
        assert volume.tx is not None
        for start, count in volume.tx.allocate_data(spacemap.available, None):
            assert start + count <= old
    with pytest.raises(NoSpace):
        spacemap.allocate(1, old)
    sealed.write_out()
    volume.publish(sealed)
    assert spacemap.available >= 880
    assert spacemap.allocate(8, old)[0] in range(old, geometry.num_blocks)


def test_the_old_slot_2_is_gone() -> None:
    device, volume = new_volume(MIB, 1024)
    place = volume.geometry.slot_offsets[1]
    grow(volume, Geometry(1024, volume.geometry.num_blocks + 4000))
    volume.close()
    assert device.read(place, f.SLOT_AREA_SIZE) == bytes(f.SLOT_AREA_SIZE)
    found = read_slots(device)
    assert set(found.slots) == {1, 2} and not found.notes
    assert [slot.extension.resizing for slot in found.slots.values() if slot.extension] == [0, 0]


@pytest.mark.parametrize("more", [0, 1, 7])
def test_too_little_is_refused(more: int) -> None:
    device, volume = new_volume(MIB, 512)
    with pytest.raises(InvalidArgument, match="gains nothing"):
        grow(volume, Geometry(512, volume.geometry.num_blocks + more))
    assert not volume.dirty and device.size() == volume.geometry.end
    volume.close()
    assert_sound(device)


@pytest.mark.parametrize("block_size", f.BLOCK_SIZES)
def test_the_end_of_the_bitmap_has_its_form(block_size: int) -> None:
    """I9: the end never lies in a hole, and ~0 is behind it, where a volume is made and after it grew, levels included."""
    page = 8 * block_size * block_size  # bytes that one page of the bitmap is for
    fanout = block_size // f.POINTER_SIZE
    for pages in (3, 16, 20, fanout, fanout + 5, 16 * fanout + fanout // 2):
        device, volume = new_volume(pages * page, block_size)
        volume.close()
        assert [note.kind.name for note in check_device(device).notes] == []
    device, volume = new_volume(3 * page, block_size)
    for pages in (5, 17, fanout - 3, fanout + 5, 16 * fanout + 1, 17 * fanout + 7):
        geometry = geometry_for_size(pages * page, block_size)
        device.resize(geometry.end)
        grow(volume, geometry)
        volume.commit()
        report = check_device(device)
        assert report.clean, "\n".join(report.to_text())
        assert "holes-behind-end" not in {note.kind.name for note in report.notes}
    volume.close()
    assert_sound(device)
