"""`mkcowfs --from`: what is taken over, that the same contents give the same bytes, and how it fails."""

from __future__ import annotations

import io
import os
import random
import stat
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from served import Object, served

from cowfs.check import check_image
from cowfs.fs import Filesystem
from cowfs.ondisk import format as f
from cowfs.storage.device import FileDevice
from cowfs.storage.superblock import read_slots
from cowfs.storage.volume import Volume
from mkcowfs import author
from mkcowfs.cli import run
from mkcowfs.source import CELL, read_directory, read_tar

MIB = 1 << 20
TIME = 1_600_000_000
SAME = ("--uuid", "11111111-2222-3333-4444-555555555555")
LONG = "a name that is too long for an entry of a directory"
Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **more: object) -> Member:
    """A member of an archive; times differ from name to name."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mtime, info.mode = kind, len(data), TIME + len(name), 0o644
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def archive(*members: Member, form: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive, with pax headers where nothing else is wanted."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=form, errors="surrogateescape") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def every_kind() -> bytes:
    """An archive with one of each."""
    rng = random.Random(1)
    sparse = rng.randbytes(5000) + bytes(3 * MIB) + rng.randbytes(70_000)
    xattrs = {
        "SCHILY.xattr.user.colour": "grün",
        "SCHILY.xattr.user.bytes": b"\0\xff\n=".decode(errors="surrogateescape"),
    }
    return archive(
        member("./", tarfile.DIRTYPE, mode=0o711, uid=7),
        member("./file", data=b"contents\n", uid=1000, gid=1001, mode=0o4755),
        member("folder", tarfile.DIRTYPE, mode=0o2775, gid=5),
        member("folder/inner", data=rng.randbytes(3 * MIB + 17), pax_headers={"mtime": "1234567890.123456789"}),
        member("folder/sparse", data=sparse),
        member("folder/zeros", data=bytes(100_000)),
        member("folder/" + LONG, data=b"x"),
        member("folder/\udcff\udc80", data=b"not UTF-8"),
        member("without/folders", data=b"y", pax_headers=xattrs),
        member("link", tarfile.SYMTYPE, linkname="folder/inner"),
        member("folder/hard", tarfile.LNKTYPE, linkname="file"),
        member("fifo", tarfile.FIFOTYPE),
        member("null", tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("loop", tarfile.BLKTYPE, devmajor=7, devminor=300),
        member("changed", data=b"first"),
        member("changed", data=b"second", mode=0o600),
        member("folder", tarfile.DIRTYPE, mode=0o2770, gid=5),
    )


def make(image: Path, source: object, *more: object, size: str = "auto") -> Path:
    """Makes an image and checks it."""
    assert run([str(image), "--from", str(source), "--size", size, *map(str, more)]) == 0
    device = FileDevice.open(image, read_only=True)
    check_image(device)
    device.close()
    return image


def contents(image: Path) -> dict[bytes, Object]:
    """What cowfs serves of it."""
    device = FileDevice.open(image, read_only=True)
    found = served(Filesystem(Volume.open(device, read_only=True)))
    device.close()
    return found


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    path = tmp_path / "all.tar"
    path.write_bytes(every_kind())
    return path


@pytest.mark.parametrize("block_size", f.BLOCK_SIZES)
def test_an_archive_is_taken_over(tmp_path: Path, tar: Path, block_size: int) -> None:
    image = make(tmp_path / "image", tar, "--block-size", block_size)
    found = contents(image)
    kinds = {path: stat.S_IFMT(item.mode) for path, item in found.items()}
    assert (stat.S_IMODE(found[b""].mode), found[b""].uid) == (0o711, 7)
    file = found[b"/file"]
    assert (stat.S_IMODE(file.mode), file.uid, file.gid, file.data, file.links) == (
        0o4755,
        1000,
        1001,
        b"contents\n",
        2,
    )
    assert file.mtime == file.atime == file.ctime == TIME + len("./file")
    assert found[b"/folder/hard"].ino == file.ino
    folder = found[b"/folder"]
    assert (stat.S_IMODE(folder.mode), folder.gid, folder.mtime) == (0o2770, 5, TIME + len("folder"))
    assert found[b"/folder/inner"].gid == 0, "the group of a directory with setgid is none of an archive's business"
    assert (found[b"/folder/inner"].size, found[b"/folder/inner"].mtime) == (3 * MIB + 17, 1234567890)
    assert found[b"/folder/zeros"].blocks == 0 and found[b"/folder/zeros"].size == 100_000
    assert 75_000 < found[b"/folder/sparse"].blocks * 512 < 75_000 + 3 * 4096
    assert found[b"/folder/" + LONG.encode()].data == b"x"
    assert found[b"/folder/\xff\x80"].data == b"not UTF-8"
    assert (stat.S_IMODE(found[b"/without"].mode), found[b"/without"].uid) == (0o755, 0)
    assert kinds[b"/link"] == stat.S_IFLNK and found[b"/link"].data == b"folder/inner"
    assert kinds[b"/fifo"] == stat.S_IFIFO
    assert kinds[b"/null"] == stat.S_IFCHR and found[b"/null"].rdev == (1, 3)
    assert kinds[b"/loop"] == stat.S_IFBLK and found[b"/loop"].rdev == (7, 300)
    assert (found[b"/changed"].data, stat.S_IMODE(found[b"/changed"].mode)) == (b"second", 0o600)
    assert len(found) == 16
    assert found[b""].mtime == TIME + len("./"), "what is put into a directory later does not move its time"
    filesystem = Filesystem(Volume.open(FileDevice.open(image, read_only=True), read_only=True))
    ino = found[b"/without/folders"].ino
    assert filesystem.getattr(found[b"/folder/inner"].ino).mtime_ns == 1234567890_123456789
    assert filesystem.getxattr(ino, b"user.colour") == "grün".encode()
    assert filesystem.getxattr(ino, b"user.bytes") == b"\0\xff\n="


def fill_folder(folder: Path, names: list[str]) -> None:
    """The same tree whatever the order of the names."""
    (folder / "below").mkdir(parents=True)
    for name in names:
        data = random.Random(name).randbytes(int(name) * 100)
        for where in (folder, folder / "below"):
            (where / name).write_bytes(data)
            os.utime(where / name, ns=(0, TIME * 10**9 + int(name)))
    os.link(folder / "7", folder / "below" / "seven")
    (folder / "symlink").symlink_to("below/7")
    (folder / "sparse").write_bytes(b"head")
    os.truncate(folder / "sparse", 3 * MIB)
    os.mkfifo(folder / "fifo", 0o640)
    for path in (folder / "sparse", folder / "fifo", folder / "symlink", folder / "below", folder):
        os.utime(path, (TIME, TIME), follow_symlinks=False)


def test_a_folder_is_taken_over(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    fill_folder(folder, [str(number) for number in range(1, 40)])
    found = contents(make(tmp_path / "image", folder, size="32M"))
    names = [b"", *(os.fsencode(f"/{path.relative_to(folder)}") for path in folder.rglob("*"))]
    assert sorted(found) == sorted(names)
    for name, item in found.items():
        status = os.lstat(os.fsencode(folder) + name)
        assert (item.mode, item.uid, item.gid) == (status.st_mode, status.st_uid, status.st_gid), name
        assert item.mtime == status.st_mtime_ns // 10**9, name
        if not stat.S_ISDIR(item.mode):
            assert (item.size, item.links) == (status.st_size, status.st_nlink), name
        if stat.S_ISREG(item.mode):
            assert Path(os.fsdecode(os.fsencode(folder) + name)).read_bytes()[:1000] == item.data[:1000], name


@pytest.mark.parametrize("more", [(), ("--profile", "qnx6")])
def test_the_same_contents_make_the_same_bytes(tmp_path: Path, more: tuple[str, ...]) -> None:
    """Other orders in the folder, holes or none in the host's files, other access and change times."""
    names = [str(number) for number in range(1, 60)]
    images = []
    for turn in range(3):
        folder = tmp_path / f"folder{turn}"
        random.Random(turn).shuffle(names)
        fill_folder(folder, names)
        if turn:
            (folder / "sparse").write_bytes((folder / "sparse").read_bytes())
            os.utime(folder / "sparse", (TIME, TIME))
        images.append(make(tmp_path / f"image{turn}", folder, *SAME, *more).read_bytes())
    assert images[0] == images[1] == images[2]


