"""The read-only checker: is this volume sound?

It counts for itself, with nothing of the storage room but the device, and compares with what the volume says. It writes
nothing, and ends whatever the bytes are: each block is entered once, and work on what is shared has a bound.

Time: every block in use is read once for its checksum, metadata two or three times more. Memory: a byte for each block in
the regions in use, some 30 bytes for each inode, 200 for each directory, 60 for each long name. A million files in a
hundred thousand directories take some hundred megabytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cowfs.check import counts as c
from cowfs.check import problem as p
from cowfs.check.directories import GaveUp, Work
from cowfs.check.layers import LayersBelow
from cowfs.check.namespace import NamespaceCheck
from cowfs.check.reader import BlockReader, State
from cowfs.check.slots import COUNTER_MAX, check_boot_block, choose, read_slots
from cowfs.check.tables import check_reclaim, check_settings, check_snapshots
from cowfs.check.trees import (
    BITMAP,
    RECLAIM,
    REFERENCES,
    SETTINGS,
    SNAPSHOT_INDEX,
    SNAPSHOTS,
    FileTree,
    TreeWalk,
)
from cowfs.errors import Corrupt
from cowfs.ondisk import format as f
from cowfs.storage.device import Device

WORK_MIN: Final = 10_000_000
WORK_PER_BLOCK: Final = 256
"""Entries that are looked at, at most: WORK_MIN and so many for each block in use; once for the live tree, and once for
all snapshots together. No sound live tree comes near it."""


@dataclass(slots=True)
class Found:
    """What a check had in hand: the state, its blocks counted, and its trees of files, the live one first."""

    state: State
    reader: BlockReader
    walk: TreeWalk
    trees: list[FileTree]


def check_device(device: Device, *, superblock: int | None = None) -> p.Report:
    """Checks the volume on a device, the state of slot `superblock` (1 or 2) or the newest one.

    Raises NotAVolume, Unsupported (unknown features or version), DeviceError and InvalidArgument; damage is in the report.
    """
    report, _ = examine(device, superblock=superblock)
    return report


def examine(
    device: Device, *, superblock: int | None = None, listed_max: int = p.LISTED_MAX
) -> tuple[p.Report, Found | None]:
    """As `check_device`, with what was found besides; None where no slot could be used."""
    report = p.Report(device.name, listed_max=listed_max)
    slots = read_slots(device)
    state = choose(device, slots, report, superblock)
    if state is None:
        return report, None
    if state.extension is not None and slots.boot_block:
        check_boot_block(device, state, report)
    reader = BlockReader(device, state, report)
    walk = TreeWalk(reader, report)
    trees = _walk_all(walk, reader, report, state)
    zero_bits = c.check_bitmap(walk, reader, report)
    c.check_bitmap_tail(walk, report)
    c.check_numbers(walk, reader, report, zero_bits)
    if state.extension is not None:
        _check_records(report, state)
        c.check_references(walk, reader, report)
        c.check_sums(walk, reader, report)
        layers = LayersBelow(device)
        layers.check_numbers(walk, reader, report)
        layers.check_own_contents(reader, report)
        if walk.holes_behind_end:
            report.add(p.HOLES_BEHIND_END, f"{walk.holes_behind_end} times; only dissect.qnxfs has trouble with it")
    _check_names(walk, reader, report, trees)
    counts = report.counts
    counts.blocks = walk.usage.num_blocks
    counts.blocks_in_use = walk.usage.used()
    counts.system_blocks = walk.system_blocks
    counts.shared_blocks = len(walk.usage.extra)
    counts.snapshots = len(trees) - 1
    return report, Found(state, reader, walk, trees)


def check_image(device: Device) -> p.Report:
    """For tests: the report of a volume that must be clean. Raises Corrupt with all that is wrong."""
    report = check_device(device)
    if not report.clean:
        raise Corrupt("\n".join(report.to_text()))
    return report


def count_blocks(device: Device, state: State) -> Found:
    """Only counts the blocks of a state; what is wrong with it is passed over."""
    report = p.Report(device.name, listed_max=0)
    reader = BlockReader(device, state, report)
    walk = TreeWalk(reader, report)
    return Found(state, reader, walk, _walk_all(walk, reader, report, state))


def _walk_all(walk: TreeWalk, reader: BlockReader, report: p.Report, state: State) -> list[FileTree]:
    """Enters every block of the state; returns the trees of files, the live one first."""
    superblock, extension = state.superblock, state.extension
    walk.enter_zero_blocks()
    blocks = walk.usage.num_blocks
    walk.walk_system(BITMAP, superblock.bitmap, -(-blocks // 8) if extension is not None else None)
    trees = [FileTree(0, superblock.inode, superblock.longfile, superblock.num_inodes, superblock.free_inodes)]
    if extension is None:
        walk.walk_files(trees[0])
        return trees
    walk.walk_checksums(extension.checksums, extension.checksum_checks)
    walk.walk_system(REFERENCES, extension.references, blocks * f.REFERENCE_SIZE)
    for kind, root in (
        (SNAPSHOTS, extension.snapshots),
        (SNAPSHOT_INDEX, extension.snapshot_index),
        (RECLAIM, extension.reclaim),
        (SETTINGS, extension.settings),
    ):
        walk.walk_system(kind, root)
    check_settings(reader, report, extension.settings)
    trees += check_snapshots(reader, report, extension)
    for tree in trees:
        walk.walk_files(tree)
    for entry in check_reclaim(reader, report, extension):
        walk.walk_reclaim_entry(entry)
        report.counts.reclaim_entries += 1
    return trees


def _check_records(report: p.Report, state: State) -> None:
    """Fields of the record and of the extension area that nothing else is compared with."""
    superblock, extension = state.superblock, state.extension
    assert extension is not None
    for name, wanted in (("flags", f.SB_FLAGS), ("version1", f.SB_VERSION1), ("version2", f.SB_VERSION2)):
        if getattr(superblock, name) != wanted:
            report.add(p.RECORD_FIELD, f"{name}: {wanted:#x} wanted, {getattr(superblock, name):#x} found")
    for name in ("iclaim", "iextra"):
        if getattr(superblock, name).size:
            report.add(p.RECORD_FIELD, f"{name} is not empty")
    if extension.resizing > 1:
        report.add(p.EXTENSION_FIELD, f"resizing: 0 or 1 wanted, {extension.resizing} found")
    if extension.spare_0c0:
        report.add(p.EXTENSION_FIELD, "spare_0c0 is not 0")
    overlay = extension.overlay
    if not extension.incompatible & f.INCOMPATIBLE_OVERLAY and overlay != f.OverlayState(
        base_snapshot=overlay.base_snapshot,
        spent=overlay.spent,
        buried_free=overlay.buried_free,
        buried_system=overlay.buried_system,
    ):
        report.add(p.EXTENSION_FIELD, f"no overlay, but {overlay.to_text()}")
    for name in ("generation", "snapshot_id"):
        if getattr(extension, name) >= COUNTER_MAX:
            report.add(p.EXTENSION_FIELD, f"{name} {getattr(extension, name)} cannot be")
    try:
        extension.label.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        report.add(p.EXTENSION_FIELD, f"the label {extension.label!r} is not UTF-8")


def _check_names(walk: TreeWalk, reader: BlockReader, report: p.Report, trees: list[FileTree]) -> None:
    """The namespace of the live tree, and of the snapshots and clones as far as the bound of work allows."""
    bound = WORK_MIN + WORK_PER_BLOCK * walk.usage.used()
    try:
        NamespaceCheck(walk, reader, report, trees[0], Work(bound)).run(report.counts)
    except GaveUp:
        report.add(p.NOT_CHECKED, f"after {bound} entries")
    work = Work(bound)
    pending = list(_distinct(trees))
    for done, tree in enumerate(pending):
        try:
            NamespaceCheck(walk, reader, report, tree, work).run()
        except GaveUp:
            report.add(p.SNAPSHOTS_NOT_CHECKED, f"{len(pending) - done} of {len(pending)}")
            return


def _distinct(trees: list[FileTree]) -> Iterable[FileTree]:
    """The snapshots whose roots are not those of a tree that comes before."""
    seen = {_key(trees[0])}
    for tree in trees[1:]:
        if _key(tree) not in seen:
            seen.add(_key(tree))
            yield tree


def _key(tree: FileTree) -> tuple[object, ...]:
    a, b = tree.inode, tree.longfile
    return a.size, a.ptr, a.levels, b.size, b.ptr, b.levels, tree.num_inodes, tree.free_inodes
