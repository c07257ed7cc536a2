"""A failure in the middle of a change turns the volume read-only, also where nothing had to be copied for the change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support import new_device

from cowfs.errors import DeviceError
from cowfs.storage.volume import Volume


@pytest.fixture
def volume() -> Volume:
    """A volume whose inode file's first leaf, and the first pages of its tables, are writable already."""
    volume = Volume.open(new_device())
    volume.trees.writable_leaf(volume.live.writable_inodes(), 0)
    for tree in (volume.snapshots, volume.snapshot_index, volume.reclaim_tree, volume.settings):
        tree.write(0, bytes(8))
    return volume


def broken_off(volume: Volume, change: Callable[[], object]) -> bool:
    """Whether the volume is read-only after an operation that fails behind `change`."""
    with pytest.raises(DeviceError), volume.operation():
        change()
        raise DeviceError("unreadable")
    return volume.read_only


def test_a_leaf_that_is_to_be_changed(volume: Volume) -> None:
    assert broken_off(volume, lambda: volume.trees.writable_leaf(volume.live.writable_inodes(), 0))


def test_a_leaf_that_is_only_made_ready(volume: Volume) -> None:
    assert not broken_off(volume, lambda: volume.trees.prepare_leaf(volume.live.writable_inodes(), 0))


@pytest.mark.parametrize("name", ["snapshots", "snapshot_index", "reclaim_tree", "settings"])
def test_a_table(volume: Volume, name: str) -> None:
    assert broken_off(volume, lambda: getattr(volume, name).write(0, b"x"))


def test_nothing(volume: Volume) -> None:
    assert not broken_off(volume, lambda: None)
