"""Overlays on real mounts: eight on one base at once, reset under the kernel's caches, and those that vanish."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounting import Place, cowfs

from cowfs.fuse import mounts
from mkcowfs import cli as mkcowfs

pytestmark = pytest.mark.fuse


@pytest.fixture
def base(place: Place) -> Place:
    """A base of 32 MiB with a few files, not mounted."""
    place.make(32)
    place.mount()
    (place.mountpoint / "folder").mkdir()
    (place.mountpoint / "folder" / "file").write_bytes(b"of the base")
    (place.mountpoint / "large").write_bytes(os.urandom(3 << 20))
    place.umount()
    return place


def overlay_on(base: Place, name: str) -> Place:
    """A new overlay, in a directory of its own."""
    directory = base.directory / name
    directory.mkdir()
    place = Place(directory)
    assert mkcowfs.run([str(place.image), "--base", str(base.image)]) == 0
    return place


@pytest.fixture
def overlay(base: Place) -> Iterator[Place]:
    """A mounted overlay."""
    place = overlay_on(base, "overlay")
    place.mount()
    yield place
    place.end()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_eight_overlays_on_one_base_are_written_at_once(base: Place) -> None:
    before = digest(base.image)
    overlays = [overlay_on(base, f"overlay-{number}") for number in range(8)]
    try:
        for overlay in overlays:
            overlay.mount()
        large = (overlays[0].mountpoint / "large").read_bytes()

        def work(number: int, overlay: Place) -> None:
            root = overlay.mountpoint
            for turn in range(20):
                (root / f"new-{turn}").write_bytes(bytes([number]) * 50_000)
            with open(root / "large", "r+b") as file:
                file.seek(number << 12)
                file.write(bytes([number]) * 4096)
                os.fsync(file.fileno())
            (root / "folder" / "file").unlink()

        threads = [threading.Thread(target=work, args=pair) for pair in enumerate(overlays)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, overlay in enumerate(overlays):
            overlay.remount()
            assert (overlay.mountpoint / "new-7").read_bytes() == bytes([number]) * 50_000
            at = number << 12
            expected = large[:at] + bytes([number]) * 4096 + large[at + 4096 :]
            assert (overlay.mountpoint / "large").read_bytes() == expected
            assert os.listdir(overlay.mountpoint / "folder") == []
    finally:
        for overlay in overlays:
            overlay.end()
    assert digest(base.image) == before


def test_reset_under_a_mount_leaves_nothing_of_the_old_tree_in_the_caches(overlay: Place) -> None:
    root = overlay.mountpoint
    (root / "new").write_bytes(b"new")
    (root / "folder" / "file").write_bytes(b"of the overlay")
    (root / "large").unlink()
    with open(root / "new", "r+b", buffering=0) as held:
        reply = overlay.command("reset --keep=before")
        assert reply["kept"]["name"] == "before"
        with pytest.raises(OSError) as caught:
            held.write(b"late")
        assert caught.value.errno == errno.ESTALE
    assert sorted(os.listdir(root)) == ["folder", "large"]
    assert (root / "folder" / "file").read_bytes() == b"of the base"
    assert not (root / "new").exists()
    assert (root / ".cowfs" / "snapshots" / "before" / "new").read_bytes() == b"new"
    (root / "again").write_bytes(b"x")
    assert cowfs("reset", root).stdout == ""
    assert sorted(os.listdir(root)) == ["folder", "large"]
    overlay.remount()
    assert sorted(os.listdir(root)) == ["folder", "large"]
    assert overlay.info()["snapshots"] == 1


def test_reset_holds_what_was_written_and_is_still_open_in_the_kept_snapshot(overlay: Place) -> None:
    with open(overlay.mountpoint / "open", "wb", buffering=0) as file:
        file.write(b"dirty")
        overlay.command("reset --keep=now")
    assert (overlay.mountpoint / ".cowfs" / "snapshots" / "now" / "open").read_bytes() == b"dirty"


def test_reset_is_refused_where_there_is_no_base_or_nothing_can_be_written(base: Place, overlay: Place) -> None:
    overlay.umount()
    overlay.mount("-o", "ro")
    assert cowfs("reset", overlay.mountpoint, ok=False).returncode == 1
    overlay.umount()
    overlay.expects_problems = True  # whoever writes to the base loses the overlay
    base.mount()
    failed = cowfs("reset", base.mountpoint, ok=False)
    assert failed.returncode == 1 and "not an overlay" in failed.stderr


def test_a_killed_daemon_loses_nothing_that_was_synced(base: Place, overlay: Place) -> None:
    before = digest(base.image)
    (overlay.mountpoint / "synced").write_bytes(b"x" * 100_000)
    cowfs("sync", overlay.mountpoint)
    overlay.kill()
    mounts.unmount(str(overlay.mountpoint), lazy=True)
    overlay.mount()
    assert (overlay.mountpoint / "synced").read_bytes() == b"x" * 100_000
    assert digest(base.image) == before


def test_a_moved_base_is_named_at_the_mount(base: Place, overlay: Place) -> None:
    overlay.umount()
    moved = base.directory / "a, b=\\moved.img"
    base.image.rename(moved)
    failed = overlay.mount(ok=False)
    assert failed.returncode == 1 and "its base is missing" in failed.stderr
    overlay.mount("--base", moved)
    assert (overlay.mountpoint / "folder" / "file").read_bytes() == b"of the base"
    assert overlay.info()["layers"][0]["path"] == str(moved)
    overlay.umount()
    cowfs("rebase", overlay.image, "--base", moved)
    overlay.mount()
    overlay.umount()
    moved.rename(base.image)
    cowfs("rebase", overlay.image, "--base", base.image)


def test_a_sealed_base_is_mounted_for_reading_only(base: Place, overlay: Place) -> None:
    overlay.umount()
    cowfs("seal", base.image)
    failed = base.mount(ok=False)
    assert failed.returncode == 1
    assert "is sealed: mount it with -o ro, or an overlay on it; 'cowfs unseal' allows" in failed.stderr
    base.mount("-o", "ro")
    overlay.mount()
    (overlay.mountpoint / "new").write_bytes(b"x")
    base.umount()
    failed = base.mount(ok=False)
    assert "is sealed" in failed.stderr  # and not that it is in use
    overlay.umount()
    cowfs("unseal", base.image)
    overlay.mount()


def open_files(pid: int) -> list[str]:
    return [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]


def test_an_ephemeral_mount_vanishes(base: Place, tmp_path: Path) -> None:
    before = digest(base.image)
    names = sorted(os.listdir(base.directory))
    base.mount("--ephemeral")
    root = base.mountpoint
    assert (root / "folder" / "file").read_bytes() == b"of the base"
    (root / "new").write_bytes(b"x" * 1_000_000)
    cowfs("snapshot", "create", root, "then")
    cowfs("reset", root)
    cowfs("rollback", root, "then")
    assert (root / "new").stat().st_size == 1_000_000
    assert cowfs("check", base.image).returncode == 0  # the base itself is only read
    assert sorted(os.listdir(base.directory)) == names
    second = base.directory / "second"
    second.mkdir()
    cowfs("mount", "--ephemeral", "--ephemeral-dir", tmp_path, base.image, second)
    assert not (second / "new").exists()
    cowfs("umount", second)
    base.umount()
    assert digest(base.image) == before
    base.mount()
    assert sorted(os.listdir(root)) == ["folder", "large"]


def test_an_ephemeral_overlay_is_gone_after_its_daemon_was_killed(base: Place) -> None:
    base.mount("-o", "ephemeral")
    (base.mountpoint / "new").write_bytes(b"x" * 1_000_000)
    cowfs("sync", base.mountpoint)
    assert any("(deleted)" in name for name in open_files(base.pid))
    base.kill()
    mounts.unmount(str(base.mountpoint), lazy=True)
    assert sorted(os.listdir(base.directory)) == ["log", "mnt", "volume.img"]
    base.mount()
    assert sorted(os.listdir(base.mountpoint)) == ["folder", "large"]


def test_scrub_resize_and_usage_of_a_mounted_overlay(base: Place, overlay: Place) -> None:
    before = digest(base.image)
    (overlay.mountpoint / "new").write_bytes(os.urandom(500_000))
    cowfs("snapshot", "create", overlay.mountpoint, "then")
    assert " 0 bad blocks" in cowfs("scrub", overlay.mountpoint).stdout
    cowfs("resize", overlay.mountpoint, "+8M")
    cowfs("df", overlay.mountpoint)
    assert cowfs("diff", overlay.mountpoint, "then").stdout == ""
    available = os.statvfs(overlay.mountpoint)
    assert available.f_bavail * 4096 > 30 << 20
    assert digest(base.image) == before
