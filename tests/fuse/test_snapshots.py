"""Snapshots, clones and rollback on a real mount: what the kernel has cached must never show through."""

from __future__ import annotations

import errno
import json
import mmap
import os
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from mounting import Place, cowfs, errno_of, run

from cowfs.fuse import mounts
from cowfs.fuse.server import Server

pytestmark = pytest.mark.fuse


def out(*words: object) -> str:
    return cowfs(*words).stdout


def command(place: Place, text: str) -> None:
    place.command(text)


def folder(place: Place) -> Path:
    return place.mountpoint / ".cowfs" / "snapshots"


def test_a_snapshot_holds_what_was_written_and_is_still_open(mounted: Place) -> None:
    root = mounted.mountpoint
    with open(root / "open", "wb", buffering=0) as file, open(root / "mapped", "wb+") as backing:
        file.write(b"dirty")
        backing.truncate(8192)
        with mmap.mmap(backing.fileno(), 8192) as mapped:
            mapped[4096:4101] = b"dirty"
            command(mounted, "snapshot create now")
            mapped[0:5] = b"later"
            file.write(b" later")
    assert (folder(mounted) / "now" / "open").read_bytes() == b"dirty"
    assert (folder(mounted) / "now" / "mapped").read_bytes() == bytes(4096) + b"dirty" + bytes(4091)
    assert (root / "open").read_bytes() == b"dirty later"


def test_a_snapshot_holds_what_was_written_and_closed(mounted: Place) -> None:
    """Nobody asks the kernel for it then, unless a map keeps a file open whose descriptor was closed."""
    root = mounted.mountpoint
    (root / "closed").write_bytes(b"dirty" * 10_000)
    command(mounted, "snapshot create closed")
    assert (folder(mounted) / "closed" / "closed").read_bytes() == b"dirty" * 10_000
    with open(root / "mapped", "wb+") as backing:
        backing.truncate(4096)
        mapped = mmap.mmap(backing.fileno(), 4096)
    with mapped:
        mapped[0:5] = b"dirty"
        command(mounted, "snapshot create mapped")
    assert (folder(mounted) / "mapped" / "mapped").read_bytes()[:5] == b"dirty"


