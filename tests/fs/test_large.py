"""Large directories, many files, sparse and deep ones in process: what they cost, and the limits of link counts."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from support import MIB, close_filesystem, new_device, open_filesystem

from cowfs.errors import FileTooBig, TooManyLinks
from cowfs.fs import Caller, Filesystem
from cowfs.ondisk import format as f

CALLER = Caller(1000, 1000)
LARGE = pytest.param(1_000_000, marks=[pytest.mark.large, pytest.mark.timeout(3600)])


def resident() -> int:
    """Bytes of this process in memory now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@contextmanager
def phase(figures: list[str], name: str, count: int, start: int) -> Iterator[None]:
    """Notes the rate of a phase, and the memory after it beyond `start`."""
    began = time.monotonic()
    yield
    seconds = time.monotonic() - began
    figures.append(f"{name}: {count / seconds:,.0f}/s, {(resident() - start) / MIB:,.0f} MiB more than at the start")


@pytest.mark.parametrize("count", [100_000, LARGE])
def test_a_large_directory(count: int, record_property: Callable[[str, object], None]) -> None:
    start = resident()
    figures: list[str] = []
    device = new_device((64 + count // 1500) * MIB)
    filesystem = open_filesystem(device)
    filesystem.volume.inline_commits = True
    ino = filesystem.mkdir(1, b"directory", 0o755, CALLER).ino
    names = [b"name %d" % number + b" that is rather long" * (number % 10 == 0) for number in range(count)]
    with phase(figures, "create", count, start):
        for name in names:
            filesystem.create(ino, name, 0o644, CALLER)
        filesystem.sync()
    order = random.Random(1).sample(range(count), count)
    with phase(figures, "look up", count, start):
        for number in order:
            filesystem.lookup(ino, names[number])
    with phase(figures, "list", count, start):
        listed = [name for _, name, _, _ in filesystem.listing(ino).entries()]
        assert len(listed) == count + 2
        assert set(listed[2:]) == set(names)
        del listed
    with phase(figures, "remove", count, start):
        for number in order:
            filesystem.unlink(ino, names[number])
        filesystem.sync()
    assert filesystem.getattr(ino).size == f.BLOCK_SIZES[-1], "one block is left of the directory"
    close_filesystem(filesystem)
    record_property("figures", figures)
    print("\n".join(figures))


@pytest.mark.parametrize("count", [50_000, LARGE])
def test_many_files(count: int, record_property: Callable[[str, object], None]) -> None:
    """A thousand to a directory, each with a few bytes."""
    start = resident()
    figures: list[str] = []
    filesystem = open_filesystem(new_device((64 + count // 150) * MIB))
    with phase(figures, "create and write", count, start):
        for number in range(count // 1000):
            ino = filesystem.mkdir(1, b"%d" % number, 0o755, CALLER).ino
            for index in range(1000):
                filesystem.write(filesystem.create(ino, b"%d" % index, 0o644, CALLER).ino, 0, b"contents")
        filesystem.sync()
    with phase(figures, "read", count, start):
        for number in range(count // 1000):
            ino = filesystem.lookup(1, b"%d" % number).ino
            for index in range(1000):
                assert filesystem.read(filesystem.lookup(ino, b"%d" % index).ino, 0, 100) == b"contents"
    statfs = filesystem.statfs()
    assert statfs.files - statfs.files_free == count + count // 1000 + 2
    close_filesystem(filesystem)
    record_property("figures", figures)
    print("\n".join(figures))


# --- link counts ---


@pytest.mark.slow
def test_a_file_has_at_most_65535_names() -> None:
    filesystem = open_filesystem(new_device(64 * MIB))
    ino = filesystem.create(1, b"file", 0o644, CALLER).ino
    for number in range(f.LINK_COUNT_MAX - 1):
        filesystem.link(ino, 1, b"%d" % number)
    assert filesystem.getattr(ino).links == 65_535
    refuses(filesystem, lambda: filesystem.link(ino, 1, b"one more"))
    filesystem.unlink(1, b"7")
    filesystem.link(ino, 1, b"7")
    close_filesystem(filesystem)


@pytest.mark.slow
def test_a_directory_has_at_most_65533_directories() -> None:
    filesystem = open_filesystem(new_device(512 * MIB))
    parent = filesystem.mkdir(1, b"parent", 0o755, CALLER).ino
    other = filesystem.mkdir(1, b"other", 0o755, CALLER).ino
    filesystem.mkdir(other, b"moved", 0o755, CALLER)
    filesystem.create(parent, b"file", 0o644, CALLER)
    for number in range(f.LINK_COUNT_MAX - 2):
        filesystem.mkdir(parent, b"%d" % number, 0o755, CALLER)
    assert filesystem.getattr(parent).links == 65_535
    refuses(filesystem, lambda: filesystem.mkdir(parent, b"one more", 0o755, CALLER))
    refuses(filesystem, lambda: filesystem.rename(other, b"moved", parent, b"moved"))
    refuses(filesystem, lambda: filesystem.rename(other, b"moved", parent, b"file", 2))
    filesystem.rename(other, b"moved", parent, b"7")  # takes a directory's place
    filesystem.rename(parent, b"8", parent, b"renamed")
    filesystem.rmdir(parent, b"9")
    filesystem.mkdir(parent, b"9", 0o755, CALLER)
    close_filesystem(filesystem)


def test_link_counts_end_at_65535() -> None:
    """The counts are set, not reached; the tests marked slow reach them."""
    filesystem = open_filesystem(new_device())
    file = filesystem.create(1, b"file", 0o644, CALLER).ino
    parent = filesystem.mkdir(1, b"parent", 0o755, CALLER).ino
    for ino in (file, parent):
        filesystem.setattr(ino, mode=0o755)
        filesystem.inode(ino).links = f.LINK_COUNT_MAX - 1
    filesystem.link(file, 1, b"last")
    refuses(filesystem, lambda: filesystem.link(file, 1, b"one more"))
    filesystem.mkdir(parent, b"last", 0o755, CALLER)
    filesystem.mkdir(1, b"moved", 0o755, CALLER)
    refuses(filesystem, lambda: filesystem.mkdir(parent, b"one more", 0o755, CALLER))
    refuses(filesystem, lambda: filesystem.rename(1, b"moved", parent, b"moved"))
    filesystem.rename(1, b"moved", parent, b"last")
    filesystem.create(parent, b"file", 0o644, CALLER)


def refuses(filesystem: Filesystem, operation: Callable[[], object]) -> None:
    before = filesystem.getattr(1), filesystem.statfs()
    with pytest.raises(TooManyLinks):
        operation()
    assert (filesystem.getattr(1), filesystem.statfs()) == before


# --- size and depth ---


def test_a_sparse_file_of_a_tebibyte() -> None:
    filesystem = open_filesystem(new_device(16 * MIB))
    ino = filesystem.create(1, b"file", 0o644, CALLER).ino
    free = filesystem.statfs().free
    for place in (0, 1 << 30, (1 << 40) - 5):
        filesystem.write(ino, place, b"bytes")
    assert filesystem.getattr(ino).size == 1 << 40
    filesystem.sync()
    assert filesystem.read(ino, (1 << 40) - 7, 100) == b"\0\0bytes"
    assert filesystem.read(ino, 1 << 39, 5) == bytes(5)
    assert free - filesystem.statfs().free < 64
    with pytest.raises(FileTooBig):
        filesystem.setattr(ino, size=1 << 60)
    filesystem.setattr(ino, size=3)
    filesystem.setattr(ino, size=1 << 40)
    assert filesystem.read(ino, 0, 5) == b"byt\0\0"
    close_filesystem(filesystem)


def test_a_path_of_a_thousand_levels() -> None:
    filesystem = open_filesystem(new_device(64 * MIB))
    inos = [1]
    for _ in range(1000):
        inos.append(filesystem.mkdir(inos[-1], b"directory", 0o755, CALLER).ino)
    ino = 1
    for _ in range(1000):
        ino = filesystem.lookup(ino, b"directory").ino
    assert ino == inos[-1]
    filesystem.mkdir(1, b"target", 0o755, CALLER)
    filesystem.rename(inos[1], b"directory", 1, b"moved")
    for parent in reversed(inos[2:-1]):
        filesystem.rmdir(parent, b"directory")
    close_filesystem(filesystem)
