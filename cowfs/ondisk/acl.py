"""The bytes of a POSIX access control list: the value of Linux's attributes `system.posix_acl_access` and `_default`.

Version 2 of that form: a version word, then entries of tag, permissions and id, little-endian on every machine and volume.
It is kept as programs hand it in, so that a copy of the attribute is a copy of the list.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

ACCESS_NAME: Final = b"system.posix_acl_access"
DEFAULT_NAME: Final = b"system.posix_acl_default"

USER_OBJ: Final = 0x01
USER: Final = 0x02
GROUP_OBJ: Final = 0x04
GROUP: Final = 0x08
MASK: Final = 0x10
OTHER: Final = 0x20
NO_ID: Final = 0xFFFF_FFFF
"""The id of an entry that names nobody."""

_VERSION: Final = 2
_HEADER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")


class AclEntry(NamedTuple):
    """One line of a list. `permissions` are those of one class: 4 read, 2 write, 1 execute."""

    tag: int
    permissions: int
    id: int = NO_ID


def decode_acl(data: bytes) -> tuple[AclEntry, ...]:
    """The entries of a list as stored. Raises ValueError for anything but bytes of version 2."""
    size = len(data) - _HEADER.size
    if size < 0 or size % _ENTRY.size or _HEADER.unpack_from(data)[0] != _VERSION:
        raise ValueError("not an access control list of version 2")
    return tuple(AclEntry(*fields) for fields in _ENTRY.iter_unpack(data[_HEADER.size :]))


def encode_acl(entries: tuple[AclEntry, ...]) -> bytes:
    """The bytes of a list."""
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in entries)
