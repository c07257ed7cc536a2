"""Copying and packing on a mount: rsync, tar, zip, dpkg-deb and cp, each there and back, with everything a tree can hold."""

from __future__ import annotations

import os
import random
import stat
import tarfile
from pathlib import Path

import pytest
from mounting import Place, run
from programs import describe, differences, needs

pytestmark = [pytest.mark.fuse, pytest.mark.apps]

HOLE = 5 << 20


def make_tree(root: Path, *, files: int = 1_000) -> Path:
    """A tree with what copying programs get wrong: links of both kinds, holes, odd names and modes, attributes, ACLs."""
    generator = random.Random(7)
    root.mkdir()
    for number in range(files):
        path = root / f"d{number % 13}" / f"e{number % 7}" / f"file {number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(generator.randbytes(generator.choice((0, 1, 100, 4095, 4096, 4097, 20_000))))
        path.chmod(generator.choice((0o644, 0o600, 0o755, 0o444)))
        os.utime(path, ns=(10**18 + number, 10**18 + generator.randrange(10**15)))
        if number % 10 == 0:
            os.setxattr(path, "user.number", b"%d" % number)
            os.setxattr(path, "user.long", generator.randbytes(300))
        if number % 50 == 0:
            os.link(path, root / f"hard link {number}")
            (root / f"symlink {number}").symlink_to(f"d{number % 13}/e{number % 7}/file {number}")
    (root / "dangling").symlink_to("../" * 50 + "nowhere")
    for name in (b"\xff\xfe not UTF-8", b"new\nline", b"-rf", " leading, \N{SNOWMAN}".encode(), b"n" * 255):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(name)
    with open(root / "holes", "wb") as file:
        for number in range(4):
            file.seek(number * HOLE)
            file.write(b"data")
        file.truncate(4 * HOLE)
    os.mkfifo(root / "fifo")
    (root / "setgid").mkdir()
    (root / "setgid").chmod(0o2775)
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o1777)
    if os.geteuid() == 0:
        os.chown(root / "d1" / "e1", 1234, 4321)
        os.chown(root / "dangling", 1234, 4321, follow_symlinks=False)
        os.mknod(root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    run("setfacl", "-m", "u:1234:rwx,g:4321:r", root / "d2")
    run("setfacl", "-d", "-m", "u:1234:rx", root / "d2")
    run("setfacl", "-m", "u:1234:rw", root / "d0" / "e0" / "file 0")
    return root


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree, on the host's filesystem."""
    return make_tree(tmp_path_factory.mktemp("host") / "source")


def allocated(path: Path) -> int:
    """The bytes that a file takes."""
    return path.stat().st_blocks * 512


@needs("rsync", "setfacl", "diff")
def test_rsync_there_and_back(mounted: Place, source: Path, tmp_path: Path) -> None:
    there, back = mounted.mountpoint / "there", tmp_path / "back"
    run("rsync", "-aHAXS", f"{source}/", there)
    mounted.remount()
    assert differences(source, there) == []
    assert run("rsync", "-naHAXi", "--checksum", "--delete", f"{source}/", there).stdout == ""
    assert run("rsync", "-naHAXi", f"{source}/", there).stdout == "", "by time and size, too, there is nothing to do"
    run("diff", "-r", "--no-dereference", "--exclude=fifo", "--exclude=null", source, there)
    assert allocated(there / "holes") < HOLE
    # A second run transfers what has changed, in place and by renaming, and takes away what is gone.
    (there / "d3" / "e3").rename(there / "elsewhere")
    (there / "holes").write_bytes(b"other")
    run("rsync", "-aHAXS", "--inplace", "--no-whole-file", "--delete", f"{source}/", there)
    assert differences(source, there) == []
    run("rsync", "-aHAXS", f"{there}/", back)
    assert differences(source, back) == []


@needs("tar", "setfacl")
@pytest.mark.parametrize("form", ["posix", "gnu"])
def test_tar_both_ways(mounted: Place, source: Path, tmp_path: Path, form: str) -> None:
    keep = ["--xattrs", "--xattrs-include=*", "--acls"] if form == "posix" else []
    first, second = tmp_path / "first.tar", mounted.mountpoint / "second.tar"
    there, back = mounted.mountpoint / "there", tmp_path / "back"
    there.mkdir()
    back.mkdir()
    run("tar", "-C", source, "--sparse", *keep, f"--format={form}", "-cf", first, ".")
    run("tar", "-C", there, *keep, "--numeric-owner", "-xpf", first)
    assert allocated(there / "holes") < HOLE
    mounted.remount()
    run("tar", "-C", there, "--sparse", *keep, f"--format={form}", "-cf", second, ".")
    run("tar", "-C", there, *keep, "--compare", "-f", second)
    assert second.stat().st_size < first.stat().st_size + HOLE, "holes are found again, or written as few bytes"
    run("tar", "-C", back, *keep, "--numeric-owner", "-xpf", second)
    assert describe(there) == describe(back)
    if form == "posix":
        assert differences(source, back) == []


@needs("zip", "unzip")
def test_zip_both_ways(mounted: Place, source: Path) -> None:
    root = mounted.mountpoint
    archive = root / "all.zip"
    run("zip", "-qry", archive, "d1", "d2", "d3", "symlink 0", cwd=source)
    run("zip", "-qd", archive, "d3/*", cwd=root)
    run("unzip", "-q", archive, "-d", root / "there")
    mounted.remount()
    run("unzip", "-tq", archive)
    wanted = {name: entry for name, entry in describe(source).items() if name.startswith(("d1/", "d2/", "symlink 0"))}
    found = describe(root / "there")
    assert {name: (entry[0], entry[3]) for name, entry in found.items() if "/" in name} == {
        name: (entry[0], entry[3]) for name, entry in wanted.items() if "/" in name
    }


@needs("dpkg-deb")
def test_debian_packages_are_built_and_unpacked(mounted: Place) -> None:
    root = mounted.mountpoint
    package = root / "package"
    (package / "DEBIAN").mkdir(parents=True)
    (package / "DEBIAN" / "control").write_text(
        "Package: sample\nVersion: 1\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: a sample\n"
    )
    for number in range(300):
        path = package / "usr" / "share" / f"d{number % 9}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(number * 17))
    (package / "usr" / "bin").mkdir()
    (package / "usr" / "bin" / "sample").symlink_to("../share/d0/f0")
    run("dpkg-deb", "--root-owner-group", "--build", package, root / "sample.deb")
    run("dpkg-deb", "-x", root / "sample.deb", root / "there")
    mounted.remount()
    wanted = {name: entry[3] for name, entry in describe(package / "usr").items()}
    assert {name: entry[3] for name, entry in describe(root / "there" / "usr").items()} == wanted
    assert "Package: sample" in run("dpkg-deb", "--info", root / "sample.deb").stdout


def test_cp_with_all_it_can_do(mounted: Place, source: Path) -> None:
    there, copy = mounted.mountpoint / "there", mounted.mountpoint / "copy"
    run("cp", "-a", source, there)
    run("cp", "-a", "--reflink=auto", "--sparse=always", there, copy)
    mounted.remount()
    assert differences(source, there) == []
    assert differences(there, copy) == []
    assert allocated(copy / "holes") < HOLE
    refused = run("cp", "--reflink=always", there / "holes", mounted.mountpoint / "clone", ok=False)
    assert refused.returncode != 0
    run("cp", "--sparse=never", there / "holes", mounted.mountpoint / "full")
    assert allocated(mounted.mountpoint / "full") >= 4 * HOLE - (1 << 20)


def test_find_and_xargs(mounted: Place, source: Path) -> None:
    there = mounted.mountpoint / "there"
    run("cp", "-a", source, there)
    for words in (["-type", "f"], ["-type", "l"], ["-links", "+1", "-type", "f"], ["-perm", "444"], ["-size", "+3k"]):
        wanted, found = (
            sorted(run("find", ".", *words, "-print0", cwd=where, errors="surrogateescape").stdout.split("\0"))
            for where in (source, there)
        )
        assert len(wanted) > 1
        assert found == wanted
    command = "find . -type f -print0 | sort -z | xargs -0 -P 4 -n 50 cat | wc -c"
    assert run("sh", "-c", command, cwd=there).stdout == run("sh", "-c", command, cwd=source).stdout
    run("sh", "-c", "find . -name 'file *' -print0 | xargs -0 -P 4 -n 20 rm", cwd=there)
    assert run("find", there, "-name", "file *").stdout == ""
    run("rm", "-rf", there)
    assert os.listdir(mounted.mountpoint) == []


def test_tarfile_streams_through_a_mount(mounted: Place) -> None:
    """Python's own tarfile, with a compressed archive that is written and read at once."""
    path = mounted.mountpoint / "stream.tar.xz"
    inside = mounted.mountpoint / "inside"
    inside.mkdir()
    for number in range(50):
        (inside / str(number)).write_bytes(os.urandom(3000))
    with tarfile.open(path, "w:xz") as archive:
        archive.add(inside, "inside")
    with tarfile.open(path) as archive:
        assert len(archive.getmembers()) == 51
