"""The exception tree: every failure that a user can meet has a class, and each class knows its errno.

Three kinds of trouble are kept apart. A bug in cowfs is an ``AssertionError`` or another built-in exception and never
one of these classes. An operating error is a `CowfsError`. Damage found on the medium is `Corrupt`, which names the
block, what was wanted and what was found. Only the doors (FUSE, command line) translate these to errnos and exit codes.
"""

from __future__ import annotations

import errno
import os


class CowfsError(Exception):
    """An operating error. `errno` is what a program sees; `str()` is one line for a person."""

    errno: int = errno.EIO

    def __init__(self, message: str = "") -> None:
        super().__init__(message)

    def __str__(self) -> str:
        # Most are answers to a program, such as that there is no such name, and nobody reads their text.
        return super().__str__() or os.strerror(self.errno)


class DeviceError(CowfsError):
    """The device below failed a read, a write or a flush; the volume turns read-only after a failed write or flush."""

    errno = errno.EIO


class Corrupt(CowfsError):
    """Bytes read from the medium are not what was written there.

    `block` is the block number, or None where the damage is not in a block (a slot, a value inside an inode).
    """

    errno = errno.EIO

    def __init__(self, what: str, *, block: int | None = None, wanted: object = None, found: object = None) -> None:
        self.what = what
        self.block = block
        self.wanted = wanted
        self.found = found
        text = what if block is None else f"block {block}: {what}"
        if wanted is not None or found is not None:
            text += f" (wanted {wanted}, found {found})"
        super().__init__(text)


class UnreadableData(CowfsError):
    """A block of file data that had to be read for a change cannot be. The change was not made; all else is sound."""

    errno = errno.EIO


class NotAVolume(CowfsError):
    """The bytes are not those of a qnx6 volume."""

    errno = errno.EINVAL


class BaseChanged(CowfsError):
    """The base of an overlay is not, or not any more, the volume state that the overlay was made on."""

    errno = errno.ESTALE


class Unsupported(CowfsError):
    """A volume of the family, but with a feature, an order or a size that this version does not handle."""

    errno = errno.EOPNOTSUPP


class ReadOnly(CowfsError):
    """The volume is mounted read-only, foreign, or was latched read-only after a failed write."""

    errno = errno.EROFS


class NoSpace(CowfsError):
    """No free block or no free inode, and nothing that is waiting to become free would help.

    `missing` is how many more free blocks would do; None where that is not what is missing.
    """

    errno = errno.ENOSPC

    def __init__(self, message: str = "", *, missing: int | None = None) -> None:
        super().__init__(message)
        self.missing = missing


class SpaceShort(NoSpace):
    """No free block now, but a commit or reclaim brings some forward: commit, then try the operation again."""


class Busy(CowfsError):
    """The image is in use by another process."""

    errno = errno.EBUSY


class InvalidArgument(CowfsError):
    """An argument is out of its range."""

    errno = errno.EINVAL


class NotFound(CowfsError):
    """No such name."""

    errno = errno.ENOENT


class Exists(CowfsError):
    """The name is taken."""

    errno = errno.EEXIST


class NotADirectory(CowfsError):
    """A directory is needed."""

    errno = errno.ENOTDIR


class IsADirectory(CowfsError):
    """A directory is not allowed here."""

    errno = errno.EISDIR


class NotEmpty(CowfsError):
    """The directory still has entries."""

    errno = errno.ENOTEMPTY


class NameTooLong(CowfsError):
    """The name is longer than the format allows."""

    errno = errno.ENAMETOOLONG


class TooManyLinks(CowfsError):
    """A link count or a reference count would overflow."""

    errno = errno.EMLINK


class FileTooBig(CowfsError):
    """The offset or size is beyond what the block size allows."""

    errno = errno.EFBIG


class Stale(CowfsError):
    """The inode or handle belongs to something that is gone."""

    errno = errno.ESTALE


class NotPermitted(CowfsError):
    """The operation is not allowed for this kind of object or caller."""

    errno = errno.EPERM


class AccessDenied(CowfsError):
    """The object is not of the kind that may have it: the permission that POSIX 1003.1e calls missing."""

    errno = errno.EACCES


class NoAttribute(CowfsError):
    """No extended attribute of that name."""

    errno = errno.ENODATA


class AttributeTooBig(CowfsError):
    """An extended attribute's value or name is too long."""

    errno = errno.E2BIG


class OutOfRange(CowfsError):
    """A value does not fit into the reply or the field."""

    errno = errno.ERANGE


class NotSupported(CowfsError):
    """The operation does not exist here."""

    errno = errno.EOPNOTSUPP


class CrossTree(CowfsError):
    """A link or rename between two trees."""

    errno = errno.EXDEV
