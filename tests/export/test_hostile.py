"""Whatever a volume holds: an error of ours, and never a hang, another exception, or memory without bound.

The ordinary run has fixed seeds. For as long as one likes, from any seed:

    pytest -m soak tests/export/test_hostile.py --seconds 1200 --seed 1
"""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest
from hostile import Forgery, attack, checked, counted, dumped, hashed, mounted, opened, run_seed, survey
from qnx6writer import Node, Volume, directory, file, older_tree, symlink

from cowfs.errors import Corrupt
from cowfs.export.budget import Budget
from cowfs.export.extract import Extraction
from cowfs.export.listing import bodyfile_lines, checksum_lines
from cowfs.export.walk import walk
from cowfs.fs import directory as directories
from cowfs.fs import inode as inodes

ORDERS = pytest.mark.parametrize("order", ["<", ">"])
FOUND_BEFORE = (12, 1024)
"""Seeds that once found something: a search that went round in a full table, a link's target with a zero byte."""
SIZE, LEVELS, POINTERS = 0x00, 0x64, 0x24


def tree() -> Node:
    return directory(
        {
            b"file": file(b"x" * 3000),
            b"deep": file(b"y" * 3000, levels=3),
            b"folder": directory({b"inside": file(b"inside"), b"n" * 100: file(b"long")}),
            b"good": file(b"good"),
        }
    )


GOOD = {b"file", b"deep", b"folder/inside", b"folder/" + b"n" * 100, b"good"}


@pytest.mark.parametrize("first", range(0, 24, 6))
def test_fixed_seeds(first: int) -> None:
    assert sum(run_seed(seed) for seed in range(first, first + 6)) < 6 * 8, "most mutants can be read at least in part"


@pytest.mark.parametrize("seed", FOUND_BEFORE)
def test_seeds_that_found_something(seed: int) -> None:
    run_seed(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(10_000, 10_400, 50))
def test_more_seeds(first: int) -> None:
    for seed in range(first, first + 50):
        run_seed(seed)


@pytest.mark.soak
def test_soak(pytestconfig: pytest.Config) -> None:
    seed = pytestconfig.getoption("--seed")
    end = time.monotonic() + pytestconfig.getoption("--seconds")
    while time.monotonic() < end:
        run_seed(seed)
        seed += 1


@ORDERS
@pytest.mark.parametrize("pointer", [0xFFFFFFF0, 0x80000000, 200_000])
def test_pointers_beyond_the_end(order: str, pointer: int) -> None:
    forgery = Forgery(order, tree())
    forgery.inode(b"file", POINTERS + 4, "I", pointer)
    found, problems = survey(forgery.device())
    assert found == GOOD - {b"file"}
    assert "pointer beyond the end" in problems[b"file"]


@ORDERS
def test_sizes_and_levels_that_cannot_be(order: str) -> None:
    for offset, code, number in (
        (SIZE, "Q", 1 << 63),
        (SIZE, "Q", (1 << 64) - 1),
        (SIZE, "Q", 1 << 40),
        (LEVELS, "B", 255),
        (LEVELS, "B", 6),
    ):
        forgery = Forgery(order, tree())
        forgery.inode(b"file", offset, code, number)
        found, problems = survey(forgery.device())
        assert found == GOOD - {b"file"}
        assert set(problems) == {b"file"}


@ORDERS
def test_indirect_blocks_that_contain_themselves(order: str) -> None:
    """A file of the greatest size whose every indirect block is the same one: given up after a bounded number of reads."""
    forgery = Forgery(order, tree())
    block = forgery.pointer(b"deep")
    forgery.set(forgery.block(block), "256I", *[block] * 256)
    forgery.inode(b"deep", POINTERS, "16I", *[block] * 16)
    forgery.inode(b"deep", SIZE, "Q", 16 * 256**3 * 1024)
    device = forgery.device()
    attack(device, "a loop")
    with pytest.raises(Corrupt, match="again and again"):
        survey(device)


