"""Merging, with the power failing at every write and flush, of the base and of the overlay."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator

import pytest
from mergecrash import LATER, Found, MergeCrash, Recorded, Thorough, overlay_on, trees_of, whole, with_layers
from workloads import image_after

from cowfs.check.crashdevice import Thoroughness, Write, medium
from cowfs.check.crashtest import CrashFailure
from cowfs.errors import NoSpace
from cowfs.fs import Caller
from cowfs.fs.snapshot import Snapshots
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import Geometry
from cowfs.storage import merge as m
from cowfs.storage.device import Device, MemoryDevice
from cowfs.storage.overlay import make_overlay, renew_overlay
from cowfs.storage.superblock import read_slots, write_slot_pointer
from cowfs.storage.volume import Volume
from tests.layered import again
from tests.support import START

ROOT = Caller(0, 0)
Run = Callable[[Device, Device], None]
BLOCKS = 420
BASE = "mkdir /d; create /d/f; write /d/f 0 9000; create /g; write /g 0 3000; snapshot s"
SOME = Thorough(
    Thoroughness(exhaustive_max=2, samples=2, near_misses=3, tears=1), again=40, second=0, opened=8, lost=128
)
FEW = Thorough(Thoroughness(exhaustive_max=1, samples=1, near_misses=2, tears=1), again=24, opened=4, lost=80)
CLOSE = Thorough(Thoroughness(exhaustive_max=6, samples=16, near_misses=60, tears=8), again=48, second=24, opened=16)


def change(device: Device, seed: int = 0) -> None:
    """Changes a volume: a new file, one written in part, one removed, a snapshot and a clone."""
    data = random.Random(seed).randbytes(8000)
    trees = Snapshots(Volume.open(device))
    ino = trees.live.create(f.ROOT_INODE, b"new%d" % seed, 0o100644, ROOT).ino
    trees.live.write(ino, 0, data)
    directory = trees.live.lookup(f.ROOT_INODE, b"d").ino
    trees.live.write(trees.live.lookup(directory, b"f").ino, 1000, data[:1500])
    trees.create(b"t%d" % seed)
    if seed == 0:
        trees.live.unlink(f.ROOT_INODE, b"g")
        trees.create(b"c", writable=True, source=b"s")
    trees.close()


@functools.cache
def pair(block_size: int, more: int) -> tuple[bytes, bytes]:
    """A base and an overlay that was changed: their images."""
    base = MemoryDevice.from_image(image_after(BASE, block_size, BLOCKS))
    return base.image(), overlay_on_image(base, block_size, BLOCKS + more)


def overlay_on_image(base: Device, block_size: int, blocks: int, seed: int = 0) -> bytes:
    """The image of an overlay that was changed."""
    geometry = Geometry(block_size, blocks)
    top = MemoryDevice(geometry.end, name="overlay")
    change(again(make_overlay(top, base, geometry, path=b"base", uuid=bytes([7 + seed] * 16), now_ns=START)), seed)
    return top.image()


@pytest.mark.parametrize("more", [0, 300])
def test_merging(more: int) -> None:
    found = look_at_merging(512, more, SOME)
    print(found)
    assert min(found.old, found.new, found.mounted, found.again, found.linux, found.lost) > 8


@pytest.mark.slow
@pytest.mark.parametrize(("block_size", "more"), [(512, 0), (512, 8), (512, 300), (1024, 4), (2048, 5000), (4096, 0)])
def test_merging_closely(block_size: int, more: int) -> None:
    """The same, with more of the images that could be left, and with power cuts in the second try."""
    found = look_at_merging(block_size, more, CLOSE)
    assert found.second > 3


def test_a_second_power_cut() -> None:
    """The power fails while an interrupted merge is finished, from wherever it was interrupted."""
    thorough = Thorough(
        Thoroughness(exhaustive_max=1, samples=0, near_misses=0, tears=0), again=256, second=40, opened=0
    )
    found = look_at_merging(512, 300, thorough)
    print(found)
    assert found.second > 2


def test_merging_when_a_slot_of_the_base_has_rotted() -> None:
    """It is written anew first; else writing the other one would risk the only one there is."""
    for slot in (1, 2):
        base, top = pair(512, 0)
        crash = MergeCrash(rotten(base, slot), top, FEW, both_slots=False)
        crash.verify()
        assert min(crash.found.old, crash.found.new) > 4


def rotten(image: bytes, slot: int) -> bytes:
    place = read_slots(MemoryDevice.from_image(image)).newest.geometry.slot_offsets[slot - 1]
    return image[: place + 700] + b"rotten" + image[place + 706 :]


def test_merging_into_an_overlay() -> None:
    """The base lies on another base; what it counts of buried blocks is right at each moment."""
    bottom, middle = pair(512, 100)
    lower = with_layers([bottom])
    top = overlay_on_image(lower(MemoryDevice.from_image(middle)), 512, BLOCKS + 400, seed=1)
    crash = MergeCrash(middle, top, FEW, lower=lower)
    crash.verify()
    assert min(crash.found.old, crash.found.new, crash.found.mounted) > 4


@pytest.mark.parametrize("more", [0, 300])
def test_the_overlay_goes_on_after_an_interrupted_merge(more: int) -> None:
    """The base kept its old state, but blocks and slots of the new one lie there already; then the overlay is changed."""
    base, top = pair(512, more)
    sequence: list[str] = []
    below, above = Recorded(base, "base", sequence), Recorded(top, "overlay", sequence)
    whole(above, below)
    finished = overlay_on(above, below)
    geometry = read_slots(above).newest.geometry
    written = [
        i for i, entry in enumerate(below.log) if isinstance(entry, Write) and entry.offset == geometry.slot_offsets[1]
    ]
    for last in (written[0], written[0] + (4 if more else 0)):
        image = bytearray(medium(base, below.log[:last]).latest())
        if not more:  # torn
            image[geometry.slot_offsets[1] : geometry.slot_offsets[1] + 1024] = below.log[written[0]].data[:1024]  # type: ignore
        overlay = MemoryDevice.from_image(top)
        change(overlay_on(overlay, MemoryDevice.from_image(bytes(image))), seed=3)
        crash = MergeCrash(bytes(image), overlay.image(), FEW, both_slots=bool(more), before=trees_of(finished))
        crash.verify()
        assert min(crash.found.old, crash.found.new, crash.found.mounted) > 4


def test_an_overlay_that_gets_larger_when_it_is_emptied() -> None:
    """For want of room: its slot 2 moves."""
    base, _ = pair(512, 0)
    device = MemoryDevice.from_image(base)
    top = MemoryDevice(Geometry(512, BLOCKS).end, name="overlay")
    overlay = make_overlay(top, device, Geometry(512, BLOCKS), path=b"base", uuid=bytes(16), now_ns=START)
    trees = Snapshots(Volume.open(again(overlay)))
    ino = trees.live.create(f.ROOT_INODE, b"all", 0o100644, ROOT).ino
    with pytest.raises(NoSpace):
        for at in range(0, 1 << 20, 512):
            trees.live.write(ino, at, random.Random(at).randbytes(512))
    trees.close()
    crash = MergeCrash(base, top.image(), FEW)
    crash.verify()
    assert min(crash.found.old, crash.found.new, crash.found.mounted) > 4


# --- wrong protocols ---


def caught(base: bytes, top: bytes, run: Run = whole, *, both_slots: bool = True, tears: int = 2) -> str:
    """What the machine says of a protocol; an empty string if it finds nothing."""
    some = Thorough(Thoroughness(exhaustive_max=2, samples=4, near_misses=8, tears=tears), again=0, opened=0, lost=0)
    try:
        MergeCrash(base, top, some, run=run, both_slots=both_slots).verify()
    except CrashFailure as failure:
        return str(failure)
    return ""


def forgetting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once this function of the merge has run, the next flush of the base is forgotten."""
    owner, attribute = (m._Own, name) if hasattr(m._Own, name) else (m, name)
    right = getattr(owner, attribute)

    def wrong(*arguments: object, **options: object) -> object:
        result = right(*arguments, **options)
        for one in arguments:
            if isinstance(one, Recorded):
                one.flushes_to_forget = 1
        return result

    monkeypatch.setattr(owner, attribute, wrong)


