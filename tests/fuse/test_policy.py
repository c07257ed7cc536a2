"""Rolling snapshots of a mount: taken by the daemon, with what the kernel had cached, and never in the way of unmounting."""

from __future__ import annotations

import functools
import json
import mmap
import os
from pathlib import Path
from typing import Any

import pytest
from mounting import Place, cowfs, wait_until

from cowfs import control
from cowfs.storage.device import FileDevice
from cowfs.storage.settings import Settings
from cowfs.storage.volume import Volume

pytestmark = pytest.mark.fuse


def send(place: Place, *words: str) -> dict[str, Any]:
    return control.send(str(place.mountpoint), control.Command(words))


def snapshots(place: Place) -> list[str]:
    return [info["name"] for info in send(place, "snapshot", "list")["snapshots"]]


def policy(place: Place) -> dict[str, Any]:
    return send(place, "policy", "show")


def newest(place: Place) -> Path:
    return place.mountpoint / ".cowfs" / "snapshots" / snapshots(place)[-1]


def newest_holds(place: Place, content: bytes) -> bool:
    names = snapshots(place)
    file = newest(place) / "file" if names else None
    return file is not None and file.exists() and file.read_bytes() == content


def test_they_are_taken_with_what_the_kernel_keeps(mounted: Place) -> None:
    root = mounted.mountpoint
    (root / "before").write_bytes(b"before")
    cowfs("policy", "set", root, "--every", "1s", "--keep", "60m")
    wait_until(lambda: len(snapshots(mounted)) == 1)
    assert (newest(mounted) / "before").read_bytes() == b"before"
    with open(root / "mapped", "wb+") as file:
        file.truncate(8192)
        with mmap.mmap(file.fileno(), 8192) as mapped:
            mapped[4096:4100] = b"late"
            wait_until(lambda: len(snapshots(mounted)) == 2)
            assert (newest(mounted) / "mapped").read_bytes()[4096:4100] == b"late"
    reply = policy(mounted)
    assert reply["policy"] == {"every": "1s", "keep": "60m", "thin_when_short": False}
    assert reply["snapshots"] == len(snapshots(mounted)) >= 2
    assert reply["next"] is not None
    text = cowfs("info", root).stdout
    assert "policy:    every 1s, keep 60m\n" in text
    assert "automatic" in cowfs("snapshot", "list", root).stdout
    mounted.umount()
    mounted.mount()
    assert policy(mounted)["policy"] == reply["policy"]
    cowfs("policy", "clear", root)
    assert policy(mounted)["policy"] is None and policy(mounted)["next"] is None
    assert len(snapshots(mounted)) >= 2


def test_a_policy_that_was_answered_survives_the_end_of_the_daemon(mounted: Place) -> None:
    mounted.command("policy set --every=1h --keep=24h")
    wait_until(lambda: len(snapshots(mounted)) == 1)
    mounted.kill()
    cowfs("umount", mounted.mountpoint)
    assert "every 1h, keep 24h" in cowfs("policy", "show", mounted.image).stdout
    mounted.mount()
    assert mounted.info()["policy"] == {"every": "1h", "keep": "24h", "thin_when_short": False}


def test_mounts_that_run_none(place: Place) -> None:
    place.make()
    cowfs("snapshot", "create", place.image, "clone", "--writable")
    cowfs("policy", "set", place.image, "--every", "1s", "--keep", "24h")
    for options in ("ro", "snapshot=clone"):
        place.mount("-o", options)
        assert place.info()["policy"]["every"] == "1s"
        assert policy(place)["next"] is None
        place.umount()
    assert len(json.loads(cowfs("snapshot", "list", place.image, "--json").stdout)) == 1


def test_a_stored_policy_that_makes_no_sense_is_logged_and_nothing_else(place: Place) -> None:
    place.make()
    device = FileDevice.open(place.image, read_only=False)
    volume = Volume.open(device)
    Settings(volume).put("policy", {"every": "never"})
    volume.close()
    place.mount()
    (place.mountpoint / "file").write_bytes(b"contents")
    wait_until(lambda: "the policy that is stored cannot be used" in place.log.read_text())
    assert place.info()["policy"] is None


def test_a_full_mount_thins_instead_of_failing(place: Place) -> None:
    place.make(16)
    cowfs("policy", "set", place.image, "--every", "1s", "--keep", "1000m", "--thin-when-short")
    place.mount()
    root = place.mountpoint
    for number in range(1, 4):
        content = bytes([number]) * (3 << 20)
        (root / "file").write_bytes(content)
        wait_until(functools.partial(newest_holds, place, content))
    place.command("policy set --every=1h --keep=1000m --thin-when-short")  # no more of them from here on
    names = snapshots(place)
    content = os.urandom(9 << 20)
    with open(root / "big", "wb") as file:
        file.write(content)
        os.fsync(file.fileno())
    place.remount()
    assert (root / "big").read_bytes() == content
    assert (root / "file").read_bytes() == b"\3" * (3 << 20)
    left = snapshots(place)
    assert 1 <= len(left) < len(names)
    assert left[-1] == names[-1]
    assert "early, for want of space" in place.log.read_text()
