"""Pages of a listing: what they tell is what single entries tell, and reading them takes few reads of the device."""

from __future__ import annotations

import random
import stat

import pytest
from support import MIB, filesystem_on, new_device, open_filesystem

from cowfs.errors import Corrupt, CowfsError
from cowfs.fs import Caller, Filesystem
from cowfs.fs import listing as module
from cowfs.fs.attributes import Listed, as_listed
from cowfs.fs.listing import Listing, PagedEntry
from cowfs.ondisk import format as f
from cowfs.storage.device import DeviceError, MemoryDevice

CALLER = Caller()


def pages(listing: Listing, count: int) -> list[PagedEntry]:
    """All entries of a listing, in pages of that size."""
    found: list[PagedEntry] = []
    while True:
        page = listing.page(found[-1][0] if found else 0, count)
        if not page:
            return found
        assert len(page) <= count
        found += page


def one_by_one(listing: Listing) -> list[tuple[int, bytes, int, Listed | str]]:
    """The same, from the table of inodes."""
    found: list[tuple[int, bytes, int, Listed | str]] = []
    for cookie, name, number, attributes in listing.entries():
        try:
            assert attributes().ino == number
            found.append((cookie, name, number, as_listed(attributes())))
        except Corrupt as error:
            found.append((cookie, name, number, str(error)))
    return found


def comparable(entries: list[PagedEntry]) -> list[tuple[int, bytes, int, Listed | str]]:
    return [
        (cookie, name, number, str(found) if isinstance(found, Corrupt) else found)
        for cookie, name, number, found in entries
    ]


def assorted(filesystem: Filesystem, count: int) -> None:
    """Objects of all types, with times of all ages, names of both kinds."""
    for number in range(count):
        name = b"%d" % number + b" long" * (number % 3 * 8)
        kind = number % 7
        if kind == 0:
            ino = filesystem.mkdir(1, name, 0o755, CALLER).ino
        elif kind == 1:
            ino = filesystem.symlink(1, name, b"target", CALLER).ino
        else:
            types = (stat.S_IFREG, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR)
            ino = filesystem.create(1, name, types[kind - 2] | 0o640, Caller(7, 8, 0), rdev=0x0501).ino
        if kind == 2:
            filesystem.write(ino, 0, b"x" * 5000)
        time = (-(1 << 31), -1, 0, (1 << 31) * 10**9, (3 << 32) * 10**9 + 5, 1_700_000_000_999_999_999)[number % 6]
        filesystem.setattr(ino, atime_ns=time, mtime_ns=time + 1, ctime_ns=time + number % 2)


@pytest.mark.parametrize("block_size", [512, 4096])
@pytest.mark.parametrize("count", [1, 7, 1000])
def test_pages_tell_what_single_entries_tell(block_size: int, count: int) -> None:
    device = new_device(block_size=block_size)
    with filesystem_on(device) as filesystem:
        assorted(filesystem, 120)
        assert comparable(pages(filesystem.listing(1), count)) == one_by_one(filesystem.listing(1)), "known ones"
    cold = open_filesystem(device)
    assert comparable(pages(cold.listing(1), count)) == one_by_one(open_filesystem(device).listing(1))
    assert len(cold.inodes.cached) < 60, "plain inodes are not kept in memory"


@pytest.mark.parametrize("seed", range(6))
def test_pages_find_the_same_damage(seed: int) -> None:
    """Leaves of inodes and entries with random bytes: each entry says the same, and none hides another."""
    choose = random.Random(seed)
    device = new_device(MIB, 512)
    with filesystem_on(device) as filesystem:
        assorted(filesystem, 60)
    image = device.image()
    for _ in range(20):
        filesystem = open_filesystem(MemoryDevice.from_image(image))
        leaves = filesystem.tree.num_inodes // (512 // f.INODE_SIZE)
        for _ in range(6):
            leaf = filesystem._trees.writable_leaf(filesystem.tree.writable_inodes(), choose.randrange(1, leaves))
            leaf[choose.randrange(len(leaf))] = choose.choice([0, 1, 2, 0x7F, 0xFF, choose.randrange(256)])
        filesystem.sync()
        spoiled: MemoryDevice = filesystem.volume.device  # type: ignore[assignment]
        try:
            wanted = one_by_one(open_filesystem(spoiled).listing(1))
        except CowfsError:
            continue
        assert comparable(pages(open_filesystem(spoiled).listing(1), 50)) == wanted


