"""The `cowfs` command without a mount: words, output, exit codes, and one line for each failure."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import click
import pytest
from support import Outcome, Run

from cowfs import __version__, control, is_compiled
from cowfs.cli import program
from cowfs.cli.output import printable, size_text, time_text
from cowfs.control import commands
from cowfs.control.host import Offline
from cowfs.errors import CowfsError, Exists, InvalidArgument
from cowfs.fs import Caller, Filesystem
from cowfs.fuse import mounts
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c, qnx_crc
from cowfs.ondisk.geometry import geometry_for_size
from cowfs.storage.device import FileDevice
from cowfs.storage.mkvolume import make_volume
from cowfs.storage.volume import Volume

COMMANDS = (
    "cat",
    "check",
    "clone",
    "crashtest",
    "df",
    "diff",
    "du",
    "dump",
    "extract",
    "hash",
    "info",
    "ls",
    "merge",
    "mount",
    "policy",
    "rebase",
    "reset",
    "resize",
    "rollback",
    "scrub",
    "seal",
    "snapshot",
    "sync",
    "timeline",
    "trim",
    "umount",
    "unseal",
)
UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A volume of 2 MiB with one file."""
    path = tmp_path / "volume.img"
    geometry = geometry_for_size(2 << 20, 4096)
    device = FileDevice.create(path, geometry.end)
    make_volume(device, geometry, label=b"backup", uuid=UUID.bytes, now_ns=time.time_ns())
    volume = Volume.open(device)
    filesystem = Filesystem(volume)
    inode = filesystem.create(1, b"file", 0o644, Caller())
    filesystem.write(inode.ino, 0, b"contents")
    filesystem.close()
    volume.close()
    return path


def one_line(outcome: Outcome, code: int, *parts: str) -> None:
    """The outcome is a failure told in one line."""
    found, out, err = outcome
    assert (found, out) == (code, "")
    assert len(err.splitlines()) == 1, err
    assert err.startswith("cowfs: ")
    for part in parts:
        assert part in err


def test_help_and_version(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in out
        code, text, _ = run(name, "--help")
        assert code == 0
        assert text.startswith(f"Usage: cowfs {name}")
    assert run("--version") == (0, f"cowfs {__version__}{' (compiled)' if is_compiled() else ''}\n", "")


def test_every_command_is_listed(run: Run) -> None:
    assert program.COMMANDS == COMMANDS
    for name in COMMANDS:
        command = program.command_named(name)
        assert command is not None
        assert command.name == name
    assert isinstance(program.program, click.Group)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["nonsense", "more", "words"], "No such command 'nonsense'"),
        (["--nonsense"], "No such option"),
        (["info"], "Missing argument"),
        (["info", "a", "b"], "unexpected extra argument"),
        (["mount", "image"], "Missing argument 'MNT'"),
        (["mount", "a", "b", "--superblock", "3"], "--superblock"),
        (["check", "--fix", "a"], "No such option"),
    ],
)
def test_wrong_usage_is_one_line_and_two(run: Run, words: list[str], message: str) -> None:
    one_line(run(*words), 2, message, "--help")


def test_without_words_it_helps(run: Run) -> None:
    code, out, err = run()
    assert code == 2
    assert out == ""
    assert "Usage: cowfs" in err


def test_info(run: Run, image: Path) -> None:
    code, out, err = run("info", image)
    assert (code, err) == (0, "")
    assert str(image) in out
    assert str(UUID) in out
    assert "backup" in out
    assert "no" in out.split("mounted:")[1]
    code, out, _ = run("info", image, "--json")
    reply = json.loads(out)
    assert code == 0
    assert reply["image"] == str(image)
    assert reply["uuid"] == str(UUID)
    assert reply["label"] == "backup"
    assert reply["kind"] == "cowfs"
    assert reply["block_size"] == 4096
    assert 0 < reply["available"] < reply["free"] < reply["size"] <= 2 << 20
    assert reply["mount"] is None
    assert reply["notes"] == []


def test_check(run: Run, image: Path) -> None:
    code, out, err = run("check", image)
    assert (code, err) == (0, "")
    assert "clean" in out
    code, out, _ = run("check", image, "--json")
    assert code == 0
    assert json.loads(out)["clean"] is True


