"""Every kind of problem is found, repaired, and gone at the second look; nothing else changes, and power may fail."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from damage import Image
from damage_recipes import RECIPES, Recipe
from damage_sample import sample
from foreign_volume import ForeignVolume
from repairing import files_of, mount_and_check, repaired, sound_files, trash
from support import filesystem_on

from cowfs.check import KINDS, Report, check_device
from cowfs.check import problem as p
from cowfs.check.check import Found, count_blocks, examine
from cowfs.check.repair import PHASES, REASONS, Repair, plan_repair
from cowfs.check.repair.workspace import Space
from cowfs.check.slots import read_slots
from cowfs.errors import DeviceError, NoSpace, Unsupported
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import Geometry
from cowfs.ondisk.records import Buffer
from cowfs.storage.device import MemoryDevice

NOTES_ONLY = {recipe.name for recipe in RECIPES if recipe.kind.severity == "note"}
"""Nothing to repair: the next mount puts these right."""
NOT_REPAIRABLE = {"both_torn", "both_lost"}


SMALL = {"small", "dir/hard"}
CHANGED: dict[str, set[str]] = {
    "pointer_out_of_volume": SMALL,  # the block is lost
    "zero_block_as_data": SMALL,
    "inodes_as_data": SMALL,
    "file_too_long_for_levels": SMALL,  # its size is lost
    "xattrs_of_two": SMALL,  # has a copy of the other's attributes
    "xattrs_of_nobody": {"attr"},
    "root_is_a_file": {""},  # its permissions are those of the damage
    "zero_byte_in_target": {"link"},
    "directory_block_twice": {f"dir/file{number}" for number in range(13, 28)} | {"dir/hard"},
    "entry_erased": {"dir/file3"},
    "slash_in_name": {"fifo", "fi_o"},
    "same_name_twice": {"fifo", "tty", "tty~1"},
    "entry_leads_to_free_inode": {"fifo"},
    "entry_leads_to_hidden_inode": {"fifo"},
    "hard_link_to_directory": {"fifo"},
    "one_slot_for_two": {path for path in sound_files() if "third" in path} | {"dir/second-" + "n" * 500},
    "directories_in_a_circle": {path for path in sound_files() if path.startswith("dir")},
}
"""Paths that may be another than before the damage, or gone; lost+found aside. All others are as they were."""
NEW_IN_LOST_AND_FOUND = {
    "directory_block_twice": 15,
    "orphan_not_listed": 1,
    "entry_erased": 1,
    "entry_leads_to_free_inode": 1,
    "entry_leads_to_hidden_inode": 1,
    "hard_link_to_directory": 1,
    "file_without_name": 1,
    "directories_in_a_circle": 1,
    "orphan_directory_with_entries": 1,
}


def damaged(recipe: Recipe) -> MemoryDevice:
    """The sample after the recipe."""
    device = sample().device()
    image = Image(device)
    recipe.damage(image, sample().inodes)
    if not recipe.raw:
        image.finish()
    return device


def writes_only_what_no_state_uses(device: MemoryDevice, plan: Repair) -> None:
    """Of the blocks that either slot of the damaged volume leads to, none is written."""
    for found in (count_blocks(device, state) for state in read_slots(device).valid()):
        for offset, data in plan.blocks:
            block, rest = divmod(offset - found.state.geometry.data_start, found.reader.block_size)
            assert rest == 0
            assert len(data) == found.reader.block_size
            assert found.walk.usage.role(block) == 0


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_damage_is_repaired(recipe: Recipe) -> None:
    device = damaged(recipe)
    before = device.image()
    plan = repaired(device)
    writes_only_what_no_state_uses(MemoryDevice.from_image(before), plan)
    assert recipe.kind.number in plan.found.totals
    if recipe.name in NOTES_ONLY | NOT_REPAIRABLE:
        assert not plan.slots
        assert device.image() == before
        assert plan.exit_code == (0 if recipe.name in NOTES_ONLY else 4)
        return
    assert plan.exit_code == 1
    assert plan.actions
    second = check_device(device)
    assert second.clean, "\n".join(second.to_text())
    assert plan_repair(device).exit_code == 0
    mount_and_check(device)
    found, wanted = files_of(device), sound_files()
    may_change = CHANGED.get(recipe.name, set())
    in_lost_and_found = {path for path in found if path.startswith("lost+found/") and path.count("/") == 1}
    assert len(in_lost_and_found) == NEW_IN_LOST_AND_FOUND.get(recipe.name, 0)
    others = {path for path in found if not path.startswith("lost+found")}
    differ = {path for path in others | wanted.keys() if found.get(path) != wanted.get(path)}
    assert differ <= may_change
    by_number = {number: path for path, number in sample().inodes.items()}
    for path in in_lost_and_found:
        original = by_number.get(int(path.partition("#")[2]))
        if original is not None:
            assert found[path] == wanted[original], path


def test_the_old_state_stays_in_the_other_slot() -> None:
    recipe = next(recipe for recipe in RECIPES if recipe.name == "entry_erased")
    device = damaged(recipe)
    old = check_device(device)
    plan = repaired(device)
    again = check_device(device, superblock=old.slot)
    assert again.serial == old.serial
    assert [problem.to_text() for problem in again.problems] == [problem.to_text() for problem in old.problems]
    offsets = {offset for offset, _ in plan.slots}
    assert offsets == {Image(sample().device()).geometry.slot_offsets[1]}


class RecordingDevice(MemoryDevice):
    """Remembers what was written, and can fail at a write or flush."""

    def start(self, fail_at: int = -1) -> None:
        self.log: list[tuple[int, bytes]] = []
        self.fail_at = fail_at
        self.calls = 0

    def _call(self) -> None:
        self.calls += 1
        if self.calls - 1 == self.fail_at:
            raise DeviceError("a fault")

    def write(self, offset: int, pieces: Sequence[Buffer]) -> None:
        if hasattr(self, "log"):
            self._call()
            self.log.append((offset, b"".join(pieces)))
        super().write(offset, pieces)

    def flush(self) -> None:
        if hasattr(self, "log"):
            self._call()
            self.log.append((-1, b""))
        super().flush()


CUT_OFF = ("entry_erased", "zero_block_not_zero", "zero_blocks_equal", "boot_head", "checksum_leaf_lost", "torn_record")


def problems_of(report: Report) -> set[str]:
    """The problems as text."""
    return {problem.to_text() for problem in report.problems}


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.name in CUT_OFF], ids=lambda recipe: recipe.name)
def test_power_loss_leaves_the_old_state_or_a_repaired_one(recipe: Recipe) -> None:
    """After each write; with any subset of the writes since the last flush; with the last sector of a write trashed."""
    device = RecordingDevice.from_image(damaged(recipe).image())
    plan = plan_repair(device)
    image = device.image()
    device.start()
    plan.apply(device)
    rng = random.Random(recipe.name)
    old = problems_of(plan.found)
    durable = bytearray(image)
    pending: list[tuple[int, bytes]] = []
    for offset, data in device.log:
        if offset < 0:
            for at, piece in pending:
                durable[at : at + len(piece)] = piece
            pending.clear()
            continue
        pending.append((offset, data))
        subsets = [pending, pending[-1:], [write for write in pending if rng.random() < 0.5]]
        for subset in subsets:
            for trashed in (False, True):
                after = bytearray(durable)
                for at, piece in subset:
                    after[at : at + len(piece)] = piece
                if trashed:
                    after[offset : offset + f.RECORD_SIZE] = rng.randbytes(f.RECORD_SIZE)
                report = check_device(MemoryDevice.from_image(after))
                left = problems_of(report)
                if left <= old:
                    continue
                # Between the commit and what has its fixed place: all is there, and the next repair goes on.
                assert plan.fixed or len(plan.slots) > 1, left - old
                half = MemoryDevice.from_image(after)
                assert repaired(half).exit_code == 1
                assert files_of(half) == files_of(device)
    assert check_device(device).clean


def test_a_failing_device_leaves_the_old_state() -> None:
    recipe = next(recipe for recipe in RECIPES if recipe.name == "entry_erased")
    image = damaged(recipe).image()
    calls = 0
    while True:
        device = RecordingDevice.from_image(image)
        plan = plan_repair(device)
        device.start(fail_at=calls)
        try:
            plan.apply(device)
        except DeviceError:
            assert not plan.written
            assert plan.exit_code == 4
            assert problems_of(check_device(device)) in (problems_of(plan.found), set())
            calls += 1
            continue
        break
    assert calls == len(plan.blocks) + 4
    assert plan.exit_code == 1


# --- slots ---


def test_going_back_to_the_other_slot() -> None:
    device = sample().device()
    with filesystem_on(device) as fs:
        fs.unlink(f.ROOT_INODE, b"small")
        fs.sync()
        crashed = MemoryDevice.from_image(device.image())
    newest = check_device(crashed)
    plan = repaired(crashed, superblock=3 - newest.slot)
    assert plan.exit_code == 1
    after = check_device(crashed)
    assert after.clean
    assert after.serial == newest.serial + 1
    assert files_of(crashed) == sound_files()
    mount_and_check(crashed)


def test_asking_for_the_newest_slot_changes_nothing() -> None:
    device = sample().device()
    plan = repaired(device, superblock=1)
    assert plan.exit_code == 0
    assert not plan.slots


def test_an_older_state_that_is_clean_is_taken_where_the_newest_is_beyond_repair() -> None:
    device = sample().device()
    image = Image(device)
    image.superblock.inode.levels = f.LEVEL_MAX + 1
    image.write_slot(1)
    plan = repaired(device)
    assert plan.exit_code == 1
    assert any(action.startswith("back to commit") for action in plan.actions)
    assert check_device(device).clean
    assert files_of(device) == sound_files()


def test_zero_blocks_that_are_nowhere_are_made_anew() -> None:
    device = sample().device()
    image = Image(device)
    image.extension.zero_blocks = (0, 1, 2, 8000)
    for level in range(4):
        trash(image, image.zero_blocks[level])
    image.finish()
    plan = repaired(device)
    assert check_device(device).clean, plan.actions
    mount_and_check(device)
    found = files_of(device)
    assert {path for path, value in sound_files().items() if found[path] != value} <= {"big"}


def test_a_foreign_volume_is_never_repaired() -> None:
    with pytest.raises(Unsupported, match="foreign"):
        plan_repair(ForeignVolume(512).build())


# --- snapshots ---


def test_snapshots_are_repaired_with_the_live_tree() -> None:
    device = sample().device()
    image = Image(device)
    image.add_snapshots([image.snapshot(1, b"first"), image.snapshot(2, b"second")])
    image.finish()
    image = Image(device)
    trash(image, image.leaf(image.superblock.inode, 4))
    with image.edit_inode(sample().inodes["big"]) as inode:
        inode.blocks += 7
    image.finish()
    shared = check_device(device).counts.shared_blocks
    plan = repaired(device)
    assert plan.exit_code == 1, plan.left.to_text()
    report = check_device(device)
    assert report.counts.snapshots == 2
    assert report.counts.shared_blocks >= shared - 8
    mount_and_check(device)


# --- space ---


def space_of(found: Found) -> Space:
    space = Space(found.state.geometry)
    space.keep(found)
    return space


def test_space_gives_out_what_no_state_uses() -> None:
    device = sample().device()
    _, found = examine(device)
    assert found is not None
    space = space_of(found)
    given = set()
    with pytest.raises(NoSpace):
        while True:
            given.add(space.take())
    assert len(given) == found.walk.usage.num_blocks - found.walk.usage.used()
    assert not any(found.walk.usage.role(block) for block in given)


def test_blocks_that_only_a_bitmap_names_come_last() -> None:
    device = sample().device()
    image = Image(device)
    marked = image.free_block()
    image.set_bit(marked, 1)
    image.finish()
    _, found = examine(device)
    assert found is not None
    space = space_of(found)
    free = found.walk.usage.num_blocks - found.walk.usage.used()
    assert [space.take() for _ in range(free)][-1] == marked


def test_an_empty_space_is_no_space() -> None:
    with pytest.raises(NoSpace):
        Space(Geometry(512, 0)).take()


def test_every_kind_has_its_place_in_a_repair() -> None:
    errors = {kind for kind in KINDS.values() if kind.severity == "error"}
    assert frozenset().union(*PHASES) | REASONS.keys() == errors


def test_the_document_lists_every_kind() -> None:
    text = (Path(__file__).parents[2] / "docs" / "CHECK.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d{3}) \| ([a-z0-9-]+) \| (.+) \|$", text, re.MULTILINE)
    assert [(int(number), name) for number, name, _ in rows] == [
        (number, KINDS[number].name) for number in sorted(KINDS)
    ]
    unrepairable = {int(number) for number, _, what in rows if what.startswith("cannot be repaired")}
    assert unrepairable == {p.NO_VALID_SLOT.number, p.NOT_CHECKED.number}
    notes = {int(number) for number, _, what in rows if what.startswith("note")}
    assert notes == {number for number, kind in KINDS.items() if kind.severity == "note"}
