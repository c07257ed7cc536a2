"""Access control lists on a real mount, judged by what ext4 says to the same commands."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from mounting import Place, cowfs, run

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes several users"),
    pytest.mark.skipif(shutil.which("setfacl") is None, reason="needs setfacl of the package acl"),
]


def test_lists_are_ext4s(commons: Path) -> None:
    """Masks, chmod, inheritance under two umasks, setgid, permissions of five users, links, copies, tar."""
    command = ["bash", HERE / "acl_scenario.sh", commons]
    result = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert result.stdout.splitlines() == (HERE / "acl_expected.txt").read_text().splitlines()


def test_lists_survive_and_are_checked_after_a_remount(place: Place) -> None:
    place.make()
    place.mount()
    directory = place.mountpoint / "d"
    directory.mkdir()
    run("setfacl", "-d", "-m", "u:1001:rwx", directory)
    (directory / "f").touch()
    place.remount()
    assert "user:1001:rwx" in run("getfacl", "-cn", directory / "f").stdout
    (directory / "g").mkdir()
    assert "default:user:1001:rwx" in run("getfacl", "-cn", directory / "g").stdout


def test_without_attributes_there_are_no_lists_and_the_umask_holds(place: Place) -> None:
    place.make()
    place.mount("-o", "noxattr")
    assert run("setfacl", "-m", "u:1001:r", place.mountpoint, ok=False).returncode == 1
    run("sh", "-c", f"umask 027; mkdir '{place.mountpoint}/d'")
    assert stat.S_IMODE((place.mountpoint / "d").stat().st_mode) == 0o750


def test_a_snapshot_has_the_lists_of_its_time(commons: Path, public: Place) -> None:
    (commons / "f").touch()
    run("setfacl", "-m", "u:1001:rw", commons / "f")
    cowfs("snapshot", "create", public.mountpoint, "then")
    run("setfacl", "-b", commons / "f")
    old = public.mountpoint / ".cowfs" / "snapshots" / "then" / commons.name / "f"
    assert "user:1001:rw-" in run("getfacl", "-cn", old).stdout
    as_user = ["setpriv", "--reuid=1001", "--regid=1001", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
    assert run(*as_user, "test", "-w", commons / "f", ok=False).returncode == 1
