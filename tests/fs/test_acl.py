"""Access control lists in the core: valid ones, the mode that follows, and what new objects inherit."""

from __future__ import annotations

import errno
import stat

import pytest
from support import MIB, filesystem_on, new_device, open_filesystem, refused

from cowfs.errors import Corrupt, InvalidArgument, NoAttribute, NoSpace
from cowfs.fs import Caller, Filesystem, acl
from cowfs.ondisk.acl import (
    ACCESS_NAME,
    DEFAULT_NAME,
    GROUP,
    GROUP_OBJ,
    MASK,
    OTHER,
    USER,
    USER_OBJ,
    AclEntry,
    encode_acl,
)

CALLER = Caller(1000, 1000, umask=0o077)


def entries(user: int, group: int, other: int, *named: AclEntry, mask: int | None = None) -> acl.Acl:
    """A list in its order."""
    users = tuple(entry for entry in named if entry.tag == USER)
    groups = tuple(entry for entry in named if entry.tag == GROUP)
    masks = () if mask is None else (AclEntry(MASK, mask),)
    return (AclEntry(USER_OBJ, user), *users, AclEntry(GROUP_OBJ, group), *groups, *masks, AclEntry(OTHER, other))


NAMED = entries(7, 5, 1, AclEntry(USER, 6, 1001), AclEntry(GROUP, 4, 5), mask=7)


def test_bytes_are_linuxs() -> None:
    """The value that setfacl of Linux stores for u::rw-,u:1:r--,g::r--,m::r--,o::---."""
    value = bytes.fromhex("0200000001000600ffffffff020004000100000004000400ffffffff10000400ffffffff20000000ffffffff")
    assert acl.parse(value) == entries(6, 4, 0, AclEntry(USER, 4, 1), mask=4)
    assert acl.encode(acl.parse(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\2\0\0",
        encode_acl(()),
        b"\1" + encode_acl(NAMED)[1:],
        encode_acl(NAMED) + b"\0",
        encode_acl(NAMED[1:]),  # no owner
        encode_acl(NAMED[::-1]),
        encode_acl((*NAMED, NAMED[-1])),
        encode_acl(entries(8, 0, 0)),
        encode_acl(entries(0, 0, 0, AclEntry(USER, 0, 1))),  # named, but no mask
        encode_acl(entries(0, 0, 0, AclEntry(USER, 0, 2), AclEntry(USER, 0, 1), mask=0)),
        encode_acl(entries(0, 0, 0, AclEntry(USER, 0, 1), AclEntry(USER, 4, 1), mask=0)),
        encode_acl((*entries(0, 0, 0), AclEntry(0x40, 0))),
    ],
)
def test_what_is_no_list(value: bytes) -> None:
    with pytest.raises(InvalidArgument):
        acl.parse(value)


def test_a_list_and_the_mode_follow_each_other() -> None:
    device = new_device()
    with filesystem_on(device) as filesystem:
        ino = filesystem.create(1, b"file", 0o4644, Caller()).ino
        filesystem.setxattr(ino, ACCESS_NAME, acl.encode(NAMED))
        assert filesystem.getattr(ino).mode == stat.S_IFREG | 0o4771, "the mask is the group's part"
        assert filesystem.setattr(ino, mode=0o640).mode == stat.S_IFREG | 0o640
        changed = entries(6, 5, 0, AclEntry(USER, 6, 1001), AclEntry(GROUP, 4, 5), mask=4)
        assert acl.parse(filesystem.getxattr(ino, ACCESS_NAME)) == changed
        filesystem.removexattr(ino, ACCESS_NAME)
        assert filesystem.getattr(ino).mode == stat.S_IFREG | 0o640, "removing a list leaves the mode"
        assert filesystem.listxattr(ino) == []


def test_what_a_mode_can_say_is_not_kept() -> None:
    device = new_device()
    with filesystem_on(device) as filesystem:
        ino = filesystem.create(1, b"file", 0o600, Caller()).ino
        used = filesystem.tree.num_inodes - filesystem.tree.free_inodes
        for others in ({}, {b"user.other": b"value"}):
            for name, value in others.items():
                filesystem.setxattr(ino, name, value)
            for first in (NAMED, None):
                if first:
                    filesystem.setxattr(ino, ACCESS_NAME, acl.encode(first))
                filesystem.setxattr(ino, ACCESS_NAME, acl.encode(entries(7, 5, 0)))
                assert filesystem.getattr(ino).mode == stat.S_IFREG | 0o750
                assert filesystem.listxattr(ino) == list(others)
        filesystem.removexattr(ino, b"user.other")
        assert filesystem.tree.num_inodes - filesystem.tree.free_inodes == used


def test_where_a_list_cannot_be() -> None:
    with filesystem_on(new_device()) as filesystem:
        link = filesystem.symlink(1, b"link", b"target", CALLER).ino
        file = filesystem.create(1, b"file", 0o600, CALLER).ino
        value = acl.encode(NAMED)
        refused(errno.EOPNOTSUPP, lambda: filesystem.setxattr(link, ACCESS_NAME, value))
        refused(errno.EACCES, lambda: filesystem.setxattr(file, DEFAULT_NAME, value))
        refused(errno.EINVAL, lambda: filesystem.setxattr(file, ACCESS_NAME, b"nonsense"))
        before = filesystem.getattr(file)
        filesystem.removexattr(file, ACCESS_NAME)
        filesystem.removexattr(file, DEFAULT_NAME)
        assert filesystem.getattr(file) == before, "nothing was there, nothing was changed"


