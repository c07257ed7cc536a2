"""What a reader found, as it wrote it down: see guest.c for the form."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from io import BufferedReader

from served import Object


@dataclass
class Reading:
    """What the driver found in one image: objects by path (the root's is empty), and what failed, in words."""

    objects: dict[bytes, Object] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


def parse(stream: BufferedReader) -> list[Reading]:
    """All readings that came to their end."""
    readings: list[Reading] = []
    while line := stream.readline():
        match line.split():
            case [b"image"]:
                reading = Reading()
            case [b"end"]:
                readings.append(reading)
            case [b"done"]:
                break
            case [b"error", number, stage, length]:
                path = stream.read(int(length))
                reason = errno.errorcode.get(int(number), number.decode())
                reading.errors.append(f"{stage.decode()} {path.decode(errors='backslashreplace')!r}: {reason}")
            case [b"object", mode, *numbers]:
                uid, gid, size, mtime, atime, ctime, ino, links, blocks, major, minor, length, data = map(int, numbers)
                path = stream.read(length)
                assert path not in reading.objects, f"{path!r} is there twice"
                reading.objects[path] = Object(
                    int(mode, 8),
                    uid,
                    gid,
                    size,
                    mtime,
                    atime,
                    ctime,
                    ino,
                    links,
                    blocks,
                    (major, minor),
                    stream.read(data),
                )
            case _:
                raise AssertionError(f"not a record of the guest: {line!r}")
    return readings
