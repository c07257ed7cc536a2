"""`cowfs check` with its options: exit codes, what is written where, and what is not."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import pytest
from support import MIB, Outcome, Run, close_filesystem, new_device, open_filesystem

from cowfs.check import check_device
from cowfs.cli import program
from cowfs.errors import Corrupt
from cowfs.fs import Caller, Filesystem
from cowfs.ondisk import format as f
from cowfs.storage.device import FileDevice, MemoryDevice
from cowfs.storage.volume import Volume

ME = Caller()
CONTENTS = b"contents of the file " * 300


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `cowfs check`: (exit code, standard output, standard error)."""

    def call(*words: object) -> Outcome:
        code = program.run(["check", *(str(word) for word in words)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A volume with a file of two blocks, cleanly unmounted."""
    device = new_device(2 * MIB)
    fs = open_filesystem(device)
    fs.write(fs.create(f.ROOT_INODE, b"file", stat.S_IFREG | 0o644, ME).ino, 0, CONTENTS)
    close_filesystem(fs)
    path = tmp_path / "volume.img"
    path.write_bytes(device.image())
    return path


def damage(image: Path, old: bytes, new: bytes) -> None:
    """Changes bytes of the file's first block."""
    data = image.read_bytes()
    assert len(old) == len(new)
    image.write_bytes(data.replace(old, new, 1))


def contents(image: Path) -> bytes:
    """The file, as a mount reads it."""
    fs = Filesystem(Volume.open(MemoryDevice.from_image(image.read_bytes()), read_only=True))
    return fs.read(fs.lookup(f.ROOT_INODE, b"file").ino, 0, 1 << 20)


def one_line(outcome: Outcome, code: int, *parts: str) -> None:
    """The command failed with one line that has these parts."""
    assert outcome[0] == code
    assert outcome[1] == ""
    assert outcome[2].startswith("cowfs: ")
    assert len(outcome[2].splitlines()) == 1
    assert all(part in outcome[2] for part in parts), outcome[2]


def test_a_sound_volume_is_left_alone(run: Run, image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    for words in ([], ["--to", tmp_path / "new.img"], ["--dry-run"], ["--superblock", "1"]):
        code, out, err = run(image, "--repair", *words)
        assert (code, err) == (0, "")
        assert "clean" in out
    assert image.read_bytes() == before
    assert not (tmp_path / "new.img").exists()


def test_repair(run: Run, image: Path) -> None:
    damage(image, b"contents", b"contentr")  # one bit
    assert run(image)[0] == 4
    before = image.read_bytes()
    code, out, err = run(image, "--repair", "--dry-run")
    assert (code, err) == (4, "")
    assert "would be done: block" in out
    assert "would be clean" in out
    assert image.read_bytes() == before
    code, out, err = run(image, "--repair")
    assert (code, err) == (1, "")
    assert "done: block" in out
    assert "repaired: clean" in out
    assert contents(image) == CONTENTS
    assert run(image)[0] == 0
    assert run(image, "--repair")[0] == 0


def test_repair_to_a_new_image(run: Run, image: Path, tmp_path: Path) -> None:
    damage(image, b"contents", b"contantr")
    before = image.read_bytes()
    new = tmp_path / "new.img"
    code, out, err = run(image, "--repair", "--zero-bad-blocks", "--to", new)
    assert (code, err) == (1, "")
    assert "read as zeros" in out
    assert image.read_bytes() == before
    assert contents(new) == bytes(4096) + CONTENTS[4096:]
    assert run(new)[0] == 0
    one_line(run(image, "--repair", "--to", new), 8, str(new), "exists")


def test_lost_file_data_is_left_as_an_error(run: Run, image: Path) -> None:
    damage(image, b"contents", b"contantr")
    before = image.read_bytes()
    code, out, _ = run(image, "--repair")
    assert code == 4
    assert "210 checksum" in out
    assert image.read_bytes() == before
    with pytest.raises(Corrupt):
        contents(image)


def test_json(run: Run, image: Path) -> None:
    damage(image, b"contents", b"contantr")
    code, out, _ = run(image, "--repair", "--dry-run", "--zero-bad-blocks", "--json")
    reply = json.loads(out)
    assert code == 4
    assert not reply["clean"]
    assert reply["repair"]["dry_run"]
    assert not reply["repair"]["written"]
    assert reply["repair"]["actions"]
    assert reply["repair"]["left"]["clean"]
    code, out, _ = run(image, "--repair", "--zero-bad-blocks", "--json")
    assert code == 1
    assert json.loads(out)["repair"]["written"]


def test_the_other_slot(run: Run, image: Path) -> None:
    device = FileDevice.open(image, read_only=False)
    fs = Filesystem(Volume.open(device))
    fs.unlink(f.ROOT_INODE, b"file")
    fs.sync()
    device.close()  # as if killed: the other slot still has the file
    newest = check_device(MemoryDevice.from_image(image.read_bytes())).slot
    code, out, _ = run(image, "--superblock", 3 - newest)
    assert code == 0
    assert "1 files" in out
    code, out, _ = run(image, "--superblock", newest)
    assert "0 files" in out
    assert run(image, "--superblock", newest, "--repair")[0] == 0
    assert run(image, "--superblock", 3 - newest, "--repair", "--dry-run")[0] == 0
    code, out, _ = run(image, "--superblock", 3 - newest, "--repair")
    assert code == 1
    assert "back to commit" in out
    assert contents(image) == CONTENTS


@pytest.mark.parametrize("words", [["--dry-run"], ["--to", "x"], ["--zero-bad-blocks"]])
def test_options_of_a_repair_want_it(run: Run, image: Path, words: list[str]) -> None:
    one_line(run(image, *words), 2, "--repair")


def test_a_repair_wants_the_image_for_itself(
    run: Run, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cowfs.storage.device.LOCK_SECONDS", 0.1)
    damage(image, b"contents", b"contantr")
    device = FileDevice.open(image, read_only=True)
    device.lock(exclusive=False)
    try:
        one_line(run(image, "--repair"), 8, "in use")
        assert run(image, "--repair", "--dry-run")[0] == 4
        assert run(image, "--repair", "--zero-bad-blocks", "--to", tmp_path / "new.img")[0] == 1
    finally:
        device.close()


def test_what_is_no_volume(run: Run, tmp_path: Path) -> None:
    zeros = tmp_path / "zeros"
    zeros.write_bytes(bytes(2 << 20))
    one_line(run(zeros, "--repair"), 8, "not a cowfs or qnx6 volume")
    one_line(run(tmp_path / "missing", "--repair"), 8, "No such file")


def test_it_waits_for_who_is_just_leaving(run: Run, image: Path) -> None:
    """The mount is gone, the daemon not quite: it still has its lock."""
    daemon = FileDevice.open(image, read_only=False)
    daemon.lock(exclusive=True)
    leaving = threading.Timer(0.5, daemon.close)
    leaving.start()
    try:
        code, out, _ = run(image)
    finally:
        leaving.join()
    assert (code, "clean" in out) == (0, True)
