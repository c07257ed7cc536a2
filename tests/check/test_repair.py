"""Every kind of problem is found, repaired, and gone at the second look; nothing else changes, and nothing gets worse."""

from __future__ import annotations

import random
import re
import stat
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from damage import Image
from damage_recipes import RECIPES, Recipe
from damage_sample import ME, sample
from foreign_volume import ForeignVolume
from support import filesystem_on

from cowfs.check import KINDS, Report, check_device
from cowfs.check import problem as p
from cowfs.check.check import Found, count_blocks, examine
from cowfs.check.flipped import without_flipped_bit
from cowfs.check.repair import PHASES, REASONS, Repair, copy_device, plan_repair
from cowfs.check.repair.workspace import Space
from cowfs.check.slots import read_slots
from cowfs.errors import Corrupt, DeviceError, NoSpace, Unsupported
from cowfs.fs import Filesystem
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c
from cowfs.ondisk.geometry import Geometry
from cowfs.ondisk.records import Buffer
from cowfs.storage.device import MemoryDevice
from cowfs.storage.volume import Volume

NOTES_ONLY = {recipe.name for recipe in RECIPES if recipe.kind.severity == "note"}
"""Nothing to repair: the next mount puts these right."""
NOT_REPAIRABLE = {"both_torn", "both_lost"}

Tree = dict[str, tuple[int, bytes, dict[bytes, bytes]]]


def files_of(device: MemoryDevice) -> Tree:
    """Every path with its mode, its contents and its extended attributes, as a mount shows them. The device stays as it is."""
    fs = Filesystem(Volume.open(MemoryDevice.from_image(device.image()), read_only=True))
    found: Tree = {}

    def visit(ino: int, path: str) -> None:
        mode = fs.getattr(ino).mode
        data = b""
        if stat.S_ISREG(mode) and fs.getattr(ino).size < 1 << 20:
            data = fs.read(ino, 0, 1 << 20)
        elif stat.S_ISLNK(mode):
            data = fs.readlink(ino)
        found[path] = mode, data, {name: fs.getxattr(ino, name) for name in fs.listxattr(ino)}
        if stat.S_ISDIR(mode):
            for _, name, child, _ in fs.listing(ino).entries():
                if name not in (b".", b".."):
                    visit(child, f"{path}/{name.decode()}".lstrip("/"))

    visit(f.ROOT_INODE, "")
    return found


@cache
def sound_files() -> Tree:
    """The sample's files before any damage."""
    return files_of(sample().device())


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


def repaired(device: MemoryDevice, **options: bool | int) -> Repair:
    """Plans, without writing, and applies."""
    before = device.image()
    device.reset_counters()
    plan = plan_repair(device, **options)  # type: ignore[arg-type]
    assert (device.writes, device.flushes) == (0, 0)
    assert device.image() == before
    plan.apply(device)
    return plan


def mount_and_check(device: MemoryDevice) -> None:
    """A mount can write, and leaves a sound volume. The device stays as it is."""
    with filesystem_on(MemoryDevice.from_image(device.image())) as fs:
        ino = fs.create(f.ROOT_INODE, b"after the repair", stat.S_IFREG | 0o644, ME).ino
        fs.write(ino, 0, b"x" * 5000)


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
            for trash in (False, True):
                after = bytearray(durable)
                for at, piece in subset:
                    after[at : at + len(piece)] = piece
                if trash:
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


# --- damage to data and metadata that no checksum explains ---


def big_file(device: MemoryDevice) -> bytes:
    with_file = Filesystem(Volume.open(MemoryDevice.from_image(device.image()), read_only=True))
    return with_file.read(sample().inodes["big"], 0, 1 << 20)


def trash(image: Image, block: int) -> None:
    with image.edit(block, checksum=False) as data:
        data[:] = b"trash" * 102 + b"!!"


def test_lost_file_data_stays_an_error() -> None:
    device = sample().device()
    image = Image(device)
    sound = big_file(device)
    trash(image, image.data_block(sample().inodes["big"], 3))
    plan = repaired(device)
    assert plan.exit_code == 4
    assert not plan.slots
    with pytest.raises(Corrupt):
        big_file(device)
    plan = repaired(device, zero_bad_blocks=True)
    assert plan.exit_code == 1
    assert big_file(device) == sound[: 3 * 512] + bytes(512) + sound[4 * 512 :]
    assert any("bytes 1536..2047 are lost, and read as zeros" in action for action in plan.actions)


def test_the_tail_of_a_lost_block_is_not_mended() -> None:
    """It would get a right checksum, and all of the block with it."""
    device = sample().device()
    image = Image(device)
    trash(image, image.data_block(sample().inodes["small"]))
    image.superblock.free_blocks += 1
    image.finish()
    assert repaired(device).exit_code == 4
    fs = Filesystem(Volume.open(device, read_only=True))
    with pytest.raises(Corrupt):
        fs.read(sample().inodes["small"], 0, 100)


