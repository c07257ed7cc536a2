"""A tree that is copied out is the tree that was there, and nothing ever appears outside the folder it is copied to."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from qnx6writer import (
    LONG,
    SPARSE,
    TIME,
    Node,
    State,
    Volume,
    directory,
    file,
    files_of,
    older_tree,
    sample_tree,
    symlink,
)
from support import close_filesystem, new_device, open_filesystem

from cowfs.errors import Exists
from cowfs.export.budget import Budget
from cowfs.export.extract import Extraction
from cowfs.export.listing import bodyfile_lines, checksum_line, checksum_lines
from cowfs.export.names import shown
from cowfs.fs import Caller, Filesystem
from cowfs.storage import volume as storage
from cowfs.storage.device import MemoryDevice

ROOT = os.geteuid() == 0
TOO_LONG = b"directory/deep/" + b"n" * 510


class Problems(dict[bytes, str]):
    def __call__(self, path: bytes, error: Exception) -> None:
        self[path] = str(error)


def opened(image: bytes) -> Filesystem:
    return Filesystem(storage.Volume.open(MemoryDevice.from_image(image), read_only=True))


def extract(filesystem: Filesystem, destination: Path, *, devices: bool = False, owners: bool = ROOT) -> Problems:
    problems = Problems()
    work = Extraction(filesystem, problems, owners, devices, Budget(filesystem.volume))
    work.directory(filesystem.getattr(1), destination)
    return problems


def test_a_whole_tree(tmp_path: Path) -> None:
    tree = sample_tree(1024, hole=SPARSE)
    filesystem = opened(Volume(">", 1024).image(older_tree(), tree))
    problems = extract(filesystem, tmp_path / "out")
    assert list(problems) == [TOO_LONG], "Linux has names of 255 bytes"
    assert "File name too long" in problems[TOO_LONG]
    top = os.fsencode(tmp_path / "out") + b"/"
    for path, node in files_of(tree):
        if path == TOO_LONG:
            continue
        status = os.lstat(top + path)
        mode = node.mode if ROOT else node.mode & ~0o6000
        assert status.st_mode == mode, path
        assert int(status.st_mtime) == node.mtime
        if ROOT:
            assert (status.st_uid, status.st_gid) == (node.uid, node.gid)
        if stat.S_ISREG(node.mode):
            assert Path(os.fsdecode(top + path)).read_bytes() == node.data
        if stat.S_ISLNK(node.mode):
            assert os.readlink(top + path) == node.data
    assert os.path.samefile(top + b"directory/again", top + b"directory/deep/" + LONG)
    assert int(os.stat(top).st_mtime) == TIME
    manifest = b"".join(checksum_lines(filesystem, filesystem.getattr(1), Problems()))
    manifest = b"".join(line for line in manifest.splitlines(keepends=True) if b"n" * 510 not in line)
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict"], cwd=top, input=manifest, check=True)


def test_a_volume_of_ours(tmp_path: Path) -> None:
    device = new_device()
    filesystem = open_filesystem(device)
    number = filesystem.create(1, b"file", 0o600, Caller()).ino
    filesystem.write(number, 1 << 30, b"end")
    filesystem.setxattr(number, b"user.note", b"kept")
    filesystem.setattr(number, mtime_ns=1_600_000_000_123_456_789)
    filesystem.create(1, b"node", stat.S_IFCHR | 0o600, Caller(), rdev=os.makedev(1, 3))
    close_filesystem(filesystem)
    problems = extract(open_filesystem(device, read_only=True), tmp_path / "out")
    assert list(problems) == [b"node"]
    status = os.stat(tmp_path / "out" / "file")
    assert (status.st_size, status.st_mtime_ns) == ((1 << 30) + 3, 1_600_000_000_123_456_789)
    assert status.st_blocks < 64
    assert os.getxattr(tmp_path / "out" / "file", "user.note") == b"kept"


@pytest.mark.skipif(not ROOT, reason="only root makes device nodes")
def test_device_nodes_when_root_asks_for_them(tmp_path: Path) -> None:
    device = new_device()
    filesystem = open_filesystem(device)
    filesystem.create(1, b"null", stat.S_IFCHR | 0o640, Caller(), rdev=os.makedev(1, 3))
    close_filesystem(filesystem)
    problems = extract(open_filesystem(device, read_only=True), tmp_path / "out", devices=True)
    if not problems:  # a container may forbid it even to root
        assert os.stat(tmp_path / "out" / "null").st_rdev == os.makedev(1, 3)
    assert all("cannot be made" in text for text in problems.values())
    foreign = directory({b"null": Node(stat.S_IFCHR | 0o640)})
    image = Volume("<", 512).image(older_tree(), foreign)
    problems = extract(opened(image), tmp_path / "foreign", devices=True)
    assert "do not say of which device" in problems[b"null"]


def test_hostile_names_and_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that climb, links that lead out with things below them, and the same name twice: nothing appears outside."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("mine")

    def entries(self: State, number: int, parent: int, node: Node) -> bytes:
        raw = [self._short(number, b"."), self._short(parent, b"..")]
        for name, child in node.children.items():
            raw.append(self._short(self.numbers[id(child)], name.removesuffix(b"#")))
        data = b"".join(raw)
        return data.ljust(-(-len(data) // self.size) * self.size, b"\0")

    monkeypatch.setattr(State, "_entries", entries)
    tree = directory(
        {
            b"../climbs": file(b"x"),
            b"..#": directory({b"climbs": file(b"x")}),
            b".#": file(b"x"),
            b"/etc": file(b"x"),
            b"a\0b": file(b"x"),
            b"twice": symlink(b"../outside"),
            b"twice#": directory({b"victim": file(b"theirs"), b"new": file(b"x")}),
            b"file": symlink(b"../outside/victim"),
            b"file#": file(b"theirs"),
            b"hard": symlink(b"../outside/victim"),
            b"good": file(b"good"),
        }
    )
    filesystem = opened(Volume("<", 512).image(older_tree(), tree))
    problems = extract(filesystem, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["out", "outside"]
    assert os.listdir(outside) == ["victim"]
    assert (outside / "victim").read_text() == "mine"
    assert sorted(os.listdir(tmp_path / "out")) == [".boot", "file", "good", "hard", "twice"]
    assert (tmp_path / "out" / "good").read_text() == "good"
    assert {b"", b"file", b"twice"} <= set(problems)


def test_what_exists_is_not_replaced(tmp_path: Path) -> None:
    filesystem = opened(Volume("<", 512).image(older_tree(), sample_tree(512)))
    (tmp_path / "there").write_text("mine")
    with pytest.raises(Exists):
        extract(filesystem, tmp_path)
    problems = Problems()
    work = Extraction(filesystem, problems, False, False, Budget(filesystem.volume))
    small = filesystem.lookup(1, b"small")
    work.single(small, b"small", tmp_path / "there")
    assert list(problems) == [b"there"]
    assert (tmp_path / "there").read_text() == "mine"
    work.single(small, b"small", tmp_path)
    assert (tmp_path / "small").read_bytes() == b"sixteen bytes..\n"
    work.single(small, b"small", tmp_path / "other")
    assert stat.S_IMODE(os.stat(tmp_path / "other").st_mode) == 0o755, "setuid goes with the owner only"


def test_deep_trees_need_no_more_descriptors(tmp_path: Path) -> None:
    depth = 1200
    device = new_device()
    filesystem = open_filesystem(device)
    number = 1
    for _ in range(depth):
        number = filesystem.mkdir(number, b"d", 0o700, Caller()).ino
    filesystem.create(number, b"bottom", 0o600, Caller())
    filesystem.close()
    filesystem = open_filesystem(device, read_only=True)
    assert extract(filesystem, tmp_path / "out") == {}
    here = os.open(tmp_path / "out", os.O_RDONLY)
    for _ in range(depth):
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    try:
        assert os.listdir(here) == ["bottom"]
    finally:
        os.close(here)
    subprocess.run(["rm", "-rf", tmp_path / "out"], check=False)


def test_bodyfile() -> None:
    """One line for everything, eleven fields, whatever the names are."""
    tree = sample_tree(512)
    filesystem = opened(Volume("<", 512).image(older_tree(), tree))
    lines = list(bodyfile_lines(filesystem, filesystem.getattr(1), Problems()))
    assert len(lines) == len(list(files_of(tree))) + 2
    assert all(line.count("|") == 10 and line.isprintable() for line in lines)
    byname = {line.split("|")[1]: line for line in lines}
    number = filesystem.lookup(1, b"small").ino
    assert byname["/small"] == (f"0|/small|{number}|r/rrwsr-xr-x|99|0|16|{TIME + 1}|{0xF0000000}|{TIME + 2}|{TIME - 1}")
    assert byname["/link -> directory/" + "x" * 27].split("|")[3] == "l/lrwxrwxrwx"
    assert byname["/fifo"].split("|")[3] == "p/prw-rw-r--"
    assert "/odd \\xff\\x0a\\\\name\\x7c" in byname


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"plain name", "plain name"),
        ("Ümläut €".encode(), "Ümläut €"),
        (b"\xff\xfe", "\\xff\\xfe"),
        (b"\x1b[31mred\n", "\\x1b[31mred\\x0a"),
        (b"back\\slash", "back\\\\slash"),
        ("right\u202eleft".encode(), "right\\xe2\\x80\\xaeleft"),
    ],
)
def test_names_for_terminals(name: bytes, text: str) -> None:
    assert shown(name) == text


def test_checksum_lines_of_odd_names() -> None:
    assert checksum_line("ab", b"plain") == b"ab  plain\n"
    assert checksum_line("ab", b"a\nb\\c\r") == b"\\ab  a\\nb\\\\c\\r\n"
