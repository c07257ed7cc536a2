"""Directories in memory and on the disk: the index against a dictionary, density, cost, and damage."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
from support import MIB, close_filesystem, filesystem_on, new_device, open_filesystem

from cowfs.errors import Corrupt, CowfsError, NotFound
from cowfs.fs import Caller, Filesystem, dirload
from cowfs.fs import directory as module
from cowfs.fs.directory import Directory
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import long_name_checksum
from cowfs.ondisk.codecs import ENTRY_SIZE, EntryCodec
from cowfs.storage.device import MemoryDevice

CODEC = EntryCodec("<")
CALLER = Caller(1000, 1000)


class Slots:
    """The long names of a directory under test; a slot that is free holds no name."""

    def __init__(self) -> None:
        self.names: dict[int, bytes] = {}
        self.reads = 0
        self._next = itertools.count()

    def read(self, slot: int) -> bytes:
        self.reads += 1
        if slot not in self.names:
            raise Corrupt("no name")
        return self.names[slot]

    def add(self, name: bytes) -> int:
        slot = next(self._next)
        self.names[slot] = name
        return slot


class Pair:
    """A `Directory` without a disk, and a dictionary."""

    def __init__(self) -> None:
        self.slots = Slots()
        raw = bytearray(CODEC.short(1, b".") + CODEC.short(1, b".."))
        self.directory = Directory(raw, CODEC, self.slots)  # type: ignore[arg-type]
        self.wanted: dict[bytes, int] = {b".": 1, b"..": 1}

    def reopen(self) -> None:
        self.directory = Directory(self.directory.raw, CODEC, self.slots)  # type: ignore[arg-type]

    def add(self, name: bytes, number: int) -> None:
        if len(name) <= f.SHORT_NAME_MAX:
            entry = CODEC.short(number, name)
        else:
            entry = CODEC.long(number, self.slots.add(name), long_name_checksum(name))
        self.directory.appended(entry, name)
        self.wanted[name] = number

    def remove(self, name: bytes) -> None:
        directory = self.directory
        index = directory.find(name)
        assert index >= 0, name
        directory.prepare_removal()
        if directory.is_long(index):
            del self.slots.names[directory.slot(index)]
        directory.removed(index)
        del self.wanted[name]

    def compare(self, names: list[bytes]) -> None:
        for name in names:
            index = self.directory.find(name)
            assert (self.directory.number(index) if index >= 0 else None) == self.wanted.get(name), name
        assert len(self.directory) == len(self.wanted)


def short_name(number: int) -> bytes:
    return b"entry %d" % number


def long_name(number: int) -> bytes:
    return b"a name that is longer than 27 bytes %d" % number


def mixed_name(number: int) -> bytes:
    return long_name(number) if number % 3 == 0 else short_name(number)


@pytest.mark.interpreted
@pytest.mark.parametrize("name_of", [short_name, long_name, mixed_name])
def test_the_index_is_a_dictionary(name_of: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE", 50)
    choose = random.Random(3)
    pair = Pair()
    names = [name_of(number) for number in range(400)]
    for step in range(6000):
        name = choose.choice(names)
        growing = step // 1000 % 2 == 0
        if name not in pair.wanted and (growing or choose.random() < 0.2):
            pair.add(name, step + 2)
        elif name in pair.wanted and (not growing or choose.random() < 0.2):
            pair.remove(name)
        else:
            pair.compare([name])
        if choose.random() < 0.01:
            pair.reopen()
        if step % 500 == 0:
            pair.compare([*names, b".", b"..", b"none", b"none" * 20])
    pair.compare(names)


@pytest.mark.interpreted
def test_names_with_equal_checksums_are_told_apart_at_once() -> None:
    pair = Pair()
    names = [long_name(number) for number in range(10_000, 13_000)]
    assert len({long_name_checksum(name) for name in names}) < 300, "the sum is weak"
    for number, name in enumerate(names, 2):
        pair.compare([name])
        pair.add(name, number)
    pair.compare(names)
    pair.slots.reads = 0
    pair.compare(names)
    assert pair.slots.reads <= 1.01 * len(names)


@pytest.mark.interpreted
def test_a_key_that_lies_across_entries_is_no_entry() -> None:
    pair = Pair()
    # The 28 bytes of the key of "x" appear in the name of the first file, one byte off.
    pair.add(b"\x01x" + bytes(24) + b"y", 5)
    pair.compare([b"x"])
    pair.add(b"x", 6)
    pair.compare([b"x"])


@pytest.mark.interpreted
def test_one_search_builds_a_slice_of_the_table_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE", 100)
    pair = Pair()
    for number in range(1000):
        pair.add(short_name(number), number + 2)
    pair.reopen()
    built = []
    for number in range(20):
        pair.compare([short_name(number)])
        built.append(pair.directory._built)
    assert built[:3] == [0, 0, 0]
    assert built[3:14] == [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000, 1002]


@pytest.mark.interpreted
def test_a_name_that_is_there_thousands_of_times_is_damage() -> None:
    pair = Pair()
    pair.directory.raw += CODEC.short(3, b"same") * 20_000
    with pytest.raises(Corrupt, match="many times"):
        for _ in range(10):
            pair.directory.find(b"other")


# --- on a volume ---


def names_of(filesystem: Filesystem, ino: int) -> dict[bytes, int]:
    return {name: number for _, name, number, _ in filesystem.listing(ino).entries()}


@pytest.mark.parametrize("block_size", [512, 4096])
def test_entries_stay_dense_and_directories_shrink(block_size: int) -> None:
    device = new_device(block_size=block_size)
    per_block = block_size // ENTRY_SIZE
    with filesystem_on(device) as filesystem:
        ino = filesystem.mkdir(1, b"d", 0o755, CALLER).ino
        names = [short_name(number) for number in range(5 * per_block)]
        for name in names:
            filesystem.create(ino, name, 0o644, CALLER)
        assert filesystem.getattr(ino).size == 6 * block_size
        random.Random(1).shuffle(names)
        while names:
            filesystem.unlink(ino, names.pop())
            entries = len(names) + 2
            assert filesystem.getattr(ino).size == -(-entries // per_block) * block_size
            raw = filesystem._trees.read(filesystem.inode(ino).root, 0, 1 << 20)
            used, rest = raw[: entries * ENTRY_SIZE], raw[entries * ENTRY_SIZE :]
            assert not CODEC.has_gap(used)
            assert not any(rest)
        assert filesystem.getattr(ino).blocks * 512 == block_size


def test_a_hot_directory_costs_the_same_whatever_its_size() -> None:
    device = new_device(64 * MIB)
    with filesystem_on(device) as filesystem:
        for number in range(6_000):
            filesystem.create(1, short_name(number), 0o644, CALLER)
        filesystem.sync()
    filesystem = open_filesystem(device)
    filesystem.lookup(1, b".")
    device.reset_counters()
    with pytest.raises(NotFound):
        filesystem.lookup(1, b"new 0")
    assert device.bytes_read < 10_000, "the second search reads nothing of the directory"
    for number in range(100):
        filesystem.create(1, b"new %d" % number, 0o644, CALLER)
        filesystem.unlink(1, short_name(number * 7))
    assert device.bytes_read < 100 * 3 * 4096, "each change reads a few blocks, not the directory"
    close_filesystem(filesystem)


def test_many_hot_directories_are_forgotten_but_stay_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HOT_BYTES_MAX", 10_000)
    with filesystem_on(new_device()) as filesystem:
        parents = [filesystem.mkdir(1, b"d%d" % number, 0o755, CALLER).ino for number in range(20)]
        for number in range(40):
            for parent in parents:
                filesystem.create(parent, mixed_name(number), 0o644, CALLER)
        for source, target in itertools.pairwise(parents):
            filesystem.rename(source, mixed_name(3), target, b"moved")
            filesystem.rename(source, mixed_name(5), target, mixed_name(6))
        hot = filesystem.directories._hot
        assert len(hot) < 10
        assert filesystem.directories._hot_bytes == sum(directory.weight for directory in hot.values())
        for number, parent in enumerate(parents):
            names = {b".", b"..", *(mixed_name(n) for n in range(40))}
            if number < len(parents) - 1:
                names -= {mixed_name(3), mixed_name(5)}
            if number > 0:
                names |= {b"moved"}
            assert set(names_of(filesystem, parent)) == names


def spoil(device: MemoryDevice, change: Callable[[Filesystem], None]) -> Filesystem:
    """Lets `change` write nonsense through the block trees, with right checksums, and opens the result."""
    filesystem = open_filesystem(device)
    change(filesystem)
    filesystem.sync()
    return open_filesystem(device)


def write_entry(index: int, entry: bytes) -> Callable[[Filesystem], None]:
    def change(filesystem: Filesystem) -> None:
        token = filesystem.inodes.make_writable(filesystem.inode(1))
        leaf = filesystem._trees.writable_leaf(token, 0)
        leaf[index * ENTRY_SIZE : (index + 1) * ENTRY_SIZE] = entry

    return change


def spoiled_sample(change: Callable[[Filesystem], None]) -> Filesystem:
    device = new_device(MIB, 512)
    with filesystem_on(device) as filesystem:
        for name in (b"one", b"two", b"three"):
            filesystem.create(1, name, 0o644, CALLER)
    return spoil(device, change)


@pytest.mark.parametrize(
    ("entry", "index", "message"),
    [
        (bytes(ENTRY_SIZE), 3, "an entry without an inode"),
        (CODEC.short(0, b"none"), 2, "an entry without an inode"),
        (CODEC.short(1, b"x"), 0, "does not begin with"),
        (CODEC.short(1, b"x"), 1, "does not begin with"),
        (CODEC.short(3, b"."), 0, "does not begin with"),
    ],
)
def test_a_directory_that_is_not_dense_is_damage(entry: bytes, index: int, message: str) -> None:
    filesystem = spoiled_sample(write_entry(index, entry))
    with pytest.raises(Corrupt, match=message):
        filesystem.lookup(1, b"one")
    with pytest.raises(Corrupt, match=message):
        filesystem.create(1, b"new", 0o644, CALLER)


@pytest.mark.parametrize("length", [0, 28, 0xFE])
def test_an_entry_with_an_impossible_length_is_damage(length: int) -> None:
    entry = bytearray(CODEC.short(3, b"two"))
    entry[4] = length
    filesystem = spoiled_sample(write_entry(3, bytes(entry)))
    assert filesystem.lookup(1, b"one").ino == 3
    with pytest.raises(Corrupt, match=r"without a name|length of a name"):
        list(filesystem.listing(1).entries())


@pytest.mark.parametrize("number", [2, 6, 0xFFFFFFFF])
def test_an_entry_that_names_no_inode_is_damage(number: int) -> None:
    filesystem = spoiled_sample(write_entry(3, CODEC.short(number, b"two")))
    for operation in (
        lambda: filesystem.lookup(1, b"two"),
        lambda: filesystem.unlink(1, b"two"),
        lambda: filesystem.rename(1, b"two", 1, b"four"),
        lambda: [attributes() for _, _, _, attributes in filesystem.listing(1).entries()],
    ):
        with pytest.raises(Corrupt, match="names"):
            operation()


@pytest.mark.parametrize("slot", [0, 7, 0xFFFFFFFF])
def test_an_entry_with_a_slot_without_a_name_is_damage(slot: int) -> None:
    name = long_name(1)
    filesystem = spoiled_sample(write_entry(3, CODEC.long(3, slot, long_name_checksum(name))))
    with pytest.raises(Corrupt, match="slot"):
        filesystem.lookup(1, name)
    with pytest.raises(Corrupt, match="slot"):
        list(filesystem.listing(1).entries())


def test_a_long_name_that_cannot_be_read_spoils_no_other_search() -> None:
    """Also not the searches that build the table, which once put the same entries in again and again until it was full."""
    device = new_device()
    filesystem = open_filesystem(device)
    folder = filesystem.mkdir(1, b"folder", 0o755, Caller()).ino
    for number in range(40):
        filesystem.create(folder, short_name(number), 0o644, Caller())
        filesystem.create(folder, long_name(number), 0o644, Caller())
    filesystem.close()
    directory = filesystem.directories.open(filesystem.inode(folder))
    slot = directory.slot(directory.find(long_name(7)))
    block = filesystem.volume.trees.pointer(filesystem.tree.longnames, slot)
    device.write(filesystem.volume.geometry.block_offset(block), [b"rot"])

    filesystem = open_filesystem(device, read_only=True)
    for _ in range(20):
        for number in range(40):
            filesystem.lookup(folder, short_name(number))
            if number == 7:
                with pytest.raises(Corrupt):
                    filesystem.lookup(folder, long_name(number))
            else:
                filesystem.lookup(folder, long_name(number))
        for absent in (b"short", long_name(99)):
            with pytest.raises(NotFound):
                filesystem.lookup(folder, absent)


def test_a_size_that_cannot_be_is_damage() -> None:
    for size in (0, 100, 513, 1 << 20, 1 << 33):

        def change(filesystem: Filesystem, size: int = size) -> None:
            inode = filesystem.inode(1)
            filesystem.inodes.make_writable(inode)
            inode.root.size = size
            inode.root.levels = 3 if size > MIB else inode.root.levels

        filesystem = spoiled_sample(change)
        with pytest.raises(CowfsError) as caught:
            filesystem.lookup(1, b"one")
        assert isinstance(caught.value, Corrupt), size


def test_a_directory_full_of_holes_is_refused_early() -> None:
    def change(filesystem: Filesystem) -> None:
        token = filesystem.inodes.make_writable(filesystem.inode(1))
        filesystem._trees.resize(token, 700 << 10)

    filesystem = spoiled_sample(change)
    with pytest.raises(Corrupt, match=r"an entry without an inode|a gap"):
        filesystem.lookup(1, b"one")


def test_a_loop_of_parents_ends() -> None:
    device = new_device(MIB, 512)
    with filesystem_on(device) as filesystem:
        first = filesystem.mkdir(1, b"first", 0o755, CALLER).ino
        second = filesystem.mkdir(first, b"second", 0o755, CALLER).ino
        filesystem.mkdir(1, b"other", 0o755, CALLER)

    def change(filesystem: Filesystem) -> None:
        inode = filesystem.inode(first)
        filesystem.directories.replace(inode, filesystem.inodes.make_writable(inode), 1, second)

    filesystem = spoil(device, change)
    with pytest.raises(Corrupt, match="not above it"):
        filesystem.rename(1, b"other", second, b"x")


@pytest.mark.parametrize("seed", range(4))
def test_where_entries_end_and_whether_there_is_a_gap(seed: int) -> None:
    """Against the plain definitions: the last byte that is not zero, and each number looked at."""
    choose = random.Random(seed)
    for order in ("<", ">"):
        codec = EntryCodec(order)  # type: ignore[arg-type]
        for _ in range(200):
            entries = [
                codec.short(choose.choice([1, 256, 1 << 16, 1 << 24, 0xFFFFFFFF]), b"n" * choose.choice([1, 5, 27]))
                for _ in range(choose.randrange(16))
            ]
            if entries and choose.random() < 0.3:
                at = choose.randrange(len(entries))
                entries[at] = bytes(4) + choose.choice([entries[at][4:], bytes(28), bytes(27) + b"x"])
            block = b"".join(entries).ljust(512, b"\0")
            end = codec.size_in_use(block)
            assert end == codec.size_in_use(bytearray(block)) == -(-len(block.rstrip(b"\0")) // ENTRY_SIZE) * ENTRY_SIZE
            numbers = [codec.number_at(block, at) for at in range(0, end, ENTRY_SIZE)]
            assert codec.has_gap(block[:end]) == (0 in numbers)
            assert codec.numbers(block[:end]) == numbers


# --- large directories, read in slices ---


def large_directory(monkeypatch: pytest.MonkeyPatch, count: int = 1000) -> tuple[MemoryDevice, int]:
    """A directory of several slices, on a volume that was unmounted."""
    monkeypatch.setattr(dirload, "SLICE_BYTES", 8192)
    device = new_device()
    with filesystem_on(device) as filesystem:
        folder = filesystem.mkdir(1, b"folder", 0o755, Caller()).ino
        for number in range(count):
            filesystem.create(folder, short_name(number), 0o644, Caller())
    return device, folder


def test_a_large_directory_is_read_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    device, folder = large_directory(monkeypatch)
    filesystem = open_filesystem(device)
    assert not filesystem.is_cold(1), "a small one is not worth it"
    slices = 0
    while filesystem.is_cold(folder):
        before = device.bytes_read
        filesystem.load_slice(folder)
        slices += 1
        assert device.bytes_read - before < 8192 * 4 or slices == 1
    assert slices == -(-filesystem.getattr(folder).size // 8192)
    before = device.bytes_read
    assert filesystem.lookup(folder, short_name(999)).ino
    assert device.bytes_read - before <= 4096, "the directory is not read again"
    assert not filesystem.is_cold(folder)
    filesystem.load_slice(folder)
    filesystem.close()


@pytest.mark.parametrize("slices", [1, 3])
def test_who_changes_a_directory_that_is_being_read_takes_over(monkeypatch: pytest.MonkeyPatch, slices: int) -> None:
    """What was read in slices can never be older than the directory."""
    device, folder = large_directory(monkeypatch)
    with filesystem_on(device) as filesystem:
        for _ in range(slices):
            filesystem.load_slice(folder)
        for number in range(0, 1000, 7):
            filesystem.unlink(folder, short_name(number))
        filesystem.create(folder, b"new", 0o644, Caller())
        assert not filesystem.is_cold(folder)
        monkeypatch.setattr(module, "HOT_BYTES_MAX", 1)
        filesystem.lookup(1, b"folder")
        filesystem.listing(1)
        assert filesystem.is_cold(folder), "forgotten"
        while filesystem.is_cold(folder):
            filesystem.load_slice(folder)
        names = {name for _, name, _, _ in filesystem.listing(folder).entries()}
        assert names == {b".", b"..", b"new", *(short_name(number) for number in range(1000) if number % 7)}


def test_readings_that_nobody_finishes_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    device, folder = large_directory(monkeypatch)
    with filesystem_on(device) as filesystem:
        folders = [folder]
        for number in range(6):
            other = filesystem.mkdir(1, b"%d" % number, 0o755, Caller()).ino
            folders.append(other)
            for name in range(300):
                filesystem.link(filesystem.lookup(folder, short_name(name)).ino, other, short_name(name))
    filesystem = open_filesystem(device)
    for ino in folders:
        filesystem.load_slice(ino)
    assert len(filesystem.directories._readings) == module.READINGS_MAX
    for ino in folders:
        while filesystem.is_cold(ino):
            filesystem.load_slice(ino)
        assert filesystem.lookup(ino, short_name(299)).links == 7
    assert not filesystem.directories._readings
    filesystem.close()


def test_damage_in_a_slice_is_met_again_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    device, folder = large_directory(monkeypatch)
    filesystem = open_filesystem(device, read_only=True)
    root = filesystem.inode(folder).root
    block = filesystem._trees.pointer(root, 5)
    image = bytearray(device.image())
    image[filesystem.volume.geometry.block_offset(block)] ^= 1
    filesystem = open_filesystem(MemoryDevice.from_image(bytes(image)), read_only=True)
    for _ in range(2):
        with pytest.raises(Corrupt):
            while filesystem.is_cold(folder):
                filesystem.load_slice(folder)
        with pytest.raises(Corrupt):
            filesystem.lookup(folder, short_name(1))