def test_what_is_left_is_said_with_its_reason() -> None:
    device = sample().device()
    image = Image(device)
    trash(image, image.data_block(sample().inodes["big"], 3))
    image.superblock.free_blocks += 1
    image.finish()
    plan = repaired(device)
    assert plan.exit_code == 4
    assert [problem.number for problem in plan.left.problems] == [210]
    text = "\n".join(plan.to_text(dry_run=False))
    assert "reading it is an error" in text
    assert "repaired: 1 of 2 problems left" in text


def test_a_lost_block_of_inodes_costs_those_inodes_only() -> None:
    device = sample().device()
    image = Image(device)
    trash(image, image.leaf(image.superblock.inode, 4))  # inodes 17 to 20
    plan = repaired(device)
    assert plan.exit_code == 1
    assert check_device(device).clean
    mount_and_check(device)
    gone = {path for path, number in sample().inodes.items() if 17 <= number <= 20}
    assert sound_files().keys() - files_of(device).keys() == gone
    assert {path: value for path, value in sound_files().items() if path not in gone} == files_of(device)


def test_a_lost_root_directory_loses_no_file() -> None:
    device = sample().device()
    image = Image(device)
    trash(image, image.leaf(image.superblock.inode, 0))
    plan = repaired(device)
    assert check_device(device).clean, plan.actions
    mount_and_check(device)
    found = files_of(device)
    wanted = {number: path for path, number in sample().inodes.items() if path in sound_files()}
    kept = {int(path.partition("#")[2]): path for path in found if path.startswith("lost+found/")}
    assert {wanted[number] for number in kept.keys() & wanted.keys()} >= {"small", "big", "link", "fifo", "attr"}
    for number in kept.keys() & wanted.keys():
        assert found[kept[number]] == sound_files()[wanted[number]]


def test_a_lost_indirect_block_becomes_a_hole() -> None:
    device = sample().device()
    image = Image(device)
    trash(image, image.inode(sample().inodes["big"]).ptr[0])
    assert repaired(device).exit_code == 1
    assert big_file(device) == bytes(40 * 512)
    assert {path for path, value in sound_files().items() if files_of(device)[path] != value} == {"big"}


def test_lost_extended_attributes_are_dropped_as_a_whole() -> None:
    device = sample().device()
    image = Image(device)
    trash(image, image.data_block(image.inode(sample().inodes["attr"]).xattr_inode, 1))
    plan = repaired(device)
    assert plan.exit_code == 1
    assert files_of(device)["attr"][2] == {}
    assert any("its extended attributes are lost" in action for action in plan.actions)


def test_attributes_before_the_damage_are_kept() -> None:
    device = sample().device()
    image = Image(device)
    with image.edit(image.data_block(image.inode(sample().inodes["attr"]).xattr_inode)) as data:
        at = data.index(b"user.size")
        data[at : at + 4] = b"usex"
    image.finish()
    assert repaired(device).exit_code == 1
    assert files_of(device)["attr"][2] == {b"user.colour": b"blue"}


def test_a_symbolic_link_that_cannot_be_read_stays() -> None:
    device = sample().device()
    image = Image(device)
    trash(image, image.data_block(sample().inodes["link"]))
    image.superblock.free_blocks += 1
    image.finish()
    plan = repaired(device)
    assert plan.exit_code == 4
    assert "link" in {entry[1].decode() for entry in Filesystem(Volume.open(device)).listing(f.ROOT_INODE).entries()}
    plan = repaired(device, zero_bad_blocks=True)
    assert plan.exit_code == 1
    assert sound_files().keys() - files_of(device).keys() == {"link"}


def test_a_lost_block_of_checksums_is_counted_anew() -> None:
    device = sample().device()
    image = Image(device)
    trash(image, image.words(image.extension.checksums.ptr[0])[0])
    assert repaired(device).exit_code == 1
    assert check_device(device).clean
    assert files_of(device) == sound_files()


def test_a_flipped_bit_among_the_checksums_costs_no_trust() -> None:
    """In an indirect block of their tree; a block of data that is lost at the same time is not believed."""
    device = sample().device()
    image = Image(device)
    trash(image, image.data_block(sample().inodes["big"], 3))
    with image.edit(image.extension.checksums.ptr[0], checksum=False) as data:
        data[-1] ^= 8
    plan = repaired(device)
    assert [problem.number for problem in plan.left.problems] == [210]
    assert not any("believed" in action for action in plan.actions)
    with pytest.raises(Corrupt):
        big_file(device)


def test_every_single_bit_of_a_block_is_found() -> None:
    data = random.Random(1).randbytes(512)
    for position in range(0, 4096, 7):
        flipped = bytearray(data)
        flipped[position >> 3] ^= 1 << (position & 7)
        assert without_flipped_bit(bytes(flipped), crc32c(data), crc32c(flipped)) == data
    assert without_flipped_bit(b"trash".ljust(512), crc32c(data), crc32c(b"trash".ljust(512))) is None


