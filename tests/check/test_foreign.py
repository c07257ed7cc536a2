"""Foreign volumes: structure is checked, in both byte orders and at every block size; there are no checksums."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from foreign_volume import FILE, RESERVED, ForeignVolume, pointers

from cowfs.check import check_device
from cowfs.ondisk import format as f
from cowfs.ondisk.records import ByteOrder
from cowfs.storage.device import FileDevice

QNX_IMAGE = "COWFS_QNX_IMAGE"
"""Names a volume that QNX's own tools made. None can be kept here: their boot block holds QNX's code."""


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("block_size", f.FOREIGN_BLOCK_SIZES)
def test_a_sound_foreign_volume(block_size: int, order: ByteOrder) -> None:
    device = ForeignVolume(block_size, order).build()
    before = device.image()
    report = check_device(device)
    assert not report.totals, report.to_text()
    assert report.foreign
    assert (report.counts.files, report.counts.directories) == (1, 1)
    assert report.counts.blocks_in_use == 5
    assert device.image() == before


def test_a_foreign_volume_without_boot_block() -> None:
    report = check_device(ForeignVolume(1024, boot_block=False).build())
    assert not report.totals, report.to_text()


@pytest.mark.parametrize("order", ["<", ">"])
def test_damage_to_a_foreign_volume_is_found(order: ByteOrder) -> None:
    volume = ForeignVolume(1024, order)
    volume.inodes[2].links = 7
    volume.used.remove(FILE)
    report = check_device(volume.build())
    assert {problem.kind.name for problem in report.problems} == {"link-count", "bitmap-free", "free-blocks"}


def test_a_block_of_a_foreign_volume_has_one_parent() -> None:
    volume = ForeignVolume(1024)
    volume.inodes[2].ptr = pointers(FILE, FILE, RESERVED)
    assert [problem.kind.name for problem in check_device(volume.build()).problems] == ["block-shared"]


def test_names_in_a_foreign_volume() -> None:
    """A deleted entry and an encrypted name are ordinary; a length that no entry has is not."""
    volume = ForeignVolume(1024)
    volume.inodes[2].links = 3
    volume.entries.append(f.ShortEntry(2, 0xFE, b"\x01\x02\x03"))
    assert not check_device(volume.build()).totals
    volume.entries[-1] = f.ShortEntry(2, 0x40, b"name")
    assert [problem.kind.name for problem in check_device(volume.build()).problems] == ["entry-name"]


def test_one_torn_slot_of_a_foreign_volume() -> None:
    volume = ForeignVolume(8192)
    device = volume.build()
    device.write(volume.geometry.slot_offsets[1] + 8, [b"torn"])
    report = check_device(device)
    assert report.clean
    assert [note.kind.name for note in report.notes] == ["slot-invalid"]
    assert report.slot == 1


@pytest.mark.skipif(QNX_IMAGE not in os.environ, reason=f"{QNX_IMAGE} does not name a volume made by QNX")
def test_a_volume_made_by_qnx() -> None:
    device = FileDevice.open(Path(os.environ[QNX_IMAGE]), read_only=True)
    try:
        for slot in (None, 1, 2):
            report = check_device(device, superblock=slot)
            assert not report.totals, report.to_text()
            assert report.foreign
    finally:
        device.close()
