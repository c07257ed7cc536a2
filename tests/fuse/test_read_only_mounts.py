"""Mounts that the kernel takes for read-only: nothing can be written, so they are asked by opening files for reading."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import threading
from pathlib import Path

import pytest
from mounting import COWFS, ROOT, Place, cowfs, run

from cowfs import control
from cowfs.cli.target import carry_out

pytestmark = pytest.mark.fuse
STRANGE = b'a,b\\c d"\xff%2F'


def fill(place: Place) -> None:
    """A volume with two snapshots and a clone, unmounted."""
    place.make(16)
    place.mount()
    (place.mountpoint / "file").write_text("first")
    place.command("snapshot create one --description='the first'")
    (place.mountpoint / "file").write_text("second")
    os.mkdir(os.fsencode(place.mountpoint) + b"/.cowfs/snapshots/" + STRANGE)
    place.command("snapshot create branch --writable --from=one")
    (place.mountpoint / "added").mkdir()
    place.umount()


def answers(target: Path) -> dict[str, object]:
    """What the commands say that only read."""
    strange = os.fsdecode(STRANGE)
    commands = [
        control.Command(("snapshot", "list")),
        control.Command(("snapshot", "show", strange)),
        control.Command(("snapshot", "delete", "one", strange), {"dry-run": True}),
        control.Command(("diff", "one")),
        control.Command(("diff", "one", strange), {"path": "file"}),
        control.Command(("df",)),
    ]
    found: dict[str, object] = {str(command): carry_out(str(target), command) for command in commands}
    found["snapshots"] = carry_out(str(target), control.INFO)["snapshots"]
    return found


@pytest.mark.parametrize("options", ["ro", "snapshot=one"])
def test_commands_that_read_answer_as_for_the_image(place: Place, options: str) -> None:
    fill(place)
    wanted = answers(place.image)
    place.mount("-o", options)
    assert answers(place.mountpoint) == wanted
    assert answers(place.image) == wanted, "the image stands for its mount"
    cowfs("sync", place.mountpoint)
    assert len(cowfs("snapshot", "list", place.mountpoint).stdout.splitlines()) == 3


def test_commands_that_change_are_refused(place: Place) -> None:
    fill(place)
    place.mount("-o", "snapshot=one")
    for words in (
        ("snapshot", "create", "new"),
        ("snapshot", "delete", "one"),
        ("snapshot", "rename", "one", "other"),
        ("snapshot", "protect", "one"),
        ("rollback", "one"),
    ):
        with pytest.raises(control.CommandFailed, match="mounted read-only, so '") as caught:
            control.send(str(place.mountpoint), control.Command(words))
        assert caught.value.errno == errno.EROFS
    with pytest.raises(OSError, match="Read-only"):
        (place.mountpoint / ".cowfs" / "snapshots" / "new").mkdir()
    with pytest.raises(OSError, match="Read-only"):
        (place.mountpoint / ".cowfs" / "snapshots" / "branch" / "file").write_text("no")
    assert cowfs("snapshot", "show", place.mountpoint, "none", ok=False).stderr == "cowfs: no snapshot 'none'\n"


def test_a_mount_that_was_made_read_only_later(mounted: Place) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root remounts")
    mounted.command("snapshot create one")
    run("mount", "-i", "-o", "remount,ro", mounted.mountpoint)
    (info,) = json.loads(cowfs("snapshot", "list", mounted.mountpoint, "--json").stdout)
    assert info["name"] == "one"
    assert "read-only" in cowfs("snapshot", "create", mounted.mountpoint, "two", ok=False).stderr
    assert cowfs("diff", mounted.mountpoint, "one").stdout == ""


def test_a_shell_asks(shared: Place) -> None:
    query = shared.mountpoint / ".cowfs" / "query"
    shared.command("snapshot create seen")
    reply = run("cat", query / "snapshot list").stdout
    assert reply.endswith("}\n")
    assert [info["name"] for info in json.loads(reply)["snapshots"]] == ["seen"]
    assert json.loads((query / "info").read_text()) == shared.info()
    failed = run("cat", query / "snapshot show other", ok=False)
    assert failed.returncode == 1
    assert "No such file or directory" in failed.stderr
    assert json.loads(failed.stdout)["error"]["message"] == "no snapshot 'other'"
    failed = run("cat", query / "snapshot delete seen", ok=False)
    assert "Read-only file system" in failed.stderr
    assert json.loads((query / "snapshot delete seen --dry-run").read_text())["would_delete"] == ["seen"]
    assert "Invalid argument" in run("cat", query / "snapshot show %22", ok=False).stderr
    assert os.listdir(query) == []
    assert (query / "info").stat().st_size == 0
    shared.command("snapshot delete seen")


def test_what_lies_in_it_cannot_be_written_or_made(shared: Place) -> None:
    query = shared.mountpoint / ".cowfs" / "query"
    with pytest.raises(FileExistsError):
        os.open(query / "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    for call in (
        (query / "info").unlink,
        (query / "info").rmdir,
        lambda: (query / "info").rename(query / "other"),
        lambda: (query / "info").chmod(0o777),
        query.rmdir,
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno in (errno.EPERM, errno.ENOTDIR, errno.EEXIST), call
    assert (query / "..").samefile(shared.mountpoint / ".cowfs")


def test_commands_longer_than_a_name(shared: Place) -> None:
    root = shared.mountpoint
    shared.command("snapshot create here")
    query = os.open(root / ".cowfs" / "query", os.O_RDONLY)
    path = "/".join(["%" * 200] * 18)
    command = control.Command(("diff", "here"), {"path": path}).to_json()
    names = control.query_names(command)
    assert len(names) > 20
    assert all(len(name) <= 255 for name in names)
    for name in names:
        below = os.open(name, os.O_RDONLY, dir_fd=query)
        os.close(query)
        query = below
    assert json.loads(os.read(query, 65536))["error"]["errno"] == "ENOENT"
    with pytest.raises(FileNotFoundError):
        os.read(query, 65536)
    os.close(query)
    shared.command("snapshot delete here")


@pytest.mark.parametrize("size", [*range(240, 270), 2000])
def test_names_join_to_the_command(size: int) -> None:
    for text in (b"/" * size, b"x" * size, b"x" + b"%" * size, b"xx" + b"\xff" * size):
        joined = b""
        names = control.query_names(text)
        for name in names:
            assert 0 < len(name) <= 255
            assert control.query_goes_on(name) == (name is not names[-1])
            joined = control.query_joined(joined, name)
        assert control.query_decoded(joined) == text


def test_many_ask_at_once_and_nothing_mixes(shared: Place) -> None:
    query = shared.mountpoint / ".cowfs" / "query"
    wrong: list[object] = []

    def ask(number: int) -> None:
        for turn in range(20):
            with open(query / f"snapshot show {number}-{turn}", "rb", buffering=0) as file:
                reply = json.loads(file.read(65536) or b"{}")
                if reply["error"]["message"] != f"no snapshot '{number}-{turn}'":
                    wrong.append(reply)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- names of snapshots in mount options ---


def test_a_name_with_commas_and_backslashes(place: Place) -> None:
    place.make(4)
    cowfs("snapshot", "create", place.image, os.fsdecode(STRANGE))
    for words in ('ro,snapshot=a\\,b\\\\c d"\\377%2F', "snapshot=a\\054b\\134c\\040d\\042\\377\\045\\062\\106,noatime"):
        place.mount("-o", words)
        assert place.info()["mount"]["options"].endswith('snapshot=a\\054b\\134c\\040d"\udcff%2F'), "not split"
        place.umount()
    assert cowfs("mount", place.image, place.mountpoint, "-o", "snapshot=a,b", ok=False).stderr == (
        "cowfs: unknown mount option 'b'\n"
    )


def test_such_a_name_through_mount_and_fstab(place: Place, tmp_path: Path) -> None:
    if os.geteuid() != 0 or not os.path.exists("/sbin/mount.fuse"):
        pytest.skip("needs root, and mount(8)'s helper for FUSE")
    place.make(4)
    cowfs("snapshot", "create", place.image, "a,b\\c d")
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "cowfs").write_text(f"#!/bin/sh\ncd '{ROOT}' && exec '{COWFS[0]}' -m cowfs \"$@\"\n")
    os.chmod(programs / "cowfs", 0o755)
    fstab = tmp_path / "fstab"
    # In the file itself a backslash is written as \134, as every other byte that has a meaning there.
    option = r"snapshot=a\134054b\134134c\134040d"
    fstab.write_text(f"{place.image} {place.mountpoint} fuse.cowfs noauto,{option} 0 0\n")
    # mount(8) looks for programs in fixed places: in a namespace of its own, one of them is ours.
    script = f"""set -e
        mount --bind '{programs}' /usr/local/bin
        mount -t fuse.cowfs -o 'snapshot=a\\054b\\134c\\040d' '{place.image}' '{place.mountpoint}'
        cowfs info '{place.mountpoint}' --json; cowfs umount '{place.mountpoint}'
        mount -T '{fstab}' '{place.mountpoint}'
        cowfs info '{place.mountpoint}' --json; cowfs umount '{place.mountpoint}'
    """
    result = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], check=True, capture_output=True, text=True, timeout=120
    )
    assert result.stdout.count("snapshot=a\\\\054b\\\\134c\\\\040d") == 2, result.stdout
