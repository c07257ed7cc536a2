"""`mkcowfs`: what it makes, what it refuses, and that every refusal is one line with the right exit code."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import UUID

import click
import pytest

import mkcowfs.cli
import mkcowfs.recognise
from cowfs import __version__
from cowfs.check import check_image
from cowfs.errors import DeviceError
from cowfs.fs import Filesystem
from cowfs.ondisk.format import ROOT_INODE
from cowfs.ondisk.records import Buffer
from cowfs.storage.device import FileDevice
from cowfs.storage.superblock import read_slots
from cowfs.storage.volume import Volume
from mkcowfs.cli import parse_size, run

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20
VOLUME_ID = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "image"


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[str]:
    """A block device of 4 MiB; its file is tmp_path/"loop"."""
    if os.geteuid() != 0:
        pytest.skip("a loop device needs root")
    (tmp_path / "loop").write_bytes(bytes(4 * MIB))
    found = subprocess.run(
        ["losetup", "--find", "--show", tmp_path / "loop"], capture_output=True, text=True, check=False
    )
    if found.returncode:
        pytest.skip(f"no loop device: {found.stderr.strip()}")
    yield found.stdout.strip()
    subprocess.run(["losetup", "--detach", found.stdout.strip()], check=True)


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """Runs the command, which must fail with `code` and one line on standard error; returns that line."""
    capsys.readouterr()
    assert run([str(argument) for argument in arguments]) == code
    output = capsys.readouterr()
    assert output.out == ""
    lines = output.err.splitlines()
    assert len(lines) == 1, output.err
    assert lines[0].startswith("mkcowfs: ")
    return lines[0].removeprefix("mkcowfs: ")


def make_ext4(path: Path, size: int = 4 * MIB) -> None:
    program = shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if program is None:
        pytest.skip("there is no mkfs.ext4")
    with path.open("wb") as file:
        file.truncate(size)
    subprocess.run([program, "-q", "-F", path], check=True)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1K", 1024),
        ("64k", 65536),
        ("1M", MIB),
        ("512MiB", 512 * MIB),
        ("4G", 4 << 30),
        ("4GB", 4 << 30),
        ("2T", 2 << 40),
        (" 1KiB ", 1024),
    ],
)
def test_sizes(text: str, wanted: int) -> None:
    assert parse_size(text) == wanted


@pytest.mark.parametrize("text", ["", "G", "-1", "1.5G", "4X", "4KiBs", "4i", "0x10", "1 G", "٤G", "4P"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


def test_a_new_image(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([str(image), "--size", "1M", "--uuid", VOLUME_ID, "--label", "größer", "--json"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    made = json.loads(output.out)
    slots = read_slots(FileDevice.open(image, read_only=True))
    assert slots.notes == []
    superblock, extension = slots.newest.superblock, slots.newest.extension
    assert extension is not None
    assert extension.label == "größer".encode().ljust(64, b"\0")
    assert superblock.volume_id == UUID(VOLUME_ID).bytes
    assert made == {
        "image": str(image),
        "size": MIB,
        "block_size": 4096,
        "blocks": 252,
        "free_blocks": superblock.free_blocks,
        "uuid": VOLUME_ID,
        "label": "größer",
    }
    assert 200 < superblock.free_blocks < 252
    assert image.stat().st_size == MIB
    assert image.stat().st_blocks * 512 < MIB // 2


@pytest.mark.parametrize("block_size", [512, 1024, 2048, 4096])
def test_text_output_and_block_sizes(image: Path, capsys: pytest.CaptureFixture[str], block_size: int) -> None:
    assert run([str(image), "--size", "2M", "--block-size", str(block_size), "--label", "L"]) == 0
    output = capsys.readouterr()
    device = FileDevice.open(image, read_only=True)
    check_image(device)
    superblock = read_slots(device).newest.superblock
    assert superblock.block_size == block_size
    assert output.out == (
        f"{image}: {2 * MIB} bytes, {superblock.num_blocks} blocks of {block_size} bytes, "
        f"{superblock.free_blocks} free, UUID {UUID(bytes=superblock.volume_id)}, label L\n"
    )
    assert superblock.num_blocks == (2 * MIB - 0x4000) // block_size


def test_an_odd_size_ends_with_the_volume(image: Path) -> None:
    assert run([str(image), "--size", str(MIB + 5000)]) == 0
    assert image.stat().st_size == MIB + 4096


def test_uuids_differ_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = set()
    for name in ("a", "b"):
        assert run([str(tmp_path / name), "--size", "1M", "--json"]) == 0
        found.add(json.loads(capsys.readouterr().out)["uuid"])
    assert len(found) == 2


def test_preallocated(image: Path) -> None:
    assert run([str(image), "--size", "1M", "--preallocate"]) == 0
    assert image.stat().st_blocks * 512 >= MIB
    assert run([str(image), "--force"]) == 0
    assert image.stat().st_blocks * 512 < MIB // 2
    assert run([str(image), "--force", "--preallocate"]) == 0
    assert image.stat().st_blocks * 512 >= MIB


def test_the_time_of_making(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1234567890")
    for name in ("a", "b"):
        assert run([str(tmp_path / name), "--size", "1M", "--uuid", VOLUME_ID]) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_slots(FileDevice.open(tmp_path / "a", read_only=True)).newest.superblock.ctime == 1234567890
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    assert refused(capsys, 1, tmp_path / "c", "--size", "1M") == (
        "SOURCE_DATE_EPOCH is 'yesterday', which is not a number of seconds since 1970"
    )
    assert not (tmp_path / "c").exists()


def test_the_root_is_empty_and_belongs_to_who_made_it(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    monkeypatch.setattr(os, "getgid", lambda: 5678)
    assert run([str(image), "--size", "1M"]) == 0
    check_image(FileDevice.open(image, read_only=True))
    filesystem = Filesystem(Volume.open(FileDevice.open(image, read_only=True), read_only=True))
    root = filesystem.getattr(ROOT_INODE)
    assert (root.uid, root.gid, root.mode, root.links) == (1234, 5678, stat.S_IFDIR | 0o755, 2)
    assert [name for _, name, _, _ in filesystem.listing(ROOT_INODE).entries()] == [b".", b".."]


def writes_of_making(image: Path, size: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes a volume; returns the length of each device write."""
    lengths: list[int] = []
    write = FileDevice.write

    def counting(device: FileDevice, offset: int, pieces: Sequence[Buffer]) -> None:
        lengths.append(sum(map(len, pieces)))
        write(device, offset, pieces)

    with monkeypatch.context() as patch:
        patch.setattr(FileDevice, "write", counting)
        assert run([str(image), "--size", size]) == 0
    return lengths


