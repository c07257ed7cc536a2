"""What snapshots, rollbacks and clones cost, and what writing costs beside them; see README.md."""

from __future__ import annotations

import argparse
import functools
import random
import sys
import tempfile
from pathlib import Path

from benchmarks.common import BLOCK, MIB, Bench, bench, median, scaled, table, timed, wanted
from cowfs.ondisk.format import ROOT_INODE

REPEATS = 9


# --- the parts ---


def trees(directory: Path, size: float) -> str:
    """Snapshot and rollback of trees of all sizes."""
    rows: list[tuple[object, ...]] = []
    for count in scaled((10, 10_000, 1_000_000), size):
        with bench(directory, 64 * MIB + count * 2048) as made:
            parent: int = ROOT_INODE
            for number in range(count):
                if number % 1000 == 0:
                    parent = made.mkdir(ROOT_INODE, b"directory %d" % number)
                made.create(parent, b"file %d" % number)
            probe = made.create(ROOT_INODE, b"probe")
            made.volume.commit(complete=True)
            took, back, blocks = [], [], []
            for turn in range(REPEATS):
                made.write(probe, 0, b"before %d" % turn)
                made.volume.commit()
                before = made.in_use()
                took.append(timed(functools.partial(_take, made, b"s%d" % turn)))
                blocks.append(float(made.in_use() - before))
                made.write(probe, 0, b"after  %d" % turn)
                made.volume.commit()
                back.append(timed(functools.partial(_roll_back, made, b"s%d" % turn)))
                wanted(made.trees.live.read(probe, 0, 100) == b"before %d" % turn, "rolled back to something else")
            rows.append((f"{count:,}", _ms(took), _ms(back), int(median(blocks))))
    head = ("files", "snapshot, ms", "rollback, ms", "blocks more in use")
    return table("Snapshot and rollback, each with its commit", head, rows)


def _take(made: Bench, name: bytes) -> None:
    made.trees.create(name)
    made.volume.commit()


def _roll_back(made: Bench, name: bytes) -> None:
    made.trees.roll_back(name, discard=True)
    made.volume.commit()


def _ms(seconds: list[float]) -> str:
    return f"{median(seconds) * 1000:.1f}"


def writes(directory: Path, size: float) -> str:
    """Write speed with ever more snapshots; the aged file was rewritten in pieces under each of them."""
    length = max(MIB, round(64 * MIB * size))
    rows: list[tuple[object, ...]] = []
    for aged in (False, True):
        for snapshots in (0, 1, 10, 100, 1000):
            if snapshots > 100 and size < 0.1:
                continue
            rows.append(_written(directory, length, snapshots, aged))
    head = ("file", "snapshots", "sequential, MiB/s", "random 4 KiB, MiB/s")
    return table(f"Writing a file of {length // MIB} MiB, commits included", head, rows)


