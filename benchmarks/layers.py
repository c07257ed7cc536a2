"""What each layer costs by itself: microseconds of CPU for one operation, in this process, without FUSE.

A regression shows here in the lowest layer that has it. The volume is in memory, so a device costs next to nothing; the
device layer itself is measured on a file, in the system's cache, without flushes. CPU time depends less than time on who
else uses the machine. Each figure is the median of several repeats.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import BLOCK, CALLER, MIB, Bench, figure, median, memory_bench, table, wanted
from cowfs.fuse import convert
from cowfs.ondisk.format import ROOT_INODE
from cowfs.storage.blocktree import WritableRoot
from cowfs.storage.device import FileDevice
from cowfs.storage.spacemap import SpaceMap

REPEATS = 5
VOLUME_BYTES = 512 * MIB
FILE_BYTES = 64 * MIB
DATA = random.Random(5).randbytes(MIB)
Rows = list[tuple[object, ...]]


class Meter:
    """Collects the lines: of one layer, for one operation."""

    def __init__(self, scale: float) -> None:
        self._scale = scale
        self.rows: Rows = []

    def count(self, full: int) -> int:
        """How many operations make one repeat."""
        return max(16, round(full * min(1.0, self._scale)))

    def line(self, layer: str, operation: str, count: int, action: Callable[[int], object]) -> None:
        """`action` gets a new number each time: for `count` operations per repeat."""
        self.batches(layer, operation, count, lambda first: _each(action, range(first, first + count)))

    def batches(self, layer: str, operation: str, count: int, action: Callable[[int], object]) -> None:
        """`action` carries out `count` operations, of which it gets the first one's number."""
        taken = []
        for turn in range(REPEATS):
            begin = time.process_time()
            action(turn * count)
            taken.append((time.process_time() - begin) / count)
        self.rows.append((layer, operation, figure(median(taken) * 1e6), f"{count:,}"))


def _each(action: Callable[[int], object], numbers: range) -> None:
    for number in numbers:
        action(number)


def report(scale: float, directory: Path) -> str:
    """The table of all layers."""
    meter = Meter(scale)
    devices(meter, directory)
    space(meter)
    trees(meter)
    commits(meter)
    core(meter)
    head = ("layer", "operation", "us of CPU", "operations in a repeat")
    return table(f"CPU time of one operation, layer by layer, median of {REPEATS} repeats", head, meter.rows)


def devices(meter: Meter, directory: Path) -> None:
    """A file in the system's cache; nothing is flushed."""
    with tempfile.TemporaryDirectory(dir=directory, prefix="cowfs-benchmark-") as folder:
        device = FileDevice.create(Path(folder) / "device", FILE_BYTES)
        try:
            _device(meter, device, BLOCK, "4 KiB", meter.count(4000))
            _device(meter, device, MIB, "1 MiB", meter.count(64))
            wanted(device.read(0, MIB) == DATA, "the device holds something else")
        finally:
            device.close()


def _device(meter: Meter, device: FileDevice, length: int, name: str, count: int) -> None:
    places = FILE_BYTES // length
    pieces = [DATA[:length]]

    def write(number: int) -> None:
        device.write(number % places * length, pieces)

    def read(number: int) -> None:
        device.read(number % places * length, length)

    _each(write, range(places))  # the first write to a place would measure the host's filesystem
    meter.line("device", f"write {name}", count, write)
    meter.line("device", f"read {name}", count, read)


def space(meter: Meter) -> None:
    """Giving out and taking back blocks, alone and in runs."""
    with memory_bench(VOLUME_BYTES) as (made, _):
        spacemap = made.volume.spacemap
        assert spacemap is not None
        _allocate(meter, spacemap, "a block", 1, meter.count(2000))
        _allocate(meter, spacemap, "a run of 256 blocks", 256, meter.count(64))


def _allocate(meter: Meter, spacemap: SpaceMap, name: str, length: int, count: int) -> None:
    taken: list[tuple[int, int]] = []
    before = spacemap.free
    meter.line("space map", f"allocate {name}", count, lambda n: taken.append(spacemap.allocate_data(length, None)))
    meter.line("space map", f"free {name}", count, lambda n: spacemap.free_run(*taken.pop()))
    wanted(spacemap.free == before, "not all blocks are free again")


