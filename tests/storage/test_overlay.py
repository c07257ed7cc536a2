"""Overlays: where blocks lie, what is given out, what is counted, and how much making, opening and resetting one costs."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from cowfs.check import check_device, check_image
from cowfs.check import problem as p
from cowfs.check.repair import copy_device, plan_repair
from cowfs.errors import BaseChanged, CowfsError, DeviceError, InvalidArgument, NoSpace, NotSupported, Unsupported
from cowfs.fs import Caller
from cowfs.fs.snapshot import Snapshots
from cowfs.fs.usage import freed_by
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import Geometry, geometry_for_size
from cowfs.storage.device import Device, MemoryDevice
from cowfs.storage.layers import LayeredDevice
from cowfs.storage.mkvolume import make_volume
from cowfs.storage.overlay import make_whole, require_settled, set_seal, stack
from cowfs.storage.superblock import build_slot, read_slots
from cowfs.storage.volume import Volume
from tests.layered import Base, again, new_overlay
from tests.support import MIB, START, new_device

ROOT = Caller(0, 0)
GIB = 1 << 30


def fill(device: Device, files: dict[bytes, bytes], *, remove: tuple[bytes, ...] = ()) -> None:
    """Writes files into the live tree, removes others, and unmounts."""
    snapshots = Snapshots(Volume.open(device))
    for name, data in files.items():
        ino = snapshots.live.create(f.ROOT_INODE, name, 0o100644, ROOT).ino
        snapshots.live.write(ino, 0, data)
    for name in remove:
        snapshots.live.unlink(f.ROOT_INODE, name)
    snapshots.close()


def contents(device: Device, tree: bytes | None = None) -> dict[bytes, bytes]:
    """All files in the root of the live tree, or of a snapshot."""
    snapshots = Snapshots(Volume.open(device, read_only=True))
    files = snapshots.live if tree is None else snapshots.filesystem(snapshots.find(tree))
    found = {}
    for _, name, ino, _ in files.listing(f.ROOT_INODE).entries():
        if name not in (b".", b".."):
            found[name] = files.read(ino, 0, 1 << 24)
    return found


def some_files(seed: int, count: int = 12, size: int = 60_000) -> dict[bytes, bytes]:
    """Files with names and contents that depend on the seed."""
    maker = random.Random(seed)
    return {b"%d-%d" % (seed, i): maker.randbytes(maker.randrange(1, size)) for i in range(count)}


def base_with(files: dict[bytes, bytes], *, size: int = 16 * MIB, block_size: int = 4096) -> Base:
    """A base that holds these files."""
    device = new_device(size, block_size)
    fill(device, files)
    return Base.of(device)


def settle(volume: Volume) -> None:
    """Works off the reclaim queue, commits, and unmounts."""
    while volume.reclaim_slice():
        volume.commit()
    volume.settle()


# --- what is where ---


@pytest.mark.parametrize("block_size", f.BLOCK_SIZES)
def test_an_overlay_begins_as_its_base_and_changes_nothing_in_it(block_size: int) -> None:
    old, new = some_files(1), some_files(2)
    base = base_with(old, block_size=block_size)
    before = base.image()
    overlay = new_overlay(base)
    assert contents(again(overlay)) == old
    check_image(overlay)
    gone = next(iter(old))
    fill(again(overlay), new, remove=(gone,))
    check_image(again(overlay))
    assert contents(again(overlay)) == {name: data for name, data in (old | new).items() if name != gone}
    assert base.image() == before
    assert contents(base) == old


def extra_sizes() -> dict[str, int]:
    """How much longer an overlay is than its base, in blocks: less than slot 2, exactly that, and pages of the bitmap."""
    return {"none": 0, "one block": 1, "slot 2": 8, "within the page": 700, "next page": 4096, "another level": 70_000}


@pytest.mark.parametrize("more", extra_sizes().values(), ids=extra_sizes())
@pytest.mark.parametrize("blocks", [4096 * 2, 4096 * 2 - 3, 4096 + 1])
def test_overlays_of_every_size(blocks: int, more: int) -> None:
    """Blocks of 512 bytes: slot 2 of the base lies under 8 blocks of a larger overlay, and a bitmap page has 4096 bits."""
    size = 0x4000 + blocks * 512
    base = base_with(old := some_files(1, size=40_000), size=size, block_size=512)
    overlay = new_overlay(base, geometry=Geometry(512, blocks + more))  # mkcowfs makes none that is one block larger
    check_image(overlay)
    snapshots = Snapshots(Volume.open(again(overlay)))
    ino = snapshots.live.create(f.ROOT_INODE, b"all", 0o100644, ROOT).ino
    with pytest.raises(NoSpace):
        for at in range(0, 1 << 30, 1 << 16):
            snapshots.live.write(ino, at, random.Random(at).randbytes(1 << 16))
    snapshots.close()
    check_image(again(overlay))
    assert {name: data for name, data in contents(again(overlay)).items() if name != b"all"} == old


def test_what_the_base_uses_is_never_given_out_even_when_it_is_free_here() -> None:
    old = some_files(1, count=20)
    base = base_with(old, size=4 * MIB)
    overlay = new_overlay(base, size=4 * MIB)
    layers = again(overlay)
    snapshots = Snapshots(Volume.open(layers))
    volume = snapshots.volume
    assert volume.spacemap is not None and volume.extension is not None
    statfs = snapshots.live.statfs()
    for name in old:
        snapshots.live.unlink(f.ROOT_INODE, name)
    volume.forest.drop(volume.forest.base_place)  # not even the tree for resets needs them any more
    volume.extension.overlay.base_snapshot, volume.extension.overlay.depth = 0, 1
    settle(volume)
    freed = sum(-(-len(data) // 4096) for data in old.values())
    assert volume.spacemap.buried_free > freed > 50
    assert volume.superblock.free_blocks == volume.spacemap.free
    after = snapshots.live.statfs()
    assert after.free - statfs.free < 40  # space is only what the overlay itself had
    ino = snapshots.live.create(f.ROOT_INODE, b"all", 0o100644, ROOT).ino
    with pytest.raises(NoSpace):
        for at in range(0, 4 * MIB, 1 << 14):
            snapshots.live.write(ino, at, random.Random(at).randbytes(1 << 14))
    assert not volume.latched  # refused before anything changed, since what is buried counts as no space
    snapshots.close()
    assert not [problem for problem in check_device(again(overlay)).problems if problem.kind is not p.BASE_TREES]


def test_the_device_itself_refuses_to_write_what_is_buried() -> None:
    base = base_with(some_files(1))
    overlay = new_overlay(base)
    assert overlay.buried.has(0)
    start = read_slots(base).newest.geometry.block_offset(0)
    for offset, length in ((start, 4096), (start - 512, 1024), (start + 512, 512)):
        with pytest.raises(DeviceError, match="would cover a block that its base uses"):
            overlay.write(offset, [bytes(length)])


def test_reads_of_any_range_come_from_the_right_layers() -> None:
    base = base_with(some_files(1))
    overlay = new_overlay(base)
    fill(again(overlay), some_files(2))
    geometry = read_slots(base).newest.geometry
    want = bytearray(overlay.top.read(0, overlay.size()))
    for block in range(geometry.num_blocks):
        if overlay.buried.has(block):
            at = geometry.block_offset(block)
            want[at : at + 4096] = base.read(at, 4096)
    maker = random.Random(5)
    for _ in range(300):
        at = maker.randrange(len(want))
        length = maker.randrange(1, min(200_000, len(want) - at) + 1)
        assert overlay.read(at, length) == want[at : at + length]
        assert overlay.read_medium(at, length) == want[at : at + length]


# --- costs ---


def large_base(size: int) -> Base:
    """A sparse base with the same files, whatever its size."""
    device = MemoryDevice(size)
    make_volume(device, geometry_for_size(size, 4096), label=b"", uuid=bytes(16), now_ns=START)
    fill(device, some_files(1, count=30))
    return Base.of(device)


def costs_of(size: int) -> dict[str, tuple[int, int, int]]:
    """Of each step, (reads of the base, reads of the overlay, writes to it)."""
    base = large_base(size)
    top = MemoryDevice(2 * size)
    found = {}

    def step(name: str, run: Callable[[], object]) -> None:
        base.reset_counters()
        top.reset_counters()
        run()
        found[name] = base.reads, top.reads, top.writes

    overlay = new_overlay(base, top=top)
    found["make"] = base.reads, top.reads, top.writes
    fill(again(overlay), some_files(2, count=50, size=200_000))
    layers: list[LayeredDevice] = []
    step("layers", lambda: layers.append(again(overlay)))
    opened: list[Snapshots] = []
    step("open", lambda: opened.append(Snapshots(Volume.open(layers[0]))))
    step("reset", opened[0].reset)
    step("commit", opened[0].volume.commit)
    opened[0].close()
    return found


def test_making_opening_and_resetting_cost_the_same_for_1_gib_and_100_gib() -> None:
    small, large = costs_of(GIB), costs_of(100 * GIB)
    assert small.keys() == large.keys()
    for step in small:
        # Trees that are deeper by a level: a read, and a write, more for each of those that describe the allocation.
        differences = [b - a for a, b in zip(small[step], large[step], strict=True)]
        assert all(0 <= difference <= 8 for difference in differences), (step, small[step], large[step])
    assert sum(small["open"]) + sum(small["layers"]) < 30
    assert sum(large["make"]) < 80


def test_a_full_base_is_not_searched_for_free_blocks() -> None:
    device = MemoryDevice(64 * MIB)
    make_volume(device, geometry_for_size(64 * MIB, 512), label=b"", uuid=bytes(16), now_ns=START)
    snapshots = Snapshots(Volume.open(device))
    ino = snapshots.live.create(f.ROOT_INODE, b"all", 0o100644, ROOT).ino
    with pytest.raises(NoSpace):
        for at in range(0, 64 * MIB, MIB):
            snapshots.live.write(ino, at, bytes([1]) * MIB)
    snapshots.close()
    base = Base.of(device)
    overlay = new_overlay(base)
    fill(again(overlay), {b"small": b"x" * 1000})
    assert base.reads < 150  # its bitmap alone has 32 pages, and the checksums of each page are others
    check_image(again(overlay))


# --- reset ---


def test_reset_goes_back_to_the_base_again_and_again() -> None:
    old = some_files(1)
    base = base_with(old)
    overlay = new_overlay(base)
    for turn in range(3):
        fill(again(overlay), some_files(10 + turn), remove=(next(iter(old)),))
        snapshots = Snapshots(Volume.open(again(overlay)))
        kept = snapshots.reset(b"kept-%d" % turn if turn != 1 else None)
        assert (kept is None) == (turn == 1)
        snapshots.volume.commit()
        settle(snapshots.volume)
        snapshots.close()
        check_image(again(overlay))
        assert contents(again(overlay)) == old
    assert some_files(10).items() <= contents(again(overlay), b"kept-0").items()
    assert some_files(12).items() <= contents(again(overlay), b"kept-2").items()


def test_reset_frees_what_only_the_overlay_had() -> None:
    overlay = new_overlay(base_with(some_files(1)))
    snapshots = Snapshots(Volume.open(again(overlay)))
    before = snapshots.live.statfs().free
    ino = snapshots.live.create(f.ROOT_INODE, b"large", 0o100644, ROOT).ino
    snapshots.live.write(ino, 0, random.Random(1).randbytes(8 * MIB))
    snapshots.volume.commit()
    assert snapshots.live.statfs().free < before - 2000
    snapshots.reset()
    settle(snapshots.volume)
    assert snapshots.live.statfs().free > before - 20
    snapshots.close()
    check_image(again(overlay))


def test_a_whole_volume_cannot_be_reset() -> None:
    snapshots = Snapshots(Volume.open(new_device()))
    with pytest.raises(NotSupported, match="not an overlay"):
        snapshots.reset()


# --- chains ---


def test_a_chain_of_four_with_snapshots_and_rollback_in_the_top_one() -> None:
    files = some_files(1)
    device: Device = base_with(files)
    for number in range(1, 5):
        overlay = new_overlay(device, number=number)
        more = some_files(100 + number, count=4)
        gone = sorted(files)[number]
        fill(again(overlay), more, remove=(gone,))
        files = {name: data for name, data in (files | more).items() if name != gone}
        assert contents(again(overlay)) == files
        check_image(again(overlay))
        frozen = Base.of(overlay.top)  # type: ignore[arg-type]
        device = again(LayeredDevice(frozen, overlay.base, overlay.buried, overlay.key))
    top = new_overlay(device, number=9)
    snapshots = Snapshots(Volume.open(again(top)))
    assert snapshots.volume.extension is not None and snapshots.volume.extension.overlay.depth == 5
    assert len(snapshots) == 0
    snapshots.create(b"first")
    ino = snapshots.live.create(f.ROOT_INODE, b"new", 0o100644, ROOT).ino
    snapshots.live.write(ino, 0, b"new" * 1000)
    snapshots.create(b"second")
    snapshots.roll_back(b"first")
    settle(snapshots.volume)
    snapshots.close()
    check_image(again(top))
    assert contents(again(top)) == files
    assert contents(again(top), b"second") == files | {b"new": b"new" * 1000}
    snapshots = Snapshots(Volume.open(again(top)))
    snapshots.delete([info.name for info in snapshots])
    snapshots.reset()
    settle(snapshots.volume)
    snapshots.close()
    check_image(again(top))
    assert contents(again(top)) == files


def test_no_more_than_16_layers_lie_below_an_overlay() -> None:
    device: Device = base_with({}, size=2 * MIB, block_size=512)
    for number in range(f.LAYERS_MAX):
        overlay = new_overlay(device, size=(3 + number) * MIB, number=number)
        device = again(overlay)
    with pytest.raises(InvalidArgument, match="16 layers below it"):
        new_overlay(device, size=30 * MIB)


# --- bases ---


def state_of(overlay: LayeredDevice) -> f.OverlayState:
    """What an overlay says of its base."""
    extension = read_slots(overlay.top).newest.extension
    assert extension is not None
    return extension.overlay


def test_a_base_that_changed_is_refused_with_what_changed() -> None:
    device = new_device()
    first = Base.of(device)
    fill(device, some_files(1))
    second = Base.of(device)
    overlay = new_overlay(second)
    fill(device, some_files(2))
    cases = {
        r"it was written since \(its serial moved from \d+ to \d+\)": Base.of(device),
        r"it is an older copy \(serial \d+, wanted \d+\)": first,
        "it has 2044 blocks, wanted 4092": new_device(8 * MIB),
    }
    other = MemoryDevice(16 * MIB)
    make_volume(other, geometry_for_size(16 * MIB, 4096), label=b"", uuid=bytes(16), now_ns=START)
    cases["it is another volume"] = other  # type: ignore[assignment]
    for text, base in cases.items():
        with pytest.raises(BaseChanged, match=text):
            stack(overlay.top, base, state_of(overlay))
    assert stack(overlay.top, Base.of(second), state_of(overlay)).key == overlay.key


def test_commits_that_change_nothing_part_no_base_from_its_overlays() -> None:
    """Opening for writing makes one, whatever follows: a command that is refused, or a mount that only looks."""
    base = new_device()
    fill(base, {b"file": b"old"})
    overlay = new_overlay(base)
    fill(again(overlay), {b"new": b"new"})
    serial = read_slots(base).newest.serial
    for closes in (False, True, False):
        volume = Volume.open(base, clock=lambda: START + 10**15)
        if closes:
            volume.close()
        assert read_slots(base).newest.serial > serial
        assert contents(again(overlay)) == {b"file": b"old", b"new": b"new"}
        check_image(again(overlay))
    fill(base, {b"other": b"x"})
    with pytest.raises(BaseChanged, match="written since"):
        again(overlay)


def test_a_base_with_other_contents_at_the_same_serial_is_refused() -> None:
    device = new_device()
    copy = MemoryDevice.from_image(device.image())
    fill(device, {b"a": b"one"})
    fill(copy, {b"a": b"two"})
    overlay = new_overlay(Base.of(device))
    assert read_slots(device).newest.serial == read_slots(copy).newest.serial
    with pytest.raises(BaseChanged, match="other contents at serial"):
        stack(overlay.top, copy, state_of(overlay))


@pytest.mark.parametrize("slot", [1, 2])
def test_a_slot_of_the_base_that_rots_takes_no_overlay_with_it(slot: int) -> None:
    device = new_device()
    fill(device, files := some_files(1))
    overlay = new_overlay(Base.of(device))
    device.write(read_slots(device).newest.geometry.slot_offsets[slot - 1] + 100, [b"rotten"])
    assert contents(stack(overlay.top, Base.of(device), state_of(overlay))) == files


def test_a_base_that_was_not_unmounted_is_refused() -> None:
    device = new_device()
    volume = Volume.open(device)
    snapshots = Snapshots(volume)
    snapshots.live.create(f.ROOT_INODE, b"a", 0o100644, ROOT)
    volume.commit()
    with pytest.raises(InvalidArgument, match="not cleanly unmounted: mount it once"):
        new_overlay(device)
    snapshots.close()
    require_settled(device)


def test_an_overlay_is_no_smaller_than_its_base() -> None:
    base = base_with({})
    with pytest.raises(InvalidArgument, match="no smaller than its base"):
        new_overlay(base, size=15 * MIB)


def test_a_base_without_room_wants_a_larger_overlay() -> None:
    device = new_device(2 * MIB)
    snapshots = Snapshots(Volume.open(device))
    ino = snapshots.live.create(f.ROOT_INODE, b"all", 0o100644, ROOT).ino
    for size in (MIB >> 3, 1 << 14):
        with pytest.raises(NoSpace):
            for _ in range(200):
                snapshots.live.write(ino, snapshots.live.getattr(ino).size, b"x" * size)
    snapshots.close()
    geometry = read_slots(device).newest.geometry
    base = Base.of(device)
    with pytest.raises(InvalidArgument, match="give it a larger --size"):
        new_overlay(base, size=geometry.end)
    overlay = new_overlay(base)
    fill(again(overlay), {b"more": b"y" * 100_000})
    check_image(again(overlay))


# --- never mistaken ---


def test_an_overlay_without_its_base_is_not_opened() -> None:
    overlay = new_overlay(base_with(some_files(1)))
    with pytest.raises(Unsupported, match="cannot be used without its base"):
        Volume.open(overlay.top)
    with pytest.raises(Unsupported, match="cannot be used without its base"):
        Volume.open(overlay.top, read_only=True)


def test_a_whole_volume_is_not_opened_over_a_base() -> None:
    overlay = new_overlay(base_with(some_files(1)))
    with pytest.raises(Unsupported, match="not that of an overlay"):
        Volume.open(LayeredDevice(new_device(), overlay.base, overlay.buried, overlay.key))


def test_the_record_of_an_overlay_does_not_look_like_one_of_the_family() -> None:
    overlay = new_overlay(base_with(some_files(1)))
    for slot in read_slots(overlay.top).slots.values():
        offset = slot.geometry.slot_offsets[slot.number - 1]
        assert overlay.top.read(offset, 4) == b"cOvl"
        assert slot.extension is not None and slot.extension.incompatible == f.INCOMPATIBLE_OVERLAY


def test_a_slot_with_the_magic_number_of_a_whole_volume_is_not_valid() -> None:
    overlay = new_overlay(base_with(some_files(1)))
    slot = read_slots(overlay.top).slots[2]
    slot.superblock.magic = f.QNX_MAGIC
    slot.superblock.serial += 10
    record, area = build(slot.superblock, slot.extension)
    overlay.top.write(slot.geometry.slot_offsets[1], [record, area])
    assert set(read_slots(overlay.top).slots) == {1}


# --- the seal ---


def test_a_seal_forbids_writing_and_parts_no_base_from_its_overlays() -> None:
    device = new_device()
    fill(device, files := some_files(1))
    overlay = new_overlay(Base.of(device))
    serial = read_slots(device).newest.serial
    assert set_seal(device, on=True)
    assert not set_seal(device, on=True)
    sealed = Base.of(device)
    assert read_slots(device).newest.serial == serial
    assert contents(stack(overlay.top, sealed, state_of(overlay))) == files
    volume = Volume.open(device)
    assert volume.read_only and "sealed" in volume.read_only_reason
    check_image(device)
    another = new_overlay(sealed, number=2)
    fill(again(another), {b"a": b"a"})
    check_image(again(another))
    assert set_seal(device, on=False)
    assert contents(stack(another.top, Base.of(device), state_of(another))) == files | {b"a": b"a"}
    fill(device, {b"b": b"b"})
    assert sealed.image() != device.image()


def test_sealing_settles_first_and_unsealing_copes_with_a_lost_slot() -> None:
    device = new_device()
    volume = Volume.open(device)
    Snapshots(volume).live.create(f.ROOT_INODE, b"a", 0o100644, ROOT)
    volume.commit()
    set_seal(device, on=True)
    assert contents(device) == {b"a": b""}
    for slot in (1, 2):
        copy = MemoryDevice.from_image(device.image())
        copy.write(read_slots(copy).newest.geometry.slot_offsets[slot - 1], [bytes(512)])
        assert set_seal(copy, on=False) or not Volume.open(copy).read_only
        assert not Volume.open(copy).read_only
        assert contents(copy) == {b"a": b""}


# --- checks and copies ---


def test_check_finds_what_was_written_over_a_buried_block() -> None:
    base = base_with(some_files(1))
    overlay = new_overlay(base)
    block = next(number for number in range(40, 4000) if overlay.buried.has(number))
    place = read_slots(base).newest.geometry.block_offset(block)
    overlay.top.write(place, [base.read(place, 4096)])
    check_image(again(overlay))  # a copy of what lies below does no harm
    overlay.top.write(place, [b"stray"])
    report = check_device(again(overlay))
    assert {problem.kind for problem in report.problems} == {p.BURIED_WRITTEN}
    assert report.problems[0].block == block


def test_check_counts_buried_blocks_for_itself() -> None:
    overlay = new_overlay(base_with(some_files(1)))
    slots = read_slots(overlay.top)
    for number, slot in slots.slots.items():
        assert slot.extension is not None
        slot.extension.overlay.buried_free += 1
        record, area = build(slot.superblock, slot.extension)
        overlay.top.write(slot.geometry.slot_offsets[number - 1], [record, area])
    report = check_device(again(overlay))
    assert {problem.kind for problem in report.problems} == {p.BURIED_BLOCKS}


def test_a_repair_of_an_overlay_writes_only_the_overlay() -> None:
    base = base_with(files := some_files(1))
    overlay = new_overlay(base)
    fill(again(overlay), more := some_files(2))
    layers = again(overlay)
    found = read_slots(layers).newest
    state = state_of(overlay)
    state.buried_system += 3
    found.extension.overlay = state  # type: ignore[union-attr]
    found.superblock.free_blocks += 5
    for number in (1, 2):
        found.superblock.serial += 1
        record, area = build(found.superblock, found.extension)
        overlay.top.write(found.geometry.slot_offsets[number - 1], [record, area])
    assert not check_device(again(overlay)).clean
    layers = again(overlay)
    plan = plan_repair(layers)
    plan.apply(layers)
    check_image(again(overlay))
    assert contents(again(overlay)) == files | more


def test_a_copy_of_all_layers_is_a_whole_volume() -> None:
    base = base_with(files := some_files(1))
    lower = new_overlay(base)
    fill(again(lower), more := some_files(2))
    upper = new_overlay(again(lower), number=2)
    fill(again(upper), most := some_files(3))
    copy = MemoryDevice(upper.size())
    copy_device(again(upper), copy)
    make_whole(copy)
    assert contents(copy) == files | more | most
    volume = Volume.open(copy)
    assert volume.extension is not None and volume.extension.overlay == f.OverlayState()
    settle(volume)
    check_image(copy)
    assert contents(copy) == files | more | most


def test_a_base_whose_bitmap_is_damaged_is_an_error_and_no_wrong_data() -> None:
    device = new_device()
    fill(device, files := some_files(1))
    overlay = new_overlay(Base.of(device))
    fill(again(overlay), some_files(2))
    slot = read_slots(device).newest
    page = slot.geometry.block_offset(slot.superblock.bitmap.ptr[0])
    device.write(page + 7, [bytes([device.read(page + 7, 1)[0] ^ 1])])
    layers = stack(overlay.top, Base.of(device), state_of(overlay))
    with pytest.raises(CowfsError, match="its base cannot tell where blocks lie"):
        contents(layers)
    report = check_device(stack(overlay.top, Base.of(device), state_of(overlay)))
    assert not report.clean and p.BLOCK_UNREADABLE in {problem.kind for problem in report.problems}
    with pytest.raises(CowfsError):
        fill(stack(overlay.top, Base.of(device), state_of(overlay)), {b"more": b"x"})
    assert (files | some_files(2)).items() == contents(again(overlay)).items()


def test_many_threads_read_at_once() -> None:
    """As a scrub does, beside the volume itself: the bits are the base's, whose volume is for one thread."""
    overlay = new_overlay(base_with(some_files(1, count=30)))
    layers = again(overlay)
    layers.buried._page_max = 1
    whole = again(overlay).read(0, overlay.size())
    wrong: list[int] = []

    def read(seed: int) -> None:
        maker = random.Random(seed)
        for _ in range(100):
            at = maker.randrange(overlay.size() - 50_000)
            if layers.read(at, 50_000) != whole[at : at + 50_000]:
                wrong.append(at)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_deleting_frees_is_what_becomes_available() -> None:
    """Blocks of the base that only a snapshot has are no space when it is gone: nobody is told that they were."""
    device = new_device()
    fill(device, {b"old": random.Random(1).randbytes(400_000), b"stays": b"x"})
    snapshots = Snapshots(Volume.open(device))
    snapshots.create(b"inherited")
    snapshots.live.unlink(f.ROOT_INODE, b"old")
    snapshots.close()
    overlay = new_overlay(Base.of(device))
    fill(again(overlay), {b"new": random.Random(2).randbytes(200_000)})
    snapshots = Snapshots(Volume.open(again(overlay)))
    snapshots.create(b"own")
    snapshots.live.unlink(f.ROOT_INODE, b"new")
    for name, least, most in ((b"inherited", 0, 0), (b"own", 200_000, 260_000)):
        snapshots.volume.commit()
        would_free = freed_by(snapshots.volume, [snapshots.find(name).place])
        assert least <= would_free <= most
        before = snapshots.live.statfs().free
        snapshots.delete([name])
        while snapshots.volume.reclaim_slice():
            pass
        for _ in range(3):
            snapshots.volume.commit()
        assert abs(snapshots.live.statfs().free - before - would_free // 4096) <= 8  # pages of the volume's own trees
    snapshots.close()
    check_image(again(overlay))


def build(superblock: f.Superblock, extension: f.Extension | None) -> tuple[bytes, bytes]:
    """A slot with these records and no manifest."""
    return build_slot(superblock, extension, [])
