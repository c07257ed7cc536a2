"""The tables of a volume's own: the snapshot table and the reclaim queue, record by record."""

from __future__ import annotations

from collections.abc import Iterator

from cowfs.check import problem as p
from cowfs.check.reader import BlockReader, ContentsReader, contents_of
from cowfs.check.trees import FileTree
from cowfs.ondisk import format as f

_KNOWN_FLAGS = f.SNAPSHOT_WRITABLE | f.SNAPSHOT_INTERNAL | f.SNAPSHOT_PROTECTED


def snapshot_records(reader: BlockReader, root: f.RootNode) -> Iterator[f.SnapshotRecord]:
    """The records of the snapshot table that are not empty, in order. Only leaves that are there are looked at."""
    table = ContentsReader(reader, contents_of(root))
    size, block_size = f.SnapshotRecord.SIZE, reader.block_size
    following = 0
    for index, _ in reader.leaves(contents_of(root), set()):
        first = max(following, index * block_size // size)
        following = -(-(index + 1) * block_size // size)
        for number in range(first, min(following, root.size // size)):
            record = f.SnapshotRecord.unpack(table.read(number * size, size))
            if record.id:
                yield record


def check_snapshots(reader: BlockReader, report: p.Report, extension: f.Extension) -> list[FileTree]:
    """Checks every record of the snapshot table; returns the trees that the table names."""
    trees: list[FileTree] = []
    ids: set[int] = set()
    names: set[bytes] = set()
    for record in snapshot_records(reader, extension.snapshots):
        failure = _record_failure(record, extension)
        if failure:
            report.add(p.SNAPSHOT_RECORD, failure, tree=record.id)
        name = record.name[: record.name_length]
        if record.id in ids or name in names:
            report.add(p.SNAPSHOT_DUPLICATE, f"id {record.id}, name {name!r}", tree=record.id)
        ids.add(record.id)
        names.add(name)
        trees.append(FileTree(record.id, record.inode, record.longfile, record.num_inodes, record.free_inodes))
    if len(trees) != extension.snapshot_count:
        report.add(p.SNAPSHOT_COUNT, f"{len(trees)} counted, {extension.snapshot_count} found")
    return trees


def _record_failure(record: f.SnapshotRecord, extension: f.Extension) -> str:
    if record.id >= extension.snapshot_id:
        return f"id {record.id}, but the next one is {extension.snapshot_id}"
    if record.flags & ~_KNOWN_FLAGS:
        return f"unknown flags {record.flags:#x}"
    if not 0 < record.name_length <= f.SNAPSHOT_NAME_MAX or record.description_length > f.SNAPSHOT_DESCRIPTION_MAX:
        return f"a name of {record.name_length} bytes, a description of {record.description_length}"
    if any(record.name[record.name_length :]) or not all(record.name[: record.name_length]):
        return "the name is not padded with zeros"
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
