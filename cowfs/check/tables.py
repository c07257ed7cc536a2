"""The tables of a volume's own, record by record: snapshots, their index, the reclaim queue; and the settings."""

from __future__ import annotations

import json
from collections.abc import Iterator

from cowfs.check import problem as p
from cowfs.check.directories import DOTS
from cowfs.check.reader import BlockReader, ContentsReader, contents_of
from cowfs.check.trees import FileTree
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c

KNOWN_FLAGS = (
    f.SNAPSHOT_WRITABLE
    | f.SNAPSHOT_INTERNAL
    | f.SNAPSHOT_PROTECTED
    | f.SNAPSHOT_PIN
    | f.SNAPSHOT_AUTOMATIC
    | f.SNAPSHOT_BASE
)
BASE_FLAGS = f.SNAPSHOT_INTERNAL | f.SNAPSHOT_BASE
PIN_FLAGS = f.SNAPSHOT_INTERNAL | f.SNAPSHOT_PIN
NEVER_AUTOMATIC = f.SNAPSHOT_WRITABLE | f.SNAPSHOT_INTERNAL


def snapshot_records(reader: BlockReader, root: f.RootNode) -> Iterator[tuple[int, f.SnapshotRecord]]:
    """(place, record) of the records of the snapshot table that are not empty. Only leaves that are there are looked at."""
    table = ContentsReader(reader, contents_of(root))
    size, block_size = f.SnapshotRecord.SIZE, reader.block_size
    following = 0
    for index, _ in reader.leaves(contents_of(root), set()):
        first = max(following, index * block_size // size)
        following = -(-(index + 1) * block_size // size)
        for number in range(first, min(following, root.size // size)):
            record = f.SnapshotRecord.unpack(table.read(number * size, size))
            if record.id:
                yield number, record


def check_snapshots(reader: BlockReader, report: p.Report, extension: f.Extension) -> list[FileTree]:
    """Checks every record of the snapshot table; returns the trees that the table names."""
    trees: list[FileTree] = []
    ids: set[int] = set()
    names: set[bytes] = set()
    indexed: dict[int, int] = {}  # by place plus 1, the hash of the name
    pins: dict[int, int] = {}  # by place plus 1, what follows in the chain
    bases: dict[int, int] = {}
    for place, record in snapshot_records(reader, extension.snapshots):
        failure = _record_failure(record, extension)
        if failure:
            report.add(p.SNAPSHOT_RECORD, failure, tree=record.id)
        name = record.name[: record.name_length]
        if record.id in ids or name in names:
            report.add(p.SNAPSHOT_DUPLICATE, f"id {record.id}, name {name!r}", tree=record.id)
        ids.add(record.id)
        if not record.flags & f.SNAPSHOT_INTERNAL:
            names.add(name)
            indexed[place + 1] = crc32c(name)
        if record.flags & f.SNAPSHOT_PIN:
            pins[place + 1] = record.next_pin
        if record.flags & f.SNAPSHOT_BASE:
            bases[place + 1] = record.next_pin
        trees.append(FileTree(record.id, record.inode, record.longfile, record.num_inodes, record.free_inodes))
    if len(trees) != extension.snapshot_count:
        report.add(p.SNAPSHOT_COUNT, f"{len(trees)} counted, {extension.snapshot_count} found")
    _check_pins(report, extension, pins)
    _check_bases(report, extension.overlay, bases)
    _check_index(reader, report, extension.snapshot_index, indexed)
    return trees


def _check_pins(report: p.Report, extension: f.Extension, pins: dict[int, int]) -> None:
    """The chain leads to each pin once and ends."""
    if pins:
        report.add(p.PINS_LEFT, f"{len(pins)}")
    if extension.pin_count != len(pins):
        report.add(p.PINS, f"{len(pins)} counted, {extension.pin_count} found")
    _check_chain(report, p.PINS, extension.first_pin, pins, "no pin")


def _check_bases(report: p.Report, overlay: f.OverlayState, bases: dict[int, int]) -> None:
    """The chain leads to each base's tree once and ends, and there are as many as the overlay needs, and those it does not."""
    if len(bases) != overlay.depth + overlay.spent:
        report.add(p.BASE_TREES, f"{len(bases)} counted for {overlay.depth} layers and {overlay.spent} of no use")
    _check_chain(report, p.BASE_TREES, overlay.base_snapshot, bases, "none")


def _check_chain(report: p.Report, kind: p.Kind, first: int, following: dict[int, int], nothing: str) -> None:
    """From `first`, each place leads to its `following` one, once, and all are in it. Takes away what it meets."""
    place = first
    while place:
        if place not in following:
            report.add(kind, f"place {place - 1} has {nothing}, or one that was there before")
            return
        place = following.pop(place)
    if following:
        report.add(kind, f"{len(following)} are not in it")


def _check_index(reader: BlockReader, report: p.Report, root: f.RootNode, indexed: dict[int, int]) -> None:
    """Compares the index by name with the places and hashes that the table makes."""
    size = f.SnapshotIndexEntry.SIZE
    slots = root.size // size
    if root.size % size or slots & (slots - 1) or 2 * len(indexed) > slots:
        report.add(p.SNAPSHOT_INDEX, f"{root.size} bytes for {len(indexed)} names")
        return
    per_leaf = reader.block_size // size
    missing = dict(indexed)
    entries: dict[int, f.SnapshotIndexEntry] = {}
    for index, block in reader.leaves(contents_of(root), set()):
        data = reader.block(block)
        for at in range(min(per_leaf, slots - index * per_leaf)):
            entry = f.SnapshotIndexEntry.unpack(data, at * size)
            if not entry.place:
                continue
            slot = index * per_leaf + at
            entries[slot] = entry
            if missing.pop(entry.place, None) != entry.hash:
                report.add(p.SNAPSHOT_INDEX, f"slot {slot}: {entry.to_text()}")
    for place in missing:
        report.add(p.SNAPSHOT_INDEX, f"the record at place {place - 1} is not in it")
    _check_chains(report, entries, slots)


def _check_chains(report: p.Report, entries: dict[int, f.SnapshotIndexEntry], slots: int) -> None:
    """Between the home of a hash and its slot there is no empty one: both lie in one run of slots in use."""
    start = 0
    if 0 in entries:
        while start - 1 + slots in entries and start > -slots:
            start -= 1
    before = start - 1 if 0 in entries else -2
    for slot in sorted(entries):
        if slot != before + 1 and slot:
            start = slot
        before = slot
        distance = (slot - entries[slot].hash) & (slots - 1)
        if distance > slot - start:
            report.add(p.SNAPSHOT_INDEX, f"slot {slot} is not found from slot {(slot - distance) & (slots - 1)}")


def _record_failure(record: f.SnapshotRecord, extension: f.Extension) -> str:
    if record.id >= extension.snapshot_id:
        return f"id {record.id}, but the next one is {extension.snapshot_id}"
    if record.flags & ~KNOWN_FLAGS:
        return f"unknown flags {record.flags:#x}"
    if record.flags & f.SNAPSHOT_PIN and record.flags != PIN_FLAGS:
        return f"a pin with flags {record.flags:#x}"
    if record.flags & f.SNAPSHOT_BASE and record.flags != BASE_FLAGS:
        return f"a base's tree with flags {record.flags:#x}"
    if record.next_pin and not record.flags & (f.SNAPSHOT_PIN | f.SNAPSHOT_BASE):
        return f"no pin, but pin {record.next_pin} follows"
    if record.flags & f.SNAPSHOT_AUTOMATIC and record.flags & NEVER_AUTOMATIC:
        return f"flags {record.flags:#x}: only snapshots with a name can be automatic"
    least = 0 if record.flags & f.SNAPSHOT_INTERNAL else 1
    if not least <= record.name_length <= f.SNAPSHOT_NAME_MAX or record.description_length > f.SNAPSHOT_DESCRIPTION_MAX:
        return f"a name of {record.name_length} bytes, a description of {record.description_length}"
    name = record.name[: record.name_length]
    if any(record.name[record.name_length :]) or name in DOTS or any(byte in name for byte in b"\0/\n"):
        return f"name {record.name!r}"
    if record.origin >= extension.snapshot_id:
        return f"made from snapshot {record.origin}, which never was"
    return ""


def check_reclaim(reader: BlockReader, report: p.Report, extension: f.Extension) -> Iterator[f.ReclaimEntry]:
    """The entries of the reclaim queue that can be followed."""
    root, count = extension.reclaim, extension.reclaim_count
    size = f.ReclaimEntry.SIZE
    if count * size > root.size:
        report.add(p.RECLAIM_QUEUE, f"{count} entries in {root.size} bytes")
        count = root.size // size
    if count:
        report.add(p.RECLAIM_PENDING, f"{count} subtrees")
    per_leaf = reader.block_size // size
    empty = bytes(size)
    found = 0
    for index, block in reader.leaves(contents_of(root), set()):
        data = reader.block(block)
        for number in range(index * per_leaf, min((index + 1) * per_leaf, count)):
            offset = number % per_leaf * size
            entry = f.ReclaimEntry.unpack(data, offset)
            found += 1
            right = entry.kind < f.KIND_COUNT and entry.level <= f.LEVEL_MAX and reader.leads(entry.block)
            if data[offset : offset + size] == empty or not right:
                report.add(p.RECLAIM_ENTRY, f"entry {number}: {entry.to_text()}")
            else:
                yield entry
    if found < count:
        report.add(p.RECLAIM_ENTRY, f"{count - found} entries lie in holes")


def check_settings(reader: BlockReader, report: p.Report, root: f.RootNode) -> None:
    """The settings are a JSON object."""
    if root.size:
        failure = _settings_failure(ContentsReader(reader, contents_of(root)))
        if failure:
            report.add(p.SETTINGS_CONTENTS, failure)


def _settings_failure(contents: ContentsReader) -> str:
    header = f.SettingsHeader.SIZE
    size = contents.tree.size
    if size < header:
        return f"{size} bytes"
    length = f.SettingsHeader.unpack(contents.read(0, header)).length
    most = min(f.SETTINGS_LENGTH_MAX, size - header)
    if length > most:
        return f"{length} bytes of text, at most {most} can be"
    if not length:
        return ""
    try:
        value = json.loads(contents.read(header, length))
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return "" if isinstance(value, dict) else "not a JSON object"