def test_a_block_that_the_device_cannot_read() -> None:
    class Faulty(MemoryDevice):
        bad = range(0)

        def read(self, offset: int, length: int) -> bytes:
            if offset < self.bad.stop and self.bad.start < offset + length:
                raise DeviceError("input/output error")
            return super().read(offset, length)

    device = Faulty.from_image(sample().image)
    image = Image(sample().device())
    start = image.geometry.block_offset(image.leaf(image.superblock.inode, 4))
    device.bad = range(start, start + 512)
    plan = plan_repair(device)
    copy = MemoryDevice(device.size())
    copy_device(device, copy)
    plan.apply(copy)
    assert plan.exit_code == 1
    assert check_device(copy).clean
    assert len(files_of(copy)) == len(sound_files()) - 4


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


# --- whatever the bytes are ---


def corrupt_at_random(seed: int) -> MemoryDevice:
    """Words, inodes and whole blocks become others; most checksums are put right."""
    rng = random.Random(seed)
    device = sample().device()
    image = Image(device)
    if rng.random() < 0.4:
        image.add_snapshots([image.snapshot(1, b"first"), image.snapshot(2, b"second")])
        image.finish()
        image = Image(device)
    bitmap = image.block(image.leaf(image.superblock.bitmap, 0))
    used = [block for block in range(120) if bitmap[block >> 3] >> (block & 7) & 1]
    used = [block for block in used if block not in image.checksum_blocks()]
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        with image.edit(rng.choice(used), checksum=rng.random() < 0.8) as data:
            at = rng.randrange(512)
            match rng.randrange(4):
                case 0:
                    data[at] ^= 1 << rng.randrange(8)
                case 1:
                    word = rng.choice((rng.randrange(8160), rng.choice(used), 0, f.NO_BLOCK, rng.randrange(1, 60)))
                    data[at & ~3 : (at & ~3) + 4] = word.to_bytes(4, "little")
                case 2:
                    data[at & ~127 : (at & ~127) + 128] = rng.choice((bytes(128), rng.randbytes(128)))
                case _:
                    data[:] = rng.choice((bytes(512), image.block(rng.choice(used)), rng.randbytes(512)))
    image.finish()
    return device


@pytest.mark.parametrize("seed", range(1000, 1040))
def test_random_damage_never_gets_worse(seed: int) -> None:
    device = corrupt_at_random(seed)
    zeros = seed % 2 == 0
    before = device.image()
    plan = repaired(device, zero_bad_blocks=zeros)
    report = check_device(device)
    assert report.error_count <= plan.found.error_count
    assert {problem.kind for problem in report.problems} <= {p.CHECKSUM}
    assert not (zeros and report.problems)
    if report.clean and not plan.found.clean:
        mount_and_check(device)
    if plan.found.clean:
        assert device.image() == before


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


def blocks_of(device: MemoryDevice) -> dict[int, dict[int, bytes | None]]:
    """By inode and byte offset, the blocks of all regular files; None where reading is an error."""
    fs = Filesystem(Volume.open(MemoryDevice.from_image(device.image()), read_only=True))
    found: dict[int, dict[int, bytes | None]] = {}

    def block(ino: int, offset: int) -> bytes | None:
        try:
            return fs.read(ino, offset, 512)
        except Corrupt:
            return None

    def visit(directory: int) -> None:
        for _, name, ino, _ in list(fs.listing(directory).entries()):
            attributes = fs.getattr(ino)
            if stat.S_ISREG(attributes.mode):
                end = attributes.size
                offsets = range(end - end % 512 if end > 1 << 20 else 0, end, 512)
                found[ino] = {offset: block(ino, offset) for offset in offsets}
            elif stat.S_ISDIR(attributes.mode) and name not in (b".", b".."):
                visit(ino)

    visit(f.ROOT_INODE)
    return found


@cache
def sound_blocks() -> dict[int, dict[int, bytes | None]]:
    """Those of the sample."""
    return blocks_of(sample().device())


@pytest.mark.parametrize("seed", range(25))
def test_what_the_medium_spoils_never_reads_as_wrong_data(seed: int) -> None:
    """Blocks that are changed, lost, or land elsewhere: files read as before, or as an error, or as zeros that are said."""
    rng = random.Random(seed)
    device = sample().device()
    _, found = examine(device)
    assert found is not None
    usage, geometry = found.walk.usage, found.state.geometry
    count = rng.choice((1, 2, 4, 8))
    checks = Image(device).checksum_blocks() if count > 1 else set()  # where these are lost as well, all is believed
    used = [block for block in range(usage.num_blocks) if usage.role(block) and block not in checks]
    for block in rng.sample(used, count):
        data = bytearray(found.reader.block(block))
        match rng.randrange(4):
            case 0:
                data[rng.randrange(512)] ^= 1 << rng.randrange(8)
            case 1:
                data[rng.randrange(512)] ^= rng.randrange(1, 256)
            case 2:
                data[:] = bytes(512)
            case _:
                data[:] = found.reader.block(rng.choice(used))
        device.write(geometry.block_offset(block), [data])
    plan = repaired(device)
    report = check_device(device)
    assert {problem.kind for problem in report.problems} <= {p.CHECKSUM}
    said = {int(number) for action in plan.actions for number in re.findall(r"^inode (\d+): .*lost", action)}
    for ino, blocks in blocks_of(device).items():
        for offset, data in blocks.items():
            right = data is None or data == sound_blocks()[ino][offset]
            assert right or (ino in said and not any(data)), (ino, offset)
