"""Dumps: every one of them shows what is there, on our volumes and on foreign ones, and changes nothing."""

from __future__ import annotations

import random

import pytest
from damage import Image
from damage_sample import LONG_NAMES, sample
from foreign_volume import ForeignVolume

from cowfs.check import DUMP_USAGES, dump_lines
from cowfs.check.dump import hex_lines
from cowfs.errors import Corrupt, CowfsError, InvalidArgument
from cowfs.ondisk import format as f
from cowfs.storage.device import MemoryDevice

CASES: list[tuple[str, str | None]] = [
    ("", "0x000 magic                0x68191122"),
    ("superblock", "0x0c8 checksums            size=32640"),
    ("slots", "slot 2: byte 0x3ff000, commit 5"),
    ("boot", "slot2_offset         4190208"),
    ("manifest", "0 blocks"),
    ("inode 1", "inode 1: drwxr-xr-x"),
    ("inode 0x1", "mode                 0o40755"),
    ("directory 1", "'fifo'"),
    ("directory 1", f"{LONG_NAMES[1].decode()}' (slot 1)"),
    ("orphans", None),
    ("tree inodes", "leaf 0"),
    ("tree bitmap", "bitmap: 1020 bytes, 0 levels"),
    ("tree checksums", "level 1, from leaf 0"),
    ("tree longnames", "leaf 2: block"),
    ("tree reclaim", "reclaim: 0 bytes, 0 levels"),
    ("block 0", "zero block Z0"),
    ("block 3", "zero block Z3"),
    ("bitmap", "0..3 in use (4 blocks)"),
    ("longnames", "slot 2, block"),
    ("references", None),
    ("reclaim", "0 entries"),
    ("snapshots", None),
]
"""Dumps of the sample, and a part of a line that must be there; None: there is nothing to show."""


def lines(device: MemoryDevice, words: str = "") -> list[str]:
    """The lines of a dump, which must leave the device alone."""
    device.reset_counters()
    found = list(dump_lines(device, words.split()))
    assert (device.writes, device.flushes) == (0, 0)
    assert all("\n" not in line for line in found)
    return found


@pytest.mark.parametrize(("words", "part"), CASES)
def test_dumps_of_the_sample(words: str, part: str | None) -> None:
    found = lines(sample().device(), words)
    if part is None:
        assert not found
    else:
        assert any(part in line for line in found), found


def test_every_dump_is_tried_above() -> None:
    names = {words.split()[0] for words, _ in CASES if words} | {"xattrs"}
    assert names == {usage.split()[0] for usage in DUMP_USAGES}


def test_extended_attributes() -> None:
    number = sample().inodes["attr"]
    found = lines(sample().device(), f"xattrs {number}")
    assert "'user.colour' = 4 bytes 'blue'" in found
    assert any(line.startswith("'user.size' = 600 bytes 'xxx") for line in found)
    assert not lines(sample().device(), f"xattrs {sample().inodes['small']}")


def test_a_tree_by_inode_number() -> None:
    number = sample().inodes["big"]
    found = lines(sample().device(), f"tree {number}")
    assert found[0] == f"{number}: 20480 bytes, 1 levels"
    assert any("leaf 0..19: block " in line for line in found)
    assert any("leaf 30..39: block " in line for line in found)


def test_a_block_with_its_checksum_and_references() -> None:
    device = sample().device()
    image = Image(device)
    block = image.data_block(sample().inodes["small"])
    image.set_reference(block, 3)
    image.finish()
    found = lines(device, f"block {block}")
    assert "in use" in found[0]
    checksum = found[1].removeprefix("checksum ").split(",")[0]
    assert found[1] == f"checksum {checksum}, recorded {checksum}"
    assert found[2] == "extra parents: 3"
    assert found[3] == "00000000  73 73 73 73 73 73 73 73 73 73 73 73 73 73 73 73  |ssssssssssssssss|"
    assert f"block {block}: 3 extra parents" in lines(device, "references")


