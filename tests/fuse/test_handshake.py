"""The first request of a session, between a socket that plays the kernel and one that libfuse would read."""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Callable, Iterator

import pytest
import trio

from cowfs.fuse.handshake import (
    BACKGROUND_MAX,
    FUSE_ASYNC_DIO,
    FUSE_ASYNC_READ,
    FUSE_DIRECT_IO_ALLOW_MMAP,
    FUSE_DONT_MASK,
    FUSE_HANDLE_KILLPRIV_V2,
    FUSE_INIT,
    FUSE_INIT_EXT,
    FUSE_POSIX_ACL,
    Handshake,
    improved,
)

GETATTR = 3


def words(*numbers: int) -> bytes:
    return b"".join((number & 0xFFFFFFFF).to_bytes(4, sys.byteorder) for number in numbers)


def request(opcode: int, flags: int = 0, flags2: int = 0) -> bytes:
    """A header of ten words, major, minor, max_readahead, two words of flags, and eleven that mean nothing."""
    return words(104, opcode, 1, *[0] * 7, 7, 45, 1 << 17, flags, flags2, *[0] * 11)


def answer(flags: int, flags2: int = 0, error: int = 0, background: int = 12) -> bytes:
    """A header of four words, major, minor, max_readahead, flags, two halves of a word that say how many requests of the
    background there may be and how many are many, three more, the second word of flags, and the rest."""
    halves = background.to_bytes(2, sys.byteorder) + (9).to_bytes(2, sys.byteorder)
    return words(80, error, 1, 0, 7, 31, 1 << 17, flags) + halves + words(2, 3, 4, flags2, *[0] * 7)


def good(flags: int, flags2: int = 0) -> bytes:
    """The answer that the kernel gets."""
    return answer(flags, flags2, background=BACKGROUND_MAX)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, int]]:
    """The kernel's end of a session, and the number of the descriptor that libfuse reads."""
    kernel, session = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, session:
        kernel.settimeout(10)
        yield kernel, session.fileno()


async def wait(fd: int) -> None:
    while not select.select((fd,), (), (), 0)[0]:
        await trio.sleep(0.001)


def serve(fd: int, replies: Callable[[bytes], bytes], requests: int) -> tuple[list[bytes], int]:
    """What a worker of pyfuse3 does; the requests it read, and how often the handshake said that it was done."""
    seen: list[bytes] = []
    done: list[int] = []

    async def main() -> None:
        handshake = Handshake(wait, lambda: done.append(1))
        for _ in range(requests):
            await handshake.wait_readable(fd)
            seen.append(os.read(fd, 1 << 16))
            os.write(fd, replies(seen[-1]))

    trio.run(main)
    return seen, len(done)


def test_the_answer_gets_one_bit_more_and_the_descriptor_is_the_kernels_again(ends: tuple[socket.socket, int]) -> None:
    kernel, fd = ends
    before = os.fstat(fd).st_ino
    kernel.send(request(FUSE_INIT))
    kernel.send(request(GETATTR))
    seen, done = serve(fd, lambda text: answer(FUSE_POSIX_ACL) if text == request(FUSE_INIT) else b"attributes", 2)
    assert (seen, done) == ([request(FUSE_INIT), request(GETATTR)], 1)
    assert [kernel.recv(1 << 16) for _ in range(2)] == [good(FUSE_POSIX_ACL | FUSE_DONT_MASK), b"attributes"]
    assert os.fstat(fd).st_ino == before
    assert not os.get_inheritable(fd)


def test_a_library_that_has_answered_already_is_left_alone(ends: tuple[socket.socket, int]) -> None:
    kernel, fd = ends
    kernel.send(request(GETATTR))
    kernel.send(request(GETATTR))
    serve(fd, lambda _: answer(FUSE_POSIX_ACL), 2)
    assert [kernel.recv(1 << 16) for _ in range(2)] == [answer(FUSE_POSIX_ACL)] * 2


def test_a_late_answer_is_waited_for(ends: tuple[socket.socket, int]) -> None:
    """Another worker may come for the second request while the first one is not answered yet."""
    kernel, fd = ends
    kernel.send(request(GETATTR))

    async def main() -> None:
        handshake = Handshake(wait, lambda: None)
        await handshake.wait_readable(fd)
        os.read(fd, 1 << 16)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handshake.wait_readable, fd)
            await trio.sleep(0.01)
            os.write(fd, b"late")
            while not select.select((kernel,), (), (), 0)[0]:
                await trio.sleep(0.001)
            kernel.send(request(GETATTR))

    trio.run(main)
    assert kernel.recv(1 << 16) == b"late"
    assert os.read(fd, 1 << 16) == request(GETATTR)


@pytest.mark.parametrize("reply", [answer(FUSE_POSIX_ACL | FUSE_ASYNC_READ, error=-22), b"", bytes(20)])
def test_what_is_no_good_answer_stays(reply: bytes) -> None:
    assert improved(request(FUSE_INIT), reply) == reply


@pytest.mark.parametrize("flags", [0, FUSE_DONT_MASK])
def test_what_agrees_to_no_lists_gets_no_mask(flags: int) -> None:
    assert improved(request(FUSE_INIT), answer(flags)) == good(flags)


def test_nobody_waits_behind_what_is_written_back() -> None:
    """Neither a request behind many of the background, nor what somebody reads among them."""
    assert improved(request(FUSE_INIT), answer(2 | FUSE_ASYNC_READ | FUSE_ASYNC_DIO)) == good(2)
    assert BACKGROUND_MAX <= 2


@pytest.mark.parametrize(
    ("flags", "flags2", "asked"),
    [
        (FUSE_INIT_EXT, FUSE_DIRECT_IO_ALLOW_MMAP, True),
        (0, ~0, False),
        (~FUSE_HANDLE_KILLPRIV_V2, 3, False),
    ],
)
def test_maps_past_the_cache_are_asked_for_where_they_are_offered(flags: int, flags2: int, asked: bool) -> None:
    wanted = good(2 | FUSE_INIT_EXT, 1 | FUSE_DIRECT_IO_ALLOW_MMAP) if asked else good(2, 1)
    assert improved(request(FUSE_INIT, flags, flags2), answer(2, 1)) == wanted


@pytest.mark.parametrize(("flags", "added"), [(FUSE_HANDLE_KILLPRIV_V2, FUSE_HANDLE_KILLPRIV_V2), (0, 0)])
def test_the_kernel_remembers_what_has_no_capabilities_where_it_can(flags: int, added: int) -> None:
    assert improved(request(FUSE_INIT, flags), answer(2)) == good(2 | added)
