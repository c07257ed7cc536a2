"""What cannot be checked at all is refused in one line; what can is checked whatever its first bytes say."""

from __future__ import annotations

import pytest
from damage import Image
from damage_sample import sample
from support import MIB, new_device

from cowfs.check import check_device
from cowfs.errors import CowfsError, NotAVolume, Unsupported
from cowfs.ondisk import format as f
from cowfs.storage.device import MemoryDevice


@pytest.mark.parametrize("size", [0, 1, 511, 512, 0x2000, 0x2200, 0x3000, 1 << 20])
def test_not_a_volume(size: int) -> None:
    with pytest.raises(NotAVolume, match="is not a cowfs or qnx6 volume"):
        check_device(MemoryDevice(size))


@pytest.mark.parametrize("name", ["incompatible", "read_only_compatible"])
def test_unknown_features_are_refused(name: str) -> None:
    device = sample().device()
    image = Image(device)
    setattr(image.extension, name, 1 << 63)
    image.finish()
    with pytest.raises(Unsupported, match="features that this version does not know"):
        check_device(device)


def test_unknown_compatible_features_are_nothing_to_us() -> None:
    device = sample().device()
    image = Image(device)
    image.extension.compatible = 1 << 63
    image.finish()
    assert not check_device(device).totals


def test_another_version_of_the_format_is_refused() -> None:
    device = sample().device()
    image = Image(device)
    image.superblock.anchor.version = 2
    image.finish()
    with pytest.raises(Unsupported, match="version 2 of the format"):
        check_device(device)


@pytest.mark.parametrize("block_size", f.BLOCK_SIZES)
@pytest.mark.parametrize("surplus", [0, 1, 300, 5000])
def test_slot_2_is_found_without_slot_1(block_size: int, surplus: int) -> None:
    """By the boot block; and where that is lost too, by the size of the device if the volume fills it."""
    device = new_device(2 * MIB + surplus, block_size)
    device.write(f.SLOT1_OFFSET, [bytes(f.SLOT_AREA_SIZE)])
    assert set(check_device(device).totals) == {101}
    device.write(0, [bytes(f.BOOT_SIZE)])
    report = check_device(device)
    assert set(report.totals) == {101, 106, 107}
    assert report.slot == 2


@pytest.mark.parametrize("length", [0x2000, 0x2200, 0x3000, 0x3001, 100_000])
def test_a_truncated_image(length: int) -> None:
    device = sample().device()
    device.resize(length)
    try:
        report = check_device(device)
    except CowfsError as error:
        assert str(error)
    else:
        assert {"truncated", "no-valid-slot"} & {problem.kind.name for problem in report.problems}


@pytest.mark.parametrize(("size", "block_size"), [(1 << 42, 4096), (1 << 38, 512), (5_000_000, 1024)])
def test_an_empty_volume_of_any_size_is_read_in_a_few_steps(size: int, block_size: int) -> None:
    device = new_device(size, block_size)
    device.reset_counters()
    assert not check_device(device).totals
    assert device.reads < 100
