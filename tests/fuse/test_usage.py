"""`df`, `du`, `diff` and `delete --dry-run` on a mount: right to the block, and not disturbed by those who write."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from mounting import Place, cowfs

from cowfs import control

pytestmark = pytest.mark.fuse
BLOCK = 4096


def ask(place: Place, *words: str, **options: object) -> control.Reply:
    return control.send(str(place.mountpoint), control.Command(words, options))


def du(place: Place, path: str) -> control.Reply:
    (row,) = ask(place, "du", path)["paths"]
    return {name: row[name] // BLOCK for name in ("total", "exclusive", "shared")}


def free(place: Place) -> int:
    place.command("sync")
    return os.statvfs(place.mountpoint).f_bfree


def reclaimed(place: Place) -> None:
    """Waits until what was deleted is free, and nothing waits for the commits that make it so."""
    ask(place, "snapshot", "create", "marker")
    ask(place, "snapshot", "delete", "marker", wait=True)


def test_files_directories_and_snapshots(mounted: Place) -> None:
    root = mounted.mountpoint
    (root / "sub" / "below").mkdir(parents=True)
    (root / "sub" / "file").write_bytes(os.urandom(20 * BLOCK))
    os.link(root / "sub" / "file", root / "sub" / "below" / "second")
    (root / "sub" / "below" / "other").write_bytes(os.urandom(10 * BLOCK))
    os.symlink("sub/file", root / "link")
    # with the one indirect block that more than 16 blocks need, and a block for each directory
    assert du(mounted, "sub/file") == {"total": 21, "exclusive": 21, "shared": 0}
    assert du(mounted, "/sub/below/.") == {"total": 32, "exclusive": 32, "shared": 0}
    assert du(mounted, "sub") == {"total": 33, "exclusive": 33, "shared": 0}
    assert du(mounted, "link") == {"total": 1, "exclusive": 1, "shared": 0}, "the symlink, not the file"
    mounted.command("snapshot create s")
    assert du(mounted, "sub") == {"total": 33, "exclusive": 0, "shared": 33}
    with open(root / "sub" / "file", "r+b") as file:
        file.write(b"changed")
    assert du(mounted, "sub") == {"total": 33, "exclusive": 2, "shared": 31}
    assert du(mounted, ".cowfs/snapshots/s/sub") == {"total": 33, "exclusive": 2, "shared": 31}
    trees = {row["name"]: row for row in ask(mounted, "df")["trees"]}
    for name, path in (("", "."), ("s", ".cowfs/snapshots/s")):
        whole = du(mounted, path)
        assert {key: trees[name][key] // BLOCK for key in whole} == whole
    for path, message in (
        ("none", "no file or directory none"),
        (".cowfs/control", "takes no blocks"),
        (".cowfs/snapshots", "takes no blocks"),
        (".cowfs/snapshots/t", "no snapshot 't'"),
        (".cowfs/snapshots/s/none", "no file or directory"),
        ("sub/file/below", "no file or directory"),
    ):
        with pytest.raises(control.CommandFailed, match=message):
            du(mounted, path)
    with pytest.raises(control.CommandFailed, match=r"no '\.\.'"):
        du(mounted, "sub/..")


def test_the_command_takes_paths_as_du_does(mounted: Place) -> None:
    root = mounted.mountpoint
    (root / "file").write_bytes(os.urandom(5 * BLOCK))
    os.symlink(root / "file", root / "link")
    mounted.command("snapshot create s")
    copy = root / ".cowfs" / "snapshots" / "s" / "file"
    rows = json.loads(cowfs("du", root / "file", copy, root / "link", "--json").stdout)
    assert [(row["path"], row["total"] // BLOCK) for row in rows] == [
        (str(root / "file"), 5),
        (str(copy), 5),
        (str(root / "link"), 1),
    ]
    lines = cowfs("du", "--shared", root / "file").stdout.splitlines()
    assert [line.split() for line in lines] == [["path", "shared", "(bytes)"], [str(root / "file"), str(5 * BLOCK)]]
    assert "No such file" in cowfs("du", root / "none", ok=False).stderr
    assert "does not lie in a mounted" in cowfs("du", root / "file", "/", ok=False).stderr
    lines = cowfs("df", "--exclusive", root).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["tree", "(live)", "s"]
    mounted.umount()
    rows = json.loads(cowfs("du", mounted.image, "file", ".cowfs/snapshots/s/file", "link", "--json").stdout)
    assert [row["total"] // BLOCK for row in rows] == [5, 5, 1]
    whole = json.loads(cowfs("du", mounted.image, "--json").stdout)[0]
    assert whole["total"] == json.loads(cowfs("df", mounted.image, "--json").stdout)[0]["total"]


def test_what_is_exclusive_is_what_becomes_free(mounted: Place) -> None:
    root = mounted.mountpoint
    (root / "kept").write_bytes(os.urandom(100 * BLOCK))
    for name in ("one", "two"):
        (root / "file").write_bytes(os.urandom(300 * BLOCK))
        mounted.command(f"snapshot create {name}")
    mounted.command("snapshot create branch --writable --from=one")
    with open(root / ".cowfs" / "snapshots" / "branch" / "file", "r+b") as file:
        file.write(os.urandom(50 * BLOCK))
    (root / "file").unlink()
    reclaimed(mounted)
    for name, least in (("branch", 50), ("one", 300), ("two", 300)):
        said = ask(mounted, "snapshot", "delete", name, **{"dry-run": True})["would_free"] // BLOCK
        assert du(mounted, f".cowfs/snapshots/{name}")["exclusive"] == said
        assert least <= said <= least + 10
        before = free(mounted)
        ask(mounted, "snapshot", "delete", name, wait=True)
        reclaimed(mounted)
        assert -8 <= free(mounted) - before - said <= 8, "but for blocks of the volume's own trees"
    usage = du(mounted, "kept")
    before = free(mounted)
    (root / "kept").unlink()
    reclaimed(mounted)
    assert usage["exclusive"] == usage["total"] == 101
    assert -8 <= free(mounted) - before - 101 <= 8


def is_written(change: dict[str, Any]) -> bool:
    """Whether a change is that of a file that is being written: its time may come from the kernel before its bytes do."""
    return change["kind"] == "modified" or change.get("fields") == ["mtime"]


def test_nobody_is_busy_because_others_write(place: Place) -> None:
    """All that looks at whole trees, while files change, clones change, and snapshots come and go."""
    place.make(128)
    place.mount("-o", "commit=0.05")
    root = place.mountpoint
    for number in range(300):
        (root / str(number)).write_bytes(b"x" * 5000)
    place.command("snapshot create base")
    place.command("snapshot create branch --writable")
    (root / "fixed").mkdir()
    (root / "fixed" / "file").write_bytes(os.urandom(40 * BLOCK))
    stop = threading.Event()
    failures: list[BaseException] = []

    def write(where: Path) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with open(where / str(number % 300), "r+b", buffering=0) as file:
                file.write(number.to_bytes(4, "little") * 100)

    def take_and_delete() -> None:
        while not stop.is_set():
            ask(place, "snapshot", "create", "passing")
            ask(place, "snapshot", "delete", "passing")

    def guarded(act: object, *arguments: object) -> None:
        try:
            act(*arguments)  # type: ignore[operator]
        except BaseException as error:
            failures.append(error)

    branch = root / ".cowfs" / "snapshots" / "branch"
    jobs = [(write, root), (write, branch), (take_and_delete,)]
    threads = [threading.Thread(target=guarded, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            rows = {row["name"]: row for row in ask(place, "df")["trees"]}
            assert {"", "base", "branch"} <= rows.keys()
            for row in rows.values():
                assert row["exclusive"] + row["shared"] == row["total"]
            changes = ask(place, "diff", "base")["changes"]
            assert {("added", "fixed"), ("added", "fixed/file")} == {
                (change["kind"], change["path"]) for change in changes if not is_written(change)
            }
            assert all(map(is_written, ask(place, "diff", "base", "branch")["changes"]))
            usage = du(place, "fixed")
            assert (usage["total"], usage["exclusive"]) in ((42, 42), (42, 0)), "without that snapshot, or with it"
            ask(place, "snapshot", "delete", "branch", **{"dry-run": True})
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert ask(place, "info")["snapshots"] == 2
    place.umount()
    assert "left" not in place.check()
