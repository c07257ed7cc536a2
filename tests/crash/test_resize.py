"""A change of the size, with the power failing at every write and flush of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from workloads import empty_image, image_after

from cowfs.check.crashdevice import Flush, RecordingDevice, Thoroughness, Write, cuts
from cowfs.check.crashscript import ScriptRun
from cowfs.check.crashtest import CrashFailure, Judge, observe, verify
from cowfs.ondisk.geometry import Geometry
from cowfs.storage.commit import SlotMove
from cowfs.storage.device import Device
from cowfs.storage.resize import announce, grow, reserve, seal_grown
from cowfs.storage.shrink import prepare, shrink
from cowfs.storage.superblock import write_slot_pointer

SOME = Thoroughness(exhaustive_max=3, samples=3, near_misses=10, tears=2)
CLOSE = Thoroughness(exhaustive_max=6, samples=20, near_misses=60, tears=8)


@pytest.mark.parametrize(("block_size", "more"), [(512, 300)])
def test_growing(block_size: int, more: int) -> None:
    """Old size or new, with everything; changed before, unsynced at that moment, and written behind the old end."""
    look_at_growing(block_size, more, SOME)


@pytest.mark.slow
@pytest.mark.parametrize(("block_size", "more"), [(512, 300), (512, 8000), (1024, 70), (2048, 5000), (4096, 90)])
def test_growing_closely(block_size: int, more: int) -> None:
    """The same, with more of the images that could be left."""
    look_at_growing(block_size, more, CLOSE)


def look_at_growing(block_size: int, more: int, thoroughness: Thoroughness) -> None:
    image = image_after("mkdir /d; create /d/f; write /d/f 0 9000; snapshot s", block_size)
    device = RecordingDevice(image)
    run = ScriptRun(device, strict=True)
    volume = run.trees.volume
    run.run("write /d/f 100 700; sync; append /d/f 2000; create /d/g")
    begun = len(device.log)
    grow(volume, Geometry(block_size, volume.geometry.num_blocks + more))
    run.run("write /d/g 0 60000; sync; unlink /d/f; sync; create /e; sync")
    run.trees.close()
    judge = Judge(recovery_share=16)
    verify(device, judge, thoroughness=thoroughness, start=begun - 2)
    assert judge.counts.second_chances > 10


@pytest.mark.slow
def test_growing_twice() -> None:
    """The second time with the traces of the first one behind the end."""
    device = RecordingDevice(empty_image(512))
    run = ScriptRun(device, strict=True)
    volume = run.trees.volume
    run.run("create /a; write /a 0 5000; sync")
    grow(volume, Geometry(512, volume.geometry.num_blocks + 64))
    run.run("write /a 0 40000; sync")
    grow(volume, Geometry(512, volume.geometry.num_blocks + 4000))
    run.run("write /a 40000 40000; sync")
    run.trees.close()
    verify(device, Judge(), thoroughness=Thoroughness(exhaustive_max=2, samples=2, near_misses=5, tears=1))


def look_at_shrinking(block_size: int, blocks: int, thoroughness: Thoroughness) -> None:
    """Old size or new, with everything: trees that share, a clone, and what lies behind the new end of each."""
    image = empty_image(block_size, blocks)
    device = RecordingDevice(image)
    run = ScriptRun(device, strict=True)
    volume = run.trees.volume
    assert volume.spacemap is not None
    volume.spacemap.data_hint = blocks - 80
    volume.spacemap.metadata_hint = blocks - 60
    run.run(
        f"create /f; write /f 0 {block_size * 19}; mkdir /d; create /d/g; write /d/g 0 900; sync; snapshot s; "
        f"write /f {block_size * 3} 700; clone c; create /d/a-name-that-is-longer-than-a-short-entry; sync; unlink /d/g; sync"
    )
    begun = len(device.log)
    prepare(volume)
    unchanged = observe(run.trees)
    run.watch.observe = lambda: unchanged  # what the filesystem remembers of places is void afterwards
    shrink(volume, Geometry(block_size, blocks - 100))
    run.run("kill; write /f 0 900; sync; create /e; sync")
    run.trees.close()
    judge = Judge(recovery_share=16)
    verify(device, judge, thoroughness=thoroughness, start=begun)
    assert judge.counts.second_chances > 8


def test_shrinking() -> None:
    """With some of the images that could be left."""
    look_at_shrinking(4096, 400, SOME)


@pytest.mark.slow
@pytest.mark.parametrize(("block_size", "blocks"), [(512, 2300), (1024, 1300), (2048, 700), (4096, 400)])
def test_shrinking_closely(block_size: int, blocks: int) -> None:
    """With more of them."""
    look_at_shrinking(block_size, blocks, CLOSE)


def grown_between_changes() -> RecordingDevice:
    """Like behind a mount: commits and changes go on up to the commit that grows, so that no two of them say the same."""
    device = RecordingDevice(image_after("create /f; write /f 0 3000"))
    run = ScriptRun(device, strict=True)
    volume = run.trees.volume
    geometry = Geometry(512, volume.geometry.num_blocks + 500)
    reserve(device, geometry)
    announce(volume)
    run.run("create /a; sync; write /f 100 900; sync")
    while volume.newest_slot != 1:
        run.run("append /f 700; sync")
    run.run("create /b; append /a 600")
    sealed = seal_grown(volume, geometry)
    sealed.write_out()
    volume.publish(sealed)
    run.run("sync; write /b 0 20000; sync")
    run.stop()
    return device


def test_growing_between_changes() -> None:
    """Whatever is torn, nothing that was synced before is lost."""
    verify(grown_between_changes(), Judge(recovery_share=8), thoroughness=SOME)


def boot_block_last(move: SlotMove, device: Device, record: bytes, area: bytes) -> None:
    """Slot 1 torn, the boot block leads to the old slot 2."""
    slot1, slot2 = move.geometry.slot_offsets
    device.write(slot2, [record, area])
    device.flush()
    device.write(slot1, [move.record, move.area])
    device.flush()
    write_slot_pointer(device, move.geometry)
    device.flush()


def without_a_flush(move: SlotMove, device: Device, record: bytes, area: bytes) -> None:
    """What the boot block leads to may be missing."""
    slot1, slot2 = move.geometry.slot_offsets
    device.write(slot2, [record, area])
    write_slot_pointer(device, move.geometry)
    device.write(slot1, [move.record, move.area])
    device.flush()


@pytest.mark.interpreted
@pytest.mark.parametrize("wrong", [boot_block_last, without_a_flush])
def test_a_wrong_order_is_caught(wrong: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SlotMove, "write_out", wrong)
    device = grown_between_changes()
    with pytest.raises(CrashFailure):
        verify(device, Judge(), thoroughness=SOME)


@pytest.mark.interpreted
def test_a_boot_block_that_is_not_mended_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The power fails between boot block and slot 1; the next session writes slot 1, and that is torn."""
    device = grown_between_changes()
    boot = next(place for place, entry in enumerate(device.log) if isinstance(entry, Write) and not entry.offset)
    flushed = next(cut for cut in cuts(device.base, device.log) if cut.position > boot and isinstance(cut.entry, Flush))
    image = flushed.latest()

    def use_it() -> RecordingDevice:
        later = RecordingDevice(image)
        run = ScriptRun(later, strict=True)
        run.run("append /f 800; sync; append /f 900; sync; append /f 1000; sync")
        run.stop()
        return later

    verify(use_it(), Judge(), thoroughness=SOME)
    monkeypatch.setattr("cowfs.storage.volume.mend_slot_pointer", lambda *_: None)
    with pytest.raises(CrashFailure):
        verify(use_it(), Judge(), thoroughness=SOME)