def test_a_block_that_cannot_be_read_hides_its_own_inodes_only() -> None:
    device = new_device()
    with filesystem_on(device) as filesystem:
        numbers = [filesystem.create(1, b"%d" % number, 0o644, CALLER).ino for number in range(200)]
        leaf = (numbers[100] - 1) // 32
        block = filesystem._trees.pointer(filesystem.tree.inodes, leaf)
    spoil = bytearray(device.image())
    spoil[filesystem.volume.geometry.block_offset(block) + 5] ^= 1
    filesystem = open_filesystem(MemoryDevice.from_image(bytes(spoil)), read_only=True)
    found = {name: attributes for _, name, _, attributes in pages(filesystem.listing(1), 64)}
    assert len(found) == 202
    bad = {name for name, attributes in found.items() if isinstance(attributes, Corrupt)}
    assert bad == {b"%d" % number for number in range(200) if (numbers[number] - 1) // 32 == leaf}


def test_an_unreadable_name_ends_the_page_before_it_and_fails_the_next() -> None:
    device = new_device()
    with filesystem_on(device) as filesystem:
        for number in range(20):
            filesystem.create(1, b"%d" % number + b" long" * (number == 13) * 10, 0o644, CALLER)
        slot = filesystem._trees.pointer(filesystem.tree.longnames, 0)
    spoil = bytearray(device.image())
    spoil[filesystem.volume.geometry.block_offset(slot) + 2] ^= 1
    listing = open_filesystem(MemoryDevice.from_image(bytes(spoil)), read_only=True).listing(1)
    seen: list[bytes] = []
    cookie = 0
    with pytest.raises(Corrupt):
        while True:
            page = listing.page(cookie, 64)
            assert page
            cookie = page[-1][0]
            seen += [name for _, name, _, _ in page]
    assert seen == [b".", b"..", *(b"%d" % number for number in range(13))]


def test_a_failing_device_fails_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    device = new_device()
    with filesystem_on(device) as filesystem:
        for number in range(100):
            filesystem.create(1, b"%d" % number, 0o644, CALLER)
    filesystem = open_filesystem(device, read_only=True)
    listing = filesystem.listing(1)

    def fails(offset: int, size: int) -> bytes:
        raise DeviceError("no disk any more")

    monkeypatch.setattr(device, "read", fails)
    with pytest.raises(DeviceError):
        pages(listing, 64)


def test_entries_that_went_leave_no_empty_page() -> None:
    with filesystem_on(new_device()) as filesystem:
        for number in range(100):
            filesystem.create(1, b"%d" % number, 0o644, CALLER)
        listing = filesystem.listing(1)
        first = listing.page(0, 10)
        for number in range(90):
            filesystem.unlink(1, b"%d" % number)
        rest = listing.page(first[-1][0], 10)
        assert [name for _, name, _, _ in rest] == [b"%d" % number for number in range(90, 98)]
        assert [name for _, name, _, _ in listing.page(rest[-1][0], 10)] == [b"98", b"99"]
        assert listing.page(102, 10) == []


@pytest.mark.parametrize("long", [False, True])
def test_a_cold_listing_reads_in_runs(long: bool) -> None:
    """3,000 inodes lie in 94 blocks, as many long names in a block each; a read of the device each was the rule once."""
    device = new_device(64 * MIB)
    with filesystem_on(device) as filesystem:
        ino = filesystem.mkdir(1, b"directory", 0o755, CALLER).ino
        for number in range(3000):
            filesystem.create(ino, b"%d" % number + b" long" * long * 8, 0o644, CALLER)
    filesystem = open_filesystem(device, read_only=True)
    listing = filesystem.listing(ino)
    before = device.reads
    assert len(pages(listing, 100)) == 3002
    batches = -(-3002 // module.READ_AHEAD)
    # Two trees to walk, whose blocks may lie in more than one piece; checksums of what is read.
    assert device.reads - before <= (6 if long else 3) * batches + 10


def test_a_cold_directory_between_other_blocks_is_read_in_runs() -> None:
    """Its blocks lie between those of the inodes that were made with it; each was a read of the device once."""
    device = new_device(64 * MIB)
    with filesystem_on(device) as filesystem:
        ino = filesystem.mkdir(1, b"directory", 0o755, CALLER).ino
        for number in range(4000):
            filesystem.create(ino, b"%d" % number, 0o644, CALLER)
        pieces = len(list(filesystem._trees.runs(filesystem.inodes.get(ino, "test").root, 0, 32)))
    assert pieces > 25, "they lie apart"
    filesystem = open_filesystem(device, read_only=True)
    before = device.reads
    assert filesystem.lookup(ino, b"3999").ino > 4000
    assert device.reads - before <= 8
