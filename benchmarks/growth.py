"""What an operation costs when there is ever more: files, entries, bytes, blocks, snapshots, and age.

Everything is one process with a sparse device in memory: what must not grow is the CPU time of an operation and the bytes
that it writes, and both are the same through a mount. Only ageing uses an image on the disk, since fragments cost there.
Before each measurement the volume is unmounted and mounted, so nothing is known from before. Time is CPU time, the median
of the operations; bytes are those written to the device, commits included, for one operation.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import machine
from benchmarks.common import (
    BLOCK,
    CALLER,
    GIB,
    KIB,
    MIB,
    Bench,
    amount,
    bench,
    figure,
    median,
    memory_bench,
    scaled,
    table,
    timed,
    wanted,
)
from cowfs.fs.snapshot import Snapshots
from cowfs.ondisk.format import ROOT_INODE
from cowfs.ondisk.geometry import geometry_for_size
from cowfs.storage.device import MemoryDevice
from cowfs.storage.volume import Volume

PROBES = 200
FILES_IN_DIRECTORY = 1000
TIB = 1 << 40
DATA = random.Random(7).randbytes(2 * BLOCK)
CHANGE_HEAD = ("4 KiB write + commit, us", "KiB written by that")
Rows = list[tuple[object, ...]]


def report(scale: float, directory: Path) -> Iterator[str]:
    """One table for each thing that can grow."""
    for part in (files, entries, file_sizes, volume_sizes, snapshots):
        begin = time.monotonic()
        yield part(scale)
        machine.say(f"growth, {part.__name__}: {time.monotonic() - begin:.0f} s")
    begin = time.monotonic()
    yield age(scale, directory)
    machine.say(f"growth, age: {time.monotonic() - begin:.0f} s")


def cost(count: int, action: Callable[[int], object]) -> str:
    """Microseconds of CPU of one operation, the median of so many."""
    taken = []
    for number in range(count):
        begin = time.process_time()
        action(number)
        taken.append(time.process_time() - begin)
    return figure(median(taken) * 1e6)


def opening(made: Bench, device: MemoryDevice) -> str:
    """Milliseconds of CPU of a mount, and of a look at the root, of a volume that was unmounted cleanly."""
    taken = []
    for _ in range(5):
        made.trees.close()
        made.volume.settle()
        begin = time.process_time()
        made.trees = Snapshots(Volume.open(device))
        made.live.getattr(ROOT_INODE)
        taken.append(time.process_time() - begin)
    return figure(median(taken) * 1e3)


def changes(made: Bench, device: MemoryDevice, ino: int) -> tuple[str, str]:
    """Microseconds of a 4 KiB write with its commit, and the KiB that it writes."""

    def change(number: int) -> None:
        made.live.write(ino, 0, DATA[number : number + BLOCK])
        made.volume.commit()

    before = device.bytes_written
    taken = cost(PROBES, change)
    wanted(made.live.read(ino, 0, BLOCK) == DATA[PROBES - 1 : PROBES - 1 + BLOCK], "the file holds something else")
    return taken, figure((device.bytes_written - before) / PROBES / KIB)


def files(scale: float) -> str:
    """A tree of ever more files, a thousand in each directory."""
    marks = scaled((1_000, 10_000, 100_000, 1_000_000), scale)
    rows: Rows = []
    # At full size the check takes longer than all the rest; the tests have checked such a volume.
    with memory_bench(256 * MIB + marks[-1] * KIB, check=scale < 1) as (made, device):
        directories: list[int] = []
        probe = made.create(ROOT_INODE, b"probe")
        count = 0
        for mark in marks:
            for number in range(count, mark):
                if number % FILES_IN_DIRECTORY == 0:
                    directories.append(made.mkdir(ROOT_INODE, b"directory %d" % len(directories)))
                made.create(directories[-1], b"file %d" % number)
            count = mark
            made.reopen()
            rows.append((f"{mark:,}", *_among_files(made, device, directories, count), *changes(made, device, probe)))
    head = (
        "files",
        "mount, ms",
        "first lookup of any, us",
        "second, us",
        "create, us",
        "4 KiB write + commit, us",
        "KiB written by that",
    )
    return table("Number of files", head, rows)


def _among_files(made: Bench, device: MemoryDevice, directories: list[int], count: int) -> tuple[str, ...]:
    choose = random.Random(count)
    mount = opening(made, device)

    chosen = [choose.randrange(count) for _ in range(PROBES)]

    def look(number: int) -> None:
        which = chosen[number]
        made.live.lookup(directories[which // FILES_IN_DIRECTORY], b"file %d" % which)

    first, second = cost(PROBES, look), cost(PROBES, look)
    fresh = made.mkdir(ROOT_INODE, b"fresh with %d" % count)
    return mount, first, second, cost(PROBES, lambda number: made.create(fresh, b"new %d" % number))


def entries(scale: float) -> str:
    """One directory with ever more entries."""
    marks = scaled((10, 1_000, 100_000, 1_000_000), scale)
    rows: Rows = []
    with memory_bench(256 * MIB + marks[-1] * KIB, check=scale < 1) as (made, _):
        parent = made.mkdir(ROOT_INODE, b"directory")
        count = 0
        for mark in marks:
            for number in range(count, mark):
                made.create(parent, b"file %d" % number)
            count = mark
            made.reopen()
            rows.append((f"{mark:,}", *_in_directory(made, parent, count)))
    lookups = ("the very first lookup", "first lookup of any", "second", "lookup of what is not there")
    head = ("entries", *lookups, "create", "unlink", "readdir, an entry")
    return table("Entries of one directory, us (readdir with attributes)", head, rows)


def _in_directory(made: Bench, parent: int, count: int) -> tuple[str, ...]:
    choose = random.Random(count)
    live = made.live
    chosen = [choose.randrange(count) for _ in range(PROBES)]

    def look(number: int) -> None:
        live.lookup(parent, b"file %d" % chosen[number])

    opened, first, second = cost(1, look), cost(PROBES, look), cost(PROBES, look)
    absent = cost(PROBES, lambda number: made.want_missing(parent, number))
    create = cost(PROBES, lambda number: live.create(parent, b"new %d" % number, 0o644, CALLER))
    unlink = cost(PROBES, lambda number: live.unlink(parent, b"new %d" % number))
    made.volume.commit()
    seen: list[bytes] = []

    def read() -> None:
        for _, name, _, attributes in live.listing(parent).entries():
            attributes()
            seen.append(name)

    each = timed(read, time.process_time) / (count + 2)
    wanted(len(seen) == count + 2, "the listing is not complete")
    return opened, first, second, absent, create, unlink, figure(each * 1e6)


def file_sizes(scale: float) -> str:
    """A sparse file, written and read anywhere."""
    rows: Rows = []
    for size in scaled((MIB, GIB, 100 * GIB), min(1.0, scale)):
        length = max(MIB, size // BLOCK * BLOCK)
        choose = random.Random(size)
        with memory_bench(2 * length + 256 * MIB) as (made, device):
            ino = made.create(ROOT_INODE, b"file")
            made.live.truncate(ino, length)
            places = [choose.randrange(length // BLOCK) * BLOCK for _ in range(PROBES)]
            before = device.bytes_written

            def write(number: int, made: Bench = made, ino: int = ino, places: list[int] = places) -> None:
                made.write(ino, places[number], DATA[number : number + BLOCK])

            def read(number: int, made: Bench = made, ino: int = ino, places: list[int] = places) -> None:
                made.live.read(ino, places[number], BLOCK)

            taken = cost(PROBES, write)
            made.volume.commit()
            kib = figure((device.bytes_written - before) / PROBES / KIB)
            made.reopen()
            rows.append((amount(length), taken, kib, cost(PROBES, read)))
            wanted(made.live.read(ino, places[-1], BLOCK) == DATA[PROBES - 1 : PROBES - 1 + BLOCK], "a write was lost")
    head = ("bytes", "4 KiB write anywhere, us", "KiB written for each, one commit", "4 KiB read anywhere, us")
    return table("Size of a sparse file", head, rows)


def volume_sizes(scale: float) -> str:
    """Volumes of all sizes, sparse and empty."""
    rows: Rows = []
    for full in (GIB, 64 * GIB, 4 * TIB):
        size = max(64 * MIB, round(full * min(1.0, scale)) // MIB * MIB)
        device = MemoryDevice(geometry_for_size(size, BLOCK).end)
        begin = time.process_time()
        made = Bench(device, size)
        making = time.process_time() - begin
        probe = made.create(ROOT_INODE, b"probe")
        directory = made.mkdir(ROOT_INODE, b"directory")
        made.volume.commit()

        def new(number: int, made: Bench = made, directory: int = directory) -> None:
            made.create(directory, b"file %d" % number)

        create = cost(PROBES, new)
        change = changes(made, device, probe)
        made.reopen()
        mount = opening(made, device)
        made.finish()
        rows.append((amount(size), figure(making * 1e3), mount, create, *change))
    head = (
        "bytes",
        "mkcowfs and mount, ms",
        "mount, ms",
        "create, us",
        "4 KiB write + commit, us",
        "KiB written by that",
    )
    return table("Size of the volume", head, rows)


def snapshots(scale: float) -> str:
    """A volume with ever more snapshots; something changed before each of them."""
    marks = [0, *scaled((10, 100, 1_000, 10_000), scale)]
    rows: Rows = []
    with memory_bench(256 * MIB + marks[-1] * 64 * KIB, check=scale < 1) as (made, device):
        probe = made.create(ROOT_INODE, b"probe")
        count = 0
        for mark in marks:
            for number in range(count, mark):
                made.write(probe, number % 64 * BLOCK, DATA[number % BLOCK :][:BLOCK])
                made.trees.create(b"snapshot %d" % number)
            count = mark
            made.volume.commit()
            made.reopen()
            rows.append((f"{mark:,}", *_with_snapshots(made, device, probe)))
    head = ("snapshots", "mount, ms", "taking one + commit, us", "deleting it + commit, us", *CHANGE_HEAD)
    return table("Number of snapshots", head, rows)


def _with_snapshots(made: Bench, device: MemoryDevice, probe: int) -> tuple[str, ...]:
    mount = opening(made, device)

    def take(number: int) -> None:
        made.trees.create(b"extra %d" % number)
        made.volume.commit()

    def delete(number: int) -> None:
        made.trees.delete([b"extra %d" % number])
        made.volume.commit()

    taking, deleting = cost(20, take), cost(20, delete)
    return mount, taking, deleting, *changes(made, device, probe)


def age(scale: float, directory: Path) -> str:
    """Ten volumes' worth of random overwrites of a file that fills half of a small volume, with commits in between."""
    size = max(4 * MIB, round(128 * MIB * min(1.0, scale)) // MIB * MIB)
    blocks = size // 2 // BLOCK
    choose = random.Random(9)
    rows: Rows = []
    with bench(directory, size) as made:
        ino = made.create(ROOT_INODE, b"file")
        for index in range(blocks):
            made.write(ino, index * BLOCK, DATA[:BLOCK])
        made.volume.commit()
        rows.append(_aged(made, ino, blocks, "0", ""))
        for turn in range(1, 11):
            contents: dict[int, int] = {}

            def overwrite(turn: int = turn, contents: dict[int, int] = contents) -> None:
                for number in range(size // BLOCK):
                    contents[index := choose.randrange(blocks)] = start = (turn + number) % BLOCK
                    made.write(ino, index * BLOCK, DATA[start : start + BLOCK])
                    if number % 256 == 255:
                        made.volume.commit()

            seconds = timed(overwrite, time.process_time)
            made.volume.commit()
            for index, start in list(contents.items())[:1000]:
                wanted(made.live.read(ino, index * BLOCK, BLOCK) == DATA[start : start + BLOCK], "a write was lost")
            if turn in (1, 2, 5, 10):
                rows.append(_aged(made, ino, blocks, f"{turn}", figure(seconds / (size // BLOCK) * 1e6)))
    head = ("volumes written", "overwrite of 4 KiB, us", "fragments in a MiB", "sequential read, MiB/s, cold")
    return table(f"Age of a file of {amount(blocks * BLOCK)} on a volume of {amount(size)}", head, rows)


def _aged(made: Bench, ino: int, blocks: int, turns: str, overwrite: str) -> tuple[object, ...]:
    made.reopen()
    fragments = sum(1 for _ in made.volume.trees.runs(made.live.inode(ino).root, 0, blocks))
    made.device.drop_cache()
    begin = time.perf_counter()
    for offset in range(0, blocks * BLOCK, MIB):
        made.live.read(ino, offset, MIB)
    speed = blocks * BLOCK / MIB / (time.perf_counter() - begin)
    return turns, overwrite or "-", figure(fragments * MIB / BLOCK / blocks), figure(speed)
