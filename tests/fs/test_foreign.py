"""Volumes that others wrote are read through the same code: both byte orders, every liberty of the format, never written."""

from __future__ import annotations

import os
import stat

import pytest
from foreign import TIME, ForeignVolume
from support import open_filesystem

from cowfs.errors import Corrupt, NoAttribute, NotFound, ReadOnly
from cowfs.fs import Caller, Filesystem
from cowfs.ondisk.records import ByteOrder

LONG = b"\xe2\x82\xac long name beyond 27 bytes"
CONTENTS = os.urandom(70_000)


def sample(order: ByteOrder, block_size: int) -> ForeignVolume:
    volume = ForeignVolume(order, block_size)
    volume.directory(
        1,
        [
            volume.short(1, b"."),
            volume.short(1, b".."),
            volume.short(0, b"deleted"),
            volume.short(3, b"file", padding=b"\xee"),
            volume.long(4, LONG, checksum=0x12345678),  # as a driver with signed bytes computes it
            volume.short(0, b"also deleted"),
            volume.short(5, b"directory"),
            volume.short(6, b"link"),
            volume.short(7, b"device"),
        ],
        links=3,
    )
    volume.add(3, stat.S_IFREG | 0o640, CONTENTS, links=2)
    volume.add(4, stat.S_IFREG | 0o600, b"deep", levels=2)
    volume.directory(5, [volume.short(1, b".."), volume.short(3, b"x" * 27)])  # no '.', and '..' first
    volume.add(6, stat.S_IFLNK | 0o777, b"directory/" + b"x" * 27)
    volume.add(7, stat.S_IFCHR | 0o600, b"", links=0)
    return volume


@pytest.fixture(params=["<", ">"])
def order(request: pytest.FixtureRequest) -> ByteOrder:
    return "<" if request.param == "<" else ">"


@pytest.fixture(params=[512, 4096])
def filesystem(request: pytest.FixtureRequest, order: ByteOrder) -> Filesystem:
    return open_filesystem(sample(order, request.param).device())


def test_names_and_contents(filesystem: Filesystem) -> None:
    listed = {name: number for _, name, number, _ in filesystem.listing(1).entries()}
    assert listed == {b".": 1, b"..": 1, b"file": 3, LONG: 4, b"directory": 5, b"link": 6, b"device": 7}
    for name, number in listed.items():
        assert filesystem.lookup(1, name).ino == number
    assert filesystem.read(3, 0, 1 << 20) == CONTENTS
    assert filesystem.read(filesystem.lookup(1, LONG).ino, 0, 100) == b"deep"
    assert filesystem.readlink(6) == b"directory/" + b"x" * 27
    with pytest.raises(NotFound):
        filesystem.lookup(1, b"deleted")


def test_a_directory_without_dots(filesystem: Filesystem) -> None:
    names = [(name, number) for _, name, number, _ in filesystem.listing(5).entries()]
    assert names == [(b".", 5), (b"..", 1), (b"x" * 27, 3)]
    assert filesystem.lookup(5, b".").ino == 5
    assert filesystem.lookup(5, b"..").ino == 1


def test_attributes_are_those_that_the_format_has(filesystem: Filesystem) -> None:
    attributes = filesystem.getattr(3)
    assert attributes.mtime_ns == TIME * 10**9
    assert attributes.atime_ns == (TIME + 1) * 10**9
    assert attributes.ctime_ns == (TIME + 2) * 10**9
    assert attributes.birth_ns == (TIME - 1) * 10**9
    assert (attributes.uid, attributes.gid, attributes.mode) == (1000, 100, stat.S_IFREG | 0o640)
    assert (attributes.links, attributes.size, attributes.generation) == (2, len(CONTENTS), 0)
    assert attributes.blocks == -(-len(CONTENTS) // 512)
    assert filesystem.getattr(7).rdev == 0
    assert filesystem.getattr(7).links == 1
    assert filesystem.listxattr(3) == []
    with pytest.raises(NoAttribute):
        filesystem.getxattr(3, b"user.x")
    assert filesystem.statfs().files_free == 5


def test_nothing_is_written(filesystem: Filesystem) -> None:
    before = filesystem.volume.device.image()  # type: ignore[attr-defined]
    for operation in (
        lambda: filesystem.create(1, b"new", 0o644, Caller()),
        lambda: filesystem.unlink(1, b"file"),
        lambda: filesystem.rename(1, b"file", 1, b"other"),
        lambda: filesystem.write(3, 0, b"x"),
        lambda: filesystem.truncate(3, 0),
        lambda: filesystem.setattr(3, mode=0o777),
        lambda: filesystem.setxattr(3, b"user.x", b""),
    ):
        with pytest.raises(ReadOnly):
            operation()
    filesystem.sync()
    filesystem.touch_atime(3)
    filesystem.hold(3)
    filesystem.unhold(3)
    filesystem.close()
    assert filesystem.volume.device.image() == before  # type: ignore[attr-defined]


def test_a_bad_long_name_spoils_only_itself(order: ByteOrder) -> None:
    volume = ForeignVolume(order, 512)
    volume.directory(
        1,
        [volume.short(1, b"."), volume.short(1, b".."), volume.long(3, b"n" * 511), volume.short(3, b"good")],
    )
    volume.add(3, stat.S_IFREG | 0o644, b"data")
    volume.long_names[0] = b"\xff" * 512
    filesystem = open_filesystem(volume.device())
    assert filesystem.lookup(1, b"good").ino == 3
    with pytest.raises(Corrupt, match="length of the name in slot 0"):
        list(filesystem.listing(1).entries())


@pytest.mark.parametrize("length", [28, 200, 0xFE])
def test_an_impossible_length_is_damage(order: ByteOrder, length: int) -> None:
    volume = ForeignVolume(order, 512)
    entry = bytearray(volume.short(3, b"name"))
    entry[4] = length
    volume.directory(1, [volume.short(1, b"."), volume.short(1, b".."), bytes(entry), volume.short(3, b"good")])
    volume.add(3, stat.S_IFREG | 0o644, b"data")
    filesystem = open_filesystem(volume.device())
    assert filesystem.lookup(1, b"good").ino == 3
    with pytest.raises(Corrupt, match="length of a name"):
        list(filesystem.listing(1).entries())
