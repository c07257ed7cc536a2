"""Devices that fail and blocks that rot: an error and never wrong data, and the last commit stays whole."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from support import MIB, Clock, assert_sound, close_filesystem, filesystem_on, new_device, open_filesystem

from cowfs.errors import Corrupt, CowfsError, DeviceError, ReadOnly, UnreadableData
from cowfs.fs import Caller, Filesystem
from cowfs.ondisk.records import Buffer
from cowfs.storage.commit import SealedCommit
from cowfs.storage.device import MemoryDevice
from cowfs.storage.volume import Volume

CALLER = Caller()
NAMES = [
    b"%d" % number if number % 2 else b"the name of a file with more than 27 bytes %d" % number for number in range(30)
]


class FailingDevice(MemoryDevice):
    """A device whose reads, or writes and flushes, fail from a certain call on."""

    calls_left: dict[str, int]

    def heal(self) -> dict[str, int]:
        """No call fails any more; what the limits were."""
        before = getattr(self, "calls_left", {})
        self.calls_left = {"read": 1 << 60, "write": 1 << 60}
        return before

    def _count(self, what: str) -> None:
        self.calls_left[what] -= 1
        if self.calls_left[what] < 0:
            raise DeviceError(f"the device fails ({what})")

    def read(self, offset: int, length: int) -> bytes:
        self._count("read")
        return super().read(offset, length)

    def write(self, offset: int, pieces: Sequence[Buffer]) -> None:
        self._count("write")
        super().write(offset, pieces)

    def flush(self) -> None:
        self._count("write")
        super().flush()


def some_work(filesystem: Filesystem, seed: int) -> None:
    choose = random.Random(seed)
    made: set[bytes] = {name for _, name, _, _ in filesystem.listing(1).entries()} - {b".", b".."}
    for _ in range(60):
        name = choose.choice(NAMES)
        if name not in made:
            ino = filesystem.create(1, name, 0o644, CALLER).ino
            filesystem.write(ino, choose.randrange(100_000), choose.randbytes(choose.randrange(1, 100_000)))
            filesystem.setxattr(ino, b"user.x", choose.randbytes(3000))
            made.add(name)
        elif choose.random() < 0.4:
            filesystem.unlink(1, name)
            made.discard(name)
        else:
            other = choose.choice(NAMES)
            filesystem.rename(1, name, 1, other)
            if other != name:
                made.discard(name)
                made.add(other)
        if choose.random() < 0.1:
            filesystem.sync()


Tree = dict[bytes, tuple[int, bytes, bytes]]
"""Of each file mtime, contents, attribute."""


def tree_of(filesystem: Filesystem) -> Tree:
    return {
        name: (attributes().mtime_ns, filesystem.read(ino, 0, 1 << 20), filesystem.getxattr(ino, b"user.x"))
        for _, name, ino, attributes in list(filesystem.listing(1).entries())[2:]
    }


def remember_commits(filesystem: Filesystem, device: FailingDevice, durable: list[Tree]) -> None:
    """Enters the tree into `durable` before each commit is written out."""

    class Remembering:
        def sealed(self, volume: Volume, sealed: SealedCommit) -> None:
            limits = device.heal()
            durable.append(tree_of(filesystem))
            device.calls_left = limits

        def published(self, volume: Volume, sealed: SealedCommit) -> None:
            pass

    filesystem.volume.watcher = Remembering()


@pytest.mark.parametrize("what", ["read", "write"])
@pytest.mark.parametrize("block_size", [512, 4096])
def test_whenever_the_device_fails_the_last_commit_is_whole(what: str, block_size: int) -> None:
    prepared = new_device(8 * MIB, block_size)
    with filesystem_on(prepared) as filesystem:
        some_work(filesystem, 1)
    image = prepared.image()
    outcomes = set()
    for calls in range(0, 60, 5):
        device = FailingDevice.from_image(image)
        device.heal()
        filesystem = open_filesystem(device, clock=Clock())
        durable = [tree_of(filesystem)]
        remember_commits(filesystem, device, durable)
        device.calls_left[what] = calls
        try:
            some_work(filesystem, 2)
            outcomes.add("success")
        except CowfsError as error:
            outcomes.add(type(error).__name__)
            assert isinstance(error, DeviceError | ReadOnly | UnreadableData)
            if what == "write":
                assert filesystem.volume.read_only
                with pytest.raises(ReadOnly):
                    filesystem.create(1, b"more", 0o644, CALLER)
        device.heal()
        assert_sound(device)
        found = tree_of(open_filesystem(device))
        assert found in durable[-2:], f"after {calls} calls"
    assert "DeviceError" in outcomes


def flip(device: MemoryDevice, contents: bytes) -> None:
    """Flips a bit in the only block of the device that holds `contents`."""
    image = device.image()
    at = image.index(contents)
    device.write(at, [bytes([image[at] ^ 1])])


def test_a_rotten_data_block_costs_that_block() -> None:
    device = new_device()
    with filesystem_on(device) as filesystem:
        ino = filesystem.create(1, b"rotten", 0o644, CALLER).ino
        filesystem.write(ino, 0, b"first".ljust(4096, b".") + b"second".ljust(4096, b".") + b"third")
        filesystem.create(1, b"sound", 0o644, CALLER)
    flip(device, b"second...")
    filesystem = open_filesystem(device)
    assert filesystem.read(ino, 0, 5) == b"first"
    assert filesystem.read(ino, 8192, 100) == b"third"
    for operation in (
        lambda: filesystem.read(ino, 0, 10_000),
        lambda: filesystem.read(ino, 5000, 1),
        lambda: filesystem.write(ino, 5000, b"part of the block"),
        lambda: filesystem.truncate(ino, 5000),
    ):
        with pytest.raises((Corrupt, UnreadableData), match=r"block \d+: "):
            operation()
    assert not filesystem.volume.read_only
    filesystem.write(ino, 4096, bytes(4096))
    assert filesystem.read(ino, 4096, 4096) == bytes(4096)
    close_filesystem(filesystem)


def test_a_rotten_file_can_be_removed() -> None:
    device = new_device(block_size=512)
    with filesystem_on(device) as filesystem:
        ino = filesystem.create(1, b"rotten", 0o644, CALLER).ino
        filesystem.write(ino, 0, b"inside".ljust(100_000, b"."))
    flip(device, b"inside...")
    filesystem = open_filesystem(device)
    filesystem.unlink(1, b"rotten")
    assert not filesystem.volume.read_only
    close_filesystem(filesystem)


def test_a_file_whose_last_pointers_are_rotten_keeps_its_size() -> None:
    """Growing and cutting change a block of pointers: if that cannot be read, nothing is changed."""
    device = new_device(block_size=512)
    with filesystem_on(device) as filesystem:
        ino = filesystem.create(1, b"file", 0o644, CALLER).ino
        filesystem.write(ino, 0, bytes(range(1, 251)) * 41)
        size = filesystem.getattr(ino).size
        block = filesystem.inode(ino).root.ptr[0]
    offset = filesystem.volume.geometry.block_offset(block)
    raw = device.read(offset, 1)
    device.write(offset, [bytes([raw[0] ^ 1])])
    with pytest.raises(CowfsError):
        assert_sound(device)
    filesystem = open_filesystem(device)
    for change in (
        lambda: filesystem.truncate(ino, 50_000),
        lambda: filesystem.setattr(ino, size=10_500),
        lambda: filesystem.write(ino, 60_000, b"x"),
        lambda: filesystem.truncate(ino, 512 * 3),
        lambda: filesystem.truncate(ino, 777),
    ):
        with pytest.raises((Corrupt, UnreadableData), match=f"block {block}: "):
            change()
    assert filesystem.getattr(ino).size == size
    assert not filesystem.volume.latched
    device.write(offset, [raw])
    close_filesystem(filesystem)


def test_a_rotten_inode_leaf_costs_its_inodes() -> None:
    device = new_device(block_size=512)
    with filesystem_on(device) as filesystem:
        for number in range(30):
            filesystem.create(1, b"%d" % number, 0o644, Caller(0x5A5A5A00 + number))
    flip(device, (0x5A5A5A00 + 10).to_bytes(4, "little"))
    filesystem = open_filesystem(device)
    lost = 0
    for number in range(30):
        try:
            filesystem.lookup(1, b"%d" % number)
        except Corrupt:
            lost += 1
    assert lost == 4
    assert len(list(filesystem.listing(1).entries())) == 32
    filesystem.create(1, b"new", 0o644, CALLER)
    assert not filesystem.volume.read_only
