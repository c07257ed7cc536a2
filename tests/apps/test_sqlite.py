"""SQLite on a mount: both journals, two processes at once, and what is there after a kill of the writer or the daemon."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest
from mounting import Place, cowfs

pytestmark = pytest.mark.fuse

WRITER = """
import sqlite3, sys
path, name, first, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
database = sqlite3.connect(path, timeout=120, isolation_level=None)
# With FULL, the removal of a rollback journal, which is the commit, is not synced: the last transaction may be undone.
database.execute("PRAGMA synchronous=EXTRA")
for number in range(first, first + count):
    database.execute("BEGIN IMMEDIATE")
    (total,) = database.execute("SELECT total FROM sums").fetchone()
    database.execute("INSERT INTO t VALUES (?, ?, ?)", (name, number, name * 300))
    database.execute("UPDATE sums SET total = ?", (total + 1,))
    database.execute("COMMIT")
    print(number, flush=True)
"""
"""Adds rows, one transaction each, and says so after each commit. `sums` would lose updates if locks did not work."""


def create(path: Path, mode: str) -> None:
    """An empty database with the given kind of journal."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        assert database.execute(f"PRAGMA journal_mode={mode}").fetchone() == (mode,)
        database.execute("CREATE TABLE t (name TEXT, number INTEGER, text TEXT, PRIMARY KEY (name, number))")
        database.execute("CREATE TABLE sums (total INTEGER)")
        database.execute("INSERT INTO sums VALUES (0)")


def writer(path: Path, name: str, first: int, count: int) -> subprocess.Popen[str]:
    """A process that adds rows."""
    command = [sys.executable, "-c", WRITER, str(path), name, str(first), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows(path: Path) -> dict[str, list[int]]:
    """Everybody's rows, after SQLite found nothing wrong."""
    with contextlib.closing(sqlite3.connect(path, timeout=120)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        found: dict[str, list[int]] = {}
        for name, number in database.execute("SELECT name, number FROM t ORDER BY name, number"):
            found.setdefault(name, []).append(number)
        assert database.execute("SELECT total FROM sums").fetchone() == (sum(map(len, found.values())),)
        return found


def acknowledged(stream: IO[str], count: int) -> int:
    """Waits for so many commits; the number of rows that were committed until then."""
    for _ in range(count):
        line = stream.readline()
        assert line, "the writer ended early"
    return count


@pytest.mark.parametrize("mode", ["wal", "delete"])
@pytest.mark.parametrize("count", [40, pytest.param(300, marks=pytest.mark.apps)])
def test_two_processes_write_at_once(place: Place, mode: str, count: int) -> None:
    place.make()
    place.mount()
    path = place.mountpoint / "data.sqlite"
    create(path, mode)
    writers = [writer(path, name, 0, count) for name in ("a", "b")]
    for process in writers:
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, said
    wanted = {"a": list(range(count)), "b": list(range(count))}
    assert rows(path) == wanted
    place.remount()
    assert rows(path) == wanted


@pytest.mark.parametrize("mode", ["wal", "delete"])
@pytest.mark.parametrize("turns", [1, pytest.param(5, marks=pytest.mark.apps)])
def test_committed_transactions_survive_kills(place: Place, mode: str, turns: int) -> None:
    """In each turn first a writer and then the daemon is killed, both in the middle of their work."""
    place.make()
    place.mount("-o", "commit=3600")
    path = place.mountpoint / "data.sqlite"
    create(path, mode)
    first = {"a": 0, "b": 0}
    for turn in range(turns):
        with writer(path, "a", first["a"], 100_000) as killed, writer(path, "b", first["b"], 100_000) as other:
            assert killed.stdout is not None
            assert other.stdout is not None
            certain_a = acknowledged(killed.stdout, 10 + turn % 5)
            killed.kill()
            certain_b = acknowledged(other.stdout, 10 + turn % 3)
            place.kill()
            # What it committed before it noticed counts, too.
            lines = [line for line in other.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
            certain_b += len(lines)
            assert other.wait(60) != 0
        cowfs("umount", place.mountpoint)
        place.mount("-o", "commit=3600")
        found = rows(path)
        for name, certain in (("a", certain_a), ("b", certain_b)):
            numbers = found[name]
            assert numbers == list(range(len(numbers)))
            assert len(numbers) >= first[name] + certain
            first[name] = len(numbers)
