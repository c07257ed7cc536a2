"""`cowfs merge`: what it says, what it refuses, and what is there afterwards."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from support import Run

from cowfs.check import check_image
from cowfs.storage.device import Device, FileDevice
from cowfs.storage.overlay import open_layers, set_seal
from tests.cli.test_overlay import MIB, base, made, overlay, write

__all__ = ["base", "overlay"]  # fixtures


def sound(image: Path) -> None:
    device = open_layers(FileDevice.open(image, read_only=True))
    check_image(device)
    device.close()


def test_the_overlay_is_merged_and_empty_then(overlay: Path, base: Path, run: Run) -> None:
    size, held = base.stat().st_size, overlay.stat().st_blocks
    code, out, err = run("merge", overlay, "--dry-run")
    assert (code, err) == (0, "") and "would be copied" in out and "would grow" in out
    assert base.stat().st_size == size
    code, out, err = run("merge", overlay)
    assert (code, err) == (0, "")
    assert f"{base} has what {overlay} had: " in out
    assert out.endswith(f"{overlay} is empty\n")
    assert run("cat", base, "new")[1] == "of the overlay\n"
    assert "then" in run("snapshot", "list", base)[1]
    assert run("ls", overlay)[1] == run("ls", base)[1] == "new\nold\n"
    assert overlay.stat().st_blocks <= held
    sound(base)
    sound(overlay)
    write(overlay, {b"later": b"once more\n"})
    assert run("merge", overlay, "--delete")[1].endswith(f"{overlay} is removed\n")
    assert not overlay.exists()
    assert run("cat", base, "later")[1] == "once more\n"
    sound(base)


def test_json(overlay: Path, base: Path, run: Run) -> None:
    plan = json.loads(run("merge", overlay, "--dry-run", "--json")[1])
    reply = json.loads(run("merge", overlay, "--json")[1])
    assert plan["bytes"] == plan["blocks"] * 4096 > 0
    assert (reply["overlay"], reply["base"], reply["dry_run"], reply["deleted"]) == (
        str(overlay),
        str(base),
        False,
        False,
    )
    assert reply["size"] == base.stat().st_size > reply["old_size"] == 8 * MIB
    assert reply["notes"] == []


def test_an_interrupted_merge_is_finished(overlay: Path, base: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment when the base has the new state, but the overlay is not empty yet."""

    def interrupted(base: Device) -> list[str]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cowfs.storage.merge.settle_base", interrupted)
        assert run("merge", overlay) == (130, "", "\ncowfs: interrupted\n")
    assert run("cat", base, "new")[1] == "of the overlay\n"
    code, _, err = run("ls", overlay)
    assert code == 1 and err == f"cowfs: {overlay} was merged into its base {base}: 'cowfs merge' finishes that\n"
    code, out, _ = run("merge", overlay)
    assert code == 0 and out == f"{overlay} was merged into {base} before; that is finished now\n{overlay} is empty\n"
    assert run("ls", overlay)[1] == "new\nold\n"
    sound(overlay)


@pytest.mark.parametrize("also", [False, True])
def test_other_overlays_are_looked_for(overlay: Path, base: Path, tmp_path: Path, run: Run, *, also: bool) -> None:
    directory = tmp_path / "far" if also else tmp_path
    directory.mkdir(exist_ok=True)
    other = directory / "other.img"
    assert made(other, "--base", base) == 0
    run("info", other)  # what mkcowfs printed is read
    words = ["merge", overlay, *(["--also", other] if also else [])]
    for dry in ([], ["--dry-run"]):
        code, _, err = run(*words, *dry)
        assert code == 1
        assert err == f"cowfs: {other} would be lost: made on what changes by merging; --force merges all the same\n"
    assert run("cat", other, "old")[0] == 0
    assert run(*words, "--force")[0] == 0
    code, _, err = run("cat", other, "old")
    assert code == 1 and "is not what it was" in err


def test_an_overlay_on_the_overlay_is_looked_for(overlay: Path, tmp_path: Path, run: Run) -> None:
    assert made(tmp_path / "upper.img", "--base", overlay) == 0
    code, _, err = run("merge", overlay)
    assert code == 1 and f"{tmp_path / 'upper.img'} would be lost" in err
    assert run("merge", tmp_path / "upper.img")[0] == 0  # into the overlay, which stays one
    sound(overlay)
    sound(tmp_path / "upper.img")


def test_what_is_refused(overlay: Path, base: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = base.read_bytes()

    def refused(*words: object) -> str:
        code, out, err = run("merge", *words)
        assert (code, out) == (1, "") and err.count("\n") == 1
        assert base.read_bytes() == contents
        return err

    assert "is not an overlay" in refused(base)
    device = FileDevice.open(base, read_only=True)
    device.lock(exclusive=False)
    monkeypatch.setattr("cowfs.storage.overlay.LOCK_SECONDS", 0.0)
    assert f"{base} is in use" in refused(overlay)
    device.close()
    with monkeypatch.context() as patch:
        nothing = namedtuple("nothing", "f_bavail f_frsize")(0, 4096)
        patch.setattr(os, "fstatvfs", lambda descriptor: nothing)
        assert "bytes more of its filesystem, which has 0" in refused(overlay)
    changed = tmp_path / "changed.img"
    shutil.copy(base, changed)
    write(changed, {b"more": b"m"})
    assert "it was written since" in refused(overlay, "--base", changed)
    assert run("seal", base)[0] == 0
    contents = base.read_bytes()
    assert f"{base}: the volume is sealed: 'cowfs unseal' allows writing again" in refused(overlay)
    assert run("unseal", base)[0] == 0
    device = FileDevice.open(overlay, read_only=False)
    layers = open_layers(device)
    set_seal(layers, on=True)
    layers.close()
    contents = base.read_bytes()
    assert f"{overlay}: the volume is sealed" in refused(overlay)


def test_a_base_that_may_not_be_written(overlay: Path, base: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    right = os.open

    def only_reading(path: str, flags: int, *rest: int) -> int:
        if path == str(base) and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return right(path, flags, *rest)

    monkeypatch.setattr(os, "open", only_reading)
    code, _, err = run("merge", overlay)
    assert code == 1 and err == f"cowfs: {base}: cannot open it: Permission denied (EACCES)\n"
