"""Extended attributes: values of every size, limits, namespaces, damage."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator

import pytest
from support import MIB, close_filesystem, new_device, open_filesystem, refused

from cowfs.errors import Corrupt
from cowfs.fs import XATTR_CREATE, XATTR_REPLACE, Caller, Filesystem
from cowfs.fs import xattr as module
from cowfs.ondisk import format as f

CALLER = Caller()


@pytest.fixture(params=[512, 4096])
def filesystem(request: pytest.FixtureRequest) -> Iterator[Filesystem]:
    filesystem = open_filesystem(new_device(block_size=request.param))
    filesystem.create(1, b"f", 0o644, CALLER)
    yield filesystem
    close_filesystem(filesystem)


@pytest.fixture
def ino(filesystem: Filesystem) -> int:
    return filesystem.lookup(1, b"f").ino


@pytest.mark.parametrize("size", [0, 1, 3, 4, 500, 4096, 65536])
def test_values_of_every_size(filesystem: Filesystem, ino: int, size: int) -> None:
    value = bytes(number % 251 for number in range(size))
    filesystem.setxattr(ino, b"user.a", b"before")
    filesystem.setxattr(ino, b"user.value", value)
    filesystem.setxattr(ino, b"user.z", b"behind")
    filesystem.sync()
    for reader in (filesystem, open_filesystem(filesystem.volume.device, read_only=True)):  # type: ignore[arg-type]
        assert reader.getxattr(ino, b"user.value") == value
        assert reader.getxattr(ino, b"user.a") == b"before"
        assert reader.getxattr(ino, b"user.z") == b"behind"
        assert reader.listxattr(ino) == [b"user.a", b"user.value", b"user.z"]
    filesystem.setxattr(ino, b"user.value", b"short")
    assert filesystem.getxattr(ino, b"user.value") == b"short"
    filesystem.removexattr(ino, b"user.a")
    assert filesystem.listxattr(ino) == [b"user.value", b"user.z"]


def test_the_last_one_leaves_nothing_behind(filesystem: Filesystem, ino: int) -> None:
    used = filesystem.statfs().files - filesystem.statfs().files_free
    filesystem.setxattr(ino, b"user.x", b"1")
    assert filesystem.statfs().files - filesystem.statfs().files_free == used + 1
    filesystem.removexattr(ino, b"user.x")
    assert filesystem.statfs().files - filesystem.statfs().files_free == used
    assert filesystem.listxattr(ino) == []
    filesystem.setxattr(ino, b"user.x", b"1")
    filesystem.unlink(1, b"f")
    assert filesystem.statfs().files - filesystem.statfs().files_free == used - 1


def test_flags(filesystem: Filesystem, ino: int) -> None:
    refused(errno.ENODATA, lambda: filesystem.setxattr(ino, b"user.x", b"1", XATTR_REPLACE))
    filesystem.setxattr(ino, b"user.x", b"1", XATTR_CREATE)
    refused(errno.EEXIST, lambda: filesystem.setxattr(ino, b"user.x", b"2", XATTR_CREATE))
    filesystem.setxattr(ino, b"user.x", b"3", XATTR_REPLACE)
    assert filesystem.getxattr(ino, b"user.x") == b"3"
    refused(errno.EINVAL, lambda: filesystem.setxattr(ino, b"user.x", b"2", 8))
    refused(errno.ENODATA, lambda: filesystem.getxattr(ino, b"user.y"))
    refused(errno.ENODATA, lambda: filesystem.removexattr(ino, b"user.y"))


def test_names(filesystem: Filesystem, ino: int) -> None:
    for name, number in (
        (b"", errno.ERANGE),
        (b"user." + b"x" * 251, errno.ERANGE),
        (b"user.", errno.EINVAL),
        (b"user.a\0b", errno.EINVAL),
        (b"other.x", errno.EOPNOTSUPP),
        (b"x", errno.EOPNOTSUPP),
    ):
        refused(number, lambda name=name: filesystem.setxattr(ino, name, b""))
        refused(number, lambda name=name: filesystem.getxattr(ino, name))
        refused(number, lambda name=name: filesystem.removexattr(ino, name))
    names = [b"user." + b"x" * 250, b"trusted.\xff", b"security.selinux", b"system.other"]
    for name in names:
        filesystem.setxattr(ino, name, name)
    assert filesystem.listxattr(ino) == names
    assert [filesystem.getxattr(ino, name) for name in names] == names


def test_user_attributes_are_for_files_and_directories(filesystem: Filesystem) -> None:
    others = [
        filesystem.symlink(1, b"l", b"t", CALLER).ino,
        filesystem.create(1, b"p", stat.S_IFIFO | 0o644, CALLER).ino,
    ]
    filesystem.setxattr(1, b"user.x", b"of the root")
    for ino in others:
        refused(errno.EPERM, lambda ino=ino: filesystem.setxattr(ino, b"user.x", b""))
        refused(errno.ENODATA, lambda ino=ino: filesystem.getxattr(ino, b"user.x"))
        filesystem.setxattr(ino, b"trusted.x", b"y")
        assert filesystem.listxattr(ino) == [b"trusted.x"]


@pytest.mark.interpreted
def test_limits(filesystem: Filesystem, ino: int, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(errno.E2BIG, lambda: filesystem.setxattr(ino, b"user.x", bytes(65537)))
    monkeypatch.setattr(module, "TOTAL_MAX", 200_000)
    filesystem.setxattr(ino, b"user.a", bytes(65536))
    filesystem.setxattr(ino, b"user.b", bytes(65536))
    filesystem.setxattr(ino, b"user.c", bytes(65536))
    refused(errno.ENOSPC, lambda: filesystem.setxattr(ino, b"user.d", bytes(65536)))
    filesystem.setxattr(ino, b"user.d", b"small")
    monkeypatch.setattr(module.f, "XATTR_NAMES_MAX", 40)
    refused(errno.ENOSPC, lambda: filesystem.setxattr(ino, b"user.one more", b""))
    assert len(filesystem.listxattr(ino)) == 4
    assert not filesystem.volume.read_only


def test_asking_for_one_that_is_not_there_reads_nothing(filesystem: Filesystem, ino: int) -> None:
    device = filesystem.volume.device
    for count in (0, 1):
        if count:
            filesystem.setxattr(ino, b"user.x", bytes(5000))
            refused(errno.ENODATA, lambda: filesystem.getxattr(ino, b"security.capability"))
        before = device.reads  # type: ignore[attr-defined]
        refused(errno.ENODATA, lambda: filesystem.getxattr(ino, b"security.capability"))
        assert device.reads == before  # type: ignore[attr-defined]


ENTRY_AT = f.XattrHeader.SIZE


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (0, b"\0\0\0\0"),
        (4, b"\xff\xff\xff\xff"),
        (4, b"\x03\0\0\0"),
        (ENTRY_AT, b"\0\0"),
        (ENTRY_AT, b"\xff\xff"),
        (ENTRY_AT + 4, b"\xff\xff\xff\xff"),
        (ENTRY_AT + 4, b"\x00\x00\x01\x00"),
    ],
)
def test_damage(offset: int, data: bytes) -> None:
    device = new_device(MIB)
    filesystem = open_filesystem(device)
    ino = filesystem.create(1, b"f", 0o644, CALLER).ino
    filesystem.setxattr(ino, b"user.one", b"value")
    filesystem.setxattr(ino, b"user.two", b"value")
    hidden = filesystem.inodes.get_hidden(filesystem.inode(ino).xattr_inode, "the test")
    filesystem._trees.write(filesystem.inodes.make_writable(hidden), offset, data)
    filesystem.sync()
    filesystem = open_filesystem(device)
    for operation in (
        lambda: filesystem.getxattr(ino, b"user.one"),
        lambda: filesystem.listxattr(ino),
        lambda: filesystem.setxattr(ino, b"user.one", b"x"),
        lambda: filesystem.removexattr(ino, b"user.one"),
    ):
        with pytest.raises(Corrupt):
            operation()
    assert not filesystem.volume.read_only
    filesystem.unlink(1, b"f")


@pytest.mark.parametrize("number", [1, 2, 500, 0xFFFFFFFF])
def test_a_holder_that_is_none(number: int) -> None:
    device = new_device(MIB)
    filesystem = open_filesystem(device)
    ino = filesystem.create(1, b"f", 0o644, CALLER).ino
    inode = filesystem.inode(ino)
    filesystem.inodes.make_writable(inode)
    inode.xattr_inode = number
    filesystem.sync()
    filesystem = open_filesystem(device)
    with pytest.raises(Corrupt):
        filesystem.getxattr(ino, b"user.x")
