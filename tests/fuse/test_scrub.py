"""Scrubbing behind a mount: in the background, with requests in between, and gone on with after unmounting."""

from __future__ import annotations

import json
import os
import pty
import random
import select
import statistics
import subprocess
import time
from pathlib import Path

import pytest
from mounting import COWFS, ROOT, Place, cowfs, wait_until

from cowfs.ondisk.geometry import geometry_for_size

pytestmark = pytest.mark.fuse

MIB = 1 << 20
GEOMETRY = geometry_for_size(64 << 20, 4096)


def fill(path: Path, size: int, seed: int = 1) -> bytes:
    data = random.Random(seed).randbytes(size)
    path.write_bytes(data)
    return data


def spoil(place: Place, data: bytes) -> None:
    """Changes a byte on the image where it holds `data`."""
    image = place.image.read_bytes()
    at = image.index(data)
    with place.image.open("r+b") as file:
        file.seek(at + 77)
        file.write(bytes([data[77] ^ 1]))


def test_it_reads_everything_and_finds_nothing(mounted: Place) -> None:
    fill(mounted.mountpoint / "file", 8 * MIB)
    cowfs("sync", mounted.mountpoint)
    result = cowfs("scrub", mounted.mountpoint)
    assert result.stdout.endswith("verified, 0 bad blocks\n")
    assert result.stderr == ""
    reply = json.loads(cowfs("scrub", mounted.image, "--status", "--json").stdout)
    assert reply["state"] == "finished"
    assert reply["done"] == reply["total"] > 8 * MIB
    log = mounted.log.read_text()
    assert "scrub: begins at block 0" in log
    assert "scrub: finished" in log
    assert log.count("status") == 0


def test_a_bad_block_is_told_with_who_holds_it(mounted: Place) -> None:
    mounted.expects_errors = mounted.expects_problems = True
    (mounted.mountpoint / "directory").mkdir()
    data = fill(mounted.mountpoint / "directory" / "file", 2 * MIB)
    cowfs("snapshot", "create", mounted.mountpoint, "before")
    (mounted.mountpoint / "directory" / "file").rename(mounted.mountpoint / "moved")
    cowfs("sync", mounted.mountpoint)
    spoil(mounted, data[40 * 4096 : 41 * 4096])
    result = cowfs("scrub", mounted.mountpoint, ok=False)
    assert result.returncode == 4
    lines = result.stdout.splitlines()
    assert lines[0].startswith("block ")
    assert "checksum 0x" in lines[0]
    assert lines[1:] == [
        "    moved: bytes 163840..167935",
        "    .cowfs/snapshots/before/directory/file: bytes 163840..167935",
        lines[-1],
    ]
    assert lines[-1].endswith("1 bad block")
    (bad,) = json.loads(cowfs("scrub", mounted.mountpoint, "--status", "--json", ok=False).stdout)["bad"]
    assert [owner["snapshot"] for owner in bad["owners"]] == [None, "before"]
    log = mounted.log.read_text()
    assert f"block {bad['block']} is bad" in log
    assert "held by moved, .cowfs/snapshots/before/directory/file" in log
    mounted.umount()
    offline = cowfs("scrub", mounted.image, ok=False)
    assert offline.returncode == 4
    assert offline.stdout.splitlines()[:-1] == lines[:-1]


def test_it_is_stopped_and_goes_on_after_a_new_mount(mounted: Place) -> None:
    fill(mounted.mountpoint / "file", 16 * MIB)
    cowfs("sync", mounted.mountpoint)
    first = cowfs("scrub", mounted.mountpoint, "--background", "--rate", "4")
    assert first.stdout.startswith("running: ")
    wait_until(lambda: mounted.command("scrub status")["done"] > 2 * MIB)
    status = mounted.command("scrub status")
    assert status["state"] == "running"
    assert status["rate"] < 6 * MIB
    assert status["seconds_left"] > 0
    mounted.remount()  # unmounting does not wait for it
    kept = mounted.command("scrub status")
    assert kept["state"] == "stopped"
    assert status["done"] <= kept["done"] < kept["total"]
    result = json.loads(cowfs("scrub", mounted.mountpoint, "--json").stdout)
    assert result["state"] == "finished"
    assert result["started"] == status["started"]
    assert "goes on at block" in mounted.log.read_text()

    cowfs("scrub", mounted.mountpoint, "--background", "--rate", "1")
    assert cowfs("scrub", mounted.mountpoint, "--stop").stdout.startswith("stopped: ")
    assert mounted.command("scrub status")["state"] == "stopped"


