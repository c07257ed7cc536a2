"""The volume that the tests of the checker damage: small blocks, one object of every kind, trees of several levels."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from functools import cache

from support import MIB, close_filesystem, new_device, open_filesystem

from cowfs.fs import Caller
from cowfs.storage.device import MemoryDevice

SIZE = 4 * MIB
BLOCK_SIZE = 512
LONG_NAMES = (b"first-" + b"l" * 60, b"second-" + b"n" * 500, b"third-" + b"m" * 28)
ME = Caller()


@dataclass(frozen=True)
class Sample:
    """The bytes of the volume, and the numbers of its inodes by path."""

    image: bytes
    inodes: dict[str, int]

    def device(self) -> MemoryDevice:
        """A fresh copy."""
        return MemoryDevice.from_image(self.image)


@cache
def sample() -> Sample:
    """The volume, cleanly unmounted. The first long-name slot is free again."""
    device = new_device(SIZE, BLOCK_SIZE)
    fs = open_filesystem(device)
    inodes: dict[str, int] = {"": 1}

    def create(path: str, mode: int = stat.S_IFREG | 0o644, rdev: int = 0) -> int:
        parent, _, name = path.rpartition("/")
        if stat.S_ISDIR(mode):
            inodes[path] = fs.mkdir(inodes[parent], name.encode(), mode & 0o7777, ME).ino
        else:
            inodes[path] = fs.create(inodes[parent], name.encode(), mode, ME, rdev=rdev).ino
        return inodes[path]

    create("dir", stat.S_IFDIR | 0o755)
    create("dir/inner", stat.S_IFDIR | 0o755)
    fs.write(create("small"), 0, b"s" * 100)
    big = create("big")
    fs.write(big, 0, b"b" * (20 * BLOCK_SIZE))
    fs.write(big, 30 * BLOCK_SIZE, b"c" * (10 * BLOCK_SIZE))
    fs.write(create("deep"), 100 * 16 * 128 * BLOCK_SIZE, b"d" * BLOCK_SIZE)
    inodes["link"] = fs.symlink(1, b"link", b"small", ME).ino
    create("fifo", stat.S_IFIFO | 0o600)
    create("tty", stat.S_IFCHR | 0o600, rdev=0x401)
    for number in range(28):
        create(f"dir/file{number}")
    fs.link(inodes["small"], inodes["dir"], b"hard")
    for name, directory in zip(LONG_NAMES, ("", "", "dir"), strict=True):
        inodes[name.decode()] = fs.create(inodes[directory], name, stat.S_IFREG | 0o644, ME).ino
    fs.unlink(1, LONG_NAMES[0])
    create("attr")
    fs.setxattr(inodes["attr"], b"user.colour", b"blue")
    fs.setxattr(inodes["attr"], b"user.size", b"x" * 600)
    close_filesystem(fs)
    return Sample(device.image(), inodes)
