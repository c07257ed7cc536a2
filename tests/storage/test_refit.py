"""Making a volume fit: nothing of its files changes, what is left is an ordinary volume, and memory stays small."""

from __future__ import annotations

import random

import pytest
from support import MIB, START, Clock, assert_sound

from cowfs.errors import InvalidArgument, NoSpace
from cowfs.fs import Caller, Filesystem
from cowfs.fs.snapshot import Snapshots
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import Geometry
from cowfs.storage import volume as volume_module
from cowfs.storage.device import MemoryDevice
from cowfs.storage.mkvolume import make_volume
from cowfs.storage.refit import refit
from cowfs.storage.volume import Volume

CALLER = Caller()


def roomy_volume(block_size: int, blocks: int = 1 << 22) -> tuple[MemoryDevice, Volume]:
    """A volume that is far too large, open."""
    geometry = Geometry(block_size, blocks)
    device = MemoryDevice(geometry.end)
    make_volume(device, geometry, label=b"fit", uuid=bytes(range(16)), now_ns=START)
    volume = Volume.open(device, clock=lambda: START)
    assert volume.spacemap is not None
    volume.spacemap.data_hint = 4
    return device, volume


def filled(volume: Volume, seed: int, data: int) -> dict[bytes, bytes]:
    """Files of about `data` bytes in all, of which some went again; contents by name."""
    rng = random.Random(seed)
    filesystem = Filesystem(volume, clock=Clock())
    files: dict[bytes, bytes] = {}
    while sum(map(len, files.values())) < data:
        name = b"%d" % len(files) + b" with a name of more than 27 bytes" * (len(files) % 2)
        files[name] = rng.randbytes(rng.choice((0, 100, 5000, 200_000)))
        ino = filesystem.create(f.ROOT_INODE, name, 0o644, CALLER).ino
        filesystem.write(ino, 0, files[name])
        if len(files) % 30 == 0:
            filesystem.sync()
    for name in rng.sample(sorted(files), len(files) // 5):
        filesystem.unlink(f.ROOT_INODE, name)
        del files[name]
    while volume.reclaim_slice():
        filesystem.sync()
    filesystem.close()
    return files


def contents(filesystem: Filesystem) -> dict[bytes, bytes]:
    entries = list(filesystem.listing(f.ROOT_INODE).entries())[2:]
    return {name: filesystem.read(number, 0, 1 << 20) for _, name, number, _ in entries}


@pytest.mark.parametrize("block_size", f.BLOCK_SIZES)
@pytest.mark.parametrize("data", [0, 3 * MIB])
@pytest.mark.parametrize("in_slices", [False, True])
def test_the_files_stay_and_the_rest_goes(
    block_size: int, data: int, in_slices: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, volume = roomy_volume(block_size)
    files = filled(volume, block_size, data)
    used = volume.geometry.num_blocks - volume.superblock.free_blocks
    if in_slices:  # as a volume of many gigabytes does
        monkeypatch.setattr(volume_module, "MUST_WAIT_BYTES", 0)
    geometry = refit(volume, label=b"fit", now_ns=START)
    monkeypatch.undo()
    device.resize(geometry.end)
    assert_sound(device)
    # What was removed left gaps, and files are not moved.
    assert geometry.num_blocks <= max(used * 1.5 + 8 * volume_module.MARGIN_MAX, MIB // block_size)
    again = Volume.open(device)
    assert again.extension is not None and not again.notes
    assert again.extension.label.rstrip(b"\0") == b"fit"
    assert again.extension.generation == volume.extension.generation  # type: ignore[union-attr]
    filesystem = Filesystem(again, clock=Clock())
    assert contents(filesystem) == files
    for name in files:  # what the reserve is for
        filesystem.unlink(f.ROOT_INODE, name)
    while again.reclaim_slice():
        filesystem.sync()
    with pytest.raises(NoSpace):
        ino = filesystem.create(f.ROOT_INODE, b"fills", 0o644, CALLER).ino
        for number in range(1 << 20):
            filesystem.write(ino, number * 65536, random.Random(number).randbytes(65536))
    filesystem.close()
    assert_sound(device)


@pytest.mark.interpreted
def test_an_interrupted_one_leaves_no_volume_rather_than_a_wrong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    device, volume = roomy_volume(1024)
    filled(volume, 1, MIB)
    monkeypatch.setattr(Volume, "settle", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        refit(volume, label=b"", now_ns=START)
    monkeypatch.undo()
    with pytest.raises(Exception, match="no valid superblock"):
        Volume.open(device, read_only=True)


def test_a_volume_with_snapshots_is_left_alone() -> None:
    device, volume = roomy_volume(4096)
    snapshots = Snapshots(volume, clock=Clock())
    snapshots.create(b"s")
    snapshots.close()
    before = device.bytes_written
    with pytest.raises(InvalidArgument, match="without snapshots"):
        refit(volume, label=b"", now_ns=START)
    assert device.bytes_written == before