def test_runs_at_the_same_time_make_the_same_bytes(tmp_path: Path, tar: Path) -> None:
    commands = [
        [sys.executable, "-m", "mkcowfs", tmp_path / name, "--from", tar, "--size", "auto", *SAME]
        for name in ("a", "b")
    ]
    running = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONHASHSEED": str(number)})
        for number, command in enumerate(commands)
    ]
    assert [process.wait() for process in running] == [0, 0]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
def test_an_archive_on_standard_input(
    tmp_path: Path, tar: Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    raw = io.BytesIO()
    if compression:
        with tarfile.open(fileobj=raw, mode=f"w:{compression}", format=tarfile.PAX_FORMAT) as target:  # type: ignore[call-overload]
            target.addfile(member("one", data=b"1")[0], io.BytesIO(b"1"))
    else:
        raw.write(archive(member("one", data=b"1")))
    raw.seek(0)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw))
    assert contents(make(tmp_path / "image", "-"))[b"/one"].data == b"1"


def test_owners_can_be_given(tmp_path: Path, tar: Path) -> None:
    for options, wanted in ((("--all-root",), (0, 0)), (("--owner", "12:34"), (12, 34)), (("--owner", "5"), (5, 5))):
        image = make(tmp_path / "image", tar, *options)
        assert {(item.uid, item.gid) for item in contents(image).values()} == {wanted}
        image.unlink()


