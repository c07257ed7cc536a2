"""The patterns by which applications save their data, and what they may find of it after a power cut.

SQLite is the real one at either end: it makes the contents of database, journal and log, and it opens what is left after the
power cut. In between its writes are repeated in the order in which its documentation promises them, with a sync wherever it
calls fsync.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from workloads import empty_image, image_after

from cowfs.check.crashdevice import RecordingDevice, Thoroughness
from cowfs.check.crashscript import ScriptRun
from cowfs.check.crashtest import Judge, verify
from cowfs.errors import NotFound
from cowfs.fs import Filesystem
from cowfs.ondisk import format as f
from cowfs.storage.volume import Volume

SOME = Thoroughness(exhaustive_max=6, samples=8, near_misses=6, tears=2, second_chances=0)
PAGE = 512


class Files:
    """The files in the root directory of an image."""

    def __init__(self, image: bytes) -> None:
        self.filesystem = Filesystem(Volume.open(RecordingDevice(image), read_only=True))

    def get(self, name: str) -> bytes | None:
        try:
            ino = self.filesystem.lookup(f.ROOT_INODE, name.encode()).ino
        except NotFound:
            return None
        return self.filesystem.read(ino, 0, self.filesystem.getattr(ino).size)


def survivors(device: RecordingDevice, start: int = 0) -> list[Files]:
    """Every state that a power cut could leave of a recording, behind its first entries; all of them allowed."""
    judge = Judge(recovery_share=2)
    verify(device, judge, thoroughness=SOME, start=start)
    print(f"\n{judge.counts}; {len(judge.found())} states")
    return [Files(image) for _, image in judge.found()]


# --- small files ---


@pytest.mark.parametrize("with_sync", [True, False])
def test_write_new_then_rename(with_sync: bool) -> None:
    """Whoever replaces a file finds the old contents or the new; also without a sync before the rename."""
    device = RecordingDevice(empty_image())
    run = ScriptRun(device, strict=True)
    versions = [bytes([number]) * (700 * number) for number in range(1, 6)]
    run.perform("create /config")
    run.write_bytes("/config", 0, versions[0])
    run.perform("sync")
    begun = len(device.log)
    for version in versions[1:]:
        run.perform("create /config.new")
        run.write_bytes("/config.new", 0, version)
        if with_sync:
            run.perform("sync")
        run.perform("rename /config.new /config")
        run.perform("seal")
    run.perform("sync")
    run.stop()
    found = [files.get("config") for files in survivors(device, begun)]
    assert set(found) <= set(versions)
    assert len(set(found)) == len(versions)


def test_append_with_fdatasync() -> None:
    """A log holds all records that were synced, perhaps one more, and no piece of one."""
    device = RecordingDevice(image_after("create /log"))
    run = ScriptRun(device, strict=True)
    records = [bytes([number]) * (90 * number) for number in range(1, 12)]
    for number, record in enumerate(records):
        run.write_bytes("/log", sum(map(len, records[:number])), record)
        run.perform("sync")
    run.stop()
    prefixes = {b"".join(records[:count]) for count in range(len(records) + 1)}
    assert {files.get("log") for files in survivors(device)} == prefixes


# --- SQLite ---


def rows_of(connection: sqlite3.Connection) -> list[tuple[int, str]]:
    return connection.execute("SELECT id, text FROM t ORDER BY id").fetchall()


def change(connection: sqlite3.Connection, number: int) -> None:
    """One transaction that changes several pages, and how many there are."""
    with connection:
        connection.execute("UPDATE t SET text = ? WHERE id % 5 = ?", (f"{number}" * 60, number % 5))
        connection.executemany("INSERT INTO t(text) VALUES (?)", [(f"{number}-{i}" * 9,) for i in range(6)])
        connection.execute("DELETE FROM t WHERE id % 11 = ?", (number,))


def new_database(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA page_size = {PAGE}")
    assert connection.execute(f"PRAGMA journal_mode = {mode}").fetchone()[0] == mode
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    with connection:
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT)")
        connection.executemany("INSERT INTO t(text) VALUES (?)", [(f"row {i} " * 8,) for i in range(25)])
    return connection


def changes(old: bytes, new: bytes, unit: int = PAGE) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of the units that differ."""
    for offset in range(0, len(new), unit):
        if old[offset : offset + unit] != new[offset : offset + unit]:
            yield offset, new[offset : offset + unit]


