"""The benchmarks run, at sizes of no interest; each part looks at contents and checks its volume."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import growth, image, layers, mounted, snapshots, stalls
from benchmarks.__main__ import main
from benchmarks.common import MIB
from benchmarks.machine import may_drop_caches
from benchmarks.peers import PEERS, Peer
from benchmarks.workloads import SCENES, Sizes

HOLE = 1 * MIB


@pytest.mark.parametrize("part", snapshots.PARTS)
def test_a_very_small_one(part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snapshots.main([part, "--directory", str(tmp_path), "--size", "0.0005"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("### ")
    assert sum(line.startswith("| ") for line in lines) >= 3
    assert list(tmp_path.iterdir()) == [], "nothing stays behind"


def rows(text: str) -> dict[str, list[str]]:
    """The cells of the first row that begins with a cell."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in reversed(lines)}


def test_every_layer_has_figures(tmp_path: Path) -> None:
    text = layers.report(0.001, tmp_path)
    assert {"device", "space map", "block tree", "commit", "core", "adapter"} <= set(rows(text))
    assert list(tmp_path.iterdir()) == []


def test_all_that_grows_has_figures(tmp_path: Path) -> None:
    tables = list(growth.report(0.0005, tmp_path))
    assert len(tables) == 6
    assert all(len(rows(text)) >= 4 for text in tables)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fuse
def test_what_waits_beside_a_writer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stalls, "IDLE_SECONDS", 0.2)
    assert stalls.main(["--scale", "0.01", "--rounds", "1", "--peers", "cowfs", "--directory", str(tmp_path)]) == 0
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| cow")]
    assert {cells[1] for cells in lines} == {"nothing else", "in sequence", "at random"}
    assert {cells[3] for cells in lines} == set(stalls.PROBES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fuse
def test_a_mounted_scene(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "figures.json"
    arguments = ["mounted", "--quick", "--peers", "cowfs,floor", "--scenes", "directory,copies"]
    arguments += ["--image-size", "0.05", "--directory", str(tmp_path), "--json", str(saved)]
    assert main(arguments) == 0
    table = rows(capsys.readouterr().out)
    assert table["workload"] == ["cowfs", "floor"]
    copies = {"snapshot of 4 MiB, ms", "clone of a file of 4 MiB, ms", "rollback to a snapshot with 4 MiB, ms"}
    assert {*copies, "readdir of that, cold, entry/s"} <= set(table)
    assert list(tmp_path.iterdir()) == [saved], "nothing stays behind"


@pytest.mark.slow
@pytest.mark.fuse
def test_all_scenes_with_all_peers_of_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mounted", "--quick", "--directory", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    sizes = Sizes.of(0.002, 192 * MIB)
    assert [name for name in mounted.titles(sizes) if name not in text] == []
    assert re.search(r"cowfs: \d+\.\d flushes at each fsync|cowfs: unknown", text)
    assert " failed in " not in text
    assert may_drop_caches() or "could not be dropped" in text
    assert list(tmp_path.iterdir()) == [], "nothing stays behind"


@pytest.mark.slow
@pytest.mark.fuse
def test_an_end_in_the_middle_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "mounted", "--scale", "0.05", "--scenes", "directory"]
    running = subprocess.Popen([*command, "--peers", "cowfs", "--directory", str(tmp_path)], stderr=subprocess.PIPE)
    for _ in range(6000):
        if list(tmp_path.glob("*/mount/directory/entry 1*")):
            break
        time.sleep(0.01)
    else:
        pytest.fail("nothing was mounted")
    running.send_signal(signal.SIGTERM)
    said = running.communicate(timeout=120)[1]
    assert running.returncode == 130, said
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["--peers", "fat"], ["--scenes", "data,x"], ["--scale", "0"], ["--rounds", "0"]]
)
def test_what_is_not_there_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "error" in capsys.readouterr().err


def test_too_small_a_disk_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    huge = ["mounted", "--image-size", "1e9", "--directory", str(tmp_path), "--peers", "cowfs"]
    assert main(huge) == 1
    assert "too little for an image" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_peer_that_is_missing_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = {kind.name: kind(tmp_path / "image", tmp_path / "mount").missing() for kind in PEERS}
    assert missing.pop("cowfs") == missing.pop("floor") == ""
    assert all(missing.values())


def test_images_have_no_holes(tmp_path: Path) -> None:
    path = tmp_path / "image"
    image.make(path, 3 * MIB + 5)
    assert path.stat().st_size == 3 * MIB + 5
    before = path.read_bytes()
    with open(path, "r+b") as file:  # a file with a hole at each end
        file.truncate(MIB)
        file.truncate(0)
        file.seek(HOLE)
        file.write(before[HOLE : 2 * HOLE])
        file.truncate(3 * MIB)
    image.refill(path)
    with open(path, "rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 3 * MIB
    assert path.read_bytes() == bytes(HOLE) + before[HOLE : 2 * HOLE] + bytes(HOLE)


def results() -> mounted.Results:
    """Two rounds of two workloads, with figures made up."""
    made = mounted.Results(Sizes.of(0.002, 192 * MIB), ["cowfs", "other", "kernel"], 2)
    made.in_user_space = {"cowfs", "other"}
    for turn, (ours, theirs) in enumerate(((100.0, 50.0), (300.0, 100.0))):
        made.add("writing", "MiB/s", "cowfs", turn, ours)
        made.add("writing", "MiB/s", "other", turn, theirs)
        made.add("mounting", "ms", "cowfs", turn, ours, 0.25)
        made.add("mounting", "ms", "other", turn, theirs, 0.5)
        made.add("mounting", "ms", "kernel", turn, 1.0)
    return made


def test_ratios_are_those_within_a_round() -> None:
    made = results()
    assert made.ratios("writing", "MiB/s", "other") == [2.0, 3.0]
    assert made.ratios("mounting", "ms", "other") == [0.5, pytest.approx(1 / 3)]
    assert made.ratios("writing", "MiB/s", "kernel") == []
    assert (made.median("writing", "cowfs"), made.median("writing", "kernel")) == (200.0, None)


def test_a_report_marks_who_promises_less_and_lists_gaps() -> None:
    made = results()
    made.flushes["other"] = "does not flush the image at fsync"
    made.remark("once")
    made.remark("once")
    text = mounted.report(made)
    assert "| workload | cowfs | other † | kernel |" in text
    assert "| writing, MiB/s | 200 | 75.0 | - |" in text
    assert "| writing | 2.50 (2.00 to 3.00) | - |" in text
    assert mounted.gaps(made).splitlines()[4:] == ["| mounting | other | 2.40 | 1.20 | - |"], (
        "the kernel is no user space"
    )
    assert text.count("once") == 1
    assert "† does not flush" in text


def test_sizes_follow_the_scale() -> None:
    full, small = Sizes.of(1, 8 << 30), Sizes.of(0.1, 1 << 30)
    assert (full.file, full.large_file, full.files, full.names) == (1 << 30, 4 << 30, 10_000, 100_000)
    assert small.files == 1000
    assert small.large_file <= (1 << 30) * 6 // 10
    assert len(SCENES) == 6
    assert Peer(Path("image"), Path("mount")).missing() == ""