def trees(meter: Meter) -> None:
    """Block trees: a file's data without the file."""
    choose = random.Random(6)
    blocks = FILE_BYTES // BLOCK
    with memory_bench(VOLUME_BYTES) as (made, _):
        live, block_trees = made.live, made.volume.trees
        ino = made.create(ROOT_INODE, b"file")

        def token() -> WritableRoot:
            return live.inodes.make_writable(live.inode(ino))

        def write(offset: int, data: bytes) -> None:
            block_trees.write(token(), offset, data)
            if made.volume.wants_commit:
                made.volume.commit()

        count = FILE_BYTES // MIB // REPEATS
        meter.line("block tree", "write 1 MiB at the end", count, lambda n: write(n * MIB, DATA))
        made.volume.commit()
        meter.line("block tree", "overwrite 1 MiB", count, lambda n: write(n * MIB, DATA))
        end = REPEATS * count * MIB // BLOCK
        some = meter.count(2000)
        meter.line(
            "block tree", "overwrite 4 KiB anywhere", some, lambda n: write(choose.randrange(end) * BLOCK, DATA[:BLOCK])
        )
        made.volume.commit()
        root = live.inode(ino).root
        meter.line("block tree", "read 1 MiB", count, lambda n: block_trees.read(root, n * MIB, MIB))
        meter.line(
            "block tree",
            "read 4 KiB anywhere",
            some,
            lambda n: block_trees.read(root, choose.randrange(end) * BLOCK, BLOCK),
        )
        wanted(end <= blocks and live.read(ino, 0, BLOCK) == DATA[:BLOCK], "the file holds something else")


def commits(meter: Meter) -> None:
    """Seal, write out, publish; the changes before are not counted."""
    with memory_bench(VOLUME_BYTES) as (made, _):
        files = [made.create(ROOT_INODE, b"file %d" % number) for number in range(256)]
        made.volume.commit()
        for changed, name in ((1, "one file"), (256, "256 files")):
            taken = []
            for turn in range(meter.count(200) // (1 if changed == 1 else 8)):
                for ino in files[:changed]:
                    made.live.write(ino, 0, DATA[turn : turn + BLOCK])
                begin = time.process_time()
                made.volume.commit()
                taken.append(time.process_time() - begin)
            meter.rows.append(("commit", f"of 4 KiB in {name}", figure(median(taken) * 1e6), f"{len(taken)}"))
        expected = DATA[turn : turn + BLOCK]
        wanted(all(made.live.read(ino, 0, BLOCK) == expected for ino in files), "a file holds something else")


def core(meter: Meter) -> None:
    """The filesystem as the door to the kernel calls it, in a directory that grows as it goes; commits are not counted."""
    count = meter.count(2000)
    names = [b"file %d" % number for number in range(count * REPEATS)]
    with memory_bench(VOLUME_BYTES) as (made, _):
        live = made.live
        parent = made.mkdir(ROOT_INODE, b"directory")
        numbers: list[int] = []

        def rest(layer: str, operation: str, action: Callable[[int], object]) -> None:
            meter.line(layer, operation, count, action)
            made.volume.commit()

        rest("core", "create", lambda n: numbers.append(live.create(parent, names[n], 0o644, CALLER).ino))
        rest("core", "lookup", lambda n: live.lookup(parent, names[n]))
        rest("core", "lookup of what is not there", lambda n: made.want_missing(parent, n))
        rest("core", "getattr", lambda n: live.getattr(numbers[n]))
        rest("core", "write 4 KiB to an empty file", lambda n: live.write(numbers[n], 0, DATA[:BLOCK]))
        rest("core", "overwrite 4 KiB", lambda n: live.write(numbers[n], 0, DATA[1 : BLOCK + 1]))
        rest("core", "read 4 KiB", lambda n: live.read(numbers[n], 0, BLOCK))
        wanted(live.read(numbers[-1], 0, BLOCK) == DATA[1 : BLOCK + 1], "a file holds something else")
        _list(meter, made, parent, len(names))
        attributes = live.getattr(numbers[0])
        rest("adapter", "attributes for the kernel", lambda n: convert.entry(attributes, numbers[0]))
        rest("core", "rename", lambda n: live.rename(parent, names[n], parent, b"new " + names[n]))
        rest("core", "unlink", lambda n: live.unlink(parent, b"new " + names[n]))
        wanted(len(list(live.listing(parent).entries())) == 2, "the directory is not empty")


def _list(meter: Meter, made: Bench, parent: int, count: int) -> None:
    def entries(first: int) -> None:
        seen = [attributes() for _, _, _, attributes in made.live.listing(parent).entries()]
        wanted(len(seen) == count + 2, "the listing is not complete")

    meter.batches("core", "readdir with attributes, an entry", count, entries)
