"""Reading a file in small pieces all over: what the device is asked to fetch, and what it is not asked for."""

from __future__ import annotations

import random

import pytest
from layered import new_overlay
from support import MIB, filesystem_on, open_filesystem

from cowfs.errors import DeviceError
from cowfs.fs import Caller, Filesystem
from cowfs.fs import readaround as module
from cowfs.ondisk.geometry import geometry_for_size
from cowfs.storage.device import MemoryDevice
from cowfs.storage.mkvolume import make_volume

CALLER = Caller()
BLOCK = 4096


class Expecting(MemoryDevice):
    """A device that notes what it is told to fetch."""

    def __init__(self, size: int, *, name: str = "expecting") -> None:
        super().__init__(size, name=name)
        self.expected: list[tuple[int, int]] = []

    def read_medium(self, offset: int, length: int) -> bytes:
        return self.read(offset, length)

    def expect(self, offset: int, length: int) -> None:
        self._require_inside("expect", offset, length)
        self.expected.append((offset, length))


def made(size: int = 64 * MIB) -> Expecting:
    device = Expecting(size)
    make_volume(device, geometry_for_size(size, BLOCK), label=b"", uuid=bytes(range(16)), now_ns=10**18)
    return device


def file_of(filesystem: Filesystem, size: int, name: bytes = b"file") -> int:
    """A file in which each block differs."""
    ino = filesystem.create(1, name, 0o644, CALLER).ino
    for at in range(0, size, MIB):
        filesystem.write(ino, at, b"".join(bytes([n % 251]) * BLOCK for n in range(at // BLOCK, (at + MIB) // BLOCK)))
    return ino


def test_each_window_is_fetched_once_and_holds_what_is_read() -> None:
    device = made()
    with filesystem_on(device) as filesystem:
        ino = file_of(filesystem, 16 * MIB)
    filesystem = open_filesystem(device, read_only=True)
    choose = random.Random(1)
    windows = set()
    for block in choose.sample(range(16 * MIB // BLOCK), 1000):
        assert filesystem.read(ino, block * BLOCK, BLOCK) == bytes([block % 251]) * BLOCK
        windows.add(block * BLOCK // module.WINDOW_BYTES)
        place = filesystem.volume.geometry.block_offset(
            filesystem._trees.pointer(filesystem.inodes.get(ino, "test").root, block)
        )
        assert any(at <= place < at + length for at, length in device.expected)
    assert len(windows) == 16, "all of them"
    assert sum(length for _, length in device.expected) == 16 * MIB
    assert len(device.expected) < 32, "in runs"


def test_reading_in_sequence_or_in_large_pieces_fetches_nothing() -> None:
    device = made()
    with filesystem_on(device) as filesystem:
        ino = file_of(filesystem, 4 * MIB)
    filesystem = open_filesystem(device, read_only=True)
    for at in range(0, 4 * MIB, 16384):
        filesystem.read(ino, at, 16384)
    for at in (3, 1, 2):
        filesystem.read(ino, at * MIB, MIB)
    assert device.expected == []
    filesystem.read(ino, 2 * MIB, BLOCK)
    assert len(device.expected) == 1
    for at in range(31, 1, -1):
        filesystem.read(ino, 2 * MIB + at * BLOCK, BLOCK)
    assert len(device.expected) == 1


def test_who_never_comes_back_uses_the_credit_up_and_who_does_earns_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CREDIT", 5 * module.WINDOW_COST)
    device = made()
    with filesystem_on(device) as filesystem:
        ino = file_of(filesystem, 32 * MIB)
    filesystem = open_filesystem(device, read_only=True)

    def fetches(offset: int) -> bool:
        before = len(device.expected)
        filesystem.read(ino, offset, BLOCK)
        return len(device.expected) > before

    window = module.WINDOW_BYTES
    assert [fetches(number * window + BLOCK) for number in range(8)] == [True] * 5 + [False] * 3
    for at in range(9, 9 + 4 * module.WINDOW_COST, 2):
        assert not fetches(3 * window + at * BLOCK), "it is there"
    assert [fetches(number * window + BLOCK) for number in range(8, 11)] == [True, True, False]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOWS_MAX", 8)
    monkeypatch.setattr(module, "FILES_MAX", 3)
    device = made()
    with filesystem_on(device) as filesystem:
        ino = file_of(filesystem, 24 * MIB)
        others = [file_of(filesystem, MIB, b"%d" % number) for number in range(5)]
    filesystem = open_filesystem(device, read_only=True)
    for number in (*range(24), *range(24)):
        filesystem.read(ino, number * module.WINDOW_BYTES + BLOCK, BLOCK)
        assert len(filesystem._around._patterns[ino].windows) <= 8
    for other in others:
        filesystem.read(other, 8 * BLOCK, BLOCK)
        assert len(filesystem._around._patterns) <= 3


def test_holes_are_not_fetched_and_failures_left_to_the_read() -> None:
    device = made()
    with filesystem_on(device) as filesystem:
        ino = filesystem.create(1, b"sparse", 0o644, CALLER).ino
        filesystem.truncate(ino, 64 * MIB)
        filesystem.write(ino, 32 * MIB + BLOCK, b"x" * BLOCK)
    filesystem = open_filesystem(device, read_only=True)
    assert filesystem.read(ino, 8 * MIB, BLOCK) == bytes(BLOCK)
    assert filesystem.read(ino, 99 * MIB, BLOCK) == b""
    assert device.expected == []
    assert filesystem.read(ino, 32 * MIB, 2 * BLOCK) == bytes(BLOCK) + b"x" * BLOCK
    assert [length for _, length in device.expected] == [BLOCK]

    def refuses(offset: int, length: int) -> None:
        raise DeviceError("no")

    filesystem = open_filesystem(device, read_only=True)
    device.expect = refuses  # type: ignore[method-assign]
    assert filesystem.read(ino, 32 * MIB, 2 * BLOCK) == bytes(BLOCK) + b"x" * BLOCK


def test_an_overlay_fetches_from_the_layer_that_has_it() -> None:
    base = made(32 * MIB)
    with filesystem_on(base) as filesystem:
        ino = file_of(filesystem, 2 * MIB)
    base.read_only = True
    top = Expecting(64 * MIB, name="top")
    device = new_overlay(base, top=top, geometry=geometry_for_size(64 * MIB, BLOCK))
    with filesystem_on(device) as filesystem:
        filesystem.write(ino, MIB, b"y" * MIB)
    filesystem = open_filesystem(device, read_only=True)
    for at, wanted, layer, other in ((8 * BLOCK, b"\x08", base, top), (MIB + 8 * BLOCK, b"y", top, base)):
        layer.expected, other.expected = [], []
        assert filesystem.read(ino, at, BLOCK) == wanted * BLOCK
        assert sum(length for _, length in layer.expected) == module.WINDOW_BYTES
        assert other.expected == []
