"""Every kind of problem is found, and found alone; a sound volume has none; a check changes nothing."""

from __future__ import annotations

import json

import pytest
from damage import Image
from damage_recipes import RECIPES, Recipe
from damage_sample import sample

from cowfs.check import KINDS, Report, check_device, check_image
from cowfs.check import check as check_module
from cowfs.check import problem as p
from cowfs.check.problem import LISTED_MAX, SHOWN_MAX
from cowfs.errors import Corrupt, DeviceError, InvalidArgument
from cowfs.ondisk import format as f
from cowfs.storage.device import MemoryDevice

PERMANENT = {
    101: "slot-invalid",
    102: "slot-refused",
    103: "no-valid-slot",
    104: "slots-differ",
    105: "truncated",
    106: "boot-head",
    107: "slot-pointer",
    108: "record-field",
    109: "extension-field",
    110: "zero-block-number",
    111: "manifest",
    112: "not-settled",
    113: "slot-contents",
    114: "resizing",
    201: "root-node",
    202: "pointer-range",
    203: "pointer-behind-end",
    204: "pointer-missing",
    205: "zero-block-level",
    206: "block-two-roles",
    207: "block-shared",
    208: "zero-block-contents",
    209: "block-unreadable",
    210: "checksum",
    211: "checksum-tree",
    212: "checksum-missing",
    213: "block-repeated",
    214: "file-tail",
    215: "holes-behind-end",
    301: "inode-status",
    302: "inode-type",
    303: "inode-field",
    304: "inode-size",
    305: "inode-pointers",
    306: "inode-blocks",
    307: "symlink-target",
    308: "xattr-inode",
    309: "xattr-shared",
    310: "xattr-contents",
    311: "hidden-unused",
    312: "orphan-list",
    313: "orphan-entry",
    314: "orphan-unlisted",
    315: "orphans",
    401: "root-directory",
    402: "directory-size",
    403: "directory-dots",
    404: "directory-gap",
    405: "entry-name",
    406: "entry-duplicate",
    407: "entry-inode",
    408: "long-name-slot",
    409: "long-name-checksum",
    410: "long-name-shared",
    411: "long-name-unused",
    412: "directory-named-twice",
    413: "unreachable",
    414: "directory-loop",
    415: "link-count",
    416: "orphan-not-empty",
    501: "bitmap-free",
    502: "bitmap-used",
    503: "bitmap-padding",
    504: "references",
    505: "free-blocks",
    506: "num-inodes",
    507: "free-inodes",
    508: "inode-hint",
    509: "long-name-hint",
    510: "system-blocks",
    511: "buried-blocks",
    512: "buried-written",
    601: "reclaim-queue",
    602: "reclaim-entry",
    603: "reclaim-pending",
    604: "snapshot-count",
    605: "snapshot-record",
    606: "snapshot-duplicate",
    607: "not-checked",
    608: "snapshots-not-checked",
    609: "snapshot-index",
    610: "settings",
    611: "pins",
    612: "pins-left",
    613: "base-trees",
}
"""Numbers once given out stay with their kind: lines may be added here, and none changed."""
ORDINARY = {101, 102, 112, 114, 215, 315, 416, 603, 608, 612}
"""What a power cut, a crash or an earlier version leaves behind; all else is damage."""
WITHOUT_RECIPE = {p.BLOCK_UNREADABLE, p.NOT_CHECKED, p.SNAPSHOTS_NOT_CHECKED, p.BURIED_WRITTEN}
"""Kinds that are no bytes, or need a second volume: they have tests of their own, below and in tests/storage."""


class FaultyDevice(MemoryDevice):
    """A device that cannot read some of its bytes."""

    bad: range = range(0)

    def read(self, offset: int, length: int) -> bytes:
        if offset < self.bad.stop and self.bad.start < offset + length:
            raise DeviceError(f"{self.name}: read of {length} bytes at {offset}: input/output error")
        return super().read(offset, length)


def checked(device: MemoryDevice, superblock: int | None = None) -> Report:
    """The report; the device must not have been touched."""
    before = device.image()
    device.reset_counters()
    report = check_device(device, superblock=superblock)
    assert (device.writes, device.flushes) == (0, 0)
    assert device.image() == before
    json.dumps(report.to_json())
    assert report.exit_code == (0 if not report.problems else 4)
    return report


def names(report: Report) -> set[str]:
    """The kinds that were found."""
    return {KINDS[number].name for number in report.totals}


def test_numbers_are_permanent() -> None:
    assert {number: kind.name for number, kind in KINDS.items()} == PERMANENT
    assert {number for number, kind in KINDS.items() if kind.severity == "note"} == ORDINARY


