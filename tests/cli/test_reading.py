"""`cowfs ls`, `cat`, `extract`, `hash`, `timeline`: volumes read without a mount, and without a trace on the image."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from qnx6writer import LONG, Volume, directory, file, older_tree, sample_tree
from support import close_filesystem, new_device

from cowfs.cli import program
from cowfs.fs import Caller
from cowfs.fs.snapshot import Snapshots
from cowfs.storage.volume import Volume as Ours

Run = Callable[..., tuple[int, bytes, str]]

START = 64 * 512


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Runs the command: (exit code, standard output, standard error)."""

    def call(*words: object) -> tuple[int, bytes, str]:
        code = program.run([os.fsdecode(word) if isinstance(word, bytes) else str(word) for word in words])
        said = capfdbinary.readouterr()
        return code, said.out, said.err.decode()

    return call


@pytest.fixture(scope="module")
def contents() -> bytes:
    """A volume as QNX makes them."""
    return Volume(">", 1024).image(older_tree(), sample_tree(1024))


@pytest.fixture
def image(tmp_path: Path, contents: bytes) -> Path:
    path = tmp_path / "qnx.img"
    path.write_bytes(contents)
    return path


@pytest.fixture
def disk(tmp_path: Path, contents: bytes) -> Path:
    """A disk with the volume in its second partition."""
    path = tmp_path / "disk.img"
    table = bytearray(512)
    table[510:] = b"\x55\xaa"
    table[446 + 16 + 4] = 0xB2
    table[446 + 24 : 446 + 32] = (64).to_bytes(4, "little") + (len(contents) // 512).to_bytes(4, "little")
    path.write_bytes(bytes(table) + bytes(START - 512) + contents + bytes(4096))
    return path


def test_ls(run: Run, image: Path) -> None:
    code, out, err = run("ls", image)
    assert (code, err) == (0, "")
    names = out.decode().splitlines()
    assert names[0] == ".boot"
    assert "odd \\xff\\x0a\\\\name|" in names
    assert run("ls", image, "/small")[1] == b"small\n"
    assert run("ls", image, "-R", "directory")[1].decode().splitlines() == [
        "again",
        "deep",
        "deep/" + LONG.decode(),
        "deep/" + "n" * 510,
        "deep/" + "x" * 27,
    ]
    assert run("ls", "-l", image, "small")[1] == (
        b"-rwsr-xr-x    1    99     0           16 2097-08-05 09:04:00 small\n"
    )
    assert run("ls", "-l", image, "link")[1].decode().endswith(f" link -> directory/{'x' * 27}\n")
    code, out, err = run("ls", image, "nothing")
    assert (code, out, err) == (1, b"", "cowfs: there is no /nothing\n")


def test_ls_for_programs(run: Run, image: Path) -> None:
    entries = json.loads(run("ls", "--json", "-R", image)[1])
    by_path = {entry["path"]: entry for entry in entries}
    small = by_path["/small"]
    assert (small["type"], small["mode"], small["uid"], small["size"]) == ("file", "4755", 99, 16)
    assert small["mtime_ns"] == 0xF0000000 * 10**9
    assert by_path["/link"]["target"] == "directory/" + "x" * 27
    assert os.fsdecode(b"/odd \xff\n\\name|") in by_path
    assert json.loads(run("ls", "--json", image, ".boot")[1]) == []


def test_cat(run: Run, image: Path) -> None:
    large = sample_tree(1024).children[b"large"].data
    assert run("cat", image, "/large") == (0, large, "")
    assert run("cat", image, b"odd \xff\n\\name|")[1] == b"odd"
    assert run("cat", image, "small", "--superblock", "1")[1] == b"old"
    for path, text in (("link", "not followed"), ("directory", "Is a directory"), ("fifo", "not a regular file")):
        code, out, err = run("cat", image, path)
        assert (code, out) == (1, b"")
        assert text in err


def test_hash(run: Run, image: Path, tmp_path: Path) -> None:
    code, manifest, err = run("hash", "--manifest", image)
    assert (code, err) == (0, "")
    assert hashlib.sha256(b"sixteen bytes..\n").hexdigest().encode() + b"  small\n" in manifest
    assert run("hash", image)[1] == hashlib.sha256(manifest).hexdigest().encode() + b"\n"
    assert run("hash", image, "small")[1].split() == [
        hashlib.sha256(b"sixteen bytes..\n").hexdigest().encode(),
        b"small",
    ]
    md5 = hashlib.md5(b"sixteen bytes..\n").hexdigest()
    assert run("hash", "--algorithm", "md5", image, "small")[1] == f"{md5}  small\n".encode()
    assert run("hash", image, "fifo")[0] == 1
    code, _, err = run("extract", image, "many", tmp_path / "out")
    assert (code, err) == (0, "")
    manifest = run("hash", "--manifest", image, "many")[1]
    subprocess.run(["sha256sum", "--check", "--quiet"], cwd=tmp_path / "out", input=manifest, check=True)


def test_extract(run: Run, image: Path, tmp_path: Path) -> None:
    assert run("extract", image, "small", tmp_path / "one")[0] == 0
    assert (tmp_path / "one").read_bytes() == b"sixteen bytes..\n"
    assert run("extract", image, "--superblock", "1", tmp_path / "before")[0] == 0
    assert sorted(os.listdir(tmp_path / "before")) == [".boot", "before", "small"]
    code, _, err = run("extract", image, tmp_path / "before")
    assert code == 1
    assert "is not empty" in err
    assert run("extract", image, "a", "b", "c")[0] == 2


def test_timeline(run: Run, image: Path) -> None:
    code, out, err = run("timeline", image, "directory")
    assert (code, err) == (0, "")
    names = [line.split("|")[1] for line in out.decode().splitlines()]
    assert names[:2] == ["/directory", "/directory/again"]


def test_offsets_and_partitions(run: Run, disk: Path, tmp_path: Path) -> None:
    code, _, err = run("ls", disk)
    assert code == 1
    assert f"choose a partition: partition 2 at byte {START}" in err
    assert err.count("\n") == 1
    assert run("info", disk)[1].decode().startswith(f"partition 2 at byte {START}, ")
    assert json.loads(run("info", "--json", disk)[1])["partitions"][0]["holds"] == "a qnx6 volume"
    for where in (("--partition", 2), ("--offset", START)):
        assert run("cat", *where, disk, "small")[1] == b"sixteen bytes..\n"
        assert b"big-endian" in run("info", *where, disk)[1]
        assert b"clean" in run("check", *where, disk)[1]
        assert b"commit 2" in run("dump", *where, disk, "slots")[1]
        assert run("ls", *where, "--superblock", 1, disk)[1] == b".boot\nbefore\nsmall\n"
    assert b"commit:    1" in run("info", "--superblock", 1, "--partition", 2, disk)[1]
    for words, code in (
        (("ls", "--partition", 2, "--offset", START, disk), 2),
        (("ls", "--partition", 1, disk), 1),
        (("check", "--repair", "--partition", 2, disk), 2),
        (("check", "--partition", 1, disk), 8),
    ):
        assert run(*words)[0] == code, words


def test_snapshots_of_a_volume_of_ours(run: Run, tmp_path: Path, image: Path) -> None:
    device = new_device()
    volume = Ours.open(device)
    snapshots = Snapshots(volume)
    filesystem = snapshots.live
    number = filesystem.create(1, b"file", 0o644, Caller()).ino
    filesystem.write(number, 0, b"before")
    snapshots.create(b"kept")
    filesystem.write(number, 0, b"after.")
    close_filesystem(filesystem)
    path = tmp_path / "ours.img"
    path.write_bytes(device.image())
    assert run("cat", path, "file")[1] == b"after."
    assert run("cat", path, "file", "--snapshot", "kept")[1] == b"before"
    code, _, err = run("cat", path, "file", "--snapshot", "other")
    assert (code, err) == (1, "cowfs: there is no snapshot other\n")
    assert run("ls", image, "--snapshot", "kept")[0] == 1


def test_damage_is_reported_and_passed_over(run: Run, tmp_path: Path) -> None:
    tree = directory({b"bad\x1b": file(b"x", 0o644, levels=1), b"good": file(b"fine")})
    volume = Volume("<", 512)
    raw = bytearray(volume.image(older_tree(), tree))
    for number, data in volume.contents.items():
        if data.startswith(b"\xff" * 4) or data[4:] == b"\xff" * 508:  # the indirect block of "bad"
            at = volume.start + number * 512
            raw[at : at + 4] = b"\x00\x00\x00\x77"
    path = tmp_path / "damaged.img"
    path.write_bytes(raw)
    code, out, err = run("hash", "--manifest", path)
    assert code == 1
    assert out == hashlib.sha256(b"fine").hexdigest().encode() + b"  good\n"
    assert err.startswith("cowfs: /bad\\x1b: block 1996488704: pointer beyond the end of the volume")
    code, out, err = run("hash", path)
    assert (code, out) == (1, b"")
    code, _, err = run("extract", path, tmp_path / "out")
    assert code == 1
    assert "1 bytes cannot be read and are zeros" in err
    assert (tmp_path / "out" / "good").read_bytes() == b"fine"


@pytest.mark.parametrize(
    "words", [["ls", "-lR"], ["hash"], ["timeline"], ["info"], ["check"], ["dump"], ["cat"], ["extract"]]
)
def test_the_image_is_not_touched(
    words: list[str], run: Run, image: Path, contents: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened for reading only, without an access time; nothing is called that could change it; no file beside it."""
    flags: list[int] = []
    really_open = os.open

    def recorded(path: str, how: int, *more: int, **options: int | None) -> int:
        if os.fspath(path) == str(image):
            flags.append(how)
        return really_open(path, how, *more, **options)

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("something that writes was called")

    os.chmod(image, 0o400)
    os.utime(image, ns=(1_000_000_000, 2_000_000_000))
    before, digest = os.stat(image), hashlib.sha256(contents).digest()
    more = {"cat": ["small"], "extract": ["small", tmp_path / "copy"]}.get(words[0], [])
    with monkeypatch.context() as watched:
        watched.setattr(os, "open", recorded)
        for name in ("pwritev", "ftruncate", "fdatasync", "fsync", "posix_fallocate"):
            if words != ["extract"] or name != "ftruncate":  # which ends the file that is made
                watched.setattr(os, name, refused)
        assert run(*words, image, *more)[0] == 0
    after = os.stat(image)
    assert flags and all(how & os.O_ACCMODE == os.O_RDONLY and how & os.O_NOATIME for how in flags)
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
    assert after.st_atime_ns == 1_000_000_000
    assert hashlib.sha256(image.read_bytes()).digest() == digest
    assert {path.name for path in tmp_path.iterdir()} <= {"qnx.img", "copy"}


def test_an_image_that_is_being_written_is_left_alone(run: Run, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cowfs.storage.device.LOCK_SECONDS", 0.1)
    with open(image, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        code, _, err = run("ls", image)
        assert code == 1
        assert "is in use by process" in err or "is in use" in err
        fcntl.flock(other, fcntl.LOCK_SH)
        assert run("ls", image)[0] == 0
