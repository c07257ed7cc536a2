"""Overlays by the commands: made, looked at, checked, reset, moved with their base; and what is refused, in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from support import Run

from cowfs.check import check_image
from cowfs.errors import Busy, CowfsError
from cowfs.fs import Caller
from cowfs.fs.snapshot import Snapshots
from cowfs.ondisk import format as f
from cowfs.storage.device import Device, FileDevice
from cowfs.storage.overlay import is_settled, open_layers, set_base_path
from cowfs.storage.superblock import build_slot, read_slots
from cowfs.storage.volume import Volume
from mkcowfs import cli as mkcowfs

MIB = 1 << 20


def made(*words: object) -> int:
    """Runs mkcowfs."""
    return mkcowfs.run([str(word) for word in words])


def write(image: Path, files: dict[bytes, bytes], *, snapshot: bytes | None = None) -> None:
    """Writes files into a volume, with its layers, and unmounts."""
    device = open_layers(FileDevice.open(image, read_only=False))
    snapshots = Snapshots(Volume.open(device))
    for name, data in files.items():
        ino = snapshots.live.create(f.ROOT_INODE, name, 0o100644, Caller(os.getuid(), os.getgid())).ino
        snapshots.live.write(ino, 0, data)
    if snapshot is not None:
        snapshots.create(snapshot)
    snapshots.close()
    device.close()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base with a file."""
    path = tmp_path / "base.img"
    assert made(path, "--size", "8M", "--label", "the base") == 0
    write(path, {b"old": b"of the base\n"})
    return path