def test_check_of_a_damaged_volume(run: Run, image: Path) -> None:
    data = bytearray(image.read_bytes())
    data[data.index(b"contents")] ^= 1
    image.write_bytes(data)
    code, out, err = run("check", image)
    assert (code, err) == (4, "")
    assert "checksum" in out
    code, out, _ = run("check", image, "--json")
    assert code == 4
    assert json.loads(out)["problems"]


def test_dump(run: Run, image: Path) -> None:
    for words in ([], ["superblock"], ["slots"], ["inode", "1"], ["directory", "1"], ["tree", "inodes"], ["bitmap"]):
        code, out, err = run("dump", image, *words)
        assert (code, err) == (0, ""), words
        assert out
    assert "file" in run("dump", image, "directory", "1")[1]
    first, second = (run("dump", image, "--superblock", slot)[1] for slot in (1, 2))
    assert first != second
    one_line(run("dump", image, "nonsense"), 1, "nonsense")
    one_line(run("dump", image, "inode", "-1"), 1)
    one_line(run("dump", image, "inode"), 1)


def test_all_of_it_works_on_a_read_only_file_and_changes_nothing(run: Run, image: Path) -> None:
    before = image.read_bytes(), image.stat().st_mtime_ns
    os.chmod(image, 0o444)
    for words in (["info", image], ["check", image], ["dump", image]):
        assert run(*words)[0] == 0
    assert (image.read_bytes(), image.stat().st_mtime_ns) == before