def test_reads_are_served_meanwhile(mounted: Place) -> None:
    """The median of a 4 KiB read at most doubles: measured alternately, with and without a scrub, and with some room."""
    fill(mounted.mountpoint / "large", 40 * MIB)
    cowfs("sync", mounted.mountpoint)
    descriptor = os.open(mounted.mountpoint / "large", os.O_RDONLY)
    rng = random.Random(4)

    def median(count: int) -> float:
        times = []
        for _ in range(count):
            offset = rng.randrange(40 * 256) * 4096
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            begin = time.perf_counter()
            assert len(os.pread(descriptor, 4096, offset)) == 4096
            times.append(time.perf_counter() - begin)
        return statistics.median(times)

    try:
        median(100)
        alone, beside = [], []
        for _ in range(5):
            alone.append(median(150))
            mounted.command("scrub start --restart")
            beside.append(median(150))
            mounted.command("scrub stop")
    finally:
        os.close(descriptor)
    assert min(beside) < 2 * min(alone) + 0.0005, (alone, beside)


def test_writes_and_commits_meanwhile(mounted: Place) -> None:
    """A mount that works all the time: what is sound is never called bad."""
    cowfs("scrub", mounted.mountpoint, "--background")
    for turn in range(30):
        fill(mounted.mountpoint / f"file {turn % 5}", 600_000, turn)
        if turn % 3 == 0:
            cowfs("sync", mounted.mountpoint)
        if mounted.command("scrub status")["state"] != "running":
            reply = mounted.command("scrub status")
            assert (reply["state"], reply["bad_count"], reply["slots"]) == ("finished", 0, [])
            mounted.command("scrub start --restart")
    reply = json.loads(cowfs("scrub", mounted.mountpoint, "--json").stdout)
    assert (reply["state"], reply["bad_count"], reply["slots"]) == ("finished", 0, [])


def test_an_image_that_is_not_mounted(place: Place) -> None:
    place.make()
    assert cowfs("scrub", place.image).stdout.endswith("verified, 0 bad blocks\n")
    with place.image.open("r+b") as file:
        file.seek(GEOMETRY.slot_offsets[1] + 900)
        file.write(b"?")
    place.expects_problems = True
    result = cowfs("scrub", place.image, ok=False)
    assert result.returncode == 4
    assert "slot 2: " in result.stdout
    assert "is not mounted" in cowfs("scrub", place.image, "--stop", ok=False).stderr
    assert cowfs("scrub", place.image, "--stop", "--status", ok=False).returncode == 2
    assert cowfs("scrub", place.image, "--rate", "-1", ok=False).returncode == 2


def test_a_read_only_mount_is_scrubbed_too(place: Place) -> None:
    place.make()
    place.mount("-o", "ro")
    assert "verified" in cowfs("scrub", place.mountpoint).stdout
    assert "verified" in cowfs("scrub", "--status", place.mountpoint).stdout


def test_a_terminal_shows_a_bar(place: Place) -> None:
    place.make()
    master, slave = pty.openpty()
    process = subprocess.Popen([*COWFS, "scrub", str(place.image)], stdout=slave, stderr=slave, stdin=slave, cwd=ROOT)
    os.close(slave)
    shown = b""
    try:
        while select.select([master], [], [], 60)[0]:
            try:
                shown += os.read(master, 4096)
            except OSError:  # the other side has closed it
                break
    finally:
        assert process.wait(60) == 0
        os.close(master)
    assert b"scrubbing" in shown
    assert b"100%" in shown
