"""A volume that is full of what snapshots hold, behind a mount: what frees space goes on, and brings it back."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from mounting import Place, errno_of

from cowfs import control

pytestmark = pytest.mark.fuse
MIB = 1 << 20


def rewrite(path: Path, content: bytes) -> None:
    with open(path, "r+b", buffering=0) as file:
        for at in range(0, len(content), 1 << 16):
            file.write(content[at : at + (1 << 16)])
        os.fsync(file.fileno())


@pytest.mark.parametrize("words", ["rw", "nowriteback"])
def test_full_by_rewriting_under_snapshots(place: Place, words: str) -> None:
    place.expects_errors = False
    place.make(16)
    place.mount("-o", words)
    root = place.mountpoint
    folder = root / ".cowfs" / "snapshots"

    def command(*text: str) -> object:
        return control.send(str(root), control.Command(text))

    file = root / "file"
    file.write_bytes(bytes(3 * MIB))
    contents = []
    while len(contents) < 20:
        # Every rewrite needs new blocks; each snapshot holds what was there before.
        command("snapshot", "create", f"s{len(contents)}")
        contents.append(file.read_bytes())
        if errno_of(lambda: rewrite(file, os.urandom(3 * MIB))) == errno.ENOSPC:
            break
    assert 3 <= len(contents) <= 6
    assert errno_of(lambda: fill(root / "filler")) == errno.ENOSPC
    names = sorted(os.listdir(folder))
    refused = errno_of(lambda: command("snapshot", "create", "one-more"))
    assert refused in (0, errno.ENOSPC)
    assert sorted(os.listdir(folder)) == (names if refused else sorted([*names, "one-more"]))
    saved = control.send(str(root), control.Command(("rollback", "s1")))["saved"]
    assert saved["name"].startswith("before-rollback-"), "the present is saved, full or not"
    assert file.read_bytes() == contents[1]
    control.send(str(root), control.Command(("snapshot", "delete", saved["name"], *names[1:])))
    # What was deleted is not free yet, and the write right after it finds its space all the same.
    new = os.urandom(4 * MIB)
    (root / "after").write_bytes(new)
    assert (root / "after").read_bytes() == new
    (root / "after").unlink()
    os.truncate(file, MIB)
    file.unlink()
    (folder / "s0").rmdir()
    (root / "large").write_bytes(new * 2)
    place.remount("-o", words)
    assert (root / "large").read_bytes() == new * 2


def fill(path: Path) -> None:
    """Until there is no space for one block."""
    with open(path, "wb", buffering=0) as file:
        while True:
            file.write(os.urandom(4096))
