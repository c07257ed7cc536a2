"""What the filesystem hands out: attributes of an inode, of the volume, and who asks. Plain values, no behaviour."""

from __future__ import annotations

import enum
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

NANOSECONDS: Final = 1_000_000_000
STAT_BLOCK_SIZE: Final = 512  # the unit of st_blocks

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
XATTR_CREATE: Final = 1
XATTR_REPLACE: Final = 2

_TYPE_NAMES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}
_MINOR_LOW_BITS: Final = 8
_MINOR_LOW_MASK: Final = 0xFF
_MAJOR_MAX: Final = 0xFFF
_MINOR_MAX: Final = 0xFFFFF


def type_name(mode: int) -> str:
    """The type of a file in words."""
    return _TYPE_NAMES[stat.S_IFMT(mode)]


class AtimeMode(enum.Enum):
    """When reading moves an inode's access time."""

    NOATIME = "noatime"
    RELATIME = "relatime"  # once a day, and at the first access after a change
    STRICT = "strictatime"


class Caller(NamedTuple):
    """Who asks for a new object. Supplementary groups are not known here: permissions are the kernel's business."""

    uid: int = 0
    gid: int = 0
    umask: int = 0


class Attributes(NamedTuple):
    """Attributes of an inode, as stat(2) has them. Shared and kept; a tuple, since listings make and read thousands.

    `size` is bytes, `blocks` counts 512-byte units, times are nanoseconds since 1970, `rdev` is a device number in the
    notation of `os.makedev`, `block_size` the volume's block size in bytes.
    """

    ino: int
    generation: int
    mode: int
    links: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    birth_ns: int
    block_size: int


new_attributes: Final[Callable[[tuple[int, ...]], Attributes]] = partial(tuple.__new__, Attributes)
"""Attributes of their 14 values, in less time than the class's own constructor takes."""


Common = tuple[int, ...]
"""(mode, links, uid, gid, rdev, atime_ns, mtime_ns, ctime_ns, birth_ns): what files that were made together have in common.

Its length is not in its type: mypyc would make a value of it, which is another object for each who gets it.
"""

Listed = tuple[int, int, int, Common]
"""Attributes as a listing tells them: (generation, size, blocks, common). Files in a row have the same object `common`, where
they have the same in it, so whoever passes them on needs to do so once."""


def as_listed(attributes: Attributes) -> Listed:
    """The same, less inode number and block size."""
    _, generation, mode, links, uid, gid, rdev, size, blocks, atime, mtime, ctime, birth, _ = attributes
    return generation, size, blocks, (mode, links, uid, gid, rdev, atime, mtime, ctime, birth)


@dataclass(slots=True)
class Statfs:
    """The volume in numbers, as statvfs(2) has them; blocks are of `block_size` bytes."""

    block_size: int
    blocks: int
    free: int
    available: int
    files: int
    files_free: int
    name_max: int


def encode_device(major: int, minor: int) -> int:
    """A device number as it stands in pointer 0 of a device inode (Linux's new_encode_dev)."""
    return (minor & _MINOR_LOW_MASK) | major << _MINOR_LOW_BITS | (minor & ~_MINOR_LOW_MASK) << 12


def decode_device(word: int) -> tuple[int, int]:
    """(major, minor) of a stored device number."""
    return (word >> _MINOR_LOW_BITS) & _MAJOR_MAX, (word & _MINOR_LOW_MASK) | ((word >> 12) & 0xFFF00)


def device_fits(major: int, minor: int) -> bool:
    """Whether the numbers have a place in the 32 bits that the format gives them: the highest word means "none"."""
    fits = 0 <= major <= _MAJOR_MAX and 0 <= minor <= _MINOR_MAX
    return fits and (major, minor) != (_MAJOR_MAX, _MINOR_MAX)


def without_privileges(mode: int) -> int:
    """A mode without setuid, and without setgid where the group may execute (else it marks mandatory locking)."""
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode
