"""Whatever the bytes are, a check ends, and raises nothing but our own errors."""

from __future__ import annotations

import random
import time

import pytest
from damage import Image
from damage_sample import sample
from foreign_volume import ForeignVolume

from cowfs.check import check_device
from cowfs.errors import CowfsError
from cowfs.ondisk import format as f
from cowfs.storage.device import MemoryDevice

SECONDS_MAX = 20


def survives(device: MemoryDevice, what: str) -> bool:
    """Checks; whether there was something to report. Fails for an exception that is not ours, and for slowness."""
    begin = time.monotonic()
    try:
        found = bool(check_device(device).totals)
    except CowfsError:
        found = True
    assert time.monotonic() - begin < SECONDS_MAX, what
    return found


def test_changed_bytes_behind_right_checksums() -> None:
    """Random words of random blocks in use, with all checksums put right: what a malicious image can do."""
    original = Image(sample().device())
    used = {n for n in range(original.geometry.num_blocks) if any(original.block(n))}
    blocks = sorted(used - original.checksum_blocks())
    found = 0
    for seed in range(400):
        rng = random.Random(seed)
        device = sample().device()
        image = Image(device)
        for _ in range(rng.choice([1, 1, 3, 10])):
            with image.edit(rng.choice(blocks)) as data:
                at = rng.randrange(0, len(data), 4)
                value = rng.choice(
                    [0, 1, 3, rng.choice(blocks), f.NO_BLOCK, rng.getrandbits(32), 1 << rng.randrange(32)]
                )
                data[at : at + 4] = value.to_bytes(4, "little")
        image.fix_checksums()
        image.write_slot(1)
        found += survives(device, f"seed {seed}")
    assert found > 200


@pytest.mark.parametrize("slot", [1, 2])
def test_inverted_bytes_of_a_slot(slot: int) -> None:
    """With checksums left wrong: the other slot is used, and the volume is sound."""
    offset = Image(sample().device()).geometry.slot_offsets[slot - 1]
    device = sample().device()
    for at in range(offset, offset + f.SLOT_AREA_SIZE, 13):
        byte = device.read(at, 1)
        device.write(at, [bytes([byte[0] ^ 0xFF])])
        report = check_device(device)
        assert set(report.totals) == {101}, f"byte {at:#x}: {report.to_text()}"
        assert report.slot == 3 - slot
        device.write(at, [byte])


def test_changed_records_behind_right_checksums() -> None:
    """Random words of the superblock record and the extension area."""
    for seed in range(400):
        rng = random.Random(seed)
        device = sample().device()
        image = Image(device)
        raw = bytearray(image.superblock.pack() + image.extension.pack())
        for _ in range(rng.choice([1, 2, 5])):
            at = rng.randrange(f.CRC_START, len(raw), 4)
            value = rng.choice([0, 1, f.NO_BLOCK, rng.getrandbits(32), rng.getrandbits(12), 1 << rng.randrange(32)])
            raw[at : at + 4] = value.to_bytes(4, "little")
        image.superblock = f.Superblock.unpack(raw)
        image.extension = f.Extension.unpack(raw, f.RECORD_SIZE)
        image.write_slot(1)
        survives(device, f"seed {seed}")


def test_changed_bytes_of_a_foreign_volume() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        volume = ForeignVolume(rng.choice([512, 8192]), rng.choice(["<", ">"]))
        device = volume.build()
        for _ in range(rng.choice([1, 4, 20])):
            at = volume.geometry.data_start + rng.randrange(5 * volume.geometry.block_size)
            device.write(at, [bytes([rng.getrandbits(8)])])
        survives(device, f"seed {seed}")


def test_indirect_blocks_that_contain_themselves() -> None:
    """A tree of the greatest depth whose every pointer is the same block: for inodes, files, directories and names."""
    for kind in ("file", "directory", "inodes", "longnames", "snapshots", "reclaim", "bitmap", "references"):
        device = sample().device()
        image = Image(device)
        block = image.free_block()
        image.take_block(block.to_bytes(4, "little") * image.geometry.fanout)
        root = f.RootNode(16 * 128**3 * 512, (block,) * f.POINTER_COUNT, f.LEVEL_MAX)
        if kind in ("file", "directory"):
            with image.edit_inode(sample().inodes["small" if kind == "file" else "dir"]) as inode:
                inode.size, inode.levels, inode.ptr = root.size, root.levels, root.ptr
        elif kind in f.EXTENSION_ROOTS:
            setattr(image.extension, kind, root)
            image.extension.reclaim_count = image.extension.snapshot_count = 0xFFFFFFFF
        else:
            setattr(image.superblock, {"inodes": "inode", "longnames": "longfile"}.get(kind, kind), root)
        image.fix_checksums()
        image.write_slot(1)
        assert survives(device, kind), kind


def test_huge_sizes_of_holes() -> None:
    """Trees that are one hole as large as can be, as directory, inode file, names, orphan list and tables."""
    for kind in ("directory", "orphans", "inode", "longfile", "snapshots", "reclaim", "bitmap", "xattrs"):
        device = sample().device()
        image = Image(device)
        root = f.RootNode(16 * 128**3 * 512, (image.zero_blocks[3],) * f.POINTER_COUNT, f.LEVEL_MAX)
        numbers = {
            "directory": sample().inodes["dir"],
            "orphans": f.ORPHAN_INODE,
            "xattrs": image.inode(sample().inodes["attr"]).xattr_inode,
        }
        if kind in numbers:
            with image.edit_inode(numbers[kind]) as inode:
                inode.size, inode.levels, inode.ptr = root.size, root.levels, root.ptr
        elif kind in f.EXTENSION_ROOTS:
            setattr(image.extension, kind, root)
            image.extension.reclaim_count = 0xFFFFFFFF
        else:
            setattr(image.superblock, kind, root)
            image.superblock.num_inodes = 0xFFFFFFFF
        image.fix_checksums()
        image.write_slot(1)
        assert survives(device, kind) or kind == "snapshots", kind
