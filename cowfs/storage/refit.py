"""Makes a volume as small as its contents allow, without moving any of them: for images that are filled once.

A volume that was filled from the front has all it holds in its first blocks. Its files stay where they are; the trees that
describe the allocation (bitmap, checksums, references) are as large as the volume, so the smaller volume gets new ones,
which are put between and behind what is there. What writing and removing need stays free (I12), so the result is an
ordinary volume, though a full one.

This is no commit: the old slots are wiped first, and a volume is there again only at the end. Memory: the bitmap; checksums
are taken over bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cowfs.errors import InvalidArgument
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import Geometry, geometry_for_size
from cowfs.storage.mkvolume import empty_volume, fill_zero_blocks, write_boot_block
from cowfs.storage.transaction import runs_of
from cowfs.storage.volume import Volume, margin_of, system_capacity

CHUNK: Final = 1 << 14  # checksums taken over at a time
_SLACK: Final = 64  # blocks for what the last commits copy


def refit(volume: Volume, *, label: bytes, now_ns: int) -> Geometry:
    """Shrinks `volume`, whose device may then be cut behind the geometry returned; the object is of no use afterwards.

    It was settled, and has nothing but its live tree. Raises InvalidArgument where it has, Corrupt, DeviceError.
    """
    extension, spacemap = volume.extension, volume.spacemap
    assert extension is not None and spacemap is not None and not volume.dirty
    if extension.snapshot_count or extension.reclaim_count or extension.settings.size:
        raise InvalidArgument("only a volume without snapshots and settings, with nothing to reclaim, is made to fit")
    system = sorted(block for tree in volume.system_trees for block in tree.blocks())
    runs = list(_used_runs(volume))
    geometry = _least_geometry(volume, len(system), sum(runs[-1]))
    device = volume.device
    for offset in volume.geometry.slot_offsets:
        device.write(offset, [bytes(f.SLOT_AREA_SIZE)])
    new = empty_volume(device, geometry, label, volume.superblock.volume_id, now_ns)
    assert new.extension is not None and new.spacemap is not None and new.tx is not None
    fill_zero_blocks(new)
    for start, count in runs:
        new.spacemap.adopt(start, count)
    new.live.become(volume.live)
    new.extension.generation = extension.generation
    new.tx.changes += 1
    _take_checksums(volume, new, runs)
    new.settle()
    for start, count in runs_of(system):
        new.spacemap.free_run(start, count)
    new.tx.changes += 1
    new.settle()
    write_boot_block(device, geometry)
    return geometry


def _used_runs(volume: Volume) -> Iterator[tuple[int, int]]:
    """(first, count) of the blocks in use behind the Z blocks, within bitmap pages."""
    assert volume.spacemap is not None
    pinned = len(volume.zero_blocks)
    left = volume.geometry.num_blocks - volume.spacemap.free - pinned
    page_bits = volume.geometry.block_size * 8
    index = 0
    while left:
        bits = int.from_bytes(volume.bitmap.page(index), "little")
        if index == 0:
            bits = bits >> pinned << pinned
        at = 0
        while bits and left:
            skip = (bits & -bits).bit_length() - 1
            bits >>= skip
            length = (~bits & (bits + 1)).bit_length() - 1
            length = min(length, left)
            yield index * page_bits + at + skip, length
            bits >>= length
            at += skip + length
            left -= length
        index += 1


def _least_geometry(volume: Volume, system_blocks: int, end: int) -> Geometry:
    """The smallest geometry for what is there: where it ends, with its new system trees, and with what must stay free."""
    assert volume.spacemap is not None
    block_size, most = volume.geometry.block_size, volume.geometry.num_blocks
    used = most - volume.spacemap.free
    blocks = max(end, geometry_for_size(f.VOLUME_SIZE_MIN, block_size).num_blocks)
    while True:
        geometry = Geometry(block_size, blocks)
        capacity = system_capacity(geometry)
        wanted = max(
            used + capacity + _SLACK,
            used - system_blocks + 2 * capacity + 4 * margin_of(blocks) + _SLACK,
        )
        if wanted <= blocks or blocks == most:
            return geometry
        blocks = min(wanted, most)


def _take_checksums(volume: Volume, new: Volume, runs: list[tuple[int, int]]) -> None:
    """Enters the checksums of what is taken over; what becomes too much for memory is written, but for the slots."""
    for first, total in runs:
        for start in range(first, first + total, CHUNK):
            count = min(CHUNK, first + total - start)
            new.checksums.set_run(start, volume.checksums.get_run(start, count))
            if new.must_wait:
                sealed = new.seal(complete=True)
                sealed.write_blocks()
                new.publish(sealed)
                assert new.tx is not None
                new.tx.changes += 1