def test_every_kind_has_a_recipe() -> None:
    assert {recipe.kind.number for recipe in RECIPES} | {kind.number for kind in WITHOUT_RECIPE} == set(KINDS)


def test_the_sample_is_sound() -> None:
    report = checked(sample().device())
    assert not report.totals
    counts = report.counts
    assert (counts.files, counts.directories, counts.symlinks, counts.others) == (34, 3, 1, 2)
    assert report.slot == 1
    assert report.to_text() == [
        f"memory: clean; slot 1, commit {report.serial}; 34 files, 3 directories, 1 symlinks, 2 others; "
        f"{counts.blocks_in_use} of {counts.blocks} blocks in use"
    ]


def test_finishing_without_damage_changes_nothing() -> None:
    """The helper that puts checksums right puts in what was there."""
    device = sample().device()
    Image(device).finish()
    assert device.read(0x3000, 1 << 20) == sample().image[0x3000 : 0x3000 + (1 << 20)]
    assert not checked(device).totals


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_damage_is_found(recipe: Recipe) -> None:
    device = sample().device()
    image = Image(device)
    recipe.damage(image, sample().inodes)
    if not recipe.raw:
        image.finish()
    report = checked(device)
    assert names(report) == {recipe.kind.name} | recipe.also, "\n".join(report.to_text())
    assert report.clean == all(kind.severity == "note" for kind in KINDS.values() if kind.name in names(report))


def test_a_block_that_cannot_be_read_is_reported_once() -> None:
    block = Image(sample().device()).data_block(sample().inodes["big"], 2)
    device = FaultyDevice.from_image(sample().image)
    start = Image(sample().device()).geometry.block_offset(block)
    device.bad = range(start, start + 512)
    report = check_device(device)
    assert names(report) == {"block-unreadable"}
    assert [problem.block for problem in report.problems] == [block]


def test_an_unreadable_slot_is_as_good_as_a_torn_one() -> None:
    device = FaultyDevice.from_image(sample().image)
    device.bad = range(f.SLOT1_OFFSET, f.SLOT1_OFFSET + 1)
    assert names(check_device(device)) == {"slot-invalid"}


def test_work_on_the_live_tree_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "WORK_MIN", 50)
    monkeypatch.setattr(check_module, "WORK_PER_BLOCK", 0)
    assert names(checked(sample().device())) == {"not-checked"}


def test_work_on_snapshots_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    device = sample().device()
    image = Image(device)
    records = [image.snapshot(number, b"snapshot %d" % number) for number in (1, 2, 3)]
    for record in records:
        record.free_inodes += record.id  # so that none is taken for the same tree as another
    image.add_snapshots(records)
    image.finish()
    assert names(checked(device)) == {"free-inodes"}
    monkeypatch.setattr(check_module, "WORK_MIN", 130)
    monkeypatch.setattr(check_module, "WORK_PER_BLOCK", 0)
    report = checked(device)
    assert names(report) == {"free-inodes", "snapshots-not-checked"}
    assert report.notes[0].text == "2 of 3"


def test_either_slot_can_be_asked_for() -> None:
    device = sample().device()
    assert checked(device, superblock=2).slot == 2
    image = Image(device)
    image.superblock.free_blocks += 1
    image.write_slot(2)
    assert checked(device).clean
    assert names(checked(device, superblock=2)) == {"free-blocks"}
    with pytest.raises(InvalidArgument):
        check_device(device, superblock=3)


def test_asking_for_a_torn_slot_is_an_error() -> None:
    device = sample().device()
    device.write(f.SLOT1_OFFSET + 8, [b"torn"])
    assert names(checked(device, superblock=1)) == {"slot-invalid", "no-valid-slot"}


def test_a_report_lists_a_bounded_number_of_problems() -> None:
    report = Report("test")
    for block in range(LISTED_MAX + 5):
        report.add(p.CHECKSUM, "wrong", block=block)
    assert len(report.problems) == LISTED_MAX
    assert report.error_count == LISTED_MAX + 5
    assert f"210 checksum: {LISTED_MAX + 5 - SHOWN_MAX} more" in report.to_text()
    assert len(report.to_text()) == SHOWN_MAX + 2


def test_problems_name_their_place() -> None:
    problem = p.Problem(p.LINK_COUNT, "1 counted, 2 found", inode=7, block=9, tree=3)
    assert problem.to_text() == "415 link-count: snapshot 3, inode 7, block 9: 1 counted, 2 found"


def test_check_image_raises_for_a_damaged_volume() -> None:
    device = sample().device()
    check_image(device)
    image = Image(device)
    image.superblock.free_blocks += 1
    image.finish()
    with pytest.raises(Corrupt, match="505 free-blocks"):
        check_image(device)