def test_copying_and_slot_2_without_a_flush_between_them_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """(Where the base grows, nothing leads to the new slot 2 before a later flush.)"""
    forgetting("copy_to", monkeypatch)
    assert "the base" in caught(*pair(512, 0))


def test_both_slots_without_a_flush_between_them_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(base: Device, successor: m._Successor, geometry: Geometry) -> None:
        for number, serial in ((2, successor.serial), (1, successor.serial + 1)):
            base.write(geometry.slot_offsets[number - 1], successor.slot(serial))
        base.flush()

    monkeypatch.setattr(m, "_switch", both)
    assert "neither slot is valid" in caught(*pair(512, 0), tears=30)


def test_slot_1_first_in_a_base_that_grows_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux does not find slot 2 then."""

    def first(base: Device, successor: m._Successor, geometry: Geometry) -> None:
        base.write(geometry.slot_offsets[0], successor.slot(successor.serial + 1))
        base.flush()
        base.write(geometry.slot_offsets[1], successor.slot(successor.serial))
        write_slot_pointer(base, geometry)
        base.flush()

    monkeypatch.setattr(m, "_switch", first)
    assert "Linux finds slot 2 invalid" in caught(*pair(512, 300))


def test_growing_without_an_announcement_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m, "_announce", lambda base: None)
    assert "boot-head" in caught(*pair(512, 300))


def test_slots_that_are_not_made_alike_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    base, top = pair(512, 0)
    monkeypatch.setattr(m, "_make_alike", read_slots)
    assert "neither slot is valid" in caught(rotten(base, 1), top, both_slots=False)


def test_a_merge_that_is_not_recorded_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = m._Successor.slot

    def unmarked(self: m._Successor, serial: int) -> tuple[bytes, bytes]:
        self._extension.merged = f.MergedState()
        return right(self, serial)

    def run(top: Device, base: Device) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(m._Successor, "slot", unmarked)
            m.merge(top, base, now_ns=LATER)
        m.settle_base(base)
        renew_overlay(top, base, now_ns=LATER)

    assert "the overlay: BaseChanged" in caught(*pair(512, 0), run)


def test_an_overlay_that_is_emptied_too_early_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the base's new slots are durable."""

    def run(top: Device, base: Device) -> None:
        def early(base: Device, successor: m._Successor, geometry: Geometry) -> None:
            base.write(geometry.slot_offsets[1], successor.slot(successor.serial))
            top.discard(geometry.data_start, geometry.slot_offsets[1] - geometry.data_start)
            top.flush()
            base.flush()
            base.write(geometry.slot_offsets[0], successor.slot(successor.serial + 1))
            base.flush()

        monkeypatch.setattr(m, "_switch", early)
        whole(top, base)

    assert "the overlay" in caught(*pair(512, 0), run)


def test_old_blocks_that_are_overwritten_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge that copies buried blocks as well, which are zeros in the overlay."""
    right = m._Own.runs

    def all_used(self: m._Own) -> Iterator[tuple[int, int]]:
        yield from right(self)
        yield next(block for block in range(4, BLOCKS) if self._buried.has(block)), 1

    monkeypatch.setattr(m._Own, "runs", all_used)
    monkeypatch.setattr(m._Own, "_verify", lambda *arguments: None)
    assert "the base" in caught(*pair(512, 0))


def look_at_merging(block_size: int, more: int, thorough: Thorough) -> Found:
    crash = MergeCrash(*pair(block_size, more), thorough)
    crash.verify()
    return crash.found
