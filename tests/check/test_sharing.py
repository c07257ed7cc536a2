"""Sharing that is right is no problem: snapshots, clones of files, subtrees that wait to be dropped."""

from __future__ import annotations

import stat

from damage import Image, long_entry, short_entry
from damage_sample import LONG_NAMES, sample

from cowfs.check import Report, check_device
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c


def test_snapshots_hold_references_and_are_checked() -> None:
    device = sample().device()
    image = Image(device)
    image.add_snapshots([image.snapshot(1, b"first"), image.snapshot(2, b"second")])
    image.finish()
    report = check_device(device)
    assert not report.totals, report.to_text()
    assert report.counts.snapshots == 2
    assert report.counts.shared_blocks == len([p for p in image.superblock.inode.ptr if p != f.NO_BLOCK]) + 2


def test_an_index_in_which_names_share_homes() -> None:
    """Runs of slots, one of them round the end of the index; internal snapshots are not in it."""
    device = sample().device()
    image = Image(device)
    names = [b"snapshot %d" % number for number in range(400)]
    last = [name for name in names if crc32c(name) % 64 == 63][:3]
    middle = [name for name in names if crc32c(name) % 64 in (20, 21)][:3]
    assert (len(last), len(middle)) == (3, 3)
    records = [image.snapshot(number, name) for number, name in enumerate(last + middle, 1)]
    for number in (20, 21):
        records.append(image.snapshot(number, b""))
        records[-1].flags = f.SNAPSHOT_INTERNAL
    image.add_snapshots(records)
    image.finish()
    report = check_device(device)
    assert not report.totals, report.to_text()


def test_the_names_of_a_snapshot_are_checked_too() -> None:
    """The snapshot has an inode file of its own, in which a link count is wrong."""
    device = sample().device()
    image = Image(device)
    record = image.snapshot(5, b"first")
    changed = list(record.inode.ptr)
    index, place = divmod(sample().inodes["small"] - 1, image.geometry.inodes_per_block)
    data = bytearray(image.block(changed[index]))
    inode = f.DiskInode.unpack(data, place * f.INODE_SIZE)
    inode.links += 1
    data[place * f.INODE_SIZE : (place + 1) * f.INODE_SIZE] = inode.pack()
    original = changed[index]
    changed[index] = image.take_block(bytes(data))
    record.inode = f.RootNode(record.inode.size, tuple(changed), record.inode.levels)
    image.add_snapshots([record])
    image.set_reference(original, 0)
    image.set_reference(changed[index], 0)
    for offset in range(0, len(data), f.INODE_SIZE):
        for pointer in f.DiskInode.unpack(data, offset).ptr:
            if pointer != f.NO_BLOCK and pointer not in image.zero_blocks:
                image.set_reference(pointer, 1)
    image.finish()
    report = check_device(device)
    assert [(problem.number, problem.tree, problem.inode) for problem in report.problems] == [
        (415, 5, sample().inodes["small"])
    ]


def clone_big(image: Image) -> int:
    """A second inode with the blocks of the file with an indirect block."""
    inode = image.inode(sample().inodes["big"])
    number = image.new_inode(inode)
    image.set_entry(sample().inodes["dir/inner"], b"", short_entry(number, b"clone"))
    return number


def test_a_clone_of_a_file_shares_its_blocks() -> None:
    device = sample().device()
    image = Image(device)
    clone_big(image)
    indirect = image.inode(sample().inodes["big"]).ptr[0]
    image.set_reference(indirect, 1)
    image.finish()
    report = check_device(device)
    assert not report.totals, report.to_text()
    assert report.counts.shared_blocks == 1


def test_a_clone_that_nobody_counted_is_found() -> None:
    device = sample().device()
    image = Image(device)
    clone_big(image)
    image.finish()
    assert [problem.number for problem in check_device(device).problems] == [504]


def test_two_slots_of_the_long_name_file_may_share_a_block() -> None:
    """As after the clone of a directory tree: an entry has a slot for itself, slots may have one block."""
    device = sample().device()
    image = Image(device)
    name = LONG_NAMES[1]
    root = image.superblock.longfile
    slot = root.size // image.block_size
    block = root.ptr[image.long_entry(1, name).slot]
    root.ptr = (*root.ptr[:slot], block, *root.ptr[slot + 1 :])
    root.size += image.block_size
    image.set_reference(block, 1)
    with image.edit_inode(sample().inodes["fifo"]) as inode:
        inode.links += 1
    image.set_entry(sample().inodes["dir/inner"], b"", long_entry(sample().inodes["fifo"], slot, name))
    image.finish()
    report = check_device(device)
    assert not report.totals, report.to_text()


def reclaimed(kind: int) -> Report:
    """A volume with a snapshot whose roots are queued instead of being in the table."""
    device = sample().device()
    image = Image(device)
    root = image.superblock.inode if kind == f.KIND_INODES else image.superblock.longfile
    pointers = [p for p in root.ptr if p != f.NO_BLOCK and p not in image.zero_blocks]
    for pointer in pointers:
        image.set_reference(pointer, 1)
    entries = [f.ReclaimEntry(pointer, kind, root.levels).pack() for pointer in pointers]
    image.use_system_tree("reclaim", b"".join(entries))
    image.extension.reclaim_count = len(entries)
    image.finish()
    return check_device(device)


def test_the_reclaim_queue_holds_references() -> None:
    for kind in (f.KIND_INODES, f.KIND_LONG_NAMES):
        report = reclaimed(kind)
        assert set(report.totals) == {603}, report.to_text()
        assert report.counts.reclaim_entries > 0


def test_inodes_in_the_reclaim_queue_hold_their_blocks() -> None:
    """A dropped block of the inode file is the only parent of a file's blocks."""
    device = sample().device()
    image = Image(device)
    data = image.take_block(b"contents")
    inode = f.DiskInode(
        size=8,
        mode=stat.S_IFREG | 0o600,
        links=1,
        status=f.STATUS_IN_USE,
        blocks=1,
        ptr=(data, *f.NO_BLOCK_POINTERS[1:]),
    )
    leaf = image.take_block(inode.pack())
    image.use_system_tree("reclaim", f.ReclaimEntry(leaf, f.KIND_INODES, 0).pack())
    image.extension.reclaim_count = 1
    image.finish()
    report = check_device(device)
    assert set(report.totals) == {603}, report.to_text()
