"""Copies of files and trees on a real mount."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest
from mounting import Place, cowfs, run

from cowfs.fs import Caller, Filesystem
from cowfs.storage.device import FileDevice
from cowfs.storage.volume import Volume

pytestmark = pytest.mark.fuse

FILES = 100_000


def fill(top: Path) -> None:
    (top / "below" / "empty").mkdir(parents=True)
    (top / "file").write_bytes(os.urandom(300_000))
    (top / ("a long name " * 10)).write_bytes(b"long")
    os.link(top / "file", top / "below" / "hard")
    os.symlink("../file", top / "below" / "link")
    os.setxattr(top / "file", "user.name", b"value")
    os.truncate(top / "below" / "empty" / ".." / "hard", 5_000_000)
    for number in range(50):
        (top / "below" / f"{number}").write_bytes(b"%d" % number)


def test_copies_of_files_and_trees(mounted: Place) -> None:
    root = mounted.mountpoint
    top = root / "top"
    fill(top)
    os.utime(top / ("a long name " * 10), ns=(1, 2_000_000_007))
    assert not (root / "copy").exists()  # the kernel remembers that
    with open(top / "file", "r+b", buffering=0) as dirty:
        dirty.write(b"just written")
        cowfs("clone", top, root / "copy")
        dirty.write(b"and later")
    assert (root / "copy" / "file").read_bytes()[:21] != (top / "file").read_bytes()[:21]
    with open(root / "copy" / "below" / "hard", "r+b") as file:
        file.seek(12)
        file.write(b"and later")
    run("diff", "-r", "--no-dereference", top, root / "copy")
    before, after = os.stat(top / "below" / "hard"), os.stat(root / "copy" / "below" / "hard")
    assert before.st_ino != after.st_ino and (after.st_nlink, after.st_mode, after.st_size) == (2, 33188, 5_000_000)
    assert os.getxattr(root / "copy" / "file", "user.name") == b"value"
    assert os.stat(root / "copy" / ("a long name " * 10)).st_mtime_ns == 2_000_000_007

    assert not (top / "one").exists()
    cowfs("clone", top / "file", top / "one")
    before = os.stat(top / "below")  # which the kernel keeps
    cowfs("clone", root, top / "file", "top/below/two", ok=False)
    cowfs("clone", root, "top/file", "top/below/two")
    assert os.stat(top / "below").st_mtime_ns > before.st_mtime_ns
    assert (top / "one").read_bytes() == (top / "below" / "two").read_bytes() == (top / "file").read_bytes()

    cowfs("snapshot", "create", root, "old")
    (top / "file").unlink()
    cowfs("clone", root / ".cowfs" / "snapshots" / "old" / "top", top / "back")
    run("diff", "-r", "--no-dereference", root / ".cowfs" / "snapshots" / "old" / "top", top / "back")
    cowfs("snapshot", "delete", root, "old", "--wait")
    assert (top / "back" / "file").stat().st_size == 5_000_000


def test_what_is_refused(mounted: Place, tmp_path: Path) -> None:
    root = mounted.mountpoint
    fill(root / "top")
    cowfs("snapshot", "create", root, "old")
    for words, number in (
        ("clone top top", errno.EEXIST),
        ("clone top top/below", errno.EEXIST),
        ("clone none other", errno.ENOENT),
        ("clone top none/other", errno.ENOENT),
        ("clone top top/file/other", errno.ENOTDIR),
        ("clone top .cowfs/snapshots/old/other", errno.EROFS),
        ("clone top .cowfs/snapshots/new", errno.EINVAL),
        ("clone .cowfs top/other", errno.EINVAL),
        ("clone top/../top other", errno.EINVAL),
        ("clone top", errno.EINVAL),
        ("clone top " + "n" * 511, errno.ENAMETOOLONG),
    ):
        with pytest.raises(OSError) as caught:
            mounted.command(words)
        assert caught.value.errno == number, words
    assert "File exists" in cowfs("clone", root / "top", root / "top" / "below", ok=False).stderr
    assert "does not lie in a mounted" in cowfs("clone", root / "top", tmp_path / "other", ok=False).stderr
    assert sorted(os.listdir(root)) == ["top"]


def test_an_image_that_is_not_mounted(tmp_path: Path) -> None:
    place = Place(tmp_path).make()
    place.mount()
    fill(place.mountpoint / "top")
    place.umount()
    assert "copied" in cowfs("clone", place.image, "/top", "top/inside").stdout
    assert "File exists" in cowfs("clone", place.image, "/top", "top/inside", ok=False).stderr
    assert '"copied": 1' in cowfs("clone", place.image, "/top/file", "/file", "--json").stdout
    cowfs("check", place.image)
    place.mount()
    run("diff", "-r", "-x", "inside", place.mountpoint / "top", place.mountpoint / "top" / "inside")
    place.umount()


class Stats(threading.Thread):
    """Asks for attributes that the kernel does not have, again and again, and notes how long each answer takes."""

    def __init__(self, directory: Path) -> None:
        super().__init__(daemon=True)
        self.directory = directory
        self.seconds: list[float] = []
        self.done = False

    def run(self) -> None:
        number = 0
        while not self.done:
            number += 1
            start = time.perf_counter()
            os.path.exists(self.directory / f"no such file {number}")
            self.seconds.append(time.perf_counter() - start)
            time.sleep(0.002)

    def percentile(self, share: float) -> float:
        return sorted(self.seconds)[int(len(self.seconds) * share)]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_copying_many_files_stalls_nobody(tmp_path: Path) -> None:
    place = Place(tmp_path).make(2048)
    device = FileDevice.open(str(place.image), read_only=False)
    files = Filesystem(Volume.open(device))
    top = files.mkdir(1, b"top", 0o755, Caller()).ino
    for number in range(FILES):
        if number % 500 == 0:
            directory = files.mkdir(top, b"directory %d" % number, 0o755, Caller()).ino
        ino = files.create(directory, b"file %d" % number, 0o644, Caller()).ino
        files.write(ino, 0, b"%d" % number)
        if files.volume.wants_commit:
            files.volume.commit()
    files.close()
    device.close()
    place.mount()
    stats = Stats(place.mountpoint)
    stats.start()
    time.sleep(2)
    idle = stats.percentile(0.99)
    stats.seconds.clear()
    start = time.monotonic()
    cowfs("clone", place.mountpoint / "top", place.mountpoint / "copy", timeout=900)
    seconds = time.monotonic() - start
    stats.done = True
    stats.join()
    count, p50, p99, most = len(stats.seconds), stats.percentile(0.5), stats.percentile(0.99), max(stats.seconds)
    print(
        f"\n{FILES} files in {seconds:.1f} s; {count} requests meanwhile: median {p50 * 1000:.1f} ms, "
        f"p99 {p99 * 1000:.1f} ms, longest {most * 1000:.1f} ms; before: p99 {idle * 1000:.1f} ms"
    )
    assert count > 200
    assert p99 < 0.25
    copied = sum(len(names) for _, _, names in os.walk(place.mountpoint / "copy"))
    assert copied == FILES
    place.umount()
    cowfs("check", place.image, timeout=900)
