"""Volumes whose indirect blocks have holes behind the end, as cowfs made them before: all is done with them as with others."""

from __future__ import annotations

import random
import stat

import pytest
from older_form import give_older_form
from support import MIB, assert_sound, new_device, open_filesystem

from cowfs.check import check_device
from cowfs.fs import Caller, Filesystem
from cowfs.fs.snapshot import Snapshots
from cowfs.ondisk import format as f
from cowfs.storage.device import MemoryDevice
from cowfs.storage.volume import Volume

USER = Caller(1000, 1000)
Contents = dict[int, bytearray]


def filled(block_size: int, choose: random.Random) -> tuple[MemoryDevice, Contents]:
    """A volume with files that end around the reach of levels, and names enough for indirect blocks of their own."""
    device = new_device(24 * MIB, block_size)
    filesystem = open_filesystem(device)
    contents: Contents = {}
    fanout = block_size // f.POINTER_SIZE
    counts = [5, 17, 40, fanout - 1, fanout, fanout + 1, 2 * fanout + 3]
    counts += [16 * fanout - 1, 16 * fanout + 1, 18 * fanout + 7] if block_size < 2048 else []
    for count in counts:
        for form in ("dense", "end", "hole"):
            ino = filesystem.create(1, b"%d %s" % (count, form.encode()), stat.S_IFREG | 0o644, USER).ino
            size = count * block_size - choose.choice((0, 1, block_size - 1))
            data = contents[ino] = bytearray(size)
            if form == "dense" and count < 500:
                data[:] = choose.randbytes(size)
                filesystem.write(ino, 0, data)
            elif form == "end":
                data[-700:] = choose.randbytes(min(700, size))
                filesystem.write(ino, max(0, size - 700), data[-700:])
            filesystem.truncate(ino, size)
    for number in range(25):
        filesystem.create(1, b"%d" % number + b" with a name that lies in a slot", stat.S_IFREG | 0o644, USER)
    for number in range(600 if block_size == 512 else 0):
        filesystem.create(1, b"%d" % number, stat.S_IFREG | 0o644, USER)
    filesystem.close()
    return device, contents


def change(filesystem: Filesystem, ino: int, data: bytearray, choose: random.Random, block_size: int) -> None:
    """One change at, behind or before the end."""
    action = choose.randrange(4)
    if action == 0:
        piece = choose.randbytes(choose.choice((1, block_size, 3 * block_size + 1)))
        filesystem.write(ino, len(data), piece)
        data += piece
    elif action == 1:
        gap = choose.randrange(20 * block_size)
        filesystem.write(ino, len(data) + gap, b"behind")
        data += bytes(gap) + b"behind"
    else:
        size = choose.randrange(max(0, len(data) - 30 * block_size), len(data) + 30 * block_size)
        filesystem.truncate(ino, size)
        del data[size:]
        data += bytes(size - len(data))


@pytest.mark.parametrize("block_size", f.BLOCK_SIZES)
def test_it_is_read_and_changed_like_others(block_size: int) -> None:
    choose = random.Random(block_size)
    device, contents = filled(block_size, choose)
    assert {note.kind.name for note in check_device(device).notes} == set()
    assert give_older_form(device) >= len(contents) // 3
    report = check_device(device)
    assert report.clean, "\n".join(report.to_text())
    assert [note.kind.name for note in report.notes] == ["holes-behind-end"]

    snapshots = Snapshots(Volume.open(device))
    filesystem = snapshots.live
    kept = {ino: bytes(data) for ino, data in contents.items()}
    info = snapshots.create(b"before")
    for step in range(3):
        for ino, data in contents.items():
            assert filesystem.read(ino, 0, len(data) + 1) == data, (step, ino)
            change(filesystem, ino, data, choose, block_size)
        for number in range(20):
            filesystem.create(1, b"%d in step %d" % (number, step), stat.S_IFREG | 0o644, USER)
            filesystem.create(1, b"%d in step %d, in a slot of its own" % (number, step), stat.S_IFREG | 0o644, USER)
        filesystem.sync()
        assert_sound(device)
    before = snapshots.filesystem(info)
    assert all(before.read(ino, 0, len(data) + 1) == data for ino, data in kept.items())
    snapshots.close()
    filesystem.volume.close()
    again = open_filesystem(device, read_only=True)
    assert all(again.read(ino, 0, len(data) + 1) == data for ino, data in contents.items())


def test_a_file_that_grows_gets_the_new_form() -> None:
    device = new_device(block_size=512)
    filesystem = open_filesystem(device)
    inos = [filesystem.create(1, b"%d" % number, stat.S_IFREG | 0o644, USER).ino for number in range(3)]
    for ino in inos:
        filesystem.truncate(ino, 20 * 512)
    filesystem.write(inos[0], 19 * 512, b"x" * 512)
    filesystem.close()
    give_older_form(device)
    assert check_device(device).notes
    filesystem = open_filesystem(device)
    filesystem.truncate(inos[0], 25 * 512)
    filesystem.write(inos[1], 30 * 512, b"x")
    filesystem.truncate(inos[2], 18 * 512)
    filesystem.close()
    assert not check_device(device).notes
