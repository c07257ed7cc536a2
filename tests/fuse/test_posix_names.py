"""What POSIX and Linux say of names, call by call, on a real mount: directories, links, renaming, permissions to do so."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounting import errno_of, run
from users import acting_as

pytestmark = pytest.mark.fuse

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
AT_FDCWD = -100
PATH_MAX = 4096

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes other users")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.readdir64.restype = ctypes.c_void_p
_libc.readdir64.argtypes = _libc.closedir.argtypes = _libc.rewinddir.argtypes = [ctypes.c_void_p]
_libc.telldir.argtypes = [ctypes.c_void_p]
_libc.telldir.restype = ctypes.c_long
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


def rename(old: Path, new: Path, flags: int) -> int:
    """renameat2(2): 0 or the errno."""
    names = os.fsencode(old), os.fsencode(new)
    return ctypes.get_errno() if _libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], flags) else 0


class Stream:
    """A directory stream of the C library."""

    def __init__(self, path: Path) -> None:
        self._stream = _libc.opendir(os.fsencode(path))
        assert self._stream

    def read(self, count: int = -1) -> list[str]:
        """The next names, without '.' and '..'."""
        names: list[str] = []
        while count < 0 or len(names) < count:
            entry = _libc.readdir64(self._stream)
            if not entry:
                break
            name = ctypes.string_at(entry + 19).decode()
            if name not in (".", ".."):
                names.append(name)
        return names

    def tell(self) -> int:
        """telldir(3)."""
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        """seekdir(3)."""
        _libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        """rewinddir(3)."""
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        """closedir(3)."""
        _libc.closedir(self._stream)


@pytest.fixture
def many(folder: Path) -> Iterator[tuple[Path, Stream]]:
    """A directory of 1,000 entries, some with long names, and a stream of it."""
    for number in range(1000):
        (folder / (f"{number}" + "x" * (number % 40))).touch()
    stream = Stream(folder)
    yield folder, stream
    stream.close()


# --- reading a directory that changes ---


def test_no_entry_twice_and_none_that_stayed_is_missed(many: tuple[Path, Stream]) -> None:
    folder, stream = many
    before = set(os.listdir(folder))
    seen: list[str] = []
    while piece := stream.read(50):
        seen += piece
        for name in piece[::3]:
            (folder / name).unlink()
        (folder / f"new{len(seen)}").touch()
    assert len(seen) == len(set(seen))
    assert set(seen) - before <= {name for name in seen if name.startswith("new")}
    assert before <= set(seen), "everything was there when its turn came"


def test_what_went_before_its_turn_is_not_shown(many: tuple[Path, Stream]) -> None:
    folder, stream = many
    first = stream.read(10)
    rest = sorted(set(os.listdir(folder)) - set(first))
    for name in rest[::2]:
        (folder / name).unlink()
    later = stream.read()
    assert len(later) == len(set(later))
    assert set(rest[1::2]) <= set(later)
    stream.rewind()
    assert sorted(stream.read()) == sorted(os.listdir(folder)), "from the start it is what is there now"


def test_positions_stay_valid_while_entries_come_and_go(many: tuple[Path, Stream]) -> None:
    folder, stream = many
    order: list[str] = []
    positions: list[int] = []
    while piece := stream.read(100):
        order += piece
        positions.append(stream.tell())
    for name in order[::7]:
        (folder / name).unlink()
    (folder / "new").touch()
    gone = set(order[::7])
    for index, position in enumerate(positions[:-1]):
        stream.seek(position)
        wanted = [name for name in order[(index + 1) * 100 :] if name not in gone]
        got = [name for name in stream.read() if name != "new" and name not in gone]
        assert got == wanted


def test_rename_during_a_listing_shows_one_of_the_names(many: tuple[Path, Stream]) -> None:
    folder, stream = many
    first = stream.read(100)
    rest = sorted(set(os.listdir(folder)) - set(first))
    for name in rest:
        (folder / name).rename(folder / ("r" + name))
    seen = first + stream.read()
    assert len(seen) == len(set(seen))
    assert not {name[1:] for name in seen if name.startswith("r")} & set(seen), "none under both names"


# --- directories ---


def test_a_removed_directory_is_empty_to_who_is_in_it(folder: Path) -> None:
    path = folder / "d"
    path.mkdir()
    back = os.getcwd()
    os.chdir(path)
    try:
        path.rmdir()
        assert os.listdir(".") == []
        assert os.stat(".").st_nlink == 0
        assert errno_of(lambda: Path("f").touch()) == errno.ENOENT
        assert errno_of(lambda: os.mkdir("e")) == errno.ENOENT
        assert errno_of(lambda: os.rmdir(".")) == errno.EINVAL
        assert errno_of(os.getcwd) == errno.ENOENT
        os.chdir("..")
        assert Path.cwd() == folder
    finally:
        os.chdir(back)


def test_removing_what_cannot_be(folder: Path) -> None:
    (folder / "d" / "e").mkdir(parents=True)
    (folder / "f").touch()
    assert errno_of(lambda: os.rmdir(folder / "d")) == errno.ENOTEMPTY
    assert errno_of(lambda: os.rmdir(folder / "f")) == errno.ENOTDIR
    assert errno_of(lambda: os.unlink(folder / "d")) == errno.EISDIR
    assert errno_of(lambda: os.rmdir(f"{folder}/d/e/..")) == errno.ENOTEMPTY
    assert errno_of(lambda: os.rmdir(f"{folder}/d/e/.")) == errno.EINVAL
    assert errno_of(lambda: os.mkdir(folder / "f")) == errno.EEXIST
    assert errno_of(lambda: os.mkdir(folder / "f" / "g")) == errno.ENOTDIR
    assert errno_of(lambda: os.mkdir(folder / "no" / "g")) == errno.ENOENT


def test_link_counts_of_directories(folder: Path) -> None:
    for number in range(5):
        (folder / f"{number}").mkdir()
    assert folder.stat().st_nlink == 7
    os.rename(folder / "0", folder / "1" / "0")
    assert (folder.stat().st_nlink, (folder / "1").stat().st_nlink) == (6, 3)
    (folder / "f").touch()
    assert rename(folder / "f", folder / "1" / "0", EXCHANGE) == 0
    assert (folder.stat().st_nlink, (folder / "1").stat().st_nlink) == (7, 2)
    os.rename(folder / "2", folder / "3")
    assert folder.stat().st_nlink == 6


# --- renaming ---


def test_rename_flags(folder: Path) -> None:
    one, two = folder / "one", folder / "two"
    one.write_text("1")
    two.mkdir()
    assert rename(one, two, NOREPLACE) == errno.EEXIST
    assert rename(one, two, NOREPLACE | EXCHANGE) == errno.EINVAL
    assert rename(one, folder / "three", EXCHANGE) == errno.ENOENT
    assert rename(one, folder / "three", WHITEOUT) == errno.EINVAL
    assert rename(one, two, EXCHANGE) == 0
    assert one.is_dir()
    assert two.read_text() == "1"
    assert rename(two, folder / "three", NOREPLACE) == 0
    assert sorted(os.listdir(folder)) == ["one", "three"]


def test_rename_between_kinds_and_places(folder: Path, tmp_path: Path) -> None:
    (folder / "d" / "e").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "f").touch()
    (folder / "g").touch()
    os.link(folder / "f", folder / "same")
    assert errno_of(lambda: os.rename(folder / "f", folder / "empty")) == errno.EISDIR
    assert errno_of(lambda: os.rename(folder / "empty", folder / "f")) == errno.ENOTDIR
    assert errno_of(lambda: os.rename(folder / "empty", folder / "d")) == errno.ENOTEMPTY
    assert errno_of(lambda: os.rename(folder / "d", folder / "d" / "e" / "x")) == errno.EINVAL
    assert errno_of(lambda: os.rename(folder / "d" / "e", folder / "d")) == errno.ENOTEMPTY
    assert rename(folder / "d", folder / "d" / "e", EXCHANGE) == errno.EINVAL
    os.rename(folder / "f", folder / "same")
    assert (folder / "f").exists(), "two names of one file: nothing happens"
    os.rename(folder / "d", folder / "empty")
    assert (folder / "empty" / "e").is_dir()
    assert errno_of(lambda: os.rename(folder / "g", tmp_path / "g")) == errno.EXDEV
    assert errno_of(lambda: os.link(folder / "g", tmp_path / "g")) == errno.EXDEV
    assert errno_of(lambda: os.rename(folder / "g", f"{folder}/.")) == errno.EBUSY
    assert errno_of(lambda: os.rename(f"{folder}/empty/..", folder / "x")) == errno.EBUSY


def test_an_open_file_that_is_replaced_lives_on(folder: Path) -> None:
    (folder / "old").write_text("old")
    (folder / "new").write_text("new")
    with open(folder / "old") as file:
        os.rename(folder / "new", folder / "old")
        assert file.read() == "old"
        assert os.fstat(file.fileno()).st_nlink == 0


# --- lengths and loops ---


def test_lengths_of_names_and_paths(folder: Path) -> None:
    longest = os.pathconf(folder, "PC_NAME_MAX")
    (folder / ("x" * longest)).touch()
    for call in (os.mkdir, os.stat, os.unlink, os.rmdir, os.readlink):
        assert errno_of(lambda call=call: call(folder / ("y" * (longest + 1)))) == errno.ENAMETOOLONG  # type: ignore[misc]
    deep = os.fsencode(folder) + b"/."
    fits = deep + b"/." * ((PATH_MAX - 1 - len(deep)) // 2)
    assert errno_of(lambda: os.stat(fits)) == 0
    assert errno_of(lambda: os.stat(fits + b"/.")) == errno.ENAMETOOLONG
    target = "t" * (PATH_MAX - 1)
    (folder / "link").symlink_to(target)
    assert os.readlink(folder / "link") == target
    assert (folder / "link").lstat().st_size == PATH_MAX - 1
    assert errno_of(lambda: os.symlink("t" * PATH_MAX, folder / "longer")) == errno.ENAMETOOLONG
    assert errno_of(lambda: os.symlink("", folder / "empty")) == errno.ENOENT


def test_chains_of_links(folder: Path) -> None:
    (folder / "f").touch()
    previous = "f"
    for number in range(45):
        (folder / f"{number}").symlink_to(previous)
        previous = f"{number}"
    assert (folder / "39").stat().st_ino == (folder / "f").stat().st_ino
    assert errno_of(lambda: os.stat(folder / "40")) == errno.ELOOP
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    assert errno_of(lambda: os.stat(folder / "a")) == errno.ELOOP


def test_a_path_of_a_thousand_levels(folder: Path) -> None:
    back = os.open(".", os.O_RDONLY)
    try:
        os.chdir(folder)
        for _ in range(1000):
            os.mkdir("directory")
            os.chdir("directory")
        Path("f").write_text("deep")
        assert run("find", folder, "-name", "f").stdout.count("/directory") == 1000
        assert Path("f").read_text() == "deep"
    finally:
        os.fchdir(back)
        os.close(back)
    run("rm", "-r", folder / "directory")
    assert os.listdir(folder) == []


# --- who may ---


@only_root
def test_a_sticky_directory(commons: Path) -> None:
    commons.chmod(0o1777)
    with acting_as(1001, 1001):
        (commons / "f").touch()
        (commons / "d").mkdir()
        (commons / "own").touch()
    with acting_as(1002, 1002):
        assert errno_of(lambda: os.unlink(commons / "f")) == errno.EPERM
        assert errno_of(lambda: os.rmdir(commons / "d")) == errno.EPERM
        assert errno_of(lambda: os.rename(commons / "f", commons / "g")) == errno.EPERM
        (commons / "mine").touch()
        assert errno_of(lambda: os.rename(commons / "mine", commons / "f")) == errno.EPERM
    with acting_as(1001, 1001):
        os.unlink(commons / "own")
        os.rename(commons / "f", commons / "g")


@only_root
def test_setgid_directories_pass_their_group_on(commons: Path) -> None:
    os.chown(commons, 1001, 2000)
    commons.chmod(0o2777)
    with acting_as(1002, 1002):
        (commons / "f").touch()
        (commons / "d").mkdir(0o755)
        os.mkfifo(commons / "p")
        os.symlink("x", commons / "l")
        os.close(os.open(commons / "suid", os.O_CREAT | os.O_WRONLY, 0o2755))
    for name in ("f", "d", "p", "l", "suid"):
        assert (commons / name).lstat().st_gid == 2000, name
    assert (commons / "d").stat().st_mode & stat.S_ISGID
    assert not (commons / "f").stat().st_mode & stat.S_ISGID
    assert not (commons / "suid").stat().st_mode & stat.S_ISGID, "not for who is not in the group"
    commons.chmod(0o777)
    with acting_as(1002, 1002):
        (commons / "g").touch()
    assert (commons / "g").stat().st_gid == 1002


@only_root
def test_searching_and_changing_need_permission(commons: Path) -> None:
    closed = commons / "closed"
    closed.mkdir(0o700)
    (closed / "f").touch()
    with acting_as(1001, 1001):
        assert errno_of(lambda: os.stat(closed / "f")) == errno.EACCES
        assert errno_of(lambda: os.listdir(closed)) == errno.EACCES
    closed.chmod(0o711)
    with acting_as(1001, 1001):
        assert errno_of(lambda: os.stat(closed / "f")) == 0
        assert errno_of(lambda: os.listdir(closed)) == errno.EACCES
        assert errno_of(lambda: os.unlink(closed / "f")) == errno.EACCES
        assert errno_of(lambda: os.mkdir(closed / "d")) == errno.EACCES
        assert errno_of(lambda: os.chmod(closed / "f", 0o777)) == errno.EPERM
        assert errno_of(lambda: os.mknod(commons / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))) == errno.EPERM
        assert errno_of(lambda: os.setxattr(closed / "f", "user.a", b"b")) == errno.EACCES