def test_four_tebibytes_are_a_few_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = writes_of_making(tmp_path / "small", "64M", monkeypatch)
    large = writes_of_making(tmp_path / "large", "4T", monkeypatch)
    assert 0 < len(large) <= len(small) + 16
    assert sum(large) <= sum(small) + MIB // 2
    assert (tmp_path / "large").stat().st_size == 4 << 40
    assert (tmp_path / "large").stat().st_blocks * 512 < 2 * MIB


def test_an_existing_file(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image.write_bytes(b"")
    assert refused(capsys, 1, image) == f"{image} is empty: its volume needs --size"
    assert run([str(image), "--size", "1M"]) == 0
    image.write_bytes(os.urandom(64) * (MIB // 32))
    assert refused(capsys, 1, image, "--size", "4M") == (
        f"{image} exists and has {2 * MIB} bytes: --force makes it {4 * MIB} bytes long"
    )
    assert run([str(image)]) == 0
    assert image.stat().st_size == 2 * MIB
    image.write_bytes(bytes(MIB))
    assert run([str(image), "--size", "1M"]) == 0
    image.write_bytes(b"x" * MIB)
    assert run([str(image), "--size", "4M", "--force"]) == 0
    assert image.stat().st_size == 4 * MIB
    assert b"xxxx" not in image.read_bytes()
    image.write_bytes(b"x" * 4096)
    assert refused(capsys, 1, image) == f"{image}: a volume needs at least {MIB} bytes, 4096 is too small"
    assert image.read_bytes() == b"x" * 4096


def test_a_volume_of_ours_needs_force(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([str(image), "--size", "1M", "--uuid", VOLUME_ID]) == 0
    before = image.read_bytes()
    wanted = f"{image} contains a cowfs volume (UUID {VOLUME_ID}): --force overwrites it"
    assert refused(capsys, 1, image) == wanted
    with image.open("r+b") as file:
        file.seek(0x2000)
        file.write(bytes(512))
    assert refused(capsys, 1, image) == wanted, "slot 2 tells, too"
    with image.open("r+b") as file:
        file.seek(0x2100)
        file.write(b"torn")
        file.seek(MIB - 0x1000 + 0x100)
        file.write(b"torn")
        file.seek(0x2000)
        file.write(before[0x2000:0x2100])
    assert refused(capsys, 1, image) == f"{image} contains a damaged cowfs or qnx6 volume: --force overwrites it"
    assert run([str(image), "--force"]) == 0
    assert image.read_bytes() != before


@pytest.mark.parametrize("order", ["little", "big"])
def test_a_foreign_volume_needs_force(image: Path, capsys: pytest.CaptureFixture[str], order: str) -> None:
    magic = bytes.fromhex("68191122")
    data = bytearray(2 * MIB)
    data[0x2000:0x2004] = magic if order == "big" else magic[::-1]
    image.write_bytes(data)
    assert refused(capsys, 1, image) == f"{image} contains a damaged cowfs or qnx6 volume: --force overwrites it"
    assert image.read_bytes() == data


def test_another_filesystem_needs_force(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_ext4(image)
    before = image.read_bytes()
    assert refused(capsys, 1, image) == f"{image} contains a volume of type ext4 (filesystem): --force overwrites it"
    assert image.read_bytes() == before
    assert run([str(image), "--force"]) == 0
    assert refused(capsys, 1, image).startswith(f"{image} contains a cowfs volume")


def test_a_partition_table_needs_force(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(2 * MIB)
    data[446:462] = bytes.fromhex("00 000200 83 000000 01000000 ff0f0000")
    data[510:512] = b"\x55\xaa"
    image.write_bytes(data)
    assert refused(capsys, 1, image) == f"{image} contains a partition table of type dos: --force overwrites it"


def test_without_blkid(image: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    make_ext4(image)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert run([str(image)]) == 0
    assert capsys.readouterr().err == (
        "mkcowfs: blkid is not installed, so only cowfs and qnx6 volumes were looked for\n"
    )
    assert refused(capsys, 1, image).endswith("--force overwrites it")


@pytest.mark.parametrize(
    ("code", "text", "what", "note"),
    [
        (0, "USAGE=crypto\nTYPE=crypto_LUKS", "a volume of type crypto_LUKS (encrypted volume)", False),
        (0, "TYPE=swap\nUSAGE=other", "a volume of type swap (not a filesystem)", False),
        (0, "DEVNAME=x", "", False),
        (2, "", "", False),
        (8, "", "signatures of several filesystems", False),
        (4, "", "", True),
    ],
)
def test_what_blkid_says(image: Path, code: int, text: str, what: str, *, note: bool) -> None:
    tmp_path = image.parent
    (tmp_path / "blkid").write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n")
    (tmp_path / "blkid").chmod(0o755)
    image.write_bytes(bytes(MIB))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        contents = mkcowfs.recognise.recognise(FileDevice.open(image, read_only=True))
    assert contents.what == what
    assert bool(contents.note) == note


@pytest.mark.parametrize("kind", [fcntl.LOCK_SH, fcntl.LOCK_EX])
def test_a_mounted_image_is_never_touched(
    image: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    assert run([str(image), "--size", "1M"]) == 0
    before = image.read_bytes()
    monkeypatch.setattr(mkcowfs.cli, "_LOCK_SECONDS", 0.0)
    with image.open("rb") as user:
        fcntl.flock(user, kind)
        assert refused(capsys, 1, image, "--force") == f"{image} is in use"
    assert image.read_bytes() == before


def test_block_device(loop_device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "loop"
    make_ext4(file)
    loop = [loop_device]
    assert refused(capsys, 1, *loop).startswith(f"{loop_device} contains a volume of type ext4")
    assert (
        refused(capsys, 1, *loop, "--size", "5M")
        == f"{loop_device} has only {4 * MIB} bytes, and --size says {5 * MIB}"
    )
    assert refused(capsys, 1, file, "--force") == f"{file} is in use: it is attached to {loop_device}"
    assert run([*loop, "--force", "--preallocate"]) == 0
    assert read_slots(FileDevice.open(loop_device, read_only=True)).newest.geometry.end == 4 * MIB
    assert refused(capsys, 1, *loop).startswith(f"{loop_device} contains a cowfs volume")
    assert run([*loop, "--force", "--size", "2M"]) == 0
    assert read_slots(FileDevice.open(loop_device, read_only=True)).newest.geometry.end == 2 * MIB


def test_a_claimed_block_device_is_never_touched(
    loop_device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mkcowfs.cli, "_LOCK_SECONDS", 0.0)
    claim = os.open(loop_device, os.O_RDONLY | os.O_EXCL)  # what a kernel filesystem does when it is mounted
    assert refused(capsys, 1, loop_device, "--force") == f"{loop_device} is mounted or in use"
    os.close(claim)
    assert (tmp_path / "loop").read_bytes() == bytes(4 * MIB)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], "Missing argument 'IMAGE'."),
        (["--size", "1K"], f"--size: a volume needs at least {MIB} bytes, 1024 is too small"),
        (["--size", "99999T"], "is too large"),
        (["--size", "4T", "--block-size", "512"], "is too large"),
        (["--size", "lots"], "'lots' is not a size"),
        (["--size", "1M", "--block-size", "3000"], "'3000' is not one of '512', '1024', '2048', '4096'"),
        (["--size", "1M", "--uuid", "nil"], "'nil' is not a UUID"),
        (["--size", "1M", "--label", "ß" * 33], "a label has at most 64 bytes, this one has 66"),
        (["--size", "1M", "--label", "a\nb"], "a label is UTF-8 text without control characters"),
        (["--size", "1M", "--label", "\udcff"], "a label is UTF-8 text without control characters"),
        (["--size", "1M", "--unknown"], "--unknown"),
        (["--size", "1M", "extra"], "unexpected extra argument"),
    ],
)
def test_a_wrong_command_line(
    image: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], wanted: str
) -> None:
    where = [str(image)] if arguments else []
    line = refused(capsys, 2, *where, *arguments)
    assert wanted in line
    assert line.endswith("(mkcowfs --help tells more)")
    assert not image.exists()


def test_what_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "missing" / "image"
    assert refused(capsys, 1, tmp_path / "image") == f"{tmp_path}/image does not exist: a new image needs --size"
    assert refused(capsys, 1, image, "--size", "1M") == (
        f"{image}: cannot create it: No such file or directory (ENOENT)"
    )
    assert refused(capsys, 1, tmp_path, "--size", "1M") == f"{tmp_path} is neither a regular file nor a block device"
    (tmp_path / "link").symlink_to("nowhere")
    assert refused(capsys, 1, tmp_path / "link", "--size", "1M") == (
        f"{tmp_path}/link cannot be made: the name is taken"
    )
    strange = tmp_path / "a\nb\udcff"
    assert refused(capsys, 1, strange) == f"{tmp_path}/a�b� does not exist: a new image needs --size"


@pytest.mark.parametrize("error", [DeviceError("no space"), KeyboardInterrupt(), OSError(errno.ENOMEM, "no memory")])
def test_a_failure_leaves_no_new_file(
    image: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(mkcowfs.cli, "make_volume", fail)
    code = run([str(image), "--size", "1M"])
    assert code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert capsys.readouterr().err.strip().splitlines()[0].startswith("mkcowfs: ")
    assert not image.exists()
    image.write_bytes(b"")
    run([str(image), "--size", "1M"])
    assert image.exists(), "it was not ours"


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"mkcowfs {__version__}\n"
    assert run(["--help"]) == 0
    help_text = capsys.readouterr().out
    assert help_text.startswith("Usage: mkcowfs [OPTIONS] IMAGE\n")
    assert all(option in help_text for option in ("--size", "--block-size", "--label", "--uuid", "--preallocate"))
    assert isinstance(mkcowfs.cli.command, click.Command)


def test_as_a_program(image: Path) -> None:
    program = [sys.executable, "-m", "mkcowfs", str(image)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*program, *arguments], env=environment, capture_output=True, text=True, check=False)

    made = call("--size", "4T", "--json")
    assert (made.returncode, made.stderr) == (0, "")
    assert json.loads(made.stdout)["blocks"] == (4 << 40) // 4096 - 4
    again = call()
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.startswith(f"mkcowfs: {image} contains a cowfs volume")
    assert call("--size", "none").returncode == 2
    with open("/dev/full", "w") as full:
        refused = subprocess.run(
            [*program, "--force"], env=environment, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert refused.returncode == 1
    assert refused.stderr == b"mkcowfs: output: No space left on device\n"
