"""A full volume: where the error arrives, what still works, and that nothing committed is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from pathlib import Path

import pytest
from mounting import Place, cowfs, wait_until

pytestmark = pytest.mark.fuse


def fill(path: Path, *, step: int = 1 << 16) -> tuple[int, str]:
    """Writes until there is no space: (bytes that were taken, the call that failed)."""
    taken = 0
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        call = "write"
        try:
            while True:
                taken += os.write(descriptor, os.urandom(step))
        except OSError as error:
            assert error.errno == errno.ENOSPC
        try:
            os.fsync(descriptor)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            call = "fsync"
    finally:
        try:
            os.close(descriptor)
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return taken, call


@pytest.mark.parametrize("words", ["rw", "nowriteback", "sync"])
def test_a_full_volume_keeps_what_it_has_and_lets_go(place: Place, words: str) -> None:
    place.expects_errors = False
    place.make(16)
    place.mount("-o", words)
    root = place.mountpoint
    kept = os.urandom(1 << 20)
    (root / "kept").write_bytes(kept)
    cowfs("sync", root)
    taken, call = fill(root / "filler")
    assert taken > 12 << 20
    if words != "rw":
        assert call == "write", "without the kernel's cache the write itself fails"
        assert (root / "filler").stat().st_size == taken
    assert os.statvfs(root).f_bavail * 4096 < 1 << 20
    with pytest.raises(OSError, match="No space left"):
        for number in range(100_000):
            (root / f"more-{number}").mkdir()
    assert (root / "kept").read_bytes() == kept
    os.truncate(root / "filler", 4 << 20)
    (root / "after-truncate").write_bytes(os.urandom(1 << 20))
    (root / "filler").unlink()
    wait_until(lambda: os.statvfs(root).f_bavail * 4096 > 10 << 20)
    (root / "after-unlink").write_bytes(kept * 8)
    place.remount("-o", words)
    assert (root / "kept").read_bytes() == kept
    assert (root / "after-unlink").read_bytes() == kept * 8


def test_a_write_right_after_a_deletion_finds_its_space(place: Place) -> None:
    place.make(32)
    place.mount("-o", "nowriteback,commit=3600")
    root = place.mountpoint
    for _ in range(4):
        (root / "large").write_bytes(os.urandom(24 << 20))
        (root / "large").unlink()


def test_when_space_is_short_writes_are_not_cached(place: Place) -> None:
    place.make(64)
    place.mount()
    root = place.mountpoint
    (root / "filler").write_bytes(os.urandom(61 << 20))
    cowfs("sync", root)
    taken, call = fill(root / "last")
    assert taken > 1 << 18
    assert call == "write"
    assert (root / "last").stat().st_size == taken


def test_databases_work_while_space_is_short(place: Place) -> None:
    """SQLite's write-ahead log needs a shared mapping, which the kernel refuses where its cache is bypassed."""
    place.make(64)
    place.mount()
    root = place.mountpoint
    (root / "filler").write_bytes(os.urandom(61 << 20))
    cowfs("sync", root)
    assert os.statvfs(root).f_bavail * 4096 < 3 << 20, "the test is about little space"
    for name in ("one", "two"):
        with contextlib.closing(sqlite3.connect(root / name, isolation_level=None)) as database:
            assert database.execute("PRAGMA journal_mode=wal").fetchone() == ("wal",)
            database.execute("CREATE TABLE t (x)")
            database.execute("INSERT INTO t VALUES (1)")
        with contextlib.closing(sqlite3.connect(root / name)) as database:
            assert database.execute("SELECT * FROM t").fetchall() == [(1,)]
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_a_database_on_a_full_volume_says_so_and_stays_whole(place: Place, mode: str) -> None:
    place.make(16)
    place.mount()
    path = place.mountpoint / "database"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(f"PRAGMA journal_mode={mode}")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE t (number INTEGER PRIMARY KEY, contents BLOB)")
        certain = 0
        with pytest.raises(sqlite3.OperationalError, match=r"full|disk I/O error"):
            while certain < 1000:
                database.execute("INSERT INTO t VALUES (?, ?)", (certain, os.urandom(200_000)))
                certain += 1
    assert certain > 5
    place.remount()
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        numbers = [number for (number,) in database.execute("SELECT number FROM t ORDER BY number")]
    assert numbers[:certain] == list(range(certain))


def test_a_full_volume_can_be_unmounted_and_mounted(place: Place) -> None:
    place.make(4)
    place.mount("-o", "nowriteback")
    for number in range(100):
        path = place.mountpoint / f"file-{number}"
        taken, _ = fill(path, step=4096)
        if not taken:
            break
    place.remount("-o", "nowriteback")
    names = os.listdir(place.mountpoint)
    for name in names:
        (place.mountpoint / name).unlink()
    place.remount()
    assert os.listdir(place.mountpoint) == []
    (place.mountpoint / "file").write_bytes(os.urandom(2 << 20))
