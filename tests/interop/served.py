"""What cowfs serves of a tree, and how another reader has to see it.

`Object` is one object as a reader sees it. `served` walks a tree through the filesystem's own operations, and `as_linux`
turns an object into what the qnx6 driver of Linux shows of it: seconds as 32 unsigned bits, one link, no device numbers,
blocks by the size alone. `as_dissect` does so for dissect.qnxfs.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Final

from sampling import windows

from cowfs.fs import Attributes, Filesystem
from cowfs.ondisk import format as f

NANOSECONDS: Final = 1_000_000_000
TIME_MASK: Final = 0xFFFFFFFF
DISSECT_MAX: Final = 160 << 20  # bytes of the largest file that dissect.qnxfs is asked to read


@dataclass(frozen=True)
class Object:
    """Times are seconds since 1970, `blocks` are units of 512 bytes, `data` is a symlink's target or a file's contents."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    atime: int
    ctime: int
    ino: int
    links: int
    blocks: int
    rdev: tuple[int, int]
    data: bytes


def served(filesystem: Filesystem) -> dict[bytes, Object]:
    """Every object of a tree, by path; the root's path is empty."""
    return dict(_walk(filesystem, f.ROOT_INODE, b""))


def _walk(filesystem: Filesystem, ino: int, path: bytes) -> Iterator[tuple[bytes, Object]]:
    attributes = filesystem.getattr(ino)
    yield path, _object(filesystem, attributes)
    if stat.S_ISDIR(attributes.mode):
        for _, name, number, _ in itertools.islice(filesystem.listing(ino).entries(), 2, None):
            yield from _walk(filesystem, number, path + b"/" + name)


def _object(filesystem: Filesystem, attributes: Attributes) -> Object:
    data = b""
    if stat.S_ISLNK(attributes.mode):
        data = filesystem.readlink(attributes.ino)
    elif stat.S_ISREG(attributes.mode):
        places = windows(attributes.size, attributes.block_size)
        data = b"".join(filesystem.read(attributes.ino, offset, length) for offset, length in places)
    return Object(
        attributes.mode,
        attributes.uid,
        attributes.gid,
        attributes.size,
        attributes.mtime_ns // NANOSECONDS,
        attributes.atime_ns // NANOSECONDS,
        attributes.ctime_ns // NANOSECONDS,
        attributes.ino,
        attributes.links,
        attributes.blocks,
        (os.major(attributes.rdev), os.minor(attributes.rdev)),
        data,
    )


def as_linux(item: Object) -> Object:
    """How Linux's driver shows an object."""
    return replace(
        item,
        mtime=item.mtime & TIME_MASK,
        atime=item.atime & TIME_MASK,
        ctime=item.ctime & TIME_MASK,
        links=1,
        blocks=-(-item.size // 512),
        rdev=(0, 0),
    )


def as_dissect(item: Object) -> Object:
    """How dissect_reader.py shows an object."""
    item = as_linux(item)
    return replace(item, data=b"") if stat.S_ISREG(item.mode) and item.size > DISSECT_MAX else item


def differences(wanted: dict[bytes, Object], found: dict[bytes, Object], limit: int = 12) -> list[str]:
    """The first differences, one line each; empty where all is as wanted."""
    lines = (
        line
        for path in sorted(wanted.keys() | found.keys())
        for line in _compare(path, wanted.get(path), found.get(path))
    )
    return list(itertools.islice(lines, limit))


def _compare(path: bytes, wanted: Object | None, found: Object | None) -> Iterator[str]:
    if wanted is None or found is None:
        yield f"{path!r} {'is not wanted' if wanted is None else 'is missing'}"
        return
    for item in fields(Object):
        values = getattr(wanted, item.name), getattr(found, item.name)
        if values[0] == values[1]:
            continue
        if item.name == "data":
            at = next((i for i, (a, b) in enumerate(zip(*values, strict=False)) if a != b), min(map(len, values)))
            values = f"{len(values[0])} bytes", f"{len(values[1])} bytes, the first other one at {at}"
        yield f"{path!r}: {item.name} wanted {values[0]}, found {values[1]}"


Normalise = Callable[[Object], Object]


def seen_by(reader: Normalise, objects: dict[bytes, Object]) -> dict[bytes, Object]:
    """All objects as a reader shows them."""
    return {path: reader(item) for path, item in objects.items()}
