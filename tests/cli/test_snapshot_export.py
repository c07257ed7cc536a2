"""`cowfs snapshot export`: a snapshot as the live tree of a volume of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from cowfs.check import check_image
from cowfs.cli.program import run
from cowfs.fs import Caller, Filesystem
from cowfs.fs.snapshot import Snapshots
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import geometry_for_size
from cowfs.storage.device import FileDevice
from cowfs.storage.mkvolume import make_volume
from cowfs.storage.superblock import read_slots
from cowfs.storage.volume import Volume

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A volume with a snapshot `then` with the file `old`, and `new` in its place now."""
    path = tmp_path / "image"
    device = FileDevice.create(path, 4 * MIB)
    make_volume(device, geometry_for_size(4 * MIB, 1024), label=b"", uuid=bytes(range(16)), now_ns=0)
    snapshots = Snapshots(Volume.open(device))
    ino = snapshots.live.create(f.ROOT_INODE, b"old", 0o644, Caller()).ino
    snapshots.live.write(ino, 0, b"x" * 100_000)
    snapshots.create(b"then")
    snapshots.live.unlink(f.ROOT_INODE, b"old")
    snapshots.live.create(f.ROOT_INODE, b"new", 0o644, Caller())
    snapshots.close()
    device.close()
    return path


def names(path: Path) -> list[bytes]:
    device = FileDevice.open(path, read_only=True)
    entries = Filesystem(Volume.open(device, read_only=True)).listing(f.ROOT_INODE).entries()
    found = [name for _, name, _, _ in entries]
    device.close()
    return found[2:]


def test_the_copy_holds_the_snapshot_in_its_first_slot(image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    out = tmp_path / "out"
    assert run(["snapshot", "export", str(image), "then", str(out)]) == 0
    assert image.read_bytes() == before
    assert (names(image), names(out)) == ([b"new"], [b"old"])
    device = FileDevice.open(out, read_only=True)
    check_image(device)
    slots = read_slots(device)
    assert slots.newest.number == 1 and not slots.notes
    assert slots.slots[1].superblock.inode == slots.slots[2].superblock.inode
    device.close()


def test_failures_leave_no_file(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(["snapshot", "export", str(image), "never", str(out)]) == 1
    assert not out.exists()
    out.write_bytes(b"mine")
    assert run(["snapshot", "export", str(image), "then", str(out)]) == 1
    assert out.read_bytes() == b"mine"
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("cowfs: ") and second == f"cowfs: {out} exists"
