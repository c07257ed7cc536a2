"""Settings: what is put comes back, after a commit and after a rollback, and damage is told from emptiness."""

from __future__ import annotations

import pytest
from support import MIB, assert_sound, close_filesystem, new_device, open_filesystem

from cowfs.errors import Corrupt, FileTooBig, InvalidArgument, ReadOnly
from cowfs.fs.snapshot import Snapshots
from cowfs.ondisk import format as f
from cowfs.storage.device import MemoryDevice
from cowfs.storage.settings import Settings
from cowfs.storage.volume import Volume


def reopened(volume: Volume) -> Volume:
    volume.close()
    assert isinstance(volume.device, MemoryDevice)
    assert_sound(volume.device)
    return Volume.open(volume.device)


@pytest.mark.parametrize("block_size", [512, 4096])
def test_what_is_put_comes_back(block_size: int) -> None:
    volume = Volume.open(new_device(4 * MIB, block_size))
    settings = Settings(volume)
    assert settings.all() == {}
    assert settings.get("a") is None
    settings.put("a", {"x": [1, 2.5, None, "\u00fc"]})
    settings.put("long", "y" * 60_000)
    volume = reopened(volume)
    settings = Settings(volume)
    assert settings.all() == {"a": {"x": [1, 2.5, None, "\u00fc"]}, "long": "y" * 60_000}
    used = volume.spacemap.free if volume.spacemap else 0
    settings.put("long", None)
    volume = reopened(volume)
    assert volume.spacemap is not None
    assert volume.spacemap.free > used + 60_000 // block_size - 4
    assert Settings(volume).all() == {"a": {"x": [1, 2.5, None, "\u00fc"]}}
    Settings(volume).put("a", None)
    assert Settings(reopened(volume)).all() == {}


def test_the_same_value_again_changes_nothing() -> None:
    volume = Volume.open(new_device())
    Settings(volume).put("a", 1)
    volume.commit()
    Settings(volume).put("a", 1)
    assert not volume.dirty


def test_no_rollback_turns_them_back() -> None:
    fs = open_filesystem(new_device())
    trees = Snapshots(fs.volume)
    trees.create(b"before")
    Settings(fs.volume).put("a", 1)
    trees.roll_back(b"before")
    assert Settings(fs.volume).get("a") == 1
    trees.close()


def test_what_cannot_be_a_setting() -> None:
    volume = Volume.open(new_device())
    settings = Settings(volume)
    settings.put("a", 1)
    with pytest.raises(FileTooBig):
        settings.put("b", "x" * f.SETTINGS_LENGTH_MAX)
    for value in (float("nan"), b"bytes"):
        with pytest.raises(InvalidArgument):
            settings.put("b", value)
    assert Settings(reopened(volume)).all() == {"a": 1}


def test_a_read_only_volume_keeps_its_settings() -> None:
    fs = open_filesystem(new_device())
    Settings(fs.volume).put("a", 1)
    close_filesystem(fs)
    volume = Volume.open(fs.volume.device, read_only=True)
    assert Settings(volume).get("a") == 1
    with pytest.raises(ReadOnly):
        Settings(volume).put("a", 2)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff\0\0\0\0{}",
        b"\x08\0\0\0\0\0\0\0{}",
        b"\2\0\0\0\0\0\0\0[]",
        b"\2\0\0\0\0\0\0\0{\xff",
        b"\2\0\0\0",
    ],
)
def test_settings_that_make_no_sense(data: bytes) -> None:
    """They are damage when they are read, and replaced by what is put."""
    volume = Volume.open(new_device())
    volume.settings.write(0, data)
    with pytest.raises(Corrupt):
        Settings(volume).all()
    Settings(volume).put("a", 1)
    assert Settings(volume).all() == {"a": 1}
