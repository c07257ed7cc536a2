"""What a request waits for while much is being committed: stat and 4 KiB writes elsewhere, beside a writer of 1 GiB.

    python -m benchmarks.stalls [--scale 0.1] [--peers cowfs,floor]

One process writes a file again and again, in sequence or in pieces at random, and then has it made durable. Beside it other
processes ask for one thing each, every few milliseconds: the attributes of a file, by statx(2) with AT_STATX_FORCE_SYNC, so
that each is a request; a name that is not there, another one each time, so that each is a lookup; a write of 4 KiB with
O_DIRECT, so that each reaches the daemon before it returns; a write of 4 KiB into the kernel's cache; and a read of what is
in no cache. What is counted is how long each took, apart for the time in which the writer wrote and for that in which it
waited for its fsync(2). Most of the writing back is done while the writer still writes: what it dirties beyond a share of
memory it has to wait for.

The floor answers the same requests from memory: what it shows is the kernel's queue in front of a daemon in Python, and
the scheduler of this machine. The image is written completely beforehand, and checked at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import multiprocessing
import os
import random
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from mmap import mmap
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Final

from benchmarks import image, machine
from benchmarks.common import BLOCK, GIB, MIB, Failed, figure, table
from benchmarks.peers import Cowfs, Floor, Peer

PAUSE_SECONDS: Final = 0.003
IDLE_SECONDS: Final = 2.0
ROUNDS: Final = 3
SCATTERED_PART: Final = 4
"""Pieces at random are a quarter of the amount."""
COLD_PART: Final = 16
"""What is read is so small a part of the amount."""
STRIDE_BYTES: Final = 68 * 1024
AT_FDCWD: Final = -100
AT_STATX_FORCE_SYNC: Final = 0x2000
STATX_BASIC_STATS: Final = 0x7FF
FORK: Final = multiprocessing.get_context("fork")

Probe = Callable[[Path, int], Callable[[int], object]]
"""Of a mount, and of the amount that is written beside: what asks once."""


def asking_attributes(root: Path, amount: int) -> Callable[[int], object]:
    """stat(2) that the kernel does not answer by itself."""
    library = ctypes.CDLL(None, use_errno=True)
    path = os.fsencode(root / "beside")
    buffer = ctypes.create_string_buffer(256)

    def ask(number: int) -> None:
        if library.statx(AT_FDCWD, path, AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, buffer):
            raise OSError(ctypes.get_errno(), "statx")

    return ask


def looking_up(root: Path, amount: int) -> Callable[[int], object]:
    """A name that the kernel has not asked for before."""
    prefix = f"{root}/absent-{os.getpid()}-"
    return lambda number: os.path.lexists(prefix + str(number))


def writing_through(root: Path, amount: int) -> Callable[[int], object]:
    """4 KiB that are the daemon's when the call returns."""
    descriptor = os.open(root / "through", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    page = mmap(-1, BLOCK)
    page[:8] = b"through\n"
    return lambda number: os.pwrite(descriptor, page, number % 256 * BLOCK)


def writing_cached(root: Path, amount: int) -> Callable[[int], object]:
    """4 KiB that the kernel keeps for a while."""
    descriptor = os.open(root / "cached", os.O_RDWR | os.O_CREAT)
    piece = b"cached\n".ljust(BLOCK)
    return lambda number: os.pwrite(descriptor, piece, number % 256 * BLOCK)


def reading(root: Path, amount: int) -> Callable[[int], object]:
    """4 KiB that no cache has."""
    descriptor = os.open(root / "cold", os.O_RDWR | os.O_CREAT)
    size = amount // COLD_PART // MIB * MIB
    for at in range(0, size, MIB):
        os.pwrite(descriptor, b"cold" * (MIB // 4), at)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def read(number: int) -> None:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.pread(descriptor, BLOCK, number * STRIDE_BYTES % size)

    return read


PROBES: Final[dict[str, Probe]] = {
    "stat": asking_attributes,
    "lookup": looking_up,
    "4 KiB write, O_DIRECT": writing_through,
    "4 KiB write, cached": writing_cached,
    "4 KiB read": reading,
}


@dataclass(frozen=True)
class Load:
    """What the writer does, and how often."""

    title: str
    size: int
    rounds: int
    scattered: bool

    def pieces(self, turn: int) -> Iterator[tuple[int, int]]:
        """(offset, length) of what is written in a turn."""
        if not self.scattered:
            for at in range(0, self.size, MIB):
                yield at, min(MIB, self.size - at)
            return
        blocks = list(range(self.size // BLOCK))
        random.Random(turn).shuffle(blocks)
        for block in blocks[: max(1, len(blocks) // SCATTERED_PART)]:
            yield block * BLOCK, BLOCK


Spans = list[tuple[float, float]]
Samples = list[tuple[float, float]]
"""(when it began, how long it took), in seconds."""


def write(root: Path, load: Load) -> tuple[Spans, Spans]:
    """Writes, and makes it durable, again and again; when it wrote, and when it waited for that."""
    data = random.Random(0).randbytes(2 * MIB)
    descriptor = os.open(root / "large", os.O_RDWR | os.O_CREAT)
    writing, committing = [], []
    for turn in range(load.rounds):
        begin = time.monotonic()
        for at, length in load.pieces(turn):
            start = (at // BLOCK + turn) % 256 * BLOCK
            os.pwrite(descriptor, memoryview(data)[start : start + length], at)
        between = time.monotonic()
        os.fsync(descriptor)
        writing.append((begin, between))
        committing.append((between, time.monotonic()))
    for at, length in load.pieces(load.rounds - 1):
        start = (at // BLOCK + load.rounds - 1) % 256 * BLOCK
        if os.pread(descriptor, length, at) != data[start : start + length]:
            raise Failed(f"byte {at} and the following are not what was written")
    os.close(descriptor)
    return writing, committing


def _probe(probe: Probe, root: Path, amount: int, ended: Event, into: Path) -> None:
    """A process that asks, until it is told to end."""
    ask = probe(root, amount)
    times = array("d")
    number = 0
    while not ended.is_set():
        begin = time.monotonic()
        ask(number)
        times.extend((begin, time.monotonic() - begin))
        number += 1
        time.sleep(PAUSE_SECONDS)
    into.write_bytes(times.tobytes())


@contextlib.contextmanager
def probing(root: Path, amount: int, scratch: Path) -> Iterator[dict[str, Samples]]:
    """All probes run meanwhile; what they found is there afterwards."""
    ended = FORK.Event()
    found: dict[str, Samples] = {}
    started = {}
    try:
        for number, (title, probe) in enumerate(PROBES.items()):
            into = scratch / f"probe-{number}"
            started[title] = FORK.Process(target=_probe, args=(probe, root, amount, ended, into)), into
            started[title][0].start()
        yield found
    finally:
        ended.set()
        for process, _ in started.values():
            process.join()
    for title, (process, into) in started.items():
        if process.exitcode:
            raise Failed(f"the probe '{title}' ended with {process.exitcode}")
        times = array("d", into.read_bytes())
        found[title] = list(zip(times[::2], times[1::2], strict=True))


def percentile(values: list[float], share: float) -> float:
    """The value that so large a share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def measured(peer: Peer, loads: list[Load], scratch: Path) -> Iterator[tuple[object, ...]]:
    """The rows of one peer."""
    peer.format()
    if peer.keeps and peer.image.exists():
        image.refill(peer.image)
    peer.mount()
    (peer.mountpoint / "beside").write_bytes(b"beside\n")
    with probing(peer.mountpoint, loads[0].size, scratch) as found:
        time.sleep(IDLE_SECONDS)
    yield from _rows(peer.name, "nothing else", "", found, None)
    for load in loads:
        with probing(peer.mountpoint, loads[0].size, scratch) as found:
            begin = time.monotonic()
            writing, committing = write(peer.mountpoint, load)
            rate = load.rounds * sum(length for _, length in load.pieces(0)) / MIB / (time.monotonic() - begin)
        speed = f"{figure(rate)} MiB/s"
        yield from _rows(peer.name, load.title, f"writing ({speed})", found, writing)
        yield from _rows(peer.name, load.title, "committing", found, committing)
    peer.unmount()
    peer.check()


def _rows(
    name: str, load: str, phase: str, found: dict[str, Samples], spans: Spans | None
) -> Iterator[tuple[object, ...]]:
    for title, samples in found.items():
        times = [
            length * 1000
            for begin, length in samples
            if spans is None or any(start <= begin + length and begin < end for start, end in spans)
        ]
        if times:
            shares = (figure(percentile(times, share)) for share in (0.5, 0.99, 1.0))
            yield (name, load, phase, title, len(times), *shares)


def main(arguments: list[str]) -> int:
    """Measures and prints a table. Raises Failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stalls", description="Waiting beside a large commit.")
    parser.add_argument("--scale", type=float, default=1.0, help="factor for the amount, 1 GiB by default")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often it is written, {ROUNDS} by default")
    parser.add_argument("--peers", default="cowfs,floor")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="where the image is made")
    options = parser.parse_args(arguments)
    size = max(16 * MIB, int(GIB * options.scale) // MIB * MIB)
    loads = [
        Load("in sequence", size, options.rounds, scattered=False),
        Load("at random", size, options.rounds, scattered=True),
    ]
    machine.end_like_an_interrupt()
    print("\n".join(f"- {line}" for line in machine.description()))
    print(f"- {size // MIB} MiB, load before: {machine.load()}\n", flush=True)
    rows: list[tuple[object, ...]] = []
    directory = Path(tempfile.mkdtemp(dir=options.directory))
    (mountpoint := directory / "mnt").mkdir()
    path = directory / "image"
    try:
        image.make(path, size * 3)
        for peer in (peer(path, mountpoint) for peer in (Cowfs, Floor) if peer.name in options.peers.split(",")):
            try:
                rows += measured(peer, loads, directory)
            finally:
                peer.abandon()
    finally:
        for leftover in directory.glob("*"):
            if leftover.is_file():
                leftover.unlink()
        mountpoint.rmdir()
        directory.rmdir()
    head = ("", "writer", "meanwhile it is", "probe", "samples", "p50, ms", "p99, ms", "max, ms")
    print(table("What a request waits for beside a writer", head, rows))
    print(f"load after: {machine.load()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
