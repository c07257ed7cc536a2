"""Merging an overlay into its base: what is there afterwards, what is refused, and how much it costs."""

from __future__ import annotations

import random

import pytest

from cowfs.check import check_device, check_image
from cowfs.errors import BaseChanged, Corrupt, InvalidArgument, NoSpace, NotSupported, ReadOnly
from cowfs.fs import Caller
from cowfs.fs.snapshot import Snapshots
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import Geometry, geometry_for_size
from cowfs.storage.device import Device, MemoryDevice
from cowfs.storage.layers import LayeredDevice
from cowfs.storage.merge import empty_overlay, examine, merge, settle_base
from cowfs.storage.mkvolume import make_volume
from cowfs.storage.overlay import require_settled, set_seal
from cowfs.storage.resize import grow
from cowfs.storage.superblock import read_slots
from cowfs.storage.volume import Volume
from tests.layered import again, new_overlay
from tests.storage.test_overlay import GIB, contents, fill, some_files
from tests.support import MIB, START, new_device

ROOT = Caller(0, 0)
LATER = START + 10**12


def merged(overlay: LayeredDevice) -> LayeredDevice:
    """All of a merge: the overlay as it is afterwards."""
    top, base = overlay.top, overlay.base
    merge(top, base, now_ns=LATER)
    check_image(base)
    assert settle_base(base) == []
    empty_overlay(top, base, now_ns=LATER)
    return again(overlay)


def base_of(files: dict[bytes, bytes], *, size: int = 8 * MIB, block_size: int = 4096) -> MemoryDevice:
    device = new_device(size, block_size)
    fill(device, files)
    return device


@pytest.mark.parametrize("block_size", f.BLOCK_SIZES)
@pytest.mark.parametrize("more", [0, 700])
def test_the_base_gets_what_the_overlay_has(block_size: int, more: int) -> None:
    check_merging(block_size, more)


@pytest.mark.parametrize("more", [8, 40_000])
def test_overlays_that_end_just_behind_slot_2_of_the_base_or_far_away(more: int) -> None:
    check_merging(512, more)


