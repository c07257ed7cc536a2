"""A change of the size, with the power failing at every write and flush of it."""

from __future__ import annotations

import pytest
from workloads import empty_image, image_after

from cowfs.check.crashdevice import RecordingDevice, Thoroughness
from cowfs.check.crashscript import ScriptRun
from cowfs.check.crashtest import Judge, WatchedVolume, observe, verify
from cowfs.ondisk.geometry import Geometry
from cowfs.storage.resize import grow
from cowfs.storage.shrink import prepare, shrink

SOME = Thoroughness(exhaustive_max=3, samples=3, near_misses=10, tears=2)
CLOSE = Thoroughness(exhaustive_max=6, samples=20, near_misses=60, tears=8)


@pytest.mark.parametrize(("block_size", "more"), [(512, 300), (4096, 90)])
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
    assert isinstance(volume, WatchedVolume) and volume.spacemap is not None
    volume.spacemap.data_hint = blocks - 80
    volume.spacemap.metadata_hint = blocks - 60
    run.run(
        f"create /f; write /f 0 {block_size * 19}; mkdir /d; create /d/g; write /d/g 0 900; sync; snapshot s; "
        f"write /f {block_size * 3} 700; clone c; create /d/a-name-that-is-longer-than-a-short-entry; sync; unlink /d/g; sync"
    )
    begun = len(device.log)
    prepare(volume)
    unchanged = observe(run.trees)
    volume.observe = lambda: unchanged  # what the filesystem remembers of places is void afterwards
    shrink(volume, Geometry(block_size, blocks - 100))
    run.run("kill; write /f 0 900; sync; create /e; sync")
    run.trees.close()
    judge = Judge(recovery_share=16)
    verify(device, judge, thoroughness=thoroughness, start=begun)
    assert judge.counts.second_chances > 8


@pytest.mark.parametrize(("block_size", "blocks"), [(512, 2300), (4096, 400)])
def test_shrinking(block_size: int, blocks: int) -> None:
    """With some of the images that could be left."""
    look_at_shrinking(block_size, blocks, SOME)


@pytest.mark.slow
@pytest.mark.parametrize(("block_size", "blocks"), [(512, 2300), (1024, 1300), (2048, 700), (4096, 400)])
def test_shrinking_closely(block_size: int, blocks: int) -> None:
    """With more of them."""
    look_at_shrinking(block_size, blocks, CLOSE)
