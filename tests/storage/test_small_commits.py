"""What the least change costs: blocks written by overwriting one block of a file and committing.

The numbers depend on how deep the trees are, and on nothing else: not on the size of the volume or of the file.
"""

from __future__ import annotations

import random

import pytest
from plainfiles import MIB, PlainFiles, new_device

from cowfs.ondisk import format as f
from cowfs.storage.device import MemoryDevice
from cowfs.storage.volume import Volume

TIB = 1 << 40
COMMITS = 16


def costs(block_size: int, size: int, end: int) -> tuple[int, list[tuple[int, int, int]]]:
    """The depth of the file, and (bytes written, flushes, reads) of each of some commits of one block."""
    files = PlainFiles(Volume.open(new_device(size, block_size)), inode_leaves=500)
    device = files.volume.device
    assert isinstance(device, MemoryDevice)
    number = files.create(number=files.volume.live.num_inodes)
    files.write(number, 0, b"a" * 12 * block_size)
    files.write(number, end - 4 * block_size, b"z" * 4 * block_size)
    files.volume.commit()
    files.volume.commit()
    found = []
    for step in range(COMMITS):
        device.reset_counters()
        place = step % 4 * block_size
        files.write(number, end - 4 * block_size + place if step % 2 else place, bytes([step]) * block_size)
        files.volume.commit()
        found.append((device.bytes_written, device.flushes, device.reads))
    files.check()
    return files.root(number).levels, found


@pytest.mark.parametrize(
    ("block_size", "size", "most"),
    [(4096, 64 * MIB, 6), (4096, 4 * TIB, 13), (512, 64 * MIB, 9), (512, TIB, 19)],
)
def test_one_block_costs_a_handful(block_size: int, size: int, most: int) -> None:
    """Besides the block, the slot and the indirect blocks above it: the inode's leaf and what is above it, and of bitmap
    and checksums a path for the region where data lies and one for the region of metadata."""
    file_size_max = min(16 * (block_size // 4) ** 3, f.BLOCK_COUNT_MAX) * block_size
    seen = set()
    for end in (16 * block_size, MIB, 200 * MIB, file_size_max):
        levels, found = costs(block_size, size, end)
        blocks = {(written - f.SLOT_AREA_SIZE) // block_size for written, _, _ in found}
        assert max(blocks) - levels <= most
        assert max(blocks) - min(blocks) <= 1
        assert {(flushes, reads) for _, flushes, reads in found} == {(1, 0)}
        seen.add(max(blocks) - levels)
    # One more where what is written together lies on the border of two pages of checksums.
    assert max(seen) - min(seen) <= 1, "it depends on the size of the file"


def test_a_small_commit_is_three_writes() -> None:
    """The data beside the file's, all metadata in one run, and the slot; in the long run, too, and near the front."""
    files = PlainFiles.make(256 * MIB)
    device = files.volume.device
    assert isinstance(device, MemoryDevice)
    choose = random.Random(5)
    number = files.create()
    for at in range(0, 96 * MIB, MIB):
        files.write(number, at, b"x" * MIB)
    files.volume.commit()
    assert files.volume.spacemap is not None
    for _ in range(4):
        device.reset_counters()
        for step in range(200):
            files.write(number, choose.randrange(96 * MIB // 4096) * 4096, bytes([step]) * 4096)
            files.volume.commit()
        assert device.writes <= 200 * 3.5
        assert device.flushes == 200
        assert files.volume.spacemap.metadata_hint < 8192
    files.check()


def test_the_number_of_commits_before_does_not_matter() -> None:
    """A volume that has seen many commits is not scattered by them: metadata takes the blocks that came back."""
    files = PlainFiles.make(64 * MIB)
    device = files.volume.device
    assert isinstance(device, MemoryDevice)
    number = files.create()
    files.write(number, 0, b"x" * 100 * 4096)
    files.volume.commit()
    written = []
    for step in range(300):
        device.reset_counters()
        files.write(number, step % 100 * 4096, bytes([step % 256]) * 4096)
        files.volume.commit()
        written.append(device.bytes_written)
    assert max(written[-50:]) <= max(written[:50])
    files.check()
