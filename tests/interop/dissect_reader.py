"""Writes down what dissect.qnxfs finds in images: a program of its own, which nothing imports.

    python dissect_reader.py LIMIT IMAGE... >FOUND

The form is that of guest.c. Contents of files of more than LIMIT bytes are left out: it keeps a list of all their blocks.
What it does not show is written as Linux would: one link, blocks by the size, no device number.
"""

from __future__ import annotations

import stat
import sys
from typing import Any

from dissect.qnxfs import QNX6  # type: ignore[import-not-found,unused-ignore]
from sampling import windows

OUT = sys.stdout.buffer


def show(image: str, limit: int) -> None:
    """One image."""
    OUT.write(b"image\n")
    with open(image, "rb") as handle:
        volume = QNX6(handle)
        waiting = [(b"", volume.root)]
        while waiting:
            path, node = waiting.pop()
            show_object(volume, path, node, limit)
            if stat.S_ISDIR(node.mode):
                # Names need not be UTF-8: what it cannot decode it keeps as lone surrogates.
                children = [(name.encode("utf-8", "surrogateescape"), child.inum) for name, child in node.iterdir()]
                waiting += [
                    (path + b"/" + name, volume.inode(ino)) for name, ino in children if name not in (b".", b"..")
                ]
    OUT.write(b"end\n")


def show_object(volume: Any, path: bytes, node: Any, limit: int) -> None:
    """One object."""
    data = b""
    if stat.S_ISLNK(node.mode):
        data = node.open().read()
    elif stat.S_ISREG(node.mode) and node.size <= limit:
        stream = node.open()
        for offset, length in windows(node.size, volume.block_size):
            stream.seek(offset)
            last = stream.read(length)
            data += last
        if any(not ends_so(stream, node.size, last, size) for size in pieces(volume.block_size)):
            data = b"read in pieces, its end is another one"
    raw = node.inode
    numbers = (node.uid, node.gid, node.size, raw.di_mtime, raw.di_atime, raw.di_ctime, node.inum, 1)
    numbers += (-(-node.size // 512), 0, 0, len(path), len(data))
    OUT.write(b"object %o %s\n" % (node.mode, b" ".join(b"%d" % number for number in numbers)) + path + data)


def pieces(block_size: int) -> tuple[int, ...]:
    """Sizes of pieces in which the end of a file is read."""
    return 77, block_size - 1, block_size, 3 * block_size + 1


def ends_so(stream: Any, size: int, last: bytes, piece: int) -> bool:
    """Whether what is read piece by piece up to the end, and over it, is the end of `last`, the last bytes of the file."""
    length = min(len(last), 5 * piece + 13)
    stream.seek(size - length)
    found = b""
    while part := stream.read(piece):
        found += part
    return found == last[len(last) - length :] and stream.read(piece) == b""


if __name__ == "__main__":
    for image in sys.argv[2:]:
        show(image, int(sys.argv[1]))
    OUT.write(b"done\n")
