"""Writing in an overlay, and resetting it, with the power failing at every write and flush. The base is never written."""

from __future__ import annotations

import functools

import pytest
from workloads import BLOCKS, QUICK, image_after

from cowfs.check.crashdevice import RecordingDevice, Thoroughness
from cowfs.check.crashscript import ScriptRun
from cowfs.check.crashtest import Judge, verify
from cowfs.ondisk.geometry import Geometry
from cowfs.storage.device import Device, MemoryDevice
from cowfs.storage.layers import LayeredDevice
from cowfs.storage.overlay import stack
from cowfs.storage.superblock import read_slots
from tests.layered import Base, new_overlay

BASE = "mkdir /d; create /d/f; write /d/f 0 9000; create /g; write /g 0 3000; setxattr /g user.x 900; snapshot s"
WRITING = (
    "write /d/f 500 3000; unlink /g; create /new; write /new 0 20000; sync; snapshot mine; append /d/f 5000; sync; "
    "delete s; reclaim; rename /new /d/new; write /d/new 0 700; commit; unlink /d/f; sync"
)
RESETS = (
    "create /new; write /new 0 9000; unlink /g; sync; reset; sync; create /again; write /again 0 2000; reset kept; sync; "
    "reclaim; rollback kept; commit; reset; commit; sync; delete kept; reclaim; sync"
)


@functools.cache
def overlay_over(block_size: int) -> tuple[MemoryDevice, LayeredDevice]:
    """A new overlay, and its layers."""
    base = Base.of(MemoryDevice.from_image(image_after(BASE, block_size)))
    layers = new_overlay(base, geometry=Geometry(block_size, 2 * BLOCKS))
    assert isinstance(layers.top, MemoryDevice)
    return layers.top, layers


@pytest.mark.parametrize("block_size", [512, 4096])
@pytest.mark.parametrize("script", [WRITING, RESETS])
def test_every_power_cut_leaves_a_state_of_the_overlay(script: str, block_size: int) -> None:
    look(script, block_size, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [512, 1024, 4096])
@pytest.mark.parametrize("script", [WRITING, RESETS, f"{RESETS}; kill; {WRITING.replace('delete s; ', '')}"])
def test_every_power_cut_closely(script: str, block_size: int) -> None:
    """The same, with more of the images that could be left."""
    look(script, block_size, Thoroughness(exhaustive_max=4, samples=8, near_misses=20, tears=4))


def look(script: str, block_size: int, thoroughness: Thoroughness) -> None:
    top, layers = overlay_over(block_size)
    extension = read_slots(top).newest.extension
    assert extension is not None
    state = extension.overlay

    def over_base(device: Device) -> Device:
        return stack(device, layers.base, state)

    device = RecordingDevice(top.image())
    run = ScriptRun(device, strict=True, layers=over_base)
    run.run(script)
    run.trees.close()
    judge = Judge(recovery_share=16, layers=over_base)
    verify(device, judge, thoroughness=thoroughness)
    assert judge.counts.images > 100 and judge.counts.second_chances > 2
