"""Very many snapshots behind a mount: the folder that lists them, looking any of them up, and the reply with all of them."""

from __future__ import annotations

import os
import random

import pytest
from mounting import Place

from cowfs import control
from cowfs.fs import Caller
from cowfs.fs.snapshot import Snapshots
from cowfs.storage.device import FileDevice
from cowfs.storage.volume import Volume

pytestmark = pytest.mark.fuse


def with_snapshots(place: Place, count: int) -> list[str]:
    """A volume with so many snapshots, each with another content of one file; their names."""
    place.make(16 + count * 6 // 1024 + count // 100)
    device = FileDevice.open(place.image, read_only=False)
    device.lock(exclusive=True)
    trees = Snapshots(Volume.open(device))
    ino = trees.live.create(1, b"file", 0o644, Caller(os.getuid(), os.getgid())).ino
    names = []
    for number in range(count):
        if number % 100 == 0:
            trees.live.write(ino, 0, b"%06d" % number)
            trees.volume.commit()
        names.append(f"snapshot {number}")
        trees.create(names[-1].encode())
    trees.close()
    trees.volume.close()
    return names


def use(place: Place, count: int) -> None:
    choose = random.Random(count)
    names = with_snapshots(place, count)
    place.mount()
    folder = place.mountpoint / ".cowfs" / "snapshots"
    assert sorted(os.listdir(folder)) == sorted(names)
    for number in choose.sample(range(count), 100):
        assert (folder / names[number] / "file").read_text() == f"{number // 100 * 100:06d}"
    assert not (folder / "snapshot").exists()
    with os.scandir(folder) as entries:
        kinds = {entry.name: (entry.is_dir(), entry.inode()) for entry in entries}
    assert all(is_directory for is_directory, _ in kinds.values())
    assert len({number for _, number in kinds.values()}) == count
    for name in choose.sample(names, 100):
        found = (folder / name).stat()
        assert found.st_ino == kinds[name][1]
    reply = control.send(str(place.mountpoint), control.Command(("snapshot", "list")))
    assert [info["name"] for info in reply["snapshots"]] == names
    # A listing in progress, while others delete and create: everything that stays is met once.
    gone = set(choose.sample(names, 200))
    met = []
    with os.scandir(folder) as entries:
        for position, entry in enumerate(entries):
            met.append(entry.name)
            if position == count // 10:
                control.send(str(place.mountpoint), control.Command(("snapshot", "delete", *sorted(gone))))
                (folder / "new").mkdir()
    assert len(set(met)) == len(met)
    assert set(names) - gone <= set(met) <= {*names, "new"}
    assert sorted(os.listdir(folder)) == sorted({*names, "new"} - gone)
    (folder / "new").rename(folder / "newer")
    (folder / "newer").rmdir()
    assert set(os.listdir(folder)) == set(names) - gone


def test_two_thousand(place: Place) -> None:
    use(place, 2000)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_thousand(place: Place) -> None:
    use(place, 100_000)
