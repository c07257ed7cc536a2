#!/usr/bin/env python3
"""Makes the golden images of this folder, each with a listing of what it holds. `README.md` says what they are for.

Everything that could differ from run to run is fixed: UUIDs, the clock, owners. So the same code makes the same bytes,
and a test compares them. Run it, with cowfs installed, after a change that moves blocks or bytes on purpose:

    python images/make.py [FOLDER [NAME...]]
"""

from __future__ import annotations

import hashlib
import lzma
import os
import stat
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from cowfs.fs import AtimeMode, Attributes, Caller, Filesystem
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import Geometry, geometry_for_size
from cowfs.storage.device import MemoryDevice
from cowfs.storage.mkvolume import make_volume
from cowfs.storage.volume import Volume

EMPTY_SIZE: Final = 1 << 20
FILLED_SIZE: Final = 2 << 20
START_NS: Final = 1_709_208_000_000_000_000  # 2024-02-29 12:00:00 UTC
STEP_NS: Final = 1_000_000_001
SECOND_NS: Final = 1_000_000_000
LISTED_BYTES_MAX: Final = 256 << 10  # of each end of a file, for its digest: the middle of a huge one is a hole
USER: Final = Caller(1000, 1001)
ROOT: Final = f.ROOT_INODE


@dataclass
class Clock:
    """A clock that stands still until it is told to go on."""

    now_ns: int = START_NS

    def __call__(self) -> int:
        return self.now_ns

    def step(self) -> None:
        """On to the next object."""
        self.now_ns += STEP_NS


