"""The record that shows a snapshot to readers of plain qnx6 volumes."""

from __future__ import annotations

import pytest
from support import new_device

from cowfs.errors import Corrupt, NotFound
from cowfs.fs import Caller
from cowfs.fs.snapshot import Snapshots
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import qnx_crc
from cowfs.storage.device import MemoryDevice
from cowfs.storage.volume import Volume


def test_it_names_the_snapshots_tree_and_is_no_slot_of_ours() -> None:
    device = new_device(block_size=1024)
    snapshots = Snapshots(Volume.open(device))
    for number in range(20):
        snapshots.live.create(f.ROOT_INODE, b"%d and a name of more than 27 bytes" % number, 0o644, Caller())
    info = snapshots.create(b"s")
    then = snapshots.volume.live.num_inodes
    for number in range(20, 90):
        snapshots.live.create(f.ROOT_INODE, b"%d" % number, 0o644, Caller())
    snapshots.volume.commit()
    with pytest.raises(NotFound):
        snapshots.volume.forest.exported_record(info.place + 1)
    raw = snapshots.volume.forest.exported_record(info.place)
    live, record = snapshots.volume.superblock, f.Superblock.unpack(raw)
    assert record.checksum == qnx_crc(raw[f.CRC_START :])
    assert record.num_inodes == then < live.num_inodes
    assert record.inode != live.inode and record.longfile.size == 20 * 1024
    assert (record.serial, record.bitmap, record.free_blocks) == (live.serial, live.bitmap, live.free_blocks)
    assert live.anchor.magic == f.ANCHOR_MAGIC and record.anchor == f.no_anchor()
    snapshots.close()
    image = bytearray(device.image())
    for offset in snapshots.volume.geometry.slot_offsets:
        image[offset : offset + len(raw)] = raw
    with pytest.raises(Corrupt, match="without an anchor"):
        Volume.open(MemoryDevice.from_image(bytes(image)), read_only=True)