@pytest.mark.parametrize(("block_size", "more"), [(512, 1), (512, 7), (1024, 1), (2048, 1)])
def test_an_overlay_whose_slot_2_lies_in_that_of_the_base_is_not_merged(block_size: int, more: int) -> None:
    """Else Linux, which wants both, would find one of them torn. mkcowfs makes none such; a larger one is merged."""
    base = base_of(some_files(1, count=2), size=2 * MIB, block_size=block_size)
    blocks = read_slots(base).newest.geometry.num_blocks
    with pytest.raises(InvalidArgument, match="or at least"):
        new_overlay(base, size=base.size() + more * block_size)
    overlay = new_overlay(base, geometry=Geometry(block_size, blocks + more))
    new = some_files(2, count=2)
    fill(again(overlay), new)
    before = base.image()
    for step in (lambda: examine(overlay.top, base), lambda: merge(overlay.top, base, now_ns=START)):
        with pytest.raises(NotSupported, match=r"'cowfs resize overlay 1 \+4096' first"):
            step()
    assert base.image() == before
    volume = Volume.open(again(overlay))
    grow(volume, Geometry(block_size, blocks + more + f.SLOT_AREA_SIZE // block_size))
    volume.settle()
    after = merged(again(overlay))
    check_image(base)
    assert contents(base) == contents(after) == some_files(1, count=2) | new


def check_merging(block_size: int, more: int) -> None:
    """All of a merge, of an overlay that is so many blocks larger than its base."""
    old, new = some_files(1, count=6), some_files(2, count=6)
    base = base_of(old, size=2 * MIB, block_size=block_size)
    identity = read_slots(base).newest
    overlay = new_overlay(base, size=base.size() + more * block_size)
    gone = next(iter(old))
    fill(again(overlay), new, remove=(gone,))
    wanted = {name: data for name, data in (old | new).items() if name != gone}
    plan = examine(overlay.top, base)
    assert plan.blocks * block_size == plan.size > sum(map(len, new.values()))
    after = merged(overlay)
    check_image(base)
    check_image(after)
    assert contents(base) == contents(after) == wanted
    slots = require_settled(base)
    assert slots.newest.superblock.volume_id == identity.superblock.volume_id
    assert slots.newest.superblock.ctime == identity.superblock.ctime
    assert slots.newest.extension is not None and identity.extension is not None
    assert slots.newest.extension.label == identity.extension.label
    assert slots.newest.extension.resizing == 0
    assert slots.newest.geometry.num_blocks == identity.geometry.num_blocks + more
    assert base.size() == overlay.size()


def own_data(device: Device) -> int:
    """Bytes that an overlay's image holds in its data area, about."""
    assert isinstance(device, MemoryDevice)
    return len(device._chunks) * device.CHUNK_SIZE


def test_again_and_again_with_snapshots_and_clones() -> None:
    """The overlay is emptied each time; what the base's tree alone had is free again, and counts are right."""
    base = base_of(some_files(1, count=4))
    snapshots = Snapshots(Volume.open(base))
    snapshots.create(b"of the base")
    snapshots.create(b"to go")
    snapshots.close()
    overlay = new_overlay(base)
    wanted = contents(base)
    for turn in range(3):
        trees = Snapshots(Volume.open(again(overlay)))
        ino = trees.live.create(f.ROOT_INODE, b"file", 0o100644, ROOT).ino
        trees.live.write(ino, 0, random.Random(turn).randbytes(500_000))
        trees.create(b"snapshot %d" % turn)
        trees.live.unlink(f.ROOT_INODE, b"file")
        trees.create(b"clone %d" % turn, writable=True, source=b"of the base")
        if turn == 1:
            trees.delete([b"to go"])
        trees.close()
        before = own_data(overlay.top)
        overlay = merged(overlay)
        assert own_data(overlay.top) < before - 400_000
        for device in (base, overlay):
            check_image(device)
            assert contents(device) == wanted
            for earlier in range(turn + 1):
                found = contents(device, b"snapshot %d" % earlier)
                assert found == wanted | {b"file": random.Random(earlier).randbytes(500_000)}
                assert contents(device, b"clone %d" % earlier) == wanted
            trees = Snapshots(Volume.open(device, read_only=True))
            assert len(trees) == 2 * turn + 3 + (turn < 1)


def test_what_only_the_old_state_needed_is_free_afterwards() -> None:
    base = base_of({b"large": random.Random(1).randbytes(4 * MIB)})
    overlay = new_overlay(base, size=base.size())
    fill(again(overlay), {b"small": b"x"}, remove=(b"large",))
    used = read_slots(base).newest.superblock
    merged(overlay)
    now = read_slots(base).newest.superblock
    assert now.free_blocks > used.free_blocks + 1000
    assert contents(base) == {b"small": b"x"}


def test_an_overlay_that_would_have_no_room_gets_larger() -> None:
    base = base_of({}, size=2 * MIB)
    overlay = new_overlay(base, size=4 * MIB)
    trees = Snapshots(Volume.open(again(overlay)))
    ino = trees.live.create(f.ROOT_INODE, b"large", 0o100644, ROOT).ino
    with pytest.raises(NoSpace):
        for at in range(0, 4 * MIB, 4096):
            trees.live.write(ino, at, random.Random(at).randbytes(4096))
    trees.close()
    after = merged(overlay)
    check_image(after)
    assert after.size() > 7 * MIB and contents(after) == contents(base)
    fill(after, {b"more": b"y" * MIB})
    check_image(again(after))


def test_a_chain_of_four_whose_top_is_merged() -> None:
    """Into the layer below it, which stays an overlay, and so on down to the whole volume."""
    layers: list[LayeredDevice] = []
    device: Device = base_of(some_files(0, count=4), size=2 * MIB, block_size=512)
    sizes = (0, MIB, 0, 300_000)
    wanted = contents(device)
    for number, more in enumerate(sizes, 1):
        overlay = new_overlay(device, size=device.size() + more, number=number)
        files, gone = some_files(number, count=3), sorted(wanted)[0]
        fill(again(overlay), files, remove=(gone,))
        wanted = {name: data for name, data in (wanted | files).items() if name != gone}
        device = again(overlay)
        layers.append(device)
    for depth in (4, 3, 2, 1):
        overlay = again(layers[depth - 1])
        overlay = merged(overlay)
        for layer in (overlay, again(overlay).base):
            check_image(layer)
            assert contents(layer) == wanted
        extension = read_slots(overlay.base).newest.extension
        assert extension is not None and extension.overlay.depth == depth - 1
        if depth > 1:
            layers[depth - 2] = overlay.base  # type: ignore[assignment]
            more_files = {b"at %d" % depth: b"z" * 3000}
            fill(again(overlay.base), more_files, remove=(sorted(wanted)[0],))  # type: ignore[arg-type]
            wanted = {name: data for name, data in (wanted | more_files).items() if name != sorted(wanted)[0]}
            check_image(again(overlay.base))  # type: ignore[arg-type]


def test_a_slot_of_the_base_that_rotted_is_written_anew_first() -> None:
    for slot in (1, 2):
        base = base_of(some_files(1, count=3), size=2 * MIB)
        overlay = new_overlay(base)
        fill(again(overlay), {b"new": b"n" * 5000})
        base.write(read_slots(base).newest.geometry.slot_offsets[slot - 1] + 100, [b"rotten"])
        after = merged(again(overlay))
        check_image(base)
        assert contents(base) == contents(after) == some_files(1, count=3) | {b"new": b"n" * 5000}


# --- refused ---


def test_other_overlays_are_told_that_the_base_changed() -> None:
    base = base_of({})
    one, other = new_overlay(base, number=1), new_overlay(base, number=2)
    merge(one.top, base, now_ns=LATER)
    with pytest.raises(BaseChanged, match="its base memory is not what it was"):
        again(other)
    with pytest.raises(BaseChanged, match="overlay 1 was merged into its base memory: 'cowfs merge' finishes that"):
        again(one)


def test_sealed_ones_are_not_merged() -> None:
    base = base_of({})
    overlay = new_overlay(base)
    set_seal(base, on=True)
    before = base.image()
    for run in (lambda: merge(overlay.top, base, now_ns=LATER), lambda: examine(overlay.top, base)):
        with pytest.raises(ReadOnly, match="memory: the volume is sealed"):
            run()
    assert base.image() == before


def test_a_whole_volume_is_not_merged() -> None:
    with pytest.raises(InvalidArgument, match="not an overlay"):
        merge(new_device(), new_device(), now_ns=LATER)


def test_a_base_that_changed_is_refused() -> None:
    base = base_of({})
    overlay = new_overlay(base)
    fill(base, {b"more": b"m"})
    before = base.image()
    for run in (lambda: merge(overlay.top, base, now_ns=LATER), lambda: examine(overlay.top, base)):
        with pytest.raises(BaseChanged, match="written since"):
            run()
    assert base.image() == before


def test_damage_in_the_overlay_is_found_before_the_base_has_another_state() -> None:
    base = base_of(some_files(1, count=3), size=2 * MIB)
    overlay = new_overlay(base)
    data = random.Random(9).randbytes(100_000)
    fill(again(overlay), {b"new": data})
    top = overlay.top
    assert isinstance(top, MemoryDevice)
    at = top.image().index(data[50_000:50_064])
    top.write(at, [b"rotten"])
    with pytest.raises(Corrupt, match="'cowfs check' tells whose it is, and nothing was merged"):
        merge(top, base, now_ns=LATER)
    check_image(base)
    assert contents(base) == some_files(1, count=3)
    top.write(at, [data[50_000:50_006]])
    merged(again(overlay))
    assert contents(base)[b"new"] == data


# --- tried again ---


def test_a_base_that_went_on_after_an_unfinished_merge_is_recognised() -> None:
    """The base was mounted and changed, and even grew, before the overlay was emptied."""
    base = base_of({}, size=2 * MIB)
    overlay = new_overlay(base, size=2 * MIB)
    fill(again(overlay), {b"one": b"1" * 9000})
    merge(overlay.top, base, now_ns=LATER)
    fill(base, {b"two": b"2" * 9000})
    assert examine(overlay.top, base).done
    before = read_slots(base).newest.serial
    merge(overlay.top, base, now_ns=LATER)
    assert read_slots(base).newest.serial == before
    settle_base(base)
    after = empty_overlay(overlay.top, base, now_ns=LATER)
    assert contents(again(after)) == contents(base) == {b"one": b"1" * 9000, b"two": b"2" * 9000}
    check_image(again(after))


def test_an_overlay_that_was_not_merged_is_not_emptied() -> None:
    base = base_of({})
    overlay = new_overlay(base)
    with pytest.raises(InvalidArgument, match="was not merged into"):
        empty_overlay(overlay.top, base, now_ns=LATER)
    check_device(again(overlay))


# --- costs ---


def costs_of(size: int) -> dict[str, int]:
    """What merging the same changes into a sparse base of this size costs."""
    base = MemoryDevice(size)
    make_volume(base, geometry_for_size(size, 4096), label=b"", uuid=bytes(16), now_ns=START)
    fill(base, some_files(1, count=30))
    top = MemoryDevice(size)
    overlay = new_overlay(base, top=top, size=size)
    fill(again(overlay), some_files(2, count=50, size=200_000), remove=(b"1-0", b"1-7"))
    base.reset_counters()
    top.reset_counters()
    merge(top, base, now_ns=LATER)
    found = {"merge: reads": base.reads + top.reads, "merge: writes": base.writes + top.writes}
    found["merge: bytes written"] = base.bytes_written + top.bytes_written
    found["merge: bytes read"] = base.bytes_read + top.bytes_read
    base.reset_counters()
    settle_base(base)
    found |= {"settle: reads": base.reads, "settle: writes": base.writes}
    base.reset_counters()
    top.reset_counters()
    empty_overlay(top, base, now_ns=LATER)
    found |= {"empty: reads": base.reads + top.reads, "empty: writes": base.writes + top.writes}
    check_image(base)
    return found


def test_merging_costs_the_same_in_1_gib_and_100_gib() -> None:
    """But for a level more of the trees that describe the allocation."""
    small, large = costs_of(GIB), costs_of(100 * GIB)
    print(small, large)
    for name, count in small.items():
        allowed = 16 * 4096 if "bytes" in name else 16
        assert abs(large[name] - count) <= allowed, (name, small, large)
