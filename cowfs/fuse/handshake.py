"""The first request of a session: leaves the umask to us, which pyfuse3 has no word for.

Duty. Where access control lists hold, a default list takes the umask's place, so the kernel must hand on the mode that a
program asked for. It does so if the answer to its first request, FUSE_INIT, has the flag FUSE_DONT_MASK. libfuse writes
that answer and pyfuse3 does not let its flags be chosen. So for this one request the session's descriptor is a socket: what
came from the kernel goes to libfuse through it, and libfuse's answer to the kernel, with one bit more.

Invariants.

- The descriptor keeps its number, and is the kernel's again before a second request is read.
- Whatever the first request is, it is answered once; only the answer to FUSE_INIT that agrees to access control lists is
  changed. Without the change lists come out stricter than they need to, never looser: `Caller.umask` is applied again.

Locking rule: the thread that runs trio, in the worker that holds pyfuse3's lock.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Final

import trio

# Linux's include/uapi/linux/fuse.h, in the byte order of the machine; an answer's header is length, error, unique.
FUSE_INIT: Final = 26
FUSE_DONT_MASK: Final = 1 << 6
FUSE_POSIX_ACL: Final = 1 << 20
_REQUEST_OPCODE: Final = slice(4, 8)
_ANSWER_ERROR: Final = slice(4, 8)
_ANSWER_FLAGS: Final = slice(28, 32)  # behind the header, major, minor and max_readahead
_MESSAGE_MAX: Final = 1 << 20


class Handshake:
    """Stands in for the wait for requests until the first one is answered; then it is `wait` and nothing else."""

    def __init__(self, wait: Callable[[int], Awaitable[None]], done: Callable[[], None]) -> None:
        """`done` is called when the handshake needs to see no further wait."""
        self._wait = wait
        self._done = done
        self._kernel = -1
        self._ours: socket.socket | None = None
        self._is_init = False

    async def wait_readable(self, fd: int) -> None:
        """Returns when a request can be read from `fd`."""
        if self._ours is None:
            await self._wait(fd)
            self._divert(fd)
            return
        if not select.select((self._ours,), (), (), 0)[0]:
            await trio.lowlevel.wait_readable(self._ours)
        self._conclude(fd, self._ours)
        self._done()
        await self._wait(fd)

    def _divert(self, fd: int) -> None:
        self._kernel = os.dup(fd)
        request = os.read(self._kernel, _MESSAGE_MAX)
        self._is_init = _word(request[_REQUEST_OPCODE]) == FUSE_INIT
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            os.dup2(theirs.fileno(), fd, inheritable=False)
        self._ours.send(request)

    def _conclude(self, fd: int, ours: socket.socket) -> None:
        with ours:
            answer = ours.recv(_MESSAGE_MAX)
        os.dup2(self._kernel, fd, inheritable=False)
        os.close(self._kernel)
        os.write(fd, without_umask(answer) if self._is_init else answer)


def without_umask(answer: bytes) -> bytes:
    """An answer to FUSE_INIT that asks for modes without the umask taken off, if it agrees to access control lists."""
    flags = _word(answer[_ANSWER_FLAGS])
    if _word(answer[_ANSWER_ERROR]) or not flags & FUSE_POSIX_ACL:
        return answer
    word = (flags | FUSE_DONT_MASK).to_bytes(4, sys.byteorder)
    return answer[: _ANSWER_FLAGS.start] + word + answer[_ANSWER_FLAGS.stop :]


def _word(piece: bytes) -> int:
    return int.from_bytes(piece, sys.byteorder)