def test_queues_and_tables() -> None:
    device = sample().device()
    image = Image(device)
    image.add_snapshots([image.snapshot(7, b"before lunch")])
    image.use_system_tree("reclaim", f.ReclaimEntry(60, f.KIND_FILE, 2).pack())
    image.extension.reclaim_count = 1
    image.set_orphans([9])
    image.manifest = [f.ManifestEntry(1, 2), f.ManifestEntry(image.geometry.num_blocks, 3)]
    image.finish()
    device.write(image.geometry.slot_offsets[1], [bytes(8)])
    assert "snapshot 7 'before lunch' at place 0" in lines(device, "snapshots")
    assert lines(device, "reclaim") == ["1 entries", "0: block=60 kind=0 level=2 spare=0 spare2=0"]
    assert lines(device, "orphans") == ["inode 9"]
    assert lines(device, "manifest")[1:] == [
        "block 1 checksum 0x00000002 wrong",
        f"block {image.geometry.num_blocks} outside the volume",
    ]
    found = lines(device, "slots")
    assert "block 1 of the manifest" in found[1]
    assert found[2].startswith("slot 2: not valid: no magic number")


@pytest.mark.parametrize(
    "words",
    [
        "nonsense",
        "inode",
        "inode x",
        "inode -1",
        "inode 0",
        "inode 100000",
        "block 8160",
        "block 1 2",
        "tree nonsense",
        "tree 0",
        "superblock 1",
    ],
)
def test_words_that_mean_nothing(words: str) -> None:
    with pytest.raises(InvalidArgument):
        lines(sample().device(), words)


def test_a_directory_dump_of_a_file() -> None:
    with pytest.raises(InvalidArgument, match="is not a directory"):
        lines(sample().device(), f"directory {sample().inodes['small']}")


def test_slots_are_shown_where_none_is_valid() -> None:
    device = sample().device()
    for offset in Image(device).geometry.slot_offsets:
        device.write(offset + 0x20, [b"torn"])
    assert [line.split(":")[1].strip() for line in lines(device, "slots")] == ["not valid", "not valid"]
    with pytest.raises(Corrupt):
        lines(device, "superblock")


def test_the_other_slot() -> None:
    device = sample().device()
    assert next(dump_lines(device, superblock=2)) == "slot 2, byte 0x3ff000"


def test_foreign_volumes() -> None:
    for block_size in f.FOREIGN_BLOCK_SIZES:
        device = ForeignVolume(block_size, ">").build()
        assert any("'file'" in line for line in lines(device, "directory 1"))
        assert lines(device, "bitmap") == ["0..4 in use (5 blocks)", "60 in use"]
        assert "extra parents" not in " ".join(lines(device, "block 4"))
        for words in ("superblock", "slots", "boot", "inode 2", "tree 2", "longnames", "tree inodes"):
            assert lines(device, words)
        for words in ("references", "reclaim", "snapshots", "xattrs 2"):
            assert not lines(device, words)
        with pytest.raises(InvalidArgument):
            lines(device, "tree checksums")


def test_broken_volumes_are_shown_as_far_as_they_go() -> None:
    used = Image(sample().device())
    blocks = [n for n in range(used.geometry.num_blocks) if any(used.block(n))]
    dumps = [usage.replace("NAME", "inodes").replace(" N", " 1") for usage in DUMP_USAGES]
    dumps += ["tree 3", "tree longnames", "tree checksums", "directory 3", f"xattrs {sample().inodes['attr']}"]
    for seed in range(60):
        rng = random.Random(seed)
        device = sample().device()
        for _ in range(20):
            at = used.geometry.block_offset(rng.choice(blocks)) + rng.randrange(0, 512, 4)
            device.write(at, [rng.choice([rng.choice(blocks), rng.getrandbits(32), f.NO_BLOCK]).to_bytes(4, "little")])
        for words in dumps:
            try:
                lines(device, words)
            except CowfsError as error:
                assert str(error)


def test_equal_rows_of_a_hex_dump_are_left_out() -> None:
    assert list(hex_lines(bytes(64) + b"A" * 16)) == [
        "00000000  00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  |................|",
        "*",
        "00000040  41 41 41 41 41 41 41 41 41 41 41 41 41 41 41 41  |AAAAAAAAAAAAAAAA|",
        "00000050",
    ]
