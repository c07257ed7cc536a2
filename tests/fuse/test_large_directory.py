"""A large directory that is not in memory is read in slices: nobody else waits for all of it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pyfuse3
import pytest
import trio
from test_operations import ROOT, Context, Door, Reply

from cowfs.fs import Caller, dirload

SLICE = 4096
ENTRIES = 3000


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Door:
    """A directory of many slices in the root."""
    monkeypatch.setattr(dirload, "SLICE_BYTES", SLICE)
    door = Door()
    folder = door.mkdir(ROOT, b"folder", 0o755, Context()).st_ino
    for number in range(ENTRIES):
        door.filesystem.create(folder, b"%d" % number, 0o644, Caller())
    door.filesystem.directories.forget(folder)
    return door


def served_meanwhile(door: Door, *requests: Callable[[], Any]) -> tuple[list[Any], int]:
    """Their answers, and how many other requests were served before the last one was answered."""
    answers: list[Any] = [None] * len(requests)
    served = 0

    async def main() -> None:
        nonlocal served

        async def ask(place: int) -> None:
            answers[place] = await requests[place]()

        async with trio.open_nursery() as nursery:
            for place in range(len(requests)):
                nursery.start_soon(ask, place)
            while None in answers:
                await door.operations.getattr(ROOT, Context())
                served += 1
                await trio.lowlevel.checkpoint()

    trio.run(main)
    return answers, served


def test_others_are_served_while_it_is_read(door: Door) -> None:
    folder = door.lookup(ROOT, b"folder", Context()).st_ino
    slices = -(-door.filesystem.getattr(folder).size // SLICE)
    assert slices > 20
    names = (b"0", b"17", b"2999")
    lookups = [lambda name=name: door.operations.lookup(folder, name, Context()) for name in names]
    found, served = served_meanwhile(door, *lookups)
    assert [entry.st_ino for entry in found] == [door.filesystem.lookup(folder, name).ino for name in names]
    assert served >= slices // len(names), "whoever waits for the directory reads a slice of it"
    _, served = served_meanwhile(door, *lookups)
    assert served <= len(names), "afterwards it is known"


def test_listings_begin_in_the_same_way(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = door.lookup(ROOT, b"folder", Context()).st_ino
    handle = door.opendir(folder, Context())
    reply = Reply()
    monkeypatch.setattr(pyfuse3, "readdir_reply", reply.add)

    async def listed() -> bool:
        await door.operations.readdir(handle, 0, None)
        return True

    _, served = served_meanwhile(door, listed)
    assert served > 20
    assert len(reply.entries) == ENTRIES + 2


def test_a_tree_that_goes_meanwhile_is_stale(door: Door) -> None:
    folder = door.lookup(ROOT, b"folder", Context()).st_ino

    async def lookup() -> int:
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await door.operations.lookup(folder, b"1", Context())
        return caught.value.errno

    async def main() -> None:
        answers = []
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                answers.append(await lookup())

            nursery.start_soon(ask)
            await trio.lowlevel.checkpoint()
            door.filesystem.detach()
        assert answers == [errno.ESTALE]

    trio.run(main)