@pytest.mark.parametrize("block_size", [512, 4096])
def test_everything_new_inherits(block_size: int) -> None:
    device = new_device(block_size=block_size)
    with filesystem_on(device) as filesystem:
        parent = filesystem.mkdir(1, b"directory", 0o777, Caller()).ino
        filesystem.setxattr(parent, DEFAULT_NAME, acl.encode(NAMED))
        for number in range(50):
            file = filesystem.create(parent, b"f%d" % number, 0o664, CALLER)
            assert file.mode == stat.S_IFREG | 0o660
            wanted = entries(6, 5, 0, *(entry for entry in NAMED if entry.tag in (USER, GROUP)), mask=6)
            assert acl.parse(filesystem.getxattr(file.ino, ACCESS_NAME)) == wanted
            assert filesystem.listxattr(file.ino) == [ACCESS_NAME]
        directory = filesystem.mkdir(parent, b"below", 0o777, CALLER)
        assert directory.mode == stat.S_IFDIR | 0o771
        assert acl.parse(filesystem.getxattr(directory.ino, ACCESS_NAME)) == NAMED
        assert acl.parse(filesystem.getxattr(directory.ino, DEFAULT_NAME)) == NAMED
        link = filesystem.symlink(parent, b"link", b"target", CALLER)
        assert link.mode == stat.S_IFLNK | 0o777
        assert filesystem.listxattr(link.ino) == []
        for name in [b"f%d" % number for number in range(50)]:
            filesystem.unlink(parent, name)


def test_a_plain_default_list_leaves_only_modes() -> None:
    with filesystem_on(new_device()) as filesystem:
        filesystem.setxattr(1, DEFAULT_NAME, acl.encode(entries(7, 7, 4)))
        file = filesystem.create(1, b"file", 0o666, CALLER)
        assert file.mode == stat.S_IFREG | 0o664, "not the umask's 0600"
        assert filesystem.listxattr(file.ino) == []
        assert filesystem.mkdir(1, b"directory", 0o777, CALLER).mode == stat.S_IFDIR | 0o774


def test_inodes_for_file_and_list_come_from_any_leaf() -> None:
    """However the free inodes lie, the inode file grows only when there is none."""
    device = new_device(block_size=512)
    with filesystem_on(device) as filesystem:
        names = [b"%d" % number for number in range(160)]
        for name in names:
            filesystem.create(1, name, 0o600, CALLER)
        for name in names[::4]:
            filesystem.unlink(1, name)  # one free inode in each leaf
        size = filesystem.tree.num_inodes
        filesystem.setxattr(1, DEFAULT_NAME, acl.encode(NAMED))
        for number in range(16):
            filesystem.create(1, b"new%d" % number, 0o600, CALLER)
        assert filesystem.tree.num_inodes == size


@pytest.mark.interpreted
def test_without_a_second_inode_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    device = new_device(block_size=512)
    with filesystem_on(device) as filesystem:
        filesystem.setxattr(1, DEFAULT_NAME, acl.encode(NAMED))
        while filesystem.tree.free_inodes != 1:
            filesystem.symlink(1, b"link%d" % filesystem.tree.free_inodes, b"t", CALLER)
        monkeypatch.setattr(type(filesystem.inodes), "_can_grow", property(lambda _: False))
        before = filesystem.getattr(1)
        with pytest.raises(NoSpace):
            filesystem.create(1, b"file", 0o600, CALLER)
        assert filesystem.getattr(1) == before
        filesystem.symlink(1, b"last", b"t", CALLER)


def test_a_full_volume_still_lets_a_mode_change() -> None:
    with filesystem_on(new_device(MIB)) as filesystem:
        ino = filesystem.create(1, b"file", 0o600, CALLER).ino
        filesystem.setxattr(ino, ACCESS_NAME, acl.encode(NAMED))
        fill(filesystem)
        filesystem.setattr(ino, mode=0o600)
        assert acl.parse(filesystem.getxattr(ino, ACCESS_NAME))[-2:] == (AclEntry(MASK, 0), AclEntry(OTHER, 0))


def fill(filesystem: Filesystem) -> None:
    ino = filesystem.create(1, b"filler", 0o600, CALLER).ino
    with pytest.raises(NoSpace):
        for block in range(1 << 20):
            filesystem.write(ino, block * 4096, bytes(range(256)) * 16)


def test_a_damaged_default_list_is_an_error_and_no_way_around_it() -> None:
    device = new_device()
    with filesystem_on(device) as filesystem:
        filesystem.setxattr(1, b"system.posix_acl_defaulx", b"nonsense")
        filesystem.sync()
        _ = filesystem.xattrs.names(filesystem.inode(1))
        index = filesystem.inode(1).xattr_index
        assert index is not None
        index[DEFAULT_NAME] = index.pop(b"system.posix_acl_defaulx")
        with pytest.raises(Corrupt, match=r"inode 1: system\.posix_acl_default"):
            filesystem.create(1, b"file", 0o600, CALLER)


def test_the_default_list_is_found_again() -> None:
    device = new_device()
    with filesystem_on(device) as filesystem:
        filesystem.setxattr(1, DEFAULT_NAME, acl.encode(NAMED))
    filesystem = open_filesystem(device)
    assert filesystem.create(1, b"file", 0o666, CALLER).mode == stat.S_IFREG | 0o660
    with pytest.raises(NoAttribute):
        filesystem.getxattr(1, ACCESS_NAME)
