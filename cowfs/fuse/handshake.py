"""The first request of a session: asks the kernel for what pyfuse3 has no word for.

Duty. The kernel does what the flags in the answer to its first request, FUSE_INIT, say. libfuse writes that answer, and
pyfuse3 does not let its flags be chosen. So for this one request the session's descriptor is a socket: what came from the
kernel goes to libfuse through it, and libfuse's answer to the kernel, with up to three flags more, and two less:

- FUSE_DONT_MASK, where access control lists hold: a default list takes the umask's place, so we must hear the mode that a
  program asked for, and apply the umask ourselves.
- FUSE_HANDLE_KILLPRIV_V2, where the kernel offers it (Linux 5.11): the kernel leaves it to us to take setuid and setgid away
  when somebody writes, which the core does in any case; and it remembers which files have no capabilities, instead of asking
  for security.capability before each write(2): half of all requests of a program that writes small pieces.
- FUSE_DIRECT_IO_ALLOW_MMAP, where the kernel offers it (Linux 6.6): files that bypass the kernel's cache because space is
  short can be mapped all the same, as SQLite does with the index of its write-ahead log.
- Without FUSE_ASYNC_READ and FUSE_ASYNC_DIO, and with BACKGROUND_MAX instead of 12: so nobody waits behind what is
  written back. The kernel sends so many requests of the background at once, and all others stand behind them, since requests
  are served in the order in which they were sent. What reads ahead, or past the cache, is one of the background as well if
  these flags are set, and waits for all that the kernel has to write back, seconds for small pieces, although somebody waits
  for it.

Invariants.

- The descriptor keeps its number, and is the kernel's again before a second request is read.
- Whatever the first request is, it is answered once; only a good answer to FUSE_INIT is changed. Without the change inherited
  lists come out stricter than they need to, never looser: `Caller.umask` is applied again.

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
FUSE_ASYNC_READ: Final = 1 << 0
FUSE_DONT_MASK: Final = 1 << 6
FUSE_ASYNC_DIO: Final = 1 << 15
FUSE_POSIX_ACL: Final = 1 << 20
FUSE_HANDLE_KILLPRIV_V2: Final = 1 << 28
FUSE_INIT_EXT: Final = 1 << 30  # the second word of flags counts
FUSE_DIRECT_IO_ALLOW_MMAP: Final = 1 << (36 - 32)  # in the second word
_REQUEST_OPCODE: Final = slice(4, 8)
_REQUEST_FLAGS: Final = slice(52, 56)  # behind a header of 40 bytes, major, minor and max_readahead
_REQUEST_FLAGS2: Final = slice(56, 60)
_ANSWER_ERROR: Final = slice(4, 8)
_ANSWER_FLAGS: Final = slice(28, 32)  # behind a header of 16 bytes, major, minor and max_readahead
_ANSWER_BACKGROUND: Final = slice(32, 34)  # 16 bits
_ANSWER_FLAGS2: Final = slice(48, 52)
_MESSAGE_MAX: Final = 1 << 20
BACKGROUND_MAX: Final = 2
"""One that is served, and one that is there when it has been: the daemon serves one at a time anyway."""


class Handshake:
    """Stands in for the wait for requests until the first one is answered; then it is `wait` and nothing else."""

    def __init__(self, wait: Callable[[int], Awaitable[None]], done: Callable[[], None]) -> None:
        """`done` is called when the handshake needs to see no further wait."""
        self._wait = wait
        self._done = done
        self._kernel = -1
        self._ours: socket.socket | None = None
        self._request = b""

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
        self._request = os.read(self._kernel, _MESSAGE_MAX)
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            os.dup2(theirs.fileno(), fd, inheritable=False)
        self._ours.send(self._request)

    def _conclude(self, fd: int, ours: socket.socket) -> None:
        with ours:
            answer = ours.recv(_MESSAGE_MAX)
        os.dup2(self._kernel, fd, inheritable=False)
        os.close(self._kernel)
        os.write(fd, improved(self._request, answer))


def improved(request: bytes, answer: bytes) -> bytes:
    """The answer to a request as pyfuse3 cannot give it, if the request is FUSE_INIT."""
    if (
        _word(request, _REQUEST_OPCODE) != FUSE_INIT
        or _word(answer, _ANSWER_ERROR)
        or len(answer) < _ANSWER_FLAGS2.stop
    ):
        return answer
    result = bytearray(answer)
    flags = _word(answer, _ANSWER_FLAGS) & ~(FUSE_ASYNC_READ | FUSE_ASYNC_DIO)
    result[_ANSWER_FLAGS] = flags.to_bytes(4, sys.byteorder)
    result[_ANSWER_BACKGROUND] = BACKGROUND_MAX.to_bytes(2, sys.byteorder)
    if _word(answer, _ANSWER_FLAGS) & FUSE_POSIX_ACL:
        _set(result, _ANSWER_FLAGS, FUSE_DONT_MASK)
    if _word(request, _REQUEST_FLAGS) & FUSE_HANDLE_KILLPRIV_V2:
        _set(result, _ANSWER_FLAGS, FUSE_HANDLE_KILLPRIV_V2)
    if _word(request, _REQUEST_FLAGS) & FUSE_INIT_EXT and _word(request, _REQUEST_FLAGS2) & FUSE_DIRECT_IO_ALLOW_MMAP:
        _set(result, _ANSWER_FLAGS, FUSE_INIT_EXT)
        _set(result, _ANSWER_FLAGS2, FUSE_DIRECT_IO_ALLOW_MMAP)
    return bytes(result)


def _word(message: bytes | bytearray, place: slice) -> int:
    return int.from_bytes(message[place], sys.byteorder)


def _set(message: bytearray, place: slice, flag: int) -> None:
    message[place] = (_word(message, place) | flag).to_bytes(4, sys.byteorder)
