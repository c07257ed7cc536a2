"""Listing a directory that changes: no entry twice, none skipped that stayed, cookies that can be gone back to."""

from __future__ import annotations

import errno
import random
from itertools import islice

import pytest
from support import filesystem_on, new_device

from cowfs.errors import CowfsError
from cowfs.fs import Caller, Filesystem

CALLER = Caller()


def fill(filesystem: Filesystem, count: int) -> dict[bytes, int]:
    names = [(b"a long name for a file %d" if number % 2 else b"%d") % number for number in range(count)]
    return {name: filesystem.create(1, name, 0o644, CALLER).ino for name in names}


def test_cookies_are_unique_and_lead_back() -> None:
    with filesystem_on(new_device(block_size=512)) as filesystem:
        made = fill(filesystem, 100)
        listing = filesystem.listing(1)
        entries = list(listing.entries())
        assert {name: number for _, name, number, _ in entries} == {b".": 1, b"..": 1, **made}
        cookies = [cookie for cookie, _, _, _ in entries]
        assert len(set(cookies)) == len(cookies)
        assert all(cookie > 0 for cookie in cookies)
        for position, cookie in enumerate(cookies):
            rest = [entry[1] for entry in islice(listing.entries(cookie), 5)]
            assert rest == [entry[1] for entry in entries[position + 1 : position + 6]]
        assert list(listing.entries(cookies[-1] + 100)) == []


@pytest.mark.parametrize("seed", range(10))
def test_changes_while_listing(seed: int) -> None:
    choose = random.Random(seed)
    with filesystem_on(new_device(block_size=512)) as filesystem:
        made = fill(filesystem, 120)
        untouched = set(choose.sample(sorted(made), 40))
        listing = filesystem.listing(1)
        seen: list[bytes] = []
        cookie = 1  # behind '.'
        while True:
            batch = list(islice(listing.entries(cookie), choose.randrange(1, 8)))
            if not batch:
                break
            cookie = batch[-1][0]
            for _, name, number, attributes in batch:
                assert number == (1 if name == b".." else made[name])
                assert attributes().ino == number
                seen.append(name)
            for name in choose.sample(sorted(set(made) - untouched), min(3, len(made) - len(untouched))):
                if choose.random() < 0.5:
                    filesystem.unlink(1, name)
                    del made[name]
                else:
                    new = name + b"'"
                    filesystem.rename(1, name, 1, new)
                    made[new] = made.pop(name)
            extra = b"extra %d" % choose.randrange(10**9)
            made[extra] = filesystem.create(1, extra, 0o644, CALLER).ino
        assert len(seen) == len(set(seen)), "no name twice"
        assert untouched <= set(seen), "none that stayed is missed"


def test_an_entry_that_was_replaced_is_listed_with_its_new_inode() -> None:
    with filesystem_on(new_device()) as filesystem:
        made = fill(filesystem, 4)
        listing = filesystem.listing(1)
        entries = listing.entries()
        assert [name for _, name, _, _ in islice(entries, 2)] == [b".", b".."]
        filesystem.rename(1, b"0", 1, b"2")
        rest = {name: number for _, name, number, _ in entries}
        assert rest[b"2"] == made[b"0"]
        assert b"0" not in rest


def test_rewinding_shows_what_is_there_now() -> None:
    with filesystem_on(new_device()) as filesystem:
        fill(filesystem, 3)
        listing = filesystem.listing(1)
        assert len(list(listing.entries())) == 5
        filesystem.create(1, b"new", 0o644, CALLER)
        assert b"new" not in [name for _, name, _, _ in listing.entries(1)]
        assert b"new" in [name for _, name, _, _ in listing.entries(0)]


def test_only_directories_are_listed() -> None:
    with filesystem_on(new_device()) as filesystem:
        ino = filesystem.create(1, b"f", 0o644, CALLER).ino
        for number, wanted in ((ino, errno.ENOTDIR), (99, errno.ESTALE)):
            with pytest.raises(CowfsError) as caught:
                filesystem.listing(number)
            assert caught.value.errno == wanted
