"""A change of the size, with the power failing at every write and flush of it."""

from __future__ import annotations

import pytest
from workloads import empty_image, image_after

from cowfs.check.crashdevice import RecordingDevice, Thoroughness
from cowfs.check.crashscript import ScriptRun
from cowfs.check.crashtest import Judge, verify
from cowfs.ondisk.geometry import Geometry
from cowfs.storage.resize import grow

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
