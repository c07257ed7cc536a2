"""POSIX access control lists: what is a valid one, how it and the mode follow each other, and what a new object inherits.

The rules are those of the withdrawn POSIX.1e draft 17 as Linux has them. Who may do what is decided by the kernel, which
asks for the list; here is only what changes when a list is set, a mode is changed, or an object is created. All functions
are pure.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import Final

from cowfs.errors import AccessDenied, InvalidArgument, NotSupported
from cowfs.ondisk.acl import (
    ACCESS_NAME,
    DEFAULT_NAME,
    GROUP,
    GROUP_OBJ,
    MASK,
    OTHER,
    USER,
    USER_OBJ,
    AclEntry,
    decode_acl,
    encode_acl,
)

Acl = tuple[AclEntry, ...]

NAMES: Final = (ACCESS_NAME, DEFAULT_NAME)
_ONES: Final = frozenset({USER_OBJ, GROUP_OBJ, OTHER})  # each list has each of them once
_NAMED: Final = (USER, GROUP)
_PERMISSIONS: Final = 0o7


def parse(data: bytes) -> Acl:
    """The list in an attribute's value. Raises InvalidArgument for one that cannot be.

    Valid is: owner, named users, owning group, named groups, mask, others in this order; the ids of the named in rising
    order, none twice; a mask where somebody is named.
    """
    try:
        acl = decode_acl(data)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None
    tags = [entry.tag for entry in acl]
    places = [(entry.tag, entry.id if entry.tag in _NAMED else 0) for entry in acl]
    named = any(tag in _NAMED for tag in tags)
    if (
        not set(tags) >= _ONES
        or set(tags) - _ONES - {MASK, *_NAMED}
        or places != sorted(set(places))
        or (named and MASK not in tags)
        or any(entry.permissions & ~_PERMISSIONS for entry in acl)
    ):
        raise InvalidArgument("not a valid access control list")
    return acl


def check_kind(mode: int, name: bytes) -> None:
    """Raises where an object of this mode's type has no list of that name: symlinks, and defaults but for directories."""
    if stat.S_ISLNK(mode):
        raise NotSupported("a symbolic link has no access control list")
    if name == DEFAULT_NAME and not stat.S_ISDIR(mode):
        raise AccessDenied("only a directory has a default access control list")


def is_plain(acl: Acl) -> bool:
    """Whether a list says no more than a mode can."""
    return len(acl) == len(_ONES)


def mode_of(acl: Acl, mode: int) -> int:
    """`mode` with the permissions of a list: the mask, if there is one, stands for the group."""
    permissions = {entry.tag: entry.permissions for entry in acl if entry.tag not in _NAMED}
    group = permissions.get(MASK, permissions[GROUP_OBJ])
    return mode & ~0o777 | permissions[USER_OBJ] << 6 | group << 3 | permissions[OTHER]


def with_mode(acl: Acl, mode: int) -> Acl:
    """The list after chmod(2): the group's bits become the mask, if there is one."""
    return tuple(_changed(acl, mode, restrict=False))


def inherited(default: Acl, mode: int) -> tuple[int, Acl]:
    """(mode, access list) of a new object in a directory with this default list; the umask has no say.

    Each class gets what both the default and the `mode` that its creator asked for allow.
    """
    acl = tuple(_changed(default, mode, restrict=True))
    return mode_of(acl, mode), acl


def _changed(acl: Acl, mode: int, *, restrict: bool) -> Iterator[AclEntry]:
    """The entries with the permissions of a mode, or with those of them only that they had before (`restrict`)."""
    group = MASK if any(entry.tag == MASK for entry in acl) else GROUP_OBJ
    shifts = {USER_OBJ: 6, group: 3, OTHER: 0}
    for entry in acl:
        if entry.tag not in shifts:
            yield entry
            continue
        permissions = mode >> shifts[entry.tag] & _PERMISSIONS
        yield entry._replace(permissions=permissions & entry.permissions if restrict else permissions)


def encode(acl: Acl) -> bytes:
    """The attribute's value."""
    return encode_acl(acl)