@pytest.mark.parametrize("block_size", f.BLOCK_SIZES)
def test_a_volume_that_fits_is_full_and_sound_and_can_be_emptied(tmp_path: Path, tar: Path, block_size: int) -> None:
    image = make(tmp_path / "image", tar, "--block-size", block_size)
    used = sum(item.blocks * 512 for item in contents(image).values())
    assert used < image.stat().st_size < used * 1.1 + 260 * block_size + MIB // 4
    device = FileDevice.open(image, read_only=False)
    slots = read_slots(device)
    assert slots.newest.number == 1 and not slots.notes
    assert slots.slots[1].superblock.inode == slots.slots[2].superblock.inode
    filesystem = Filesystem(Volume.open(device))
    available = filesystem.statfs().available
    folder = filesystem.lookup(f.ROOT_INODE, b"folder").ino
    filesystem.unlink(folder, b"inner")
    while filesystem.volume.reclaim_slice():
        filesystem.sync()
    assert filesystem.statfs().available > available + 3 * MIB // block_size - 64
    filesystem.close()
    check_image(device)


def failing(tmp_path: Path, capsys: pytest.CaptureFixture[str], source: object, *more: str, size: str = "auto") -> str:
    """The one line of a failure that leaves no image."""
    image = tmp_path / "image"
    assert run([str(image), "--from", str(source), "--size", size, *more]) == 1
    assert not image.exists()
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("mkcowfs: ")


@pytest.mark.parametrize(
    ("members", "wanted"),
    [
        ([member("a/../../b")], "a/../../b: leads out of the archive"),
        ([member("d/" + "n" * 511)], "d/" + "n" * 511 + ": File name too long"),
        ([member("s", tarfile.SYMTYPE, linkname="t" * 4096)], "s: the target of a symlink has at most 4095 bytes"),
        ([member("h", tarfile.LNKTYPE, linkname="no")], "h: it is a link to no, which did not come before it"),
        ([member("d", tarfile.DIRTYPE), member("d", data=b"1")], "d: a directory of that name came before it"),
        ([member("f"), member("f/g")], "f/g: Not a directory"),
        ([member("v", b"V")], "v: a member of type b'V', which is none of a file"),
        ([member("x", pax_headers={"SCHILY.xattr.other.x": "1"})], "x: extended attributes are user., trusted., "),
        ([member("u", uid=1 << 33)], "u: user 8589934592 and group 0 do not both fit into 32 bits"),
        ([member("g", gid=-5)], "g: user 0 and group -5 do not both fit into 32 bits"),
        ([member("c", tarfile.CHRTYPE, devmajor=1 << 40)], "c: device number 1099511627776:0 cannot be"),
    ],
)
def test_a_failure_names_the_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], members: list[Member], wanted: str
) -> None:
    form = tarfile.GNU_FORMAT if members[0][0].name in ("g", "c") else tarfile.PAX_FORMAT
    (tmp_path / "tar").write_bytes(archive(*members, form=form))
    assert failing(tmp_path, capsys, tmp_path / "tar").startswith(wanted)


@pytest.mark.parametrize("time", ["1e999999", "-1e999999", "inf", "nan", "1e30", "-1e30"])
def test_a_time_that_cannot_be_is_the_nearest_or_none(tmp_path: Path, time: str) -> None:
    (tmp_path / "tar").write_bytes(archive(member("file", pax_headers={"mtime": time})))
    make(tmp_path / "image", tmp_path / "tar")


