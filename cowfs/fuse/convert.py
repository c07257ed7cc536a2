"""Between the core's values and pyfuse3's: node ids, attributes, and exceptions as errnos.

A node id holds the tree in its upper half and the inode number in the lower one, so that a file and its old version in a
snapshot are never taken for one. The live tree is tree 0: there a node id is the inode number, and the root is 1, as
the kernel wants it. The highest tree number stands for the control directory.
"""

from __future__ import annotations

import errno
import logging
from typing import Final

import pyfuse3

from cowfs.errors import Corrupt, CowfsError, DeviceError
from cowfs.fs.attributes import Attributes, Common, Statfs

INODE_BITS = 32
INODE_MASK = (1 << INODE_BITS) - 1
CONTROL_NODES = INODE_MASK << INODE_BITS
"""Node ids from here on belong to the control directory; no tree has this number."""

CACHE_SECONDS: Final = 300.0
"""How long the kernel may trust names and attributes: one writer owns the volume, and it hears of every change. That is what
pyfuse3's new entries say."""

log = logging.getLogger(__name__)


def negative_entry() -> pyfuse3.EntryAttributes:
    """The answer for a name that does not exist, which the kernel may remember, too."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    return entry


def damaged(node: int) -> pyfuse3.EntryAttributes:
    """An inode that cannot be read: a type that the kernel refuses, while a listing shows the name all the same."""
    result = pyfuse3.EntryAttributes()
    result.st_ino = node
    result.st_mode = 0
    result.entry_timeout = result.attr_timeout = 0.0
    return result


def entry(attributes: Attributes, node: int) -> pyfuse3.EntryAttributes:
    """Attributes of a node as the kernel gets them."""
    _, generation, mode, links, uid, gid, rdev, size, blocks, atime_ns, mtime_ns, ctime_ns, _, block_size = attributes
    result = pyfuse3.EntryAttributes()
    result.st_ino = node
    result.generation = generation
    result.st_mode = mode
    result.st_nlink = links
    result.st_uid = uid
    result.st_gid = gid
    result.st_rdev = rdev
    result.st_size = size
    result.st_blksize = block_size
    result.st_blocks = blocks
    result.st_atime_ns = atime_ns
    result.st_mtime_ns = mtime_ns
    result.st_ctime_ns = ctime_ns
    return result


def fill_common(entry: pyfuse3.EntryAttributes, common: Common) -> None:
    """What an entry of a listing has in common with others, which follow it. The same entry serves for all of them."""
    mode, links, uid, gid, rdev, atime_ns, mtime_ns, ctime_ns, _ = common
    entry.st_mode = mode
    entry.st_nlink = links
    entry.st_uid = uid
    entry.st_gid = gid
    entry.st_rdev = rdev
    entry.st_atime_ns = atime_ns
    entry.st_mtime_ns = mtime_ns
    entry.st_ctime_ns = ctime_ns


def statvfs(space: Statfs) -> pyfuse3.StatvfsData:
    """The volume's numbers as statvfs(2) has them."""
    result = pyfuse3.StatvfsData()
    result.f_bsize = space.block_size
    result.f_frsize = space.block_size
    result.f_blocks = space.blocks
    result.f_bfree = space.free
    result.f_bavail = space.available
    result.f_files = space.files
    result.f_ffree = space.files_free
    result.f_favail = space.files_free
    result.f_namemax = space.name_max
    return result


def answer(error: Exception, operation: str) -> pyfuse3.FUSEError:
    """The errno of any exception. What points to damage, to the device or to a bug goes to the log as well.

    Any other exception than FUSEError would end pyfuse3, and with it the mount.
    """
    if isinstance(error, pyfuse3.FUSEError):
        return error
    if isinstance(error, CowfsError):
        if isinstance(error, Corrupt | DeviceError):
            log.error("%s: %s", operation, error)
        return pyfuse3.FUSEError(error.errno)
    if isinstance(error, MemoryError):
        log.error("%s: out of memory", operation, exc_info=error)
        return pyfuse3.FUSEError(errno.ENOMEM)
    log.error("%s failed", operation, exc_info=error)
    if isinstance(error, OSError):
        return pyfuse3.FUSEError(error.errno or errno.EIO)
    if isinstance(error, OverflowError):
        return pyfuse3.FUSEError(errno.EOVERFLOW)
    if isinstance(error, ValueError):
        return pyfuse3.FUSEError(errno.EINVAL)
    return pyfuse3.FUSEError(errno.EIO)
