"""Operations on names, as POSIX and Linux have them: what is refused, what is counted, which times move."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator

import pytest
from support import Clock, close_filesystem, new_device, open_filesystem, refused

from cowfs.fs import RENAME_EXCHANGE, RENAME_NOREPLACE, Caller, Filesystem
from cowfs.ondisk import format as f

USER = Caller(1000, 100, 0o022)


@pytest.fixture(params=[512, 4096])
def filesystem(request: pytest.FixtureRequest) -> Iterator[Filesystem]:
    filesystem = open_filesystem(new_device(block_size=request.param))
    yield filesystem
    close_filesystem(filesystem)


def times(filesystem: Filesystem, ino: int) -> tuple[int, int]:
    attributes = filesystem.getattr(ino)
    return attributes.mtime_ns, attributes.ctime_ns


def moved(filesystem: Filesystem, inos: list[int], operation: Callable[[], object]) -> dict[int, str]:
    """For each inode which of mtime and ctime the operation moved: '', 'c', 'm', 'mc'."""
    before = {ino: times(filesystem, ino) for ino in inos}
    operation()
    after = {ino: times(filesystem, ino) for ino in inos}
    return {ino: "m" * (before[ino][0] != after[ino][0]) + "c" * (before[ino][1] != after[ino][1]) for ino in inos}


# --- names ---


@pytest.mark.parametrize("length", [1, 27, 28, 255, 510])
def test_names_of_every_length(filesystem: Filesystem, length: int) -> None:
    name = (b"\xff\x01\xe2\x82 " * 102)[:length]
    ino = filesystem.create(1, name, 0o644, USER).ino
    assert filesystem.lookup(1, name).ino == ino
    assert [entry[1] for entry in filesystem.listing(1).entries()] == [b".", b"..", name]
    other = name[:-1] + b"!"
    filesystem.rename(1, name, 1, other)
    refused(errno.ENOENT, lambda: filesystem.lookup(1, name))
    filesystem.unlink(1, other)
    assert [entry[1] for entry in filesystem.listing(1).entries()] == [b".", b".."]


def test_names_that_cannot_be(filesystem: Filesystem) -> None:
    for name, number in (
        (b"", errno.ENOENT),
        (b"x" * 511, errno.ENAMETOOLONG),
        (b"a/b", errno.EINVAL),
        (b"a\0", errno.EINVAL),
    ):
        refused(number, lambda name=name: filesystem.create(1, name, 0o644, USER))
        refused(number, lambda name=name: filesystem.mkdir(1, name, 0o755, USER))
        refused(number, lambda name=name: filesystem.unlink(1, name))
        refused(number, lambda name=name: filesystem.rename(1, name, 1, b"x"))
    refused(errno.ENAMETOOLONG, lambda: filesystem.lookup(1, b"x" * 511))


def test_dots(filesystem: Filesystem) -> None:
    ino = filesystem.mkdir(1, b"d", 0o755, USER).ino
    assert filesystem.lookup(ino, b".").ino == ino
    assert filesystem.lookup(ino, b"..").ino == 1
    assert filesystem.lookup(1, b"..").ino == 1
    for name in (b".", b".."):
        refused(errno.EEXIST, lambda name=name: filesystem.create(ino, name, 0o644, USER))
        refused(errno.EEXIST, lambda name=name: filesystem.mkdir(ino, name, 0o755, USER))
        refused(errno.EISDIR, lambda name=name: filesystem.unlink(ino, name))
        refused(errno.EBUSY, lambda name=name: filesystem.rename(ino, name, 1, b"x"))
        refused(errno.EBUSY, lambda name=name: filesystem.rename(1, b"d", ino, name))
    refused(errno.EINVAL, lambda: filesystem.rmdir(ino, b"."))
    refused(errno.ENOTEMPTY, lambda: filesystem.rmdir(ino, b".."))


# --- making ---


def test_owner_group_and_mode(filesystem: Filesystem) -> None:
    made = filesystem.create(1, b"f", 0o6777, USER)
    assert (made.uid, made.gid, made.mode) == (1000, 100, stat.S_IFREG | 0o6755)
    team = filesystem.mkdir(1, b"team", 0o2775, Caller(0, 500)).ino
    made = filesystem.create(team, b"f", 0o644, USER)
    assert (made.gid, made.mode) == (500, stat.S_IFREG | 0o644)
    below = filesystem.mkdir(team, b"d", 0o755, USER)
    assert (below.gid, below.mode) == (500, stat.S_IFDIR | 0o2755)
    assert filesystem.symlink(team, b"l", b"f", USER).mode == stat.S_IFLNK | 0o777


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK])
def test_special_files(filesystem: Filesystem, kind: int) -> None:
    for number, (major, minor) in enumerate([(0, 0), (1, 3), (8, 255), (259, 256), (4095, 0xFFFFE)]):
        device = os.makedev(major, minor)
        made = filesystem.create(1, b"%d" % number, kind | 0o600, USER, rdev=device)
        wanted = device if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
        assert (made.rdev, made.mode, made.size, made.blocks) == (wanted, kind | 0o600, 0, 0)
        refused(errno.EINVAL, lambda made=made: filesystem.read(made.ino, 0, 1))
        refused(errno.EINVAL, lambda made=made: filesystem.write(made.ino, 0, b"x"))
        refused(errno.EINVAL, lambda made=made: filesystem.truncate(made.ino, 0))
    filesystem.sync()
    again = open_filesystem(filesystem.volume.device, read_only=True)  # type: ignore[arg-type]
    assert again.lookup(1, b"4").rdev == (os.makedev(4095, 0xFFFFE) if wanted else 0)


def test_device_numbers_that_do_not_fit(filesystem: Filesystem) -> None:
    for major, minor in ((4096, 0), (0, 1 << 20)):
        device = os.makedev(major, minor)
        refused(errno.EINVAL, lambda device=device: filesystem.create(1, b"x", stat.S_IFCHR, USER, rdev=device))
    for kind in (stat.S_IFDIR, stat.S_IFLNK, 0o130000):
        refused(errno.EINVAL, lambda kind=kind: filesystem.create(1, b"x", kind, USER))


@pytest.mark.parametrize("length", [1, 511, 512, 513, 4095])
def test_symlinks(filesystem: Filesystem, length: int) -> None:
    target = (b"\xff/..//t" * 1000)[:length]
    made = filesystem.symlink(1, b"l", target, USER)
    assert (made.size, filesystem.readlink(made.ino)) == (length, target)
    refused(errno.EINVAL, lambda: filesystem.readlink(1))
    refused(errno.EINVAL, lambda: filesystem.read(made.ino, 0, 1))
    refused(errno.ENAMETOOLONG, lambda: filesystem.symlink(1, b"m", b"x" * 4096, USER))


def test_hard_links(filesystem: Filesystem) -> None:
    ino = filesystem.create(1, b"a", 0o644, USER).ino
    directory = filesystem.mkdir(1, b"d", 0o755, USER).ino
    assert filesystem.link(ino, directory, b"b").links == 2
    refused(errno.EEXIST, lambda: filesystem.link(ino, 1, b"a"))
    refused(errno.EPERM, lambda: filesystem.link(directory, 1, b"x"))
    refused(errno.ENOTDIR, lambda: filesystem.link(ino, ino, b"x"))
    refused(errno.ESTALE, lambda: filesystem.link(999, 1, b"x"))
    filesystem.unlink(1, b"a")
    assert filesystem.getattr(ino).links == 1
    filesystem.hold(ino)
    filesystem.unlink(directory, b"b")
    assert filesystem.getattr(ino).links == 0
    refused(errno.ENOENT, lambda: filesystem.link(ino, 1, b"x"))
    filesystem.unhold(ino)
    refused(errno.ESTALE, lambda: filesystem.getattr(ino))


def set_links(filesystem: Filesystem, ino: int, links: int) -> None:
    inode = filesystem.inode(ino)
    filesystem.inodes.make_writable(inode)
    inode.links = links


def test_link_counts_end_at_65535(filesystem: Filesystem) -> None:
    """Counts are set by hand, and set back for the check."""
    file = filesystem.create(1, b"f", 0o644, USER).ino
    source = filesystem.mkdir(1, b"source", 0o755, USER).ino
    target = filesystem.mkdir(1, b"target", 0o755, USER).ino
    filesystem.mkdir(source, b"d", 0o755, USER)
    filesystem.create(source, b"f", 0o644, USER)
    filesystem.create(target, b"f", 0o644, USER)
    filesystem.mkdir(target, b"empty", 0o755, USER)
    set_links(filesystem, file, f.LINK_COUNT_MAX)
    refused(errno.EMLINK, lambda: filesystem.link(file, 1, b"x"))
    set_links(filesystem, file, 1)
    set_links(filesystem, target, f.LINK_COUNT_MAX)
    refused(errno.EMLINK, lambda: filesystem.mkdir(target, b"x", 0o755, USER))
    refused(errno.EMLINK, lambda: filesystem.rename(source, b"d", target, b"x"))
    refused(errno.EMLINK, lambda: filesystem.rename(source, b"d", target, b"f", RENAME_EXCHANGE))
    filesystem.rename(source, b"d", target, b"empty")  # takes the place of one
    assert filesystem.getattr(target).links == f.LINK_COUNT_MAX
    filesystem.rename(source, b"f", target, b"x")
    set_links(filesystem, target, 3)
    filesystem.create(source, b"g", 0o644, USER)
    set_links(filesystem, source, f.LINK_COUNT_MAX)
    refused(errno.EMLINK, lambda: filesystem.rename(source, b"g", target, b"empty", RENAME_EXCHANGE))
    set_links(filesystem, source, 2)


# --- removing ---


def test_removing_the_wrong_type(filesystem: Filesystem) -> None:
    directory = filesystem.mkdir(1, b"d", 0o755, USER).ino
    filesystem.create(directory, b"f", 0o644, USER)
    refused(errno.EISDIR, lambda: filesystem.unlink(1, b"d"))
    refused(errno.ENOTDIR, lambda: filesystem.rmdir(directory, b"f"))
    refused(errno.ENOTEMPTY, lambda: filesystem.rmdir(1, b"d"))
    refused(errno.ENOENT, lambda: filesystem.rmdir(1, b"x"))
    refused(errno.ENOENT, lambda: filesystem.unlink(1, b"x"))
    filesystem.unlink(directory, b"f")
    filesystem.rmdir(1, b"d")
    assert filesystem.getattr(1).links == 2


def test_a_removed_directory_that_is_somebodys_cwd(filesystem: Filesystem) -> None:
    ino = filesystem.mkdir(1, b"d", 0o755, USER).ino
    file = filesystem.create(1, b"f", 0o644, USER).ino
    listing = filesystem.listing(ino)
    filesystem.hold(ino)
    filesystem.rmdir(1, b"d")
    assert filesystem.getattr(ino).links == 0
    assert list(listing.entries()) == list(listing.entries(1)) == []
    refused(errno.ENOENT, lambda: filesystem.lookup(ino, b".."))
    refused(errno.ENOENT, lambda: filesystem.create(ino, b"x", 0o644, USER))
    refused(errno.ENOENT, lambda: filesystem.mkdir(ino, b"x", 0o755, USER))
    refused(errno.ENOENT, lambda: filesystem.link(file, ino, b"x"))
    refused(errno.ENOENT, lambda: filesystem.rename(1, b"f", ino, b"x"))
    filesystem.setattr(ino, mode=0o700)
    filesystem.unhold(ino)
    refused(errno.ESTALE, lambda: filesystem.getattr(ino))


def test_an_inode_number_comes_back_with_another_generation(filesystem: Filesystem) -> None:
    first = filesystem.create(1, b"a", 0o644, USER)
    filesystem.unlink(1, b"a")
    second = filesystem.create(1, b"b", 0o644, USER)
    assert first.ino == second.ino
    assert first.generation < second.generation


# --- renaming ---


def test_rename_replaces(filesystem: Filesystem) -> None:
    a = filesystem.create(1, b"a", 0o644, USER).ino
    b = filesystem.create(1, b"b", 0o644, USER).ino
    d = filesystem.mkdir(1, b"d", 0o755, USER).ino
    e = filesystem.mkdir(1, b"e", 0o755, USER).ino
    below = filesystem.mkdir(d, b"below", 0o755, USER).ino
    refused(errno.EISDIR, lambda: filesystem.rename(1, b"a", 1, b"d"))
    refused(errno.ENOTDIR, lambda: filesystem.rename(1, b"d", 1, b"a"))
    refused(errno.ENOTEMPTY, lambda: filesystem.rename(1, b"e", 1, b"d"))
    refused(errno.EEXIST, lambda: filesystem.rename(1, b"a", 1, b"b", RENAME_NOREPLACE))
    filesystem.rename(1, b"a", 1, b"b")
    assert filesystem.lookup(1, b"b").ino == a
    refused(errno.ESTALE, lambda: filesystem.getattr(b))
    filesystem.rename(1, b"d", 1, b"e")
    refused(errno.ESTALE, lambda: filesystem.getattr(e))
    assert filesystem.getattr(1).links == 3
    assert filesystem.getattr(d).links == 3
    filesystem.rename(d, b"below", 1, b"up", RENAME_NOREPLACE)
    assert filesystem.lookup(below, b"..").ino == 1
    assert (filesystem.getattr(1).links, filesystem.getattr(d).links) == (4, 2)


def test_rename_between_names_of_one_inode_does_nothing(filesystem: Filesystem) -> None:
    ino = filesystem.create(1, b"a", 0o644, USER).ino
    filesystem.link(ino, 1, b"b")
    assert moved(filesystem, [1, ino], lambda: filesystem.rename(1, b"a", 1, b"b")) == {1: "", ino: ""}
    assert moved(filesystem, [1, ino], lambda: filesystem.rename(1, b"a", 1, b"a")) == {1: "", ino: ""}
    assert filesystem.getattr(ino).links == 2
    refused(errno.EEXIST, lambda: filesystem.rename(1, b"a", 1, b"b", RENAME_NOREPLACE))
    filesystem.rename(1, b"a", 1, b"b", RENAME_EXCHANGE)


def test_a_directory_does_not_go_below_itself(filesystem: Filesystem) -> None:
    a = filesystem.mkdir(1, b"a", 0o755, USER).ino
    b = filesystem.mkdir(a, b"b", 0o755, USER).ino
    c = filesystem.mkdir(b, b"c", 0o755, USER).ino
    filesystem.create(c, b"f", 0o644, USER)
    refused(errno.EINVAL, lambda: filesystem.rename(1, b"a", a, b"x"))
    refused(errno.EINVAL, lambda: filesystem.rename(1, b"a", c, b"x"))
    refused(errno.EINVAL, lambda: filesystem.rename(1, b"a", b, b"c", RENAME_EXCHANGE))
    refused(errno.EINVAL, lambda: filesystem.rename(b, b"c", 1, b"a", RENAME_EXCHANGE))
    refused(errno.ENOTEMPTY, lambda: filesystem.rename(c, b"f", 1, b"a"))
    refused(errno.ENOTEMPTY, lambda: filesystem.rename(b, b"c", 1, b"a"))
    filesystem.rename(b, b"c", 1, b"c")
    filesystem.rename(1, b"a", c, b"a")
    assert filesystem.lookup(a, b"..").ino == c


def test_exchange(filesystem: Filesystem) -> None:
    long = b"the name of a directory with more than 27 bytes"
    source = filesystem.mkdir(1, b"source", 0o755, USER).ino
    target = filesystem.mkdir(1, b"target", 0o755, USER).ino
    file = filesystem.create(source, b"f", 0o644, USER).ino
    directory = filesystem.mkdir(target, long, 0o755, USER).ino
    refused(errno.ENOENT, lambda: filesystem.rename(source, b"f", target, b"x", RENAME_EXCHANGE))
    filesystem.rename(source, b"f", target, long, RENAME_EXCHANGE)
    assert filesystem.lookup(source, b"f").ino == directory
    assert filesystem.lookup(target, long).ino == file
    assert filesystem.lookup(directory, b"..").ino == source
    assert (filesystem.getattr(source).links, filesystem.getattr(target).links) == (3, 2)
    other = filesystem.mkdir(target, b"other", 0o755, USER).ino
    filesystem.rename(source, b"f", target, b"other", RENAME_EXCHANGE)
    assert filesystem.lookup(directory, b"..").ino == target
    assert filesystem.lookup(other, b"..").ino == source
    filesystem.rename(1, b"source", 1, b"target", RENAME_EXCHANGE)
    assert filesystem.lookup(1, b"source").ino == target


def test_rename_flags(filesystem: Filesystem) -> None:
    filesystem.create(1, b"a", 0o644, USER)
    for flags in (RENAME_EXCHANGE | RENAME_NOREPLACE, 4, 8):
        refused(errno.EINVAL, lambda flags=flags: filesystem.rename(1, b"a", 1, b"b", flags))


def test_many_renames_back_and_forth(filesystem: Filesystem) -> None:
    """Entries move in the directory while they are renamed in it, at every fill of the last block."""
    names = [b"%d" % number * (1 + number % 12) for number in range(100)]
    inos = {}
    for name in names:
        inos[name] = filesystem.create(1, name, 0o644, USER).ino
        filesystem.rename(1, names[0], 1, names[0] + b"x")
        filesystem.rename(1, names[0] + b"x", 1, names[0])
    assert {name: filesystem.lookup(1, name).ino for name in names} == inos


# --- times ---


def test_which_times_move(filesystem: Filesystem) -> None:
    directory = filesystem.mkdir(1, b"d", 0o755, USER).ino
    file = filesystem.create(1, b"f", 0o644, USER).ino
    all_of_them = [1, directory, file]

    def expect(operation: Callable[[], object], root: str, below: str, of_file: str) -> None:
        assert moved(filesystem, all_of_them, operation) == {1: root, directory: below, file: of_file}

    expect(lambda: filesystem.create(directory, b"x", 0o644, USER), "", "mc", "")
    expect(lambda: filesystem.mkdir(directory, b"y", 0o755, USER), "", "mc", "")
    expect(lambda: filesystem.symlink(directory, b"z", b"t", USER), "", "mc", "")
    expect(lambda: filesystem.link(file, directory, b"f"), "", "mc", "c")
    expect(lambda: filesystem.rename(directory, b"f", 1, b"g"), "mc", "mc", "c")
    expect(lambda: filesystem.unlink(1, b"g"), "mc", "", "c")
    expect(lambda: filesystem.rename(1, b"d", 1, b"e"), "mc", "c", "")
    expect(lambda: filesystem.rmdir(directory, b"y"), "", "mc", "")
    expect(lambda: filesystem.rename(1, b"e", 1, b"f", RENAME_EXCHANGE), "mc", "c", "c")
    expect(lambda: filesystem.lookup(1, b"f"), "", "", "")
    expect(lambda: filesystem.setattr(file, mode=0o600), "", "", "c")
    expect(lambda: filesystem.setattr(file, uid=5), "", "", "c")
    expect(lambda: filesystem.setattr(file, atime_ns=5), "", "", "c")
    expect(lambda: filesystem.setattr(file, size=0), "", "", "mc")
    expect(lambda: filesystem.truncate(file, 0), "", "", "mc")
    expect(lambda: filesystem.write(file, 0, b""), "", "", "")
    expect(lambda: filesystem.write(file, 0, b"x"), "", "", "mc")
    expect(lambda: filesystem.read(file, 0, 1), "", "", "")
    expect(lambda: filesystem.setxattr(file, b"user.x", b""), "", "", "c")
    expect(lambda: filesystem.removexattr(file, b"user.x"), "", "", "c")


def test_a_replaced_file_that_is_open_gets_a_new_ctime(filesystem: Filesystem) -> None:
    filesystem.create(1, b"a", 0o644, USER)
    b = filesystem.create(1, b"b", 0o644, USER).ino
    filesystem.hold(b)
    assert moved(filesystem, [b], lambda: filesystem.rename(1, b"a", 1, b"b")) == {b: "c"}
    filesystem.unhold(b)


def test_a_failed_operation_moves_no_time() -> None:
    clock = Clock()
    filesystem = open_filesystem(new_device(), clock=clock)
    filesystem.create(1, b"a", 0o644, USER)
    before = filesystem.getattr(1)
    refused(errno.EEXIST, lambda: filesystem.create(1, b"a", 0o644, USER))
    refused(errno.ENOENT, lambda: filesystem.unlink(1, b"x"))
    assert filesystem.getattr(1) == before
    assert not filesystem.volume.read_only
