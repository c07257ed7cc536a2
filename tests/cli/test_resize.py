"""`cowfs resize` on an image that is not mounted: words, sizes, refusals."""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path

import pytest
from support import MIB, Run

from cowfs.check import check_device
from cowfs.control.sizes import parse_new_size
from cowfs.errors import InvalidArgument
from cowfs.fs import Caller, Filesystem
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import geometry_for_size
from cowfs.storage.device import FileDevice
from cowfs.storage.mkvolume import make_volume
from cowfs.storage.volume import Volume


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An empty volume of 4 MiB."""
    path = tmp_path / "volume.img"
    geometry = geometry_for_size(4 * MIB, 4096)
    device = FileDevice.create(path, geometry.end)
    make_volume(device, geometry, label=b"", uuid=uuid.uuid4().bytes, now_ns=time.time_ns())
    device.close()
    return path


def sound(image: Path) -> bool:
    device = FileDevice.open(image, read_only=True)
    try:
        report = check_device(device)
        return report.clean and not report.problems
    finally:
        device.close()


def test_growing(run: Run, image: Path) -> None:
    code, out, err = run("resize", image, "16M")
    assert (code, err) == (0, "")
    assert out == f"{image} is now 16.0 MiB (16777216 bytes), 4092 blocks, was 4.0 MiB (4194304 bytes)\n"
    assert image.stat().st_size == 16 * MIB and image.stat().st_blocks * 512 < 2 * MIB
    assert json.loads(run("info", image, "--json")[1])["size"] == 4092 * 4096
    assert sound(image)
    assert run("resize", image, "16M")[1].endswith("already\n")


def test_relative_sizes_and_json(run: Run, image: Path) -> None:
    reply = json.loads(run("resize", image, "+1G", "--json")[1])
    assert reply["old_size"] == 4 * MIB and reply["size"] == 4 * MIB + (1 << 30)
    assert reply["blocks"] - reply["old_blocks"] == 1 << 18
    assert sound(image)


def test_dry_run(run: Run, image: Path) -> None:
    before = image.read_bytes()
    code, out, _ = run("resize", image, "8M", "--dry-run")
    assert code == 0
    assert out == f"{image} would become 8.0 MiB (8388608 bytes), 2044 blocks, from 4.0 MiB (4194304 bytes)\n"
    assert image.read_bytes() == before


def test_max_is_the_file_as_it_is(run: Run, image: Path) -> None:
    os.truncate(image, 9 * MIB)
    assert run("resize", image, "max")[0] == 0
    assert image.stat().st_size == 9 * MIB
    assert sound(image)


def test_preallocated(run: Run, image: Path) -> None:
    assert run("resize", image, "12M", "--preallocate")[0] == 0
    assert image.stat().st_blocks * 512 >= 8 * MIB


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("9",), "needs at least 1048576 bytes"),
        (("+1",), "gains nothing|already"),
        (("4x",), "is not a size"),
        (("17T",), "too large"),
        (("8M", "--offset", "4096"), "a part of an image keeps its size"),
        (("8M", "--partition", "1"), "a part of an image keeps its size"),
    ],
)
def test_refusals(run: Run, image: Path, words: tuple[str, ...], says: str) -> None:
    code, out, err = run("resize", image, *words)
    if out:
        assert "already" in out
    else:
        assert code == 1 and any(part in err for part in says.split("|"))
    assert image.stat().st_size == 4 * MIB
    assert sound(image)


@pytest.mark.parametrize(
    ("text", "size"), [("5", 5), ("2k", 2048), ("+1M", 1000 + MIB), ("-10", 990), ("max", 77), (" MAX ", 77)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_new_size(text, 1000, 77) == size


@pytest.mark.parametrize("text", ["", "+", "--5", "1.5G", "minus", "5P"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_new_size(text, 1000, 77)


def make_file(image: Path, name: bytes, size: int, *, hint: int) -> None:
    device = FileDevice.open(image, read_only=False)
    filesystem = Filesystem(Volume.open(device))
    assert filesystem.volume.spacemap is not None
    filesystem.volume.spacemap.data_hint = hint
    ino = filesystem.create(f.ROOT_INODE, name, 0o644, Caller()).ino
    filesystem.write(ino, 0, name * (size // len(name)))
    filesystem.close()
    filesystem.volume.close()


def test_shrinking(run: Run, image: Path) -> None:
    make_file(image, b"data", 400_000, hint=800)
    run("snapshot", "create", image, "s")
    before = image.read_bytes()
    code, out, err = run("resize", image, "-1500K", "--dry-run")
    assert (code, err) == (0, "") and "98 blocks would move, " in out
    assert image.read_bytes() == before
    code, out, err = run("resize", image, "-1500K")
    assert (code, err) == (0, "") and "98 blocks moved, " in out and "is now 2.5 MiB" in out
    assert image.stat().st_size == 4 * MIB - 1500 * 1024
    assert sound(image)
    assert run("hash", image)[0] == 0
    assert "s" in run("snapshot", "list", image)[1]
    reply = json.loads(run("resize", image, "+8M", "--json")[1])
    assert reply["size"] == 12 * MIB - 1500 * 1024
    assert sound(image)


def test_shrinking_too_far_says_how_far_it_goes(run: Run, image: Path) -> None:
    make_file(image, b"data", 2_000_000, hint=100)
    code, _, err = run("resize", image, "1M")
    assert code == 1 and "at least" in err
    least = err.split("at least ")[1].split()[0]
    assert image.stat().st_size == 4 * MIB and sound(image)
    assert run("resize", image, least)[0] == 0
    assert image.stat().st_size <= int(least) and sound(image)
    assert run("cat", image, "/data")[0] == 0
