"""`cowfs policy` on an image that is not mounted: words, output, exit codes."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path

import pytest
from support import Run

from cowfs.check import check_device
from cowfs.control.host import Offline, finish
from cowfs.fs.snapshot import Snapshots
from cowfs.ondisk.geometry import geometry_for_size
from cowfs.storage.device import FileDevice
from cowfs.storage.mkvolume import make_volume
from cowfs.storage.volume import Volume


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An empty volume of 2 MiB."""
    path = tmp_path / "volume.img"
    geometry = geometry_for_size(2 << 20, 4096)
    device = FileDevice.create(path, geometry.end)
    make_volume(device, geometry, label=b"", uuid=uuid.uuid4().bytes, now_ns=time.time_ns())
    device.close()
    return path


def taken(image: Path) -> str:
    """Has the policy take a snapshot, as a mount would; its name."""
    device = FileDevice.open(image, read_only=False)
    trees = Snapshots(Volume.open(device))
    host = Offline(trees.live, trees)
    finish(host.rolling.look(host))
    (info,) = trees
    trees.close()
    device.close()
    return info.name.decode()


def test_set_show_and_clear(run: Run, image: Path) -> None:
    assert run("policy", "show", image) == (0, "policy:    none\nsnapshots: 0\n", "")
    assert "policy" not in run("info", image)[1]
    code, out, err = run("policy", "set", image, "--every", "90m", "--keep", "8w24h", "--thin-when-short")
    words = "every 1h30m, keep 24h8w, deleted earlier when space is short"
    assert (code, out, err) == (0, f"policy:    {words}\nsnapshots: 0\n", "")
    assert f"policy:    {words}\n" in run("info", image)[1]
    name = taken(image)
    reply = json.loads(run("policy", "show", image, "--json")[1])
    assert reply["policy"] == {"every": "1h30m", "keep": "24h8w", "thin_when_short": True}
    assert (reply["snapshots"], reply["next"], reply["problem"]) == (1, None, None)
    assert f"auto-{reply['newest']}" == name
    assert f"newest:    {reply['newest']}\n" in run("policy", "show", image)[1]
    assert f"{name}  snapshot automatic\n" in run("snapshot", "list", image)[1]
    assert "kind:    snapshot, automatic\n" in run("snapshot", "show", image, name)[1]
    assert run("policy", "clear", image)[1] == f"policy:    none\nsnapshots: 1\nnewest:    {reply['newest']}\n"
    assert json.loads(run("info", image, "--json")[1])["policy"] is None
    assert run("dump", image, "snapshots")[1].splitlines()[0] == f"snapshot 1 '{name}' at place 0, automatic"
    device = FileDevice.open(image, read_only=True)
    report = check_device(device)
    device.close()
    assert report.clean, report.to_text()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--every", "5"], 2, "Missing option '--keep'"),
        (["--every", "5", "--keep", "24h"], 1, "'5' is not an interval such as 5m or 1h30m (units: s, m, h, d, w)"),
        (["--every", "0s", "--keep", "24h"], 1, "the interval must be 1s to 366d"),
        (["--every", "5m", "--keep", "24h24h"], 1, "'24h24h' names a unit twice"),
    ],
)
def test_what_is_no_policy_is_refused(run: Run, image: Path, words: list[str], code: int, message: str) -> None:
    result, out, err = run("policy", "set", image, *words)
    assert (result, out) == (code, "")
    assert message in err and err.count("\n") == 1