def test_an_image_in_use_is_left_alone(run: Run, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cowfs.storage.device.LOCK_SECONDS", 0.1)
    device = FileDevice.open(image, read_only=False)
    device.lock(exclusive=True)
    try:
        one_line(run("info", image), 1, str(image), "in use")
        one_line(run("check", image), 8, str(image), "in use")
        one_line(run("dump", image), 1, str(image), "in use")
    finally:
        device.close()


# Bad input


@pytest.mark.parametrize(("command", "code"), [("info", 1), ("check", 8), ("dump", 1)])
def test_what_is_no_volume(run: Run, tmp_path: Path, command: str, code: int) -> None:
    missing = tmp_path / "missing"
    one_line(run(command, missing), code, str(missing), "No such file or directory")
    empty = tmp_path / "empty"
    empty.touch()
    zeros = tmp_path / "zeros"
    zeros.write_bytes(bytes(2 << 20))
    if command != "check":
        one_line(run(command, empty), code, str(empty))
        one_line(run(command, zeros), code, str(zeros))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    one_line(run(command, fifo), code, "neither a regular file nor a block device")


def test_check_of_what_is_no_volume(run: Run, tmp_path: Path) -> None:
    zeros = tmp_path / "zeros"
    zeros.write_bytes(bytes(2 << 20))
    code, out, err = run("check", zeros)
    assert code in (4, 8)
    assert len((out + err).splitlines()) >= 1


def test_a_directory_that_is_no_mount(run: Run, tmp_path: Path) -> None:
    one_line(run("info", tmp_path), 1, str(tmp_path), "does not lie in a mounted cowfs volume")
    one_line(run("sync", tmp_path), 1, str(tmp_path), "does not lie in a mounted cowfs volume")
    one_line(run("umount", tmp_path), 1, str(tmp_path), "is not the mount point of a cowfs volume")
    one_line(run("umount", tmp_path / "missing"), 1, "is not the mount point")


def test_an_image_smaller_than_its_superblock_says(run: Run, image: Path) -> None:
    os.truncate(image, 1 << 20)
    one_line(run("info", image), 1, str(image))
    code, out, _ = run("check", image)
    assert code == 4
    assert "truncated" in out


def test_unknown_features(run: Run, image: Path) -> None:
    set_feature(image, "read_only_compatible")
    assert run("info", image)[0] == 0
    set_feature(image, "incompatible")
    one_line(run("info", image), 1, "feature")


def set_feature(image: Path, word: str) -> None:
    """Sets a bit that nobody knows, in both slots, with right checksums."""
    data = bytearray(image.read_bytes())
    position = {item.name: item.offset for item in f.Extension.LAYOUT}[word]
    for slot in (0x2000, len(data) - f.SLOT_AREA_SIZE):
        area = slot + f.EXTENSION_OFFSET
        data[area + position + 7] |= 0x40
        anchor = f.Anchor.unpack(data, slot + f.ANCHOR_OFFSET)
        anchor.checksum = crc32c(bytes(data[area : area + f.EXTENSION_SIZE]))
        data[slot + f.ANCHOR_OFFSET : slot + f.RECORD_SIZE] = anchor.pack()
        record = f.Superblock.unpack(data, slot)
        record.checksum = qnx_crc(data[slot + f.CRC_START : slot + f.RECORD_SIZE])
        data[slot : slot + f.RECORD_SIZE] = record.pack()
    image.write_bytes(data)


# The program


def test_it_runs_as_a_module_and_survives_a_reader_that_leaves(image: Path) -> None:
    root = Path(__file__).resolve().parent.parent.parent
    with subprocess.Popen(
        [sys.executable, "-m", "cowfs", "dump", str(image), "block", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=root,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(30) in (0, 1)


def test_the_quick_commands_import_neither_trio_nor_pyfuse3() -> None:
    root = Path(__file__).resolve().parent.parent.parent
    code = "import sys, cowfs.cli; print([name for name in ('trio', 'pyfuse3', 'crc32c') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert result.stdout == "[]\n"


def test_texts() -> None:
    assert size_text(1000) == "1000 bytes"
    assert size_text(3 << 20) == "3.0 MiB (3145728 bytes)"
    assert size_text(5 << 50) == "5120.0 TiB (5629499534213120 bytes)"
    assert time_text(0) == "1970-01-01 00:00:00 UTC"
    assert printable("a\udcffb") == "a\\udcffb"


# The command set


def test_text_and_json_say_the_same() -> None:
    assert control.parse(b"sync") == control.parse(b"sync\n") == control.parse(b'{"command": ["sync"]}')
    assert control.parse(b"a 'b c' --d=e --f -- --g\n") == control.Command(("a", "b c", "--g"), {"d": "e", "f": True})
    command = control.Command(("a", "--b", "c d", "\udcff"), {"e": "f", "g": True})
    assert control.parse(command.to_json()) == command
    assert control.parse(b"\xff").words == ("\udcff",)


@pytest.mark.parametrize("data", [b"", b"\n", b"  ", b"'", b"{}", b"[]x{", b'{"command": []}', b'{"command": [1]}'])
def test_what_is_no_command(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        commands.run(control.parse(data), Offline(None))  # type: ignore[arg-type]


def test_offline_commands(image: Path) -> None:
    device = FileDevice.open(image, read_only=False)
    volume = Volume.open(device)
    filesystem = Filesystem(volume)
    filesystem.create(1, b"new", 0o644, Caller())
    host = Offline(filesystem)
    serial = commands.run(control.INFO, host)["serial"]
    assert commands.run(control.Command(("sync",)), host) == {"serial": serial + 1}
    assert not volume.dirty
    volume.close()


def test_a_failure_as_json() -> None:
    reply = control.failure(Exists("there is one"))
    assert reply == {"error": {"errno": "EEXIST", "code": errno.EEXIST, "message": "there is one"}}
    assert control.encode_reply(reply).endswith(b"}\n")
    error = control.CommandFailed(errno.ENOSPC, "full")
    assert isinstance(error, CowfsError)
    assert (error.errno, str(error)) == (errno.ENOSPC, "full")


# The kernel's list of mounts


def test_the_list_of_mounts_is_read_right(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listed = tmp_path / "mountinfo"
    monkeypatch.setattr(mounts, "MOUNTINFO", str(listed))
    listed.write_text(
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n"
        r"40 22 0:38 / /mnt/a\040b\134 rw,nosuid master:3 - fuse.cowfs /srv/v\0541\011.img rw,user_id=0" + "\n"
        "41 22 0:39 / /mnt/other rw - fuse.sshfs host: rw\n"
        "42 40 0:40 / /mnt/a\\040b\\134/in rw - tmpfs none rw\n"
        "nonsense\n"
    )
    root, first, other, inner = mounts.mounts()
    assert first == mounts.Mount("/mnt/a b\\", "fuse.cowfs", "/srv/v,1\t.img", os.makedev(0, 38))
    assert mounts.at("/mnt/a b\\") == first
    assert mounts.at("/mnt/a b\\/x") is None
    assert mounts.containing("/mnt/a b\\/x/y") == first
    assert mounts.containing("/mnt/a b\\/in/y") is None
    assert mounts.containing("/mnt/other/x") is None
    assert mounts.of_image("/srv/v,1\t.img") == [first]
    assert not other.is_cowfs
    assert (root.mountpoint, inner.type) == ("/", "tmpfs")