def test_an_archive_may_bring_the_same_link_twice(tmp_path: Path) -> None:
    """As tar(1) does when it is told a name twice."""
    links = [member("b", tarfile.LNKTYPE, linkname="a"), member("a", tarfile.LNKTYPE, linkname="a")]
    (tmp_path / "tar").write_bytes(archive(member("a", data=b"x"), *links, *links))
    found = contents(make(tmp_path / "image", tmp_path / "tar"))
    assert sorted(found) == [b"", b"/a", b"/b"]
    assert found[b"/a"] == found[b"/b"]


def test_failures_of_the_source_and_of_space(tmp_path: Path, capsys: pytest.CaptureFixture[str], tar: Path) -> None:
    assert failing(tmp_path, capsys, tmp_path / "no") == f"{tmp_path / 'no'}: No such file or directory"
    (tmp_path / "bad").write_bytes(b"no archive" * 200)
    assert "cannot be read" in failing(tmp_path, capsys, tmp_path / "bad")
    (tmp_path / "cut").write_bytes(tar.read_bytes()[: 2 * MIB])
    assert failing(tmp_path, capsys, tmp_path / "cut").startswith("folder/inner: ")
    assert failing(tmp_path, capsys, tar, size="2M") == "folder/inner: No space left on device"
    assert failing(tmp_path, capsys, tmp_path) == "image: is the image that is being made"


def test_options_that_do_not_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (
        ["--size", "auto"],
        ["--size", "2M", "--all-root"],
        ["--size", "2M", "--from", ".", "--byte-order", "big"],
        ["--size", "2M", "--from", ".", "--block-size", "8192"],
        ["--size", "2M", "--from", ".", "--inodes", "9"],
        ["--size", "2M", "--from", ".", "--owner", "1", "--all-root"],
        ["--size", "2M", "--from", ".", "--owner", "me"],
        ["--size", "2M", "--from", ".", "--profile", "qnx6", "--label", "x"],
    ):
        assert run([str(tmp_path / "image"), *options]) == 2, options
        assert len(capsys.readouterr().err.splitlines()) == 1
    small = ["--size", "700K", "--from", ".", "--profile", "qnx6", "--block-size", "512"]
    assert run([str(tmp_path / "image"), *small]) == 2
    assert "at least 1048576 bytes" in capsys.readouterr().err


def test_an_existing_file_is_made_to_fit_only_by_force(
    tmp_path: Path, tar: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(100))
    assert run([str(image), "--from", str(tar), "--size", "auto"]) == 1
    assert "--force gives it another size" in capsys.readouterr().err
    make(image, tar, "--force")
    assert contents(image)[b"/changed"].data == b"second"


def test_memory_does_not_grow_with_an_archive(tmp_path: Path) -> None:
    """The reader keeps no member: fifteen hundred pass through less than they take."""

    class Endless(io.RawIOBase):
        """An archive of many small members, made while it is read."""

        def __init__(self, count: int) -> None:
            self._left, self._waiting = count, b""

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            while len(self._waiting) < size and self._left:
                self._left -= 1
                info = tarfile.TarInfo(f"member {self._left}")
                self._waiting += info.tobuf(tarfile.USTAR_FORMAT) + (bytes(1024) if not self._left else b"")
            data, self._waiting = self._waiting[:size], self._waiting[size:]
            return data

    tracemalloc.start()
    count = sum(1 for _ in read_tar(Endless(1_500), "endless"))  # type: ignore[arg-type]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 1_500
    assert peak < 2 * MIB


@pytest.mark.interpreted
def test_changed_inodes_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a commit is bounded by a number of objects, and the commits in between change nothing of the result."""
    fill_folder(tmp_path / "folder", [str(number) for number in range(60)])
    waiting: list[int] = []
    sync = Filesystem.sync

    def counted(filesystem: Filesystem) -> None:
        waiting.append(filesystem.volume.seals)
        sync(filesystem)

    monkeypatch.setattr(Filesystem, "sync", counted)
    monkeypatch.setattr(author, "COMMIT_OBJECTS", 30)
    make(tmp_path / "image", tmp_path / "folder")
    assert len(set(waiting)) == len(waiting) == 4
    found = contents(tmp_path / "image")
    monkeypatch.setattr(author, "COMMIT_OBJECTS", 10_000)
    make(tmp_path / "other", tmp_path / "folder")
    assert contents(tmp_path / "other") == found


def test_a_hole_of_a_tebibyte_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with (tmp_path / "folder" / "sparse").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"x")
    cells = [offset for entry in read_directory(str(tmp_path / "folder"), None) for offset, _ in entry.data()]
    assert cells == [1 << 39]
    assert (1 << 39) % CELL == 0
    image = make(tmp_path / "image", tmp_path / "folder")
    assert image.stat().st_size == MIB
