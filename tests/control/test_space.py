"""`df` where space runs short while it counts: it begins anew, and all its figures are of one moment."""

from __future__ import annotations

from typing import Any

from cowfs.control import commands
from cowfs.control.host import Offline
from cowfs.control.wire import Command
from cowfs.fs import Caller
from cowfs.fs.snapshot import Snapshots
from cowfs.fs.steps import finish
from cowfs.storage.volume import Volume
from tests.support import assert_sound, new_device

BLOCK = 4096
LISTED, LIVE, FIRST = 1, 2, 3
"""Long computations of `df`, in this order: the list of snapshots, the live tree, the first snapshot."""


class Host(Offline):
    """Behind the first snapshot's figures a file is removed, and then space is short."""

    done = 0

    async def work(self, steps: Any) -> Any:
        result = finish(steps)
        self.done += 1
        if self.done == FIRST:
            self.filesystem.unlink(1, b"file")
            self.filesystem.sync()
            self.filesystem.volume.reclaim.popped += 1
        return result


def df(host: Offline) -> dict[str, dict[str, int]]:
    return {row["name"]: row for row in commands.run(Command(("df",)), host)["trees"]}


def test_figures_from_before_it_began_anew_are_not_kept() -> None:
    device = new_device()
    trees = Snapshots(Volume.open(device))
    ino = trees.live.create(1, b"file", 0o644, Caller()).ino
    trees.live.write(ino, 0, b"x" * 30 * BLOCK)
    trees.create(b"first")
    trees.live.create(1, b"other", 0o644, Caller())
    trees.live.write(ino, 0, b"y" * 10 * BLOCK)
    trees.create(b"second")
    host = Host(trees.live, trees)
    found = df(host)
    assert host.done > FIRST + 1, "it began anew"
    assert found == df(Offline(trees.live, trees))
    assert found["first"]["exclusive"] >= 10 * BLOCK
    assert found[""]["total"] < 10 * BLOCK
    trees.close()
    assert_sound(device)
