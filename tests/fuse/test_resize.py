"""A mounted volume gets another size while it is written."""

from __future__ import annotations

import json
import os
import random
import threading
from pathlib import Path

import pytest
from mounting import Place, cowfs

pytestmark = pytest.mark.fuse

MIB = 1 << 20


def test_growing_while_writers_write(mounted: Place) -> None:
    """df shows it at once; what was written and synced by many meanwhile is there after all of it."""
    mountpoint = mounted.mountpoint
    stop = threading.Event()
    written: dict[Path, bytes] = {}

    def write(number: int) -> None:
        rng = random.Random(number)
        count = 0
        while not stop.is_set():
            path = mountpoint / f"{number}-{count % 5}"
            data = rng.randbytes(rng.randrange(1, 200_000))
            with path.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            written[path] = data
            count += 1

    writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for writer in writers:
        writer.start()
    try:
        replies = [json.loads(cowfs("resize", mountpoint, size, "--json").stdout) for size in ("+8M", "+1G", "+300K")]
        blocks = os.statvfs(mountpoint).f_blocks
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert mounted.image.stat().st_size == replies[-1]["size"]
    info = json.loads(cowfs("info", mountpoint, "--json").stdout)
    assert info["size"] // info["block_size"] == blocks == (replies[-1]["size"] - 0x4000) // 4096
    for path, data in written.items():
        assert path.read_bytes() == data
    (mountpoint / "large").write_bytes(b"x" * 100 * MIB)
    mounted.remount()
    for path, data in written.items():
        assert path.read_bytes() == data
    assert (mountpoint / "large").stat().st_size == 100 * MIB


def test_a_full_mount_gets_room(mounted: Place) -> None:
    path = mounted.mountpoint / "file"
    with path.open("wb") as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(b"y" * MIB)
            file.flush()
            os.fsync(file.fileno())
    cowfs("resize", mounted.mountpoint, "+64M")
    with (mounted.mountpoint / "more").open("wb") as file:
        file.write(b"z" * 32 * MIB)
        file.flush()
        os.fsync(file.fileno())


def test_refused_while_a_scrub_runs(mounted: Place) -> None:
    (mounted.mountpoint / "file").write_bytes(os.urandom(8 * MIB))
    cowfs("scrub", mounted.mountpoint, "--background", "--rate", "1")
    result = cowfs("resize", mounted.mountpoint, "+64M", ok=False)
    assert result.returncode == 1 and "a scrub is running" in result.stderr
    cowfs("scrub", mounted.mountpoint, "--stop")
    cowfs("resize", mounted.mountpoint, "+64M")


def test_a_mounted_volume_does_not_shrink(mounted: Place) -> None:
    result = cowfs("resize", mounted.mountpoint, "-8M", ok=False)
    assert result.returncode == 1 and "unmount it" in result.stderr
    mounted.umount()
    cowfs("resize", mounted.image, "-8M")
    mounted.mount()
    assert os.statvfs(mounted.mountpoint).f_blocks == (56 * MIB - 0x4000) // 4096