def pattern(word: str, size: int) -> bytes:
    """`size` bytes that differ from line to line and from word to word."""
    lines = (f"{number:07d} {word}\n".encode() for number in range(size // (len(word) + 9) + 1))
    return b"".join(lines)[:size]


class Recipe:
    """Builds one image in memory."""

    def __init__(self, name: str, size: int, block_size: int) -> None:
        self.clock = Clock()
        self.device = MemoryDevice(size, name=name)
        self.geometry: Geometry = geometry_for_size(size, block_size)
        volume_id = uuid.uuid5(uuid.NAMESPACE_URL, f"cowfs:images/{name}").bytes
        make_volume(self.device, self.geometry, label=name.encode(), uuid=volume_id, now_ns=self.clock())

    def open(self) -> Filesystem:
        """The filesystem, on the clock of the recipe."""
        volume = Volume.open(self.device)
        volume.clock = self.clock
        return Filesystem(volume, clock=self.clock, atime=AtimeMode.NOATIME)


def empty(name: str, block_size: int) -> bytes:
    """A volume as mkcowfs makes it."""
    return Recipe(name, EMPTY_SIZE, block_size).device.image()


def objects(name: str, block_size: int) -> bytes:
    """Every kind of object, and a clean unmount."""
    recipe = Recipe(name, FILLED_SIZE, block_size)
    filesystem = recipe.open()
    steps = (make_files, make_names, make_links, make_nodes, make_attributes, make_xattrs, make_gaps)
    for number, step in enumerate(steps):
        recipe.clock.step()
        where = filesystem.mkdir(ROOT, step.__name__.removeprefix("make_").encode(), 0o755, USER).ino
        step(filesystem, recipe.clock, where)
        if number == len(steps) // 2:
            filesystem.sync()
    filesystem.close()
    return recipe.device.image()


def crashed(name: str, block_size: int) -> bytes:
    """The daemon was killed: an orphan, a pending reclaim queue, a manifest, and a newest commit in one slot only."""
    recipe = Recipe(name, FILLED_SIZE, block_size)
    filesystem = recipe.open()
    # A tree of two levels, though mostly holes: such a one waits in the reclaim queue when its file is cut.
    large = new_file(filesystem, ROOT, b"large")
    span = recipe.geometry.fanout * block_size
    for part in range(f.POINTER_COUNT, f.POINTER_COUNT + 4):
        filesystem.write(large, part * span, pattern(f"part {part}", 3 * block_size))
    orphan = new_file(filesystem, ROOT, b"orphan", pattern("orphan", 5000))
    filesystem.hold(orphan)
    filesystem.sync()
    recipe.clock.step()
    new_file(filesystem, ROOT, b"stays", pattern("stays", 3 * block_size + 1))
    filesystem.unlink(ROOT, b"orphan")
    filesystem.truncate(large, 0)
    filesystem.sync()
    recipe.clock.step()
    new_file(filesystem, ROOT, b"never committed", b"lost")
    return recipe.device.image()


def new_file(filesystem: Filesystem, parent: int, name: bytes, data: bytes = b"", offset: int = 0) -> int:
    """A regular file with `data` at `offset`; its inode number."""
    ino = filesystem.create(parent, name, stat.S_IFREG | 0o644, USER).ino
    if data:
        filesystem.write(ino, offset, data)
    return ino


def make_files(filesystem: Filesystem, clock: Clock, where: int) -> None:
    """Contents: sizes around a block and around the reach of each level; holes at every place."""
    geometry = filesystem.volume.geometry
    block, fanout = geometry.block_size, geometry.fanout
    for name, size in (
        ("empty", 0),
        ("one-byte", 1),
        ("a-block", block),
        ("a-block-and-a-byte", block + 1),
        ("all-direct", f.POINTER_COUNT * block),
        ("one-level", (f.POINTER_COUNT + 1) * block - 1),
    ):
        clock.step()
        new_file(filesystem, where, name.encode(), pattern(name, size))
    for name, offset in (
        ("two-levels", f.POINTER_COUNT * fanout * block),
        ("three-levels", f.POINTER_COUNT * fanout**2 * block),
        ("hole-at-start", 7 * block + 3),
    ):
        clock.step()
        new_file(filesystem, where, name.encode(), pattern(name, block), offset)
    clock.step()
    ino = new_file(filesystem, where, b"hole-in-the-middle", pattern("before", block + 5))
    filesystem.write(ino, 30 * block + 7, pattern("behind", block))
    clock.step()
    filesystem.truncate(new_file(filesystem, where, b"only-a-hole"), 40 * block + 1)
    clock.step()
    filesystem.truncate(new_file(filesystem, where, b"largest"), geometry.file_size_max)
    clock.step()
    ino = new_file(filesystem, where, b"cut-and-grown", pattern("cut", 25 * block))
    filesystem.truncate(ino, 2 * block + 9)
    filesystem.truncate(ino, 20 * block)
    clock.step()
    ino = new_file(filesystem, where, b"overwritten", pattern("old", 4 * block))
    filesystem.write(ino, block // 2, pattern("new", 2 * block))


def make_names(filesystem: Filesystem, clock: Clock, where: int) -> None:
    """Names at every limit, and any bytes in them."""
    for length in (1, f.SHORT_NAME_MAX, f.SHORT_NAME_MAX + 1, 255, f.NAME_MAX):
        clock.step()
        new_file(filesystem, where, pattern("name", length).replace(b"\n", b"-").replace(b" ", b"_"))
    for name in (
        b".hidden",
        b"...",
        b"line\nfeed",
        bytes(range(1, 27)),
        bytes(range(0x80, 0x100)),
        "größer 日本".encode(),
    ):
        clock.step()
        new_file(filesystem, where, name)
    clock.step()
    deep = where
    for level in range(8):
        deep = filesystem.mkdir(deep, f"level {level}".encode(), 0o755, USER).ino


def make_links(filesystem: Filesystem, clock: Clock, where: int) -> None:
    """Many names of one file, across folders, in a directory of many blocks; symbolic links."""
    ino = new_file(filesystem, where, b"a-file", b"many names\n")
    clock.step()
    many = filesystem.mkdir(where, b"many", 0o755, USER).ino
    for number in range(300):
        ending = "" if number % 16 else " with a name that is too long for an entry"
        filesystem.link(ino, many, f"link {number}{ending}".encode())
    for name, target in (
        (b"relative", b"a-file"),
        (b"absolute", b"/usr/bin/env"),
        (b"dangling", b"no/such/file"),
        (b"bytes", bytes(range(1, 256))),
        (b"longest", pattern("longest", f.SYMLINK_SIZE_MAX)),
    ):
        clock.step()
        filesystem.symlink(where, name, target, USER)


def make_nodes(filesystem: Filesystem, clock: Clock, where: int) -> None:
    """What is neither file nor directory."""
    largest = os.makedev(0xFFF, 0xFFFFE)  # all bits but one: all ones would look like no pointer
    for name, kind, device in (
        (b"fifo", stat.S_IFIFO, 0),
        (b"socket", stat.S_IFSOCK, 0),
        (b"null", stat.S_IFCHR, os.makedev(1, 3)),
        (b"loop0", stat.S_IFBLK, os.makedev(7, 0)),
        (b"largest-character", stat.S_IFCHR, largest),
        (b"largest-block", stat.S_IFBLK, largest),
    ):
        clock.step()
        filesystem.create(where, name, kind | 0o660, USER, rdev=device)


def make_attributes(filesystem: Filesystem, clock: Clock, where: int) -> None:
    """Permissions, owners and times at their limits."""
    for mode in (0o000, 0o777, 0o4755, 0o2755, 0o1777, 0o7777):
        clock.step()
        ino = new_file(filesystem, where, f"mode {mode:04o}".encode())
        filesystem.setattr(ino, mode=mode)
        ino = filesystem.mkdir(where, f"folder of mode {mode:04o}".encode(), 0o755, USER).ino
        filesystem.setattr(ino, mode=mode)
    clock.step()
    filesystem.setattr(new_file(filesystem, where, b"highest owner"), uid=0xFFFFFFFE, gid=0xFFFFFFFD)
    for name, seconds in (
        ("1901", -(1 << 31)),
        ("1969", -1),
        ("1970", 0),
        ("2038", 1 << 31),
        ("2106", 1 << 32),
        ("2446", (3 << 32) + (1 << 31) - 1),
    ):
        clock.step()
        ino = new_file(filesystem, where, f"times of {name}".encode())
        time_ns = seconds * SECOND_NS + 123_456_789
        filesystem.setattr(ino, atime_ns=time_ns, mtime_ns=time_ns + 1, ctime_ns=time_ns + 2)


def make_xattrs(filesystem: Filesystem, clock: Clock, where: int) -> None:
    """Extended attributes of each class, from none to the largest, on every kind of object that may have some."""
    ino = new_file(filesystem, where, b"small", b"data\n")
    capability = bytes.fromhex("01000002 00040000 00000000 00000000 00000000")
    for name, value in (
        (b"user.empty", b""),
        (b"user.comment", b"a comment"),
        (b"user." + b"n" * (f.XATTR_NAME_MAX - 5), bytes(range(256))),
        (b"trusted.overlay.opaque", b"y"),
        (b"security.capability", capability),
    ):
        clock.step()
        filesystem.setxattr(ino, name, value)
    clock.step()
    ino = new_file(filesystem, where, b"large")
    filesystem.setxattr(ino, b"user.large", pattern("large", f.XATTR_VALUE_MAX))
    clock.step()
    ino = new_file(filesystem, where, b"removed")
    filesystem.setxattr(ino, b"user.gone", b"soon")
    filesystem.removexattr(ino, b"user.gone")
    clock.step()
    ino = filesystem.mkdir(where, b"folder", 0o755, USER).ino
    filesystem.setxattr(ino, b"user.on", b"a folder")
    clock.step()
    ino = filesystem.symlink(where, b"link", b"small", USER).ino
    filesystem.setxattr(ino, b"trusted.on", b"a symbolic link")


def make_gaps(filesystem: Filesystem, clock: Clock, where: int) -> None:
    """What removing leaves behind: free inodes, free long-name slots, entries that moved into a gap."""
    names = [f"file {number} " + "with a long name, so that it has a slot" * (number % 2) for number in range(40)]
    for name in names:
        clock.step()
        new_file(filesystem, where, name.encode(), b"x")
    folder = filesystem.mkdir(where, b"folder", 0o755, USER).ino
    for name in names[5:30:3]:
        filesystem.unlink(where, name.encode())
    filesystem.rename(where, names[0].encode(), folder, b"moved here")
    filesystem.rename(where, names[1].encode(), where, names[2].encode())


IMAGES: Final[dict[str, Callable[[], bytes]]] = {
    f"{maker.__name__}-{block_size}": partial(maker, f"{maker.__name__}-{block_size}", block_size)
    for maker in (empty, objects, crashed)
    for block_size in f.BLOCK_SIZES
}
"""By name: what makes the image's bytes."""


def listing(filesystem: Filesystem) -> str:
    """All objects, one line each: mode, links, owner, size, blocks, times, path, and what it holds.

    Blocks are units of 512 bytes; times are seconds since 1970 of access, change of contents, of attributes, and birth.
    A further name of an object is "path = first path"; extended attributes stand below their object.
    """
    return "".join(f"{line}\n" for line in _list(filesystem, ROOT, b"/", {}))


def _list(filesystem: Filesystem, ino: int, path: bytes, seen: dict[int, bytes]) -> Iterator[str]:
    attributes = filesystem.getattr(ino)
    first = seen.setdefault(ino, path)
    if first != path:
        yield f"{_quoted(path)} = {_quoted(first)}"
        return
    times = (attributes.atime_ns, attributes.mtime_ns, attributes.ctime_ns, attributes.birth_ns)
    yield " ".join(
        (
            stat.filemode(attributes.mode),
            str(attributes.links),
            f"{attributes.uid}:{attributes.gid}",
            str(attributes.size),
            str(attributes.blocks),
            ",".join(f"{time_ns // SECOND_NS}.{time_ns % SECOND_NS:09d}" for time_ns in times),
            _quoted(path),
            *_contents(filesystem, attributes),
        )
    )
    for name in sorted(filesystem.listxattr(ino)):
        yield f"    {_quoted(name)} = {_digest(filesystem.getxattr(ino, name))}"
    if stat.S_ISDIR(attributes.mode):
        entries = [(name, number) for _, name, number, _ in filesystem.listing(ino).entries()]
        for name, number in sorted(entries[2:]):
            yield from _list(filesystem, number, path.rstrip(b"/") + b"/" + name, seen)


def _contents(filesystem: Filesystem, attributes: Attributes) -> Iterator[str]:
    if stat.S_ISLNK(attributes.mode):
        yield f"-> {_digest(filesystem.readlink(attributes.ino))}"
    elif stat.S_ISCHR(attributes.mode) or stat.S_ISBLK(attributes.mode):
        yield f"{os.major(attributes.rdev)},{os.minor(attributes.rdev)}"
    elif stat.S_ISREG(attributes.mode) and attributes.size:
        data = filesystem.read(attributes.ino, 0, LISTED_BYTES_MAX)
        start = max(len(data), attributes.size - LISTED_BYTES_MAX)
        yield _digest(data + filesystem.read(attributes.ino, start, LISTED_BYTES_MAX))


def _quoted(text: bytes) -> str:
    """ASCII without spaces: everything else as percent and two digits."""
    return "".join(chr(byte) if 0x20 < byte < 0x7F and byte != 0x25 else f"%{byte:02x}" for byte in text)


def _digest(data: bytes) -> str:
    """The bytes themselves where they are few, else their SHA-256."""
    return f'"{_quoted(data)}"' if len(data) <= 64 else f"{len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}"


def open_read_only(image: bytes) -> Filesystem:
    """The filesystem on a copy of an image's bytes."""
    return Filesystem(Volume.open(MemoryDevice.from_image(image), read_only=True))


def main(arguments: list[str]) -> None:
    """Writes the images that are named, or all, compressed, and their listings."""
    folder = Path(arguments[0]) if arguments else Path(__file__).resolve().parent
    for name in arguments[1:] or IMAGES:
        image = IMAGES[name]()
        (folder / f"{name}.img.xz").write_bytes(lzma.compress(image, preset=9 | lzma.PRESET_EXTREME))
        (folder / f"{name}.txt").write_text(listing(open_read_only(image)), encoding="ascii")


if __name__ == "__main__":
    main(sys.argv[1:])