@ORDERS
@pytest.mark.parametrize("hole", [0xFFFFFFFF, 0xFFFFFFFE])
def test_holes_without_end(order: str, hole: int) -> None:
    """A file of holes below shared indirect blocks: passing a hole costs something, too."""
    forgery = Forgery(order, tree())
    top, middle = forgery.pointer(b"deep"), forgery.pointer(b"file")
    forgery.set(forgery.block(top), "256I", *[middle] * 256)
    forgery.set(forgery.block(middle), "256I", *[hole] * 256)
    forgery.inode(b"deep", POINTERS, "16I", *[top] * 16)
    forgery.inode(b"deep", SIZE, "Q", 16 * 256**3 * 1024)
    attack(forgery.device(), "holes")


@ORDERS
def test_directories_that_contain_themselves(order: str) -> None:
    forgery = Forgery(order, tree())
    entry = forgery.block(forgery.pointer(b"folder")) + 3 * 32  # behind the dots and the long name
    assert forgery.raw[entry + 4] in (7, 0xFF)
    for path in (b"", b"folder"):
        for index in range(2, 5):
            if forgery.raw[forgery.block(forgery.pointer(b"folder")) + 32 * index + 5 :][:6] == b"inside":
                forgery.set(forgery.block(forgery.pointer(b"folder")) + 32 * index, "I", forgery.numbers[path])
        found, problems = survey(forgery.device())
        assert found == GOOD - {b"folder/inside"}
        assert "contains itself" in problems[b"folder/inside"]


@ORDERS
def test_a_few_directories_with_paths_without_number(order: str, tmp_path: Path) -> None:
    """Twelve directories, each with 25 names for the next: 25 to the power of 12 paths."""
    below = directory({b"end": file(b"")})
    for _ in range(12):
        below = directory({b"%02d" % i: below for i in range(25)})
    device = counted(Volume(order, 1024).image(older_tree(), below))
    filesystem = opened(device)
    start = filesystem.getattr(1)
    for reader in (
        lambda: list(checksum_lines(filesystem, start, lambda *_: None)),
        lambda: sum(1 for _ in bodyfile_lines(filesystem, start, lambda *_: None)),
    ):
        device.reset_counters()
        with pytest.raises(Corrupt, match="again and again"):
            reader()
        assert device.bytes_read < 16 * device.size()
    work = Extraction(filesystem, lambda *_: None, False, False, Budget(filesystem.volume, passes=2))
    with pytest.raises(Corrupt, match="again and again"):
        work.directory(start, tmp_path / "out")


@ORDERS
@pytest.mark.parametrize("length", [0, 28, 100, 0xFD, 0xFE, 0xFF])
def test_name_lengths_beyond_the_entry(order: str, length: int) -> None:
    forgery = Forgery(order, tree())
    at = forgery.raw.index(b"\6inside", forgery.block(0))
    forgery.raw[at] = length
    found, problems = survey(forgery.device())
    assert found == GOOD - {b"folder/inside"}
    assert len(problems) == (1 if length else 0), "an entry without a length is none"


@ORDERS
@pytest.mark.parametrize("length", [0, 511, 0xFFFF])
def test_long_names_beyond_their_block(order: str, length: int) -> None:
    forgery = Forgery(order, tree())
    at = forgery.raw.index(b"n" * 100, forgery.block(0)) - 2
    forgery.set(at, "H", length)
    found, problems = survey(forgery.device())
    assert found == GOOD - {b"folder/" + b"n" * 100}
    assert list(problems) == [b"folder"]


@ORDERS
def test_a_directory_of_one_block_again_and_again(order: str) -> None:
    """As large as the volume: memory is asked for what there is, not for what is said."""
    forgery = Forgery(order, tree())
    block, top = forgery.pointer(b"folder"), forgery.pointer(b"file")
    forgery.set(forgery.block(top), "256I", *[block] * 256)
    forgery.inode(b"folder", POINTERS, "16I", *[top] * 16)
    forgery.inode(b"folder", LEVELS, "B", 1)
    for size in (2048, forgery.volume.blocks * 1024, 16 * 256 * 1024):
        forgery.inode(b"folder", SIZE, "Q", size)
        found, problems = survey(forgery.device())
        assert found == {b"deep", b"file", b"good"}
        assert set(problems) == {b"folder"}