@pytest.fixture
def overlay(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """An overlay on it with another file, and a snapshot."""
    path = tmp_path / "overlay.img"
    assert made(path, "--base", base) == 0
    write(path, {b"new": b"of the overlay\n"}, snapshot=b"then")
    capsys.readouterr()
    return path


def test_what_is_made_is_twice_as_large_sparse_and_has_the_bases_label(overlay: Path, base: Path, run: Run) -> None:
    assert overlay.stat().st_size == read_slots(FileDevice.open(base, read_only=True)).newest.geometry.num_blocks * (
        2 * 4096
    ) + (0x4000)
    assert overlay.stat().st_blocks * 512 < MIB
    reply = json.loads(run("info", overlay, "--json")[1])
    assert reply["label"] == "the base"
    assert [layer["path"] for layer in reply["layers"]] == [str(base)]
    assert reply["snapshots"] == 1
    assert f"base:      {base} (UUID " in run("info", overlay)[1]


def test_every_command_reads_through_the_layers(overlay: Path, base: Path, tmp_path: Path, run: Run) -> None:
    assert run("ls", overlay)[1].split() == ["new", "old"]
    assert run("cat", overlay, "old") == (0, "of the base\n", "")
    assert run("hash", overlay)[0] == 0
    assert run("diff", overlay, "then")[0] == 0
    assert run("df", overlay)[0] == run("du", overlay, "/")[0] == 0
    assert run("extract", overlay, tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "old").read_text() == "of the base\n"
    code, text, _ = run("check", overlay)
    assert code == 0 and "clean" in text
    assert run("scrub", overlay)[0] == 0
    assert "name of the base" in run("dump", overlay, "boot")[1]
    assert "overlay" in run("dump", overlay)[1]
    before = base.read_bytes()
    assert run("snapshot", "delete", overlay, "then")[0] == 0
    assert run("snapshot", "create", overlay, "again")[0] == 0
    assert run("trim", overlay)[0] == 0
    assert run("check", overlay)[0] == 0
    assert run("ls", overlay)[1].split() == ["new", "old"]
    assert base.read_bytes() == before


def test_reset_and_keep(overlay: Path, run: Run) -> None:
    code, text, _ = run("reset", overlay, "--keep", "before")
    assert (code, text) == (0, "the state before is snapshot before\n")
    assert run("ls", overlay)[1].split() == ["old"]
    assert json.loads(run("reset", overlay, "--json")[1]) == {"reset": True, "kept": None}
    assert [info["name"] for info in json.loads(run("snapshot", "list", overlay, "--json")[1])] == ["then", "before"]
    code, _, said = run("reset", overlay, "--keep", "before")
    assert code == 1 and "there is a snapshot 'before' already" in said
    assert run("rollback", overlay, "before")[0] == 0
    assert run("ls", overlay)[1].split() == ["new", "old"]
    assert run("check", overlay)[0] == 0


def test_a_whole_volume_has_nothing_to_be_reset_to(base: Path, run: Run) -> None:
    code, _, said = run("reset", base)
    assert (code, said) == (1, "cowfs: the volume is not an overlay: it has no base to go back to\n")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--size", "4M"], "an overlay is no smaller than its base"),
        (["--block-size", "1024"], "an overlay has the block size of its base, 4096"),
        (["--from", "."], "--base and --from exclude each other"),
        (["--size", "auto"], "--size auto"),
        (["--profile", "qnx6"], "go with --from"),
    ],
)
def test_what_an_overlay_cannot_be(
    base: Path, tmp_path: Path, words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert made(tmp_path / "new", "--base", base, *words) in (1, 2)
    assert text in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_a_base(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("x")
    assert made(tmp_path / "qnx", "--profile", "qnx6", "--from", tmp_path / "folder", "--size", "2M") == 0
    (tmp_path / "noise").write_bytes(os.urandom(MIB))
    device = FileDevice.open(base, read_only=False)
    volume = Volume.open(device)
    Snapshots(volume).live.create(f.ROOT_INODE, b"left", 0o100644, Caller(0, 0))
    volume.commit()
    device.close()
    for path, text in (
        (tmp_path / "qnx", "is a foreign volume, without the cowfs extension area: it cannot be a base"),
        (tmp_path / "noise", "is not a cowfs or qnx6 volume"),
        (tmp_path / "absent", "cannot open it: No such file or directory"),
        (base, "was not cleanly unmounted: mount it once"),
    ):
        assert made(tmp_path / "new", "--base", path) == 1
        assert text in capsys.readouterr().err
        assert not (tmp_path / "new").exists()


def test_an_existing_file_keeps_its_size_and_is_not_overwritten_by_accident(
    overlay: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], run: Run
) -> None:
    there = tmp_path / "there"
    there.write_bytes(bytes(10 * MIB))
    assert made(there, "--base", base) == 0
    assert there.stat().st_size == 10 * MIB
    assert run("check", there)[0] == 0
    capsys.readouterr()
    assert made(overlay, "--base", base) == 1
    assert "contains a cowfs overlay (UUID" in capsys.readouterr().err
    assert made(base, "--base", base, "--force") == 1
    assert "cannot be an overlay on itself" in capsys.readouterr().err
    too_small = tmp_path / "small"
    too_small.write_bytes(b"precious" + bytes(2 * MIB))
    assert made(too_small, "--base", base, "--force") == 1
    assert "no smaller than its base" in capsys.readouterr().err
    assert too_small.read_bytes().startswith(b"precious")


def test_overlay_and_base_move_together(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path)
    assert made("deep/overlay", "--base", "base.img") == 0
    capsys.readouterr()
    (tmp_path / "moved").mkdir()
    shutil.move(tmp_path / "base.img", tmp_path / "moved" / "base.img")
    shutil.move(tmp_path / "deep", tmp_path / "moved" / "deep")
    monkeypatch.chdir("/")
    assert run("ls", tmp_path / "moved" / "deep" / "overlay")[1].split() == ["old"]
    (tmp_path / "link").symlink_to(tmp_path / "moved" / "deep" / "overlay")
    assert run("ls", tmp_path / "link")[1].split() == ["old"]


def test_rebase_takes_only_the_same_state(overlay: Path, base: Path, tmp_path: Path, run: Run) -> None:
    elsewhere = tmp_path / "elsewhere.img"
    shutil.copy(base, elsewhere)
    base.rename(tmp_path / "gone")
    code, _, said = run("ls", overlay)
    assert code == 1 and "its base is missing" in said and "cowfs rebase" in said
    assert run("dump", overlay, "slots")[0] == 0  # what lies in the overlay can be looked at all the same
    other = tmp_path / "other.img"
    assert made(other, "--size", "8M") == 0
    code, _, said = run("rebase", overlay, "--base", other)
    assert code == 1 and "it is another volume" in said
    code, _, said = run("rebase", overlay, "--base", overlay)
    assert code == 1 and "is a layer above itself" in said
    for _ in range(3):  # the two places for the name are written in turn
        assert run("rebase", overlay, "--base", elsewhere)[0] == 0
        assert run("ls", overlay)[1].split() == ["new", "old"]
    assert run("rebase", elsewhere, "--base", other)[2].endswith("is not an overlay: it has no base\n")
    assert run("check", overlay)[0] == 0


def test_a_base_that_was_written_is_refused(overlay: Path, base: Path, run: Run) -> None:
    write(base, {b"more": b"x"})
    code, _, said = run("ls", overlay)
    assert code == 1 and "is not what it was: it was written since (its serial moved from" in said
    assert run("check", overlay)[0] == 8


def test_a_command_that_fails_on_the_base_costs_no_overlay(overlay: Path, base: Path, run: Run) -> None:
    for words in (("reset", base), ("snapshot", "delete", base, "none"), ("rollback", base, "none")):
        assert run(*words)[0] == 1
        device = FileDevice.open(base, read_only=True)
        assert is_settled(read_slots(device)), "it could not become a base"
        device.close()
    code, _, said = run("info", overlay)
    assert (code, said) == (0, "")


def test_an_overlay_in_use_keeps_writers_from_its_base_and_nobody_else(overlay: Path, base: Path) -> None:
    layers = open_layers(FileDevice.open(overlay, read_only=False))
    writer, reader = FileDevice.open(base, read_only=False), FileDevice.open(base, read_only=True)
    reader.lock(exclusive=False)
    reader.close()
    with pytest.raises(Busy):
        writer.lock(exclusive=True)
    layers.close()
    writer.lock(exclusive=True)
    writer.close()


def test_a_sealed_base_is_never_written(
    overlay: Path, base: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("seal", base)[0] == run("seal", base)[0] == 0
    sealed = base.read_bytes()
    assert "sealed" in run("info", base)[1]
    assert run("ls", overlay)[1].split() == ["new", "old"]
    assert made(tmp_path / "another", "--base", base) == 0
    assert run("info", tmp_path / "another", "--json")[1].count('"sealed": true') == 1  # the base, not the overlay
    assert run("snapshot", "create", tmp_path / "another", "s")[0] == 0
    for words in (
        ("snapshot", "create", base, "s"),
        ("check", base, "--repair"),
        ("resize", base, "16M"),
        ("policy", "set", base, "--every", "1h", "--keep", "24h"),
    ):
        code, text, said = run(*words)
        assert code != 0 or "clean" in text, words
        assert code == 0 or "seal" in said, (words, said)
    assert made(base, "--force") == 1
    assert "is sealed" in capsys.readouterr().err
    assert base.read_bytes() == sealed
    assert run("unseal", base)[0] == 0
    assert run("ls", overlay)[1].split() == ["new", "old"]
    assert run("snapshot", "create", base, "s")[0] == 0
    assert run("ls", overlay)[0] == 1


def test_a_damaged_sealed_volume_is_not_repaired(base: Path, run: Run) -> None:
    device = FileDevice.open(base, read_only=False)
    for number, slot in read_slots(device).slots.items():
        slot.superblock.free_blocks += 1
        assert slot.extension is not None
        slot.extension.read_only_compatible |= f.READ_ONLY_COMPATIBLE_SEALED
        device.write(slot.geometry.slot_offsets[number - 1], build_slot(slot.superblock, slot.extension, []))
    device.close()
    before = base.read_bytes()
    code, _, said = run("check", base, "--repair")
    assert code == 8 and "is sealed" in said
    assert base.read_bytes() == before


def test_repair_of_an_overlay(overlay: Path, base: Path, tmp_path: Path, run: Run) -> None:
    device = FileDevice.open(overlay, read_only=False)
    for number, slot in read_slots(device).slots.items():
        assert slot.extension is not None
        slot.superblock.free_blocks += 1
        slot.extension.overlay.buried_free += 2
        device.write(slot.geometry.slot_offsets[number - 1], build_slot(slot.superblock, slot.extension, []))
    device.close()
    before = base.read_bytes(), overlay.read_bytes()
    (tmp_path / "folder").mkdir()
    copy = tmp_path / "folder" / "copy"
    assert run("check", overlay)[0] == 4
    assert run("check", overlay, "--repair", "--dry-run")[0] == 4
    assert run("check", overlay, "--repair", "--to", copy)[0] == 1
    assert run("check", copy)[0] == 0
    assert run("ls", copy)[1].split() == ["new", "old"]
    assert (base.read_bytes(), overlay.read_bytes()) == before
    assert run("check", overlay, "--repair")[0] == 1
    assert run("check", overlay)[0] == 0
    assert base.read_bytes() == before[0]


def test_an_exported_snapshot_of_an_overlay_is_a_whole_volume(overlay: Path, tmp_path: Path, run: Run) -> None:
    write(overlay, {b"later": b"x"})
    assert run("snapshot", "export", overlay, "then", tmp_path / "whole")[0] == 0
    assert run("ls", tmp_path / "whole")[1].split() == ["new", "old"]
    assert json.loads(run("info", tmp_path / "whole", "--json")[1])["layers"] == []
    device = FileDevice.open(tmp_path / "whole", read_only=True)
    check_image(device)
    device.close()


def test_resize_of_an_overlay(overlay: Path, base: Path, tmp_path: Path, run: Run) -> None:
    """One that was as large as its base gets the blocks under the base's slot 2 with it, and never gives them out."""
    assert run("resize", overlay, "40M")[0] == 0
    assert run("check", overlay)[0] == 0
    assert run("ls", overlay)[1].split() == ["new", "old"]
    equal = tmp_path / "equal"
    assert made(equal, "--base", base, "--size", str(base.stat().st_size)) == 0
    before = base.read_bytes()
    assert run("resize", equal, "9M")[0] == 0
    device = FileDevice.open(equal, read_only=True)
    extension = read_slots(device).newest.extension
    device.close()
    assert extension is not None and extension.overlay.buried_free >= 1
    assert run("check", equal)[0] == 0
    write(equal, {b"large": os.urandom(MIB)})
    assert run("check", equal)[0] == 0
    assert base.read_bytes() == before


# --- hostile overlays ---


def refusal(image: Path) -> str:
    """Why an overlay is not opened."""
    device: Device = FileDevice.open(image, read_only=False)
    try:
        device = open_layers(device)
        Volume.open(device)
    except CowfsError as error:
        return str(error)
    finally:
        device.close()
    raise AssertionError("it was opened")


def test_a_cycle_of_overlays_is_refused(overlay: Path, base: Path, tmp_path: Path, run: Run) -> None:
    second = tmp_path / "second.img"
    assert made(second, "--base", overlay) == 0
    device = FileDevice.open(overlay, read_only=False)
    set_base_path(device, b"second.img")
    device.close()
    for image in (overlay, second):
        assert "is a layer above itself" in refusal(image)
    device = FileDevice.open(overlay, read_only=False)
    set_base_path(device, b"overlay.img")
    device.close()
    assert "is a layer above itself" in refusal(overlay)
    code, _, said = run("check", overlay)
    assert code == 8 and said.count("\n") == 1


@pytest.mark.parametrize("path", [b"", b"base\0.img", b"\0", b"/dev/null", b"." * 3560, b"\xff\xfe"])
def test_paths_that_lead_nowhere_are_refused(overlay: Path, path: bytes) -> None:
    device = FileDevice.open(overlay, read_only=False)
    set_base_path(device, path)
    device.close()
    assert refusal(overlay)


def test_a_lost_name_of_the_base_is_found_in_the_other_place_or_told_anew(overlay: Path, base: Path, run: Run) -> None:
    assert run("rebase", overlay, "--base", base)[0] == 0
    raw = bytearray(overlay.read_bytes())
    raw[0x1200:0x1210] = os.urandom(16)
    overlay.write_bytes(raw)
    assert run("ls", overlay)[0] == 0
    raw[0x400:0x410] = os.urandom(16)
    overlay.write_bytes(raw)
    assert "the name of its base is lost" in refusal(overlay)
    assert run("rebase", overlay, "--base", base)[0] == 0
    assert run("ls", overlay)[0] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 0},
        {"depth": 17},
        {"depth": 0xFFFFFFFF},
        {"base_blocks": 0},
        {"base_blocks": 0xFFFFFFFF},
        {"base_serial": 1 << 63},
        {"base_uuid": bytes(16)},
        {"base_checks": (0, 0)},
        {"buried_free": 0xFFFFFFFF},
        {"buried_system": 0xFFFFFFFF},
    ],
    ids=str,
)
def test_impossible_states_are_refused(overlay: Path, change: dict[str, object]) -> None:
    device = FileDevice.open(overlay, read_only=False)
    for number, slot in read_slots(device).slots.items():
        assert slot.extension is not None
        for name, value in change.items():
            setattr(slot.extension.overlay, name, value)
        device.write(slot.geometry.slot_offsets[number - 1], build_slot(slot.superblock, slot.extension, []))
    device.close()
    if "base_serial" in change:  # says nothing that the checks do not say
        device = FileDevice.open(overlay, read_only=False)
        Volume.open(opened := open_layers(device), read_only=True)
        opened.close()
    else:
        assert refusal(overlay)


@pytest.mark.parametrize("value", [0, 1, 2, 0xFFFFFFFF])
def test_a_base_tree_that_is_none_is_damage_and_no_crash(overlay: Path, value: int, run: Run) -> None:
    device = FileDevice.open(overlay, read_only=False)
    for number, slot in read_slots(device).slots.items():
        assert slot.extension is not None
        slot.extension.overlay.base_snapshot = value if value != 1 else 3
        device.write(slot.geometry.slot_offsets[number - 1], build_slot(slot.superblock, slot.extension, []))
    device.close()
    code, _, said = run("reset", overlay)
    assert code == 1 and "the record of the base's tree is none" in said
    assert run("check", overlay)[0] == 4
    assert run("check", overlay, "--repair")[0] == 1
    assert run("reset", overlay)[0] == 0
    assert run("check", overlay)[0] == 0