@pytest.mark.parametrize("has_open_files", [False, True])
def test_the_kernel_is_asked_to_write_back_while_a_file_is_open(
    monkeypatch: pytest.MonkeyPatch, has_open_files: bool
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(mounts, "syncfs", lambda path, device: asked.append(path))
    server: Any = SimpleNamespace(has_open_files=has_open_files, _mountpoint="/mnt", _device=1)
    trio.run(Server.flush_dirty_pages, server)
    assert asked == ["/mnt"] * has_open_files


def test_a_snapshot_is_the_whole_tree_and_read_only(mounted: Place) -> None:
    root = mounted.mountpoint
    (root / "directory" / "below").mkdir(parents=True)
    (root / "directory" / "file").write_bytes(os.urandom(200_000))
    os.link(root / "directory" / "file", root / "hard")
    os.symlink("directory/file", root / "symlink")
    os.setxattr(root / "hard", "user.colour", b"blue")
    command(mounted, "snapshot create all")
    copy = folder(mounted) / "all"
    run("diff", "-r", "--exclude=.cowfs", root, copy)
    assert (copy / "hard").stat().st_ino == (copy / "directory" / "file").stat().st_ino
    assert (copy / "hard").stat().st_ino != (root / "hard").stat().st_ino
    assert (copy / "hard").stat().st_nlink == 2
    assert os.getxattr(copy / "hard", "user.colour") == b"blue"
    assert os.readlink(copy / "symlink") == "directory/file"
    assert errno_of((copy / "new").touch) == errno.EROFS
    assert errno_of(lambda: (copy / "hard").write_bytes(b"")) == errno.EROFS
    assert errno_of((copy / "hard").unlink) == errno.EROFS
    assert errno_of(lambda: os.link(root / "hard", copy / "other")) == errno.EXDEV
    assert errno_of(lambda: os.rename(copy / "hard", root / "moved")) == errno.EXDEV


def test_the_folder_takes_mkdir_rmdir_and_mv(mounted: Place) -> None:
    (mounted.mountpoint / "file").write_text("kept")
    where = folder(mounted)
    (where / "one").mkdir()
    assert errno_of((where / "one").mkdir) == errno.EEXIST
    (where / "one").rename(where / "two")
    assert os.listdir(where) == ["two"]
    assert (where / "two" / "file").read_text() == "kept"
    assert not (where / "one").exists()
    (where / "three").mkdir()
    assert errno_of(lambda: (where / "three").rename(where / "two")) == errno.EEXIST
    assert errno_of(lambda: (where / "three").rename(mounted.mountpoint / "three")) == errno.EXDEV
    assert errno_of((where / "none").rmdir) == errno.ENOENT
    (where / "two").rmdir()
    assert os.listdir(where) == ["three"]
    assert [stat.S_ISDIR((where / name).stat().st_mode) for name in os.listdir(where)] == [True]


def test_rollback_leaves_nothing_of_the_old_tree(mounted: Place) -> None:
    root = mounted.mountpoint
    (root / "directory").mkdir()
    both = root / "directory" / "in-both"
    both.write_bytes(b"old content" * 1000)
    (root / "gone-later").write_text("back again")
    number = both.stat().st_ino
    command(mounted, "snapshot create before")
    both.write_bytes(b"new")
    (root / "gone-later").unlink()
    (root / "directory" / "new").write_text("new")
    assert not (root / "gone-later").exists()
    assert both.stat().st_ino == number
    handle = os.open(both, os.O_RDWR)
    os.pwrite(handle, b"dirty", 0)
    with mmap.mmap(handle, 5) as mapped:
        mapped[0:5] = b"DIRTY"
        reply = json.loads(out("rollback", root, "before", "--json"))
        assert errno_of(lambda: os.pwrite(handle, b"late", 0)) == errno.ESTALE
        assert errno_of(lambda: os.fstat(handle)) in (0, errno.ESTALE)
        assert errno_of(lambda: os.ftruncate(handle, 1)) == errno.ESTALE
    assert errno_of(lambda: os.pread(handle, 5, 0)) == errno.ESTALE
    os.close(handle)
    assert both.read_bytes() == b"old content" * 1000
    assert (root / "gone-later").read_text() == "back again"
    assert sorted(os.listdir(root / "directory")) == ["in-both"]
    assert not (root / "directory" / "new").exists()
    saved = reply["saved"]["name"]
    assert saved.startswith("before-rollback-")
    assert (folder(mounted) / saved / "directory" / "in-both").read_bytes() == b"DIRTY"
    run("sync", "-f", root)
    assert both.read_bytes() == b"old content" * 1000, "nothing late has arrived"
    mounted.umount()
    assert mounted.check()
    mounted.mount()
    assert both.read_bytes() == b"old content" * 1000


def test_a_working_directory_in_the_root_goes_on(mounted: Place) -> None:
    (mounted.mountpoint / "file").write_text("old")
    command(mounted, "snapshot create before")
    (mounted.mountpoint / "file").write_text("new")
    script = "read line; cat file; echo; ls"
    with subprocess.Popen(
        ["sh", "-c", script], cwd=mounted.mountpoint, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        cowfs("rollback", mounted.mountpoint, "before", "--discard")
        assert process.communicate("go\n", timeout=30)[0] == "old\nfile\n"
    assert out("snapshot", "list", mounted.mountpoint).split()[1:] == ["before", "snapshot"]


def test_an_open_unlinked_file_and_a_rollback(mounted: Place) -> None:
    root = mounted.mountpoint
    with open(root / "file", "wb", buffering=0) as file:
        file.write(b"x" * 100_000)
        os.unlink(root / "file")
        command(mounted, "snapshot create with-orphan")
        cowfs("rollback", root, "with-orphan", "--discard")
        assert os.listdir(root) == []
        mounted.kill()
    cowfs("umount", root)
    assert mounted.check()
    mounted.mount()
    assert os.listdir(root) == []


def test_a_clone_is_written_and_mounted(mounted: Place) -> None:
    root = mounted.mountpoint
    (root / "file").write_text("base")
    command(mounted, "snapshot create base")
    cowfs("snapshot", "create", root, "branch", "--writable", "--from", "base")
    (folder(mounted) / "branch" / "file").write_text("branch")
    cowfs("snapshot", "create", root, "twig", "--writable", "--from", "branch")
    (folder(mounted) / "twig" / "file").write_text("twig")
    (folder(mounted) / "twig" / "more").mkdir()
    assert (root / "file").read_text() == (folder(mounted) / "base" / "file").read_text() == "base"
    (folder(mounted) / "branch").rmdir()
    mounted.umount()
    assert mounted.check()
    mounted.mount("-o", "snapshot=twig")
    assert (root / "file").read_text() == "twig"
    (root / "file").write_text("changed")
    mounted.umount()
    mounted.mount("-o", "snapshot=base")
    assert (root / "file").read_text() == "base"
    assert errno_of(lambda: (root / "file").write_text("no")) == errno.EROFS
    mounted.umount()
    mounted.mount()
    assert (folder(mounted) / "twig" / "file").read_text() == "changed"
    assert (root / "file").read_text() == "base"


def test_the_commands_work_on_an_image(place: Place) -> None:
    place.make(16)
    cowfs("snapshot", "create", place.image, "empty", "--description", "as it was made")
    place.mount()
    (place.mountpoint / "file").write_text("new")
    place.umount()
    cowfs("snapshot", "protect", place.image, "empty")
    assert "protected" in cowfs("snapshot", "delete", place.image, "empty", ok=False).stderr
    cowfs("rollback", place.image, "empty")
    cowfs("snapshot", "unprotect", place.image, "empty")
    cowfs("snapshot", "delete", place.image, "empty", "--wait")
    infos = json.loads(out("snapshot", "list", place.image, "--json"))
    assert [info["name"].startswith("before-rollback-") for info in infos] == [True]
    place.mount()
    assert os.listdir(place.mountpoint) == []
    assert (folder(place) / infos[0]["name"] / "file").read_text() == "new"


def test_what_deleting_a_set_frees_is_said_before(place: Place) -> None:
    place.make(64)
    place.mount()
    root = place.mountpoint
    (root / "base").write_bytes(os.urandom(1_000_000))
    for number in range(3):
        (root / "file").write_bytes(os.urandom(500_000))
        place.command(f"snapshot create s{number}")
    (root / "file").unlink()
    place.umount()
    names = ["s0", "s2"]
    said = json.loads(out("snapshot", "delete", place.image, *names, "--dry-run", "--json"))["would_free"]
    rows = {row["name"]: row for row in json.loads(out("df", place.image, "--json"))}
    assert rows["s0"]["total"] == rows["s0"]["exclusive"] + rows["s0"]["shared"] > 1_500_000
    assert 2 * 500_000 < said < 2 * 600_000
    before = json.loads(out("info", place.image, "--json"))["free"]
    cowfs("snapshot", "delete", place.image, *names, "--wait")
    assert json.loads(out("info", place.image, "--json"))["reclaim"] == 0
    after = json.loads(out("info", place.image, "--json"))["free"]
    assert 0 <= said - (after - before) <= 16 * 4096, "but for blocks of the volume's own trees"
    assert place.check()


def test_what_changed_is_told(mounted: Place) -> None:
    root = mounted.mountpoint
    for name in ("same", "changed", "removed", "moved"):
        (root / name).write_text(name)
    mounted.command("snapshot create a")
    (root / "changed").write_text("something else")
    (root / "removed").unlink()
    (root / "moved").rename(root / "there")
    (root / "added").mkdir()
    (root / "same").chmod(0o600)
    wanted = {
        "added     added",
        "metadata  same (mode)",
        "removed   removed",
        "renamed   moved -> there",
    }
    now = out("diff", root, "a").splitlines()
    assert wanted <= set(now)
    assert [line for line in now if line not in wanted and "changed" not in line] == []
    mounted.command("snapshot create b")
    assert out("diff", root, "a", "b").splitlines() == now
    assert out("diff", root, "b") == ""
    kinds = {change["path"]: change["kind"] for change in json.loads(out("diff", root, "a", "b", "--json"))}
    assert kinds["changed"] == "modified"
    assert out("diff", root, "a", "--path", "added", "-z") == "added     added\0"
    rows = json.loads(out("df", root, "--json"))
    assert [row["name"] for row in rows] == ["", "a", "b"]


def test_rolling_back_again_and_again_under_writers(mounted: Place) -> None:
    """Whatever is appended meanwhile, and is still in the kernel's cache, nothing of it lands in the restored tree."""
    root = mounted.mountpoint
    wanted = {str(number): bytes((number,)) * 9000 for number in range(4)}
    for name, data in wanted.items():
        (root / name).write_bytes(data)
    mounted.command("snapshot create base")
    stop = threading.Event()
    odd: list[str] = []

    def append(name: str) -> None:
        while not stop.is_set():
            descriptor = attempt("open", os.open, root / name, os.O_WRONLY | os.O_APPEND)
            if descriptor is not None:
                for _ in range(50):
                    attempt("write", os.write, descriptor, b"late" * 100)
                attempt("close", os.close, descriptor)

    def attempt(what: str, call: Callable[..., int | None], *arguments: object) -> int | None:
        """The result, or None where the tree is gone: close(2) says EIO for dirty pages that have no place any more."""
        try:
            return call(*arguments)
        except OSError as error:
            if error.errno != errno.ESTALE and (what, error.errno) != ("close", errno.EIO):
                odd.append(f"{what}: {error}")
        return None

    threads = [threading.Thread(target=append, args=(name,)) for name in wanted]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            mounted.command("rollback base --discard")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert odd == []
    for name, data in wanted.items():
        found = (root / name).read_bytes()
        assert found[: len(data)] == data and found[len(data) :].replace(b"late", b"") == b"", "what came after it"
    mounted.command("rollback base --discard")
    assert {name: (root / name).read_bytes() for name in wanted} == wanted
    assert {name: (folder(mounted) / "base" / name).read_bytes() for name in wanted} == wanted
    mounted.remount()
    assert {name: (root / name).read_bytes() for name in wanted} == wanted