def _written(directory: Path, length: int, snapshots: int, aged: bool) -> tuple[object, ...]:
    choose = random.Random(snapshots)
    chunk = choose.randbytes(MIB)
    with bench(directory, 4 * length + 64 * MIB + snapshots * 48 * BLOCK) as made:
        ino = made.create(ROOT_INODE, b"file")
        for offset in range(0, length, MIB):
            made.write(ino, offset, chunk)
        for number in range(snapshots):
            if aged:
                for _ in range(8):
                    made.write(ino, choose.randrange(length // BLOCK) * BLOCK, chunk[:BLOCK])
            _take(made, b"s%d" % number)
        places = choose.sample(range(length // BLOCK), length // BLOCK // 4)

        def sequential() -> None:
            for offset in range(0, length, MIB):
                made.write(ino, offset, chunk[::-1])
            made.volume.commit()

        def scattered() -> None:
            for place in places:
                made.write(ino, place * BLOCK, chunk[:BLOCK])
            made.volume.commit()

        one, other = timed(sequential), timed(scattered)
        expected = bytearray(chunk[::-1])
        for place in places:
            if place * BLOCK < MIB:
                expected[place * BLOCK : (place + 1) * BLOCK] = chunk[:BLOCK]
        wanted(made.trees.live.read(ino, 0, MIB) == expected, "the file holds something else")
    speeds = (f"{length / MIB / one:.0f}", f"{len(places) * BLOCK / MIB / other:.1f}")
    return ("aged" if aged else "fresh", f"{snapshots:,}", *speeds)


def clones(directory: Path, size: float) -> str:
    """Cloning a small file and a very large one."""
    rows: list[tuple[object, ...]] = []
    large = max(16 * MIB, round(10 * 1024 * MIB * size))
    for length in (BLOCK, large):
        with bench(directory, length * 2 + 64 * MIB) as made:
            ino = made.create(ROOT_INODE, b"file")
            chunk = random.Random(length).randbytes(min(length, MIB))
            for offset in range(0, length, len(chunk)):
                made.write(ino, offset, chunk)
            made.volume.commit(complete=True)
            took, before = [], made.in_use()
            for turn in range(REPEATS):
                took.append(timed(functools.partial(_clone, made, ino, b"copy %d" % turn)))
            copy = made.trees.live.lookup(ROOT_INODE, b"copy 0").ino
            made.write(copy, 0, b"changed")
            wanted(made.trees.live.read(ino, 0, 7) == chunk[:7], "a write to the copy reached the original")
            wanted(made.trees.live.read(copy, length - 9, 9) == chunk[-9:], "the copy holds something else")
            rows.append((f"{length // 1024:,}", _ms(took), f"{(made.in_use() - before) / REPEATS:.1f}"))
    return table("Cloning one file, with its commit", ("KiB", "ms", "blocks more in use"), rows)


def _clone(made: Bench, ino: int, name: bytes) -> None:
    made.trees.live.clone_file(made.trees.live, ino, ROOT_INODE, name)
    made.volume.commit()


def fraction(directory: Path, size: float) -> str:
    """Cost of writing after a snapshot, by the part that is written: what Smith and Maguire found for fork(2)."""
    rows: list[tuple[object, ...]] = []
    for length in (max(4 * MIB, round(32 * MIB * size)), max(8 * MIB, round(256 * MIB * size))):
        blocks = length // BLOCK
        for part in (0.0, 0.1, 0.25, 0.5, 1.0):
            with bench(directory, 3 * length + 64 * MIB) as made:
                ino = made.create(ROOT_INODE, b"file")
                for offset in range(0, length, MIB):
                    made.write(ino, offset, bytes([1]) * MIB)
                _take(made, b"before")
                choose = random.Random(blocks)
                places = sorted(choose.sample(range(blocks), int(blocks * part)))
                before = made.in_use()

                def write(places: list[int] = places, made: Bench = made, ino: int = ino) -> None:
                    for place in places:
                        made.write(ino, place * BLOCK, bytes([2]) * BLOCK)
                    made.volume.commit()

                seconds = timed(write)
                used = made.in_use() - before
                old = made.trees.filesystem(made.trees.find(b"before"))
                for place in places[:50]:
                    wanted(old.read(ino, place * BLOCK, 1) == b"\1", "the snapshot has changed")
                    wanted(made.trees.live.read(ino, place * BLOCK, 1) == b"\2", "a write was lost")
                rows.append((length // MIB, f"{part:.0%}", f"{seconds * 1000:.0f}", used, len(places)))
    head = ("MiB", "part written", "ms", "blocks more in use", "blocks written")
    return table("Writing 4 KiB pieces of a file after a snapshot", head, rows)


PARTS = {"trees": trees, "writes": writes, "clones": clones, "fraction": fraction}


def main(arguments: list[str]) -> None:
    """Runs the parts that were asked for and prints their tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.snapshots", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without one")
    parser.add_argument("--directory", type=Path, default=None, help="where the images are made")
    parser.add_argument("--size", type=float, default=1.0, help="factor for all amounts")
    options = parser.parse_args(arguments)
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"no part is called {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="cowfs-benchmark-") as directory:
        for name in options.parts or PARTS:
            print(PARTS[name](Path(directory), options.size), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
