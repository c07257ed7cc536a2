"""What the tests of repairs share: repairing a device with what must hold for every repair, and looking at the result."""

from __future__ import annotations

import stat
from functools import cache

from damage import Image
from damage_sample import ME, sample
from support import filesystem_on

from cowfs.check.repair import Repair, plan_repair
from cowfs.fs import Filesystem
from cowfs.ondisk import format as f
from cowfs.storage.device import MemoryDevice
from cowfs.storage.volume import Volume

Tree = dict[str, tuple[int, bytes, dict[bytes, bytes]]]


def files_of(device: MemoryDevice) -> Tree:
    """Every path with its mode, its contents and its extended attributes, as a mount shows them. The device stays as it is."""
    fs = Filesystem(Volume.open(MemoryDevice.from_image(device.image()), read_only=True))
    found: Tree = {}

    def visit(ino: int, path: str) -> None:
        mode = fs.getattr(ino).mode
        data = b""
        if stat.S_ISREG(mode) and fs.getattr(ino).size < 1 << 20:
            data = fs.read(ino, 0, 1 << 20)
        elif stat.S_ISLNK(mode):
            data = fs.readlink(ino)
        found[path] = mode, data, {name: fs.getxattr(ino, name) for name in fs.listxattr(ino)}
        if stat.S_ISDIR(mode):
            for _, name, child, _ in fs.listing(ino).entries():
                if name not in (b".", b".."):
                    visit(child, f"{path}/{name.decode()}".lstrip("/"))

    visit(f.ROOT_INODE, "")
    return found


@cache
def sound_files() -> Tree:
    """The sample's files before any damage."""
    return files_of(sample().device())


def repaired(device: MemoryDevice, **options: bool | int) -> Repair:
    """Plans, without writing, and applies."""
    before = device.image()
    device.reset_counters()
    plan = plan_repair(device, **options)  # type: ignore[arg-type]
    assert (device.writes, device.flushes) == (0, 0)
    assert device.image() == before
    plan.apply(device)
    return plan


def mount_and_check(device: MemoryDevice) -> None:
    """A mount can write, and leaves a sound volume. The device stays as it is."""
    with filesystem_on(MemoryDevice.from_image(device.image())) as fs:
        ino = fs.create(f.ROOT_INODE, b"after the repair", stat.S_IFREG | 0o644, ME).ino
        fs.write(ino, 0, b"x" * 5000)


def trash(image: Image, block: int) -> None:
    with image.edit(block, checksum=False) as data:
        data[:] = b"trash" * 102 + b"!!"
