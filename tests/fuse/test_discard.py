"""Space goes back to whoever keeps the image, while the volume is used."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from mounting import Place, cowfs, wait_until

pytestmark = pytest.mark.fuse

MIB = 1 << 20


def taken(image: Path) -> int:
    return image.stat().st_blocks * 512


def put(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def test_trim(mounted: Place) -> None:
    put(mounted.mountpoint / "goes", os.urandom(24 * MIB))
    stays = os.urandom(8 * MIB)
    put(mounted.mountpoint / "stays", stays)
    before = taken(mounted.image)
    (mounted.mountpoint / "goes").unlink()
    result = cowfs("trim", mounted.mountpoint)
    assert result.stdout.endswith("trimmed\n")
    assert before - taken(mounted.image) > 20 * MIB
    assert json.loads(cowfs("trim", mounted.mountpoint, "--json").stdout)["trimmed"] > 20 * MIB
    reply = mounted.command("trim --start=0 --length=1048576")
    assert reply["next"] == MIB and reply["trimmed"] <= MIB
    mounted.remount()
    assert (mounted.mountpoint / "stays").read_bytes() == stays


def test_discard_behind_commits(place: Place) -> None:
    place.make()
    place.mount("-o", "discard")
    assert "discard" in cowfs("info", place.mountpoint, "--json").stdout
    for number in range(4):
        put(place.mountpoint / "file", os.urandom(16 * MIB))
        (place.mountpoint / "file").unlink()
        put(place.mountpoint / f"small {number}", b"x")
    cowfs("sync", place.mountpoint)
    put(place.mountpoint / "last", b"x")
    wait_until(lambda: taken(place.image) < 12 * MIB)
    place.umount()
    assert taken(place.image) < 12 * MIB
