"""Devices that take their time, or fail: the mount goes on while a commit is written out, and turns read-only after an
error."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mounting import ROOT, Place

pytestmark = pytest.mark.fuse

FLUSH_SECONDS = 1.0
# Commits follow one another, so what waits for a flush waits for half of one in the median, and for nearly all of it one time
# in twenty. A busy machine keeps one answer in twenty waiting, too, but not so long.
ANSWER_SECONDS = FLUSH_SECONDS / 20
SLOW_ANSWER_SECONDS = FLUSH_SECONDS / 4
STALL_SECONDS = FLUSH_SECONDS / 2
FILES = 200


@contextmanager
def slow_mount(place: Place, words: str = "", *, seconds: float = FLUSH_SECONDS) -> Iterator[None]:
    """The place, mounted by a daemon with a slow device."""
    program = Path(__file__).with_name("slow_daemon.py")
    command = [sys.executable, program, place.image, place.mountpoint, str(seconds), words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with (
        open(place.log, "w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        place.pids.append(process.pid)
        try:
            yield
        finally:
            place.umount()


def answers(turns: int, act: Callable[[int], object]) -> list[float]:
    """Seconds that calls take, the fastest first. They are spread over the time that commits take."""
    times = []
    for turn in range(turns):
        begin = time.perf_counter()
        act(turn)
        times.append(time.perf_counter() - begin)
        time.sleep(0.01)
    return sorted(times)


@pytest.mark.parametrize("words", ["", "nowriteback"])
def test_requests_are_answered_during_a_commit(place: Place, words: str) -> None:
    place.make(64)
    place.mount()
    root = place.mountpoint
    for number in range(FILES):
        (root / f"file-{number}").write_bytes(os.urandom(10_000))
    place.umount()
    with slow_mount(place, words):
        stop = threading.Event()
        fsyncs = 0

        def commit() -> None:
            nonlocal fsyncs
            with open(root / "synced", "wb", buffering=0) as file:
                while not stop.is_set():
                    file.write(b"x" * 5000)
                    os.fsync(file.fileno())
                    fsyncs += 1

        target = os.open(root / "target", os.O_CREAT | os.O_RDWR)
        thread = threading.Thread(target=commit)
        thread.start()
        try:
            times = {
                "stat": answers(FILES // 2, lambda turn: (root / f"file-{turn}").stat()),
                "read": answers(FILES // 2, lambda turn: (root / f"file-{FILES - 1 - turn}").read_bytes()),
                "write": answers(100, lambda turn: os.pwrite(target, b"y" * 9000, turn * 7000)),
                "create": answers(100, lambda turn: (root / f"new-{turn}").touch()),
                "mkdir": answers(50, lambda turn: (root / f"directory-{turn}").mkdir()),
                "unlink": answers(50, lambda turn: (root / f"new-{turn}").unlink()),
            }
        finally:
            stop.set()
            thread.join()
            os.close(target)
        assert fsyncs >= 2, "commits went on meanwhile"
        for share, limit in ((0.5, ANSWER_SECONDS), (0.95, SLOW_ANSWER_SECONDS), (1.0, STALL_SECONDS)):
            found = {kind: taken[min(int(len(taken) * share), len(taken) - 1)] for kind, taken in times.items()}
            assert max(found.values()) < limit, (share, found)


def test_threads_that_sync_at_once_share_commits(place: Place) -> None:
    threads, turns = 32, 3
    place.make(64)
    with slow_mount(place, "commit=3600"):
        before = place.info()["serial"]
        barrier = threading.Barrier(threads)
        done: list[float] = []

        def work(number: int) -> None:
            with open(place.mountpoint / str(number), "wb", buffering=0) as file:
                barrier.wait()
                for _ in range(turns):
                    file.write(b"x" * 5000)
                    os.fsync(file.fileno())
                    done.append(time.monotonic())

        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        begin = time.monotonic()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        commits = place.info()["serial"] - before
        assert len(done) == threads * turns
        assert turns <= commits <= 2 * turns + 2
        assert max(done) - begin < threads * turns * FLUSH_SECONDS / 4


@pytest.mark.parametrize("words", ["nowriteback", ""])
def test_a_device_that_fails_turns_the_volume_read_only(place: Place, words: str) -> None:
    place.make(16)
    place.expects_errors = True
    root = place.mountpoint
    with slow_mount(place, f"commit=3600,{words}", seconds=0):
        (root / "kept").write_text("kept")
        place.command("sync")
        descriptor = os.open(root / "file", os.O_CREAT | os.O_WRONLY)
        (place.directory / "broken").touch()
        os.write(descriptor, b"x" * 100)
        with pytest.raises(OSError, match="Input/output error"):
            os.fsync(descriptor)
        with pytest.raises(OSError, match=r"Read-only|Input/output error"):
            os.fsync(descriptor)
            (root / "new").mkdir()
        os.close(descriptor)
        with pytest.raises(OSError, match="Read-only"):
            (root / "new").mkdir()
        with pytest.raises(OSError, match="Input/output error"):
            place.command("sync")
        assert (root / "kept").read_text() == "kept"
        reply = place.info()
        assert reply["read_only"]
        assert "broken" in reply["read_only_reason"]
    assert f"{place.image}: broken at byte" in place.log.read_text()
    (place.directory / "broken").unlink()
    place.mount()
    assert (root / "kept").read_text() == "kept"
    (root / "new").mkdir()
