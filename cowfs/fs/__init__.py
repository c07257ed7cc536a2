"""Files made of blocks: inodes, directories, names, data and extended attributes on one tree of a volume.

`Filesystem` is the door: synchronous, single-threaded, with numbers and bytes in and attributes and bytes out.
"""

from cowfs.fs.attributes import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    XATTR_CREATE,
    XATTR_REPLACE,
    AtimeMode,
    Attributes,
    Caller,
    Statfs,
)
from cowfs.fs.filesystem import Filesystem
from cowfs.fs.listing import Listing

__all__ = [
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "XATTR_CREATE",
    "XATTR_REPLACE",
    "AtimeMode",
    "Attributes",
    "Caller",
    "Filesystem",
    "Listing",
    "Statfs",
]