def test_superblocks_that_cannot_be() -> None:
    """Slot 2 is refused, and slot 1 used; or the state that slot 2 names is."""
    for index, (offset, number) in enumerate(
        (
            *((0x30, number) for number in (0, 3, 513, 65536, 1 << 31, 0xFFFFFFFF)),
            *((0x3C, number) for number in (0, 1, 0xFFFFFFF0, 0xFFFFFFFF)),
        )
    ):
        forgery = Forgery("<>"[index % 2], tree())
        forgery.record(offset, "I", number)
        found, problems = survey(forgery.device())
        assert (found, problems) == ({b"before", b"small"}, {})
    forgery = Forgery("<", tree())
    forgery.record(0x34, "4I", *[0xFFFFFFFF] * 2, forgery.volume.blocks, 0xFFFFFFFF)
    assert survey(forgery.device()) == (GOOD, {})


def test_roots_that_cannot_be() -> None:
    """Of the inodes, the bitmap and the long names."""
    sound = {order: Forgery(order, tree()) for order in "<>"}
    for offset in (0x48, 0x98, 0xE8):
        for index, (at, code, number) in enumerate(
            (
                *((offset, "Q", size) for size in (0, 127, 1 << 63, (1 << 64) - 1, 1 << 44)),
                *((offset + 72, "B", levels) for levels in (1, 5, 255)),
                *((offset + 8, "I", pointer) for pointer in (0, 0xFFFFFFFE, 0xFFFFFFFF, 0x12345678)),
            )
        ):
            forgery = sound["<>"[index % 2]]
            record = bytes(forgery.raw[forgery.slot2 : forgery.slot2 + 512])
            forgery.record(at, code, number)
            attack(forgery.device(), f"root {at:#x} {number:#x}", (mounted, hashed, checked, dumped))
            forgery.raw[forgery.slot2 : forgery.slot2 + 512] = record


@ORDERS
def test_overlapping_roots(order: str) -> None:
    """Inodes, bitmap and long names in the same blocks."""
    forgery = Forgery(order, tree())
    root = forgery.raw[forgery.slot2 + 0x48 : forgery.slot2 + 0x98]
    for offset in (0x98, 0xE8):
        forgery.raw[forgery.slot2 + offset : forgery.slot2 + offset + 80] = root
    attack(forgery.device(), "overlapping roots")


def test_links_with_zero_bytes(tmp_path: Path) -> None:
    """No program can ask for such a target, and none can make it."""
    device = counted(Volume("<", 1024).image(older_tree(), directory({b"link": symlink(b"to\0where")})))
    filesystem = opened(device)
    with pytest.raises(Corrupt, match="zero byte"):
        filesystem.readlink(filesystem.lookup(1, b"link").ino)
    problems: list[bytes] = []
    work = Extraction(filesystem, lambda path, _: problems.append(path), False, False, Budget(filesystem.volume))
    work.directory(filesystem.getattr(1), tmp_path / "out")
    assert problems == [b"link"]


def test_memory_does_not_grow_with_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times as many files in as many directories of the same size take no more, with small caches."""
    monkeypatch.setattr(inodes, "INODE_CACHE_MAX", 200)
    monkeypatch.setattr(directories, "HOT_BYTES_MAX", 10_000)
    peaks = []
    for count in (10, 40):
        folders = {b"%d" % i: directory({b"%d" % j: file(b"") for j in range(50)}) for i in range(count)}
        filesystem = opened(counted(Volume("<", 4096).image(older_tree(), directory(folders))))
        filesystem.volume.store._cache_max = 8
        tracemalloc.start()
        visits = walk(filesystem, filesystem.getattr(1), lambda *_: None, Budget(filesystem.volume))
        assert sum(1 for _ in visits) == 52 * count + 4
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0], peaks