def journal_of(old: bytes, new: bytes, nonce: int) -> tuple[bytes, bytes]:
    """(header, records) of the rollback journal for changing a database: the old contents of all pages that change."""
    records = b""
    count = 0
    for offset, _ in changes(old, new[: len(old)]):
        page = old[offset : offset + PAGE]
        total = nonce + sum(page[at] for at in range(PAGE - 200, 0, -200))
        number = offset // PAGE + 1
        records += number.to_bytes(4, "big") + page + (total & 0xFFFFFFFF).to_bytes(4, "big")
        count += 1
    fields = (count, nonce, len(old) // PAGE, PAGE, PAGE)
    header = bytes.fromhex("d9d505f920a163d7") + b"".join(field.to_bytes(4, "big") for field in fields)
    return header.ljust(PAGE, b"\0"), records


def open_database(files: Files, folder: Path) -> list[tuple[int, str]]:
    """What the real SQLite makes of database, journal and log."""
    folder.mkdir()
    for name in ("db", "db-journal", "db-wal"):
        contents = files.get(name)
        if contents is not None:
            (folder / name).write_bytes(contents)
    connection = sqlite3.connect(folder / "db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    rows = rows_of(connection)
    connection.close()
    return rows


def test_sqlite_with_a_rollback_journal(tmp_path: Path) -> None:
    """Journal; sync; its count of pages; sync; the pages; sync; unlink the journal, which is the commit; sync."""
    path = tmp_path / "db"
    connection = new_database(path, "delete")
    images, rows = [path.read_bytes()], [rows_of(connection)]
    device = RecordingDevice(empty_image())
    run = ScriptRun(device, strict=True)
    run.perform("create /db")
    run.write_bytes("/db", 0, images[0])
    run.perform("sync")
    begun = len(device.log)
    for number in range(1, 4):
        change(connection, number)
        images.append(path.read_bytes())
        rows.append(rows_of(connection))
        header, records = journal_of(images[-2], images[-1], nonce=number * 7919)
        run.perform("create /db-journal")
        run.write_bytes("/db-journal", 0, header[:8] + bytes(4) + header[12:])
        for at in range(0, len(records), PAGE + 8):
            run.write_bytes("/db-journal", PAGE + at, records[at : at + PAGE + 8])
        run.perform("sync")
        run.write_bytes("/db-journal", 0, header)
        run.perform("sync")
        for place, (offset, page) in enumerate(changes(images[-2], images[-1])):
            run.write_bytes("/db", offset, page)
            if place % 3 == number % 3:
                run.perform("seal")  # the timer may commit at any time
        run.perform("sync")
        run.perform("unlink /db-journal")
        run.perform("sync")
    connection.close()
    run.stop()
    judge_sqlite(device, begun, rows, tmp_path)


def test_sqlite_with_a_write_ahead_log(tmp_path: Path) -> None:
    """Frames, sync: the commit. At a checkpoint: the pages into the database, sync, and the log begins anew."""
    path = tmp_path / "db"
    connection = new_database(path, "wal")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    wal = tmp_path / "db-wal"
    database, log = path.read_bytes(), b""
    rows = [rows_of(connection)]
    device = RecordingDevice(empty_image())
    run = ScriptRun(device, strict=True)
    run.run("create /db; create /db-wal")
    run.write_bytes("/db", 0, database)
    run.perform("sync")
    begun = len(device.log)
    for number in range(1, 6):
        change(connection, number)
        rows.append(rows_of(connection))
        for offset, frame in changes(log, wal.read_bytes(), PAGE // 2):
            run.write_bytes("/db-wal", offset, frame)
        log = wal.read_bytes()
        run.perform("sync")
        if number % 2 == 0:
            assert connection.execute("PRAGMA wal_checkpoint(FULL)").fetchone()[0] == 0
            for place, (offset, page) in enumerate(changes(database, path.read_bytes())):
                run.write_bytes("/db", offset, page)
                if place % 3 == 1:
                    run.perform("seal")
            database = path.read_bytes()
            run.perform("sync")
    connection.close()
    run.stop()
    judge_sqlite(device, begun, rows, tmp_path)


def judge_sqlite(device: RecordingDevice, start: int, rows: list[list[tuple[int, str]]], folder: Path) -> None:
    """Whatever is left, SQLite opens it, and it holds the rows after one of the transactions; each of them is met."""
    met = [rows.index(open_database(files, folder / f"{n}")) for n, files in enumerate(survivors(device, start))]
    assert set(met) == set(range(len(rows)))


def test_the_judge_of_sqlite_sees_a_lost_journal(tmp_path: Path) -> None:
    """Without the syncs in between, and with a journal that is lost, SQLite finds a broken database: so it would be seen."""
    path = tmp_path / "db"
    connection = new_database(path, "delete")
    old = path.read_bytes()
    change(connection, 1)
    new = path.read_bytes()
    connection.close()
    device = RecordingDevice(empty_image())
    run = ScriptRun(device, strict=True)
    run.perform("create /db")
    half = list(changes(old, new))
    run.write_bytes("/db", 0, old)
    for offset, page in half[: len(half) // 2]:
        run.write_bytes("/db", offset, page)
    run.perform("sync")
    run.stop()
    with pytest.raises((AssertionError, sqlite3.DatabaseError)):
        open_database(Files(device.image()), tmp_path / "broken")
