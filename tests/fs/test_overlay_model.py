"""The model test on overlays: a volume becomes a base, and all operations go on in an overlay on it, resets among them."""

from __future__ import annotations

import pytest

from cowfs.storage.device import MemoryDevice
from cowfs.storage.layers import LayeredDevice
from tests.fs.test_snapshot_model import TreeRun
from tests.layered import Base, again, new_overlay
from tests.model import Model
from tests.support import MIB


class OverlayRun(TreeRun):
    """Begins on a whole volume. `become_overlay` makes that the base, which nothing may write to, and goes on above it."""

    bases: tuple[Model, ...] = ()

    def become_overlay(self) -> None:
        """What is there now is the base's, snapshots and clones included."""
        self.do_remount()
        self.snapshots.close()
        self.volume.close()
        device = self.device
        if isinstance(device, LayeredDevice):
            assert isinstance(device.top, MemoryDevice)
            base = again(LayeredDevice(Base.of(device.top), device.base, device.buried, device.key))
        else:
            base = Base.of(device)
        self.device = new_overlay(base, number=len(self.bases) + 1)
        self.bases += (self.model.copy(),)
        self.operations += [(8, self.do_reset)]
        self.open()

    def open(self) -> None:
        if isinstance(self.device, LayeredDevice):
            self.device = again(self.device)  # as another process finds it
        super().open()

    def do_reset(self) -> None:
        self.histogram["reset"] += 1
        self.counter += 1
        keep = b"kept %d" % self.counter if self.random.random() < 0.3 and len(self.trees) < 8 else None
        before = self.model.copy()
        self.snapshots.reset(keep)
        if keep is not None:
            self.trees[keep] = before, False
            self.adopt_atimes_of(keep)
        self.go_on_with(self.bases[-1])


def one_run(seed: int, block_size: int, steps: int, layers: int) -> OverlayRun:
    run = OverlayRun(seed, block_size, 8 * MIB)
    for _ in range(layers):
        run.run(steps)
        run.become_overlay()
    run.run(steps)
    return run


@pytest.mark.parametrize("block_size", [512, 4096])
@pytest.mark.parametrize("seed", range(2))
def test_operations_on_an_overlay(seed: int, block_size: int) -> None:
    run = one_run(seed, block_size, 150, 1)
    assert run.histogram["reset"] > 0 and run.histogram["kill"] + run.histogram["remount"] > 3


def test_operations_in_a_chain() -> None:
    assert one_run(7, 1024, 60, 3).histogram["reset"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [512, 1024, 2048, 4096])
@pytest.mark.parametrize("seed", range(100, 110))
def test_operations_on_overlays_at_length(seed: int, block_size: int) -> None:
    one_run(seed, block_size, 600, 1 + seed % 4)
