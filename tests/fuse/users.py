"""Other users, without other processes: the calling thread's filesystem ids, as a server of files changes them."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def acting_as(uid: int, gid: int) -> Iterator[None]:
    """Files are reached as this user in this group, without root's rights to them. For root, in one thread."""
    _libc.setfsgid(gid)
    _libc.setfsuid(uid)
    assert _libc.setfsuid(-1) == uid, "only root becomes another user"
    try:
        yield
    finally:
        _libc.setfsuid(0)
        _libc.setfsgid(0)
