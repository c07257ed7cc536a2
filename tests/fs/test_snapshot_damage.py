"""Damage in what snapshots are kept in: what cannot be done is refused before anything changes, and the volume goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cowfs.errors import Corrupt
from cowfs.fs import Caller
from cowfs.fs.snapshot import Snapshots
from cowfs.ondisk import format as f
from cowfs.storage.device import MemoryDevice
from cowfs.storage.volume import Volume
from tests.support import assert_sound, new_device

COUNT = 9
"""Snapshots of the sample: the last one alone is in the third page of the table."""


def sample() -> MemoryDevice:
    device = new_device()
    trees = Snapshots(Volume.open(device))
    for number in range(COUNT):
        trees.live.create(1, b"file %d" % number, 0o644, Caller())
        trees.create(b"%d" % number)
    trees.live.create(1, b"present", 0o644, Caller())
    trees.close()
    return device


def spoil_page(device: MemoryDevice, tree: str, index: int) -> None:
    """Changes a byte of a page of one of the tables, behind its checksum's back."""
    volume = Volume.open(device, read_only=True)
    block = getattr(volume, tree)._pointer((0, index))
    offset = volume.geometry.block_offset(block) + 100
    device.write(offset, [bytes([device.read(offset, 1)[0] ^ 1])])


def spoil_record(device: MemoryDevice, name: bytes, change: Callable[[f.SnapshotRecord], object]) -> None:
    """Changes a record, with right checksums."""
    volume = Volume.open(device)
    table = volume.forest.table
    place = table.find(name)
    record = table.get(place)
    change(record)
    with volume.operation():
        table.replace(place, record)
    volume.commit()


def refused(device: MemoryDevice, operation: Callable[[Snapshots], object]) -> Snapshots:
    """The volume after an operation that met damage."""
    trees = Snapshots(Volume.open(device))
    with pytest.raises(Corrupt):
        operation(trees)
    assert not trees.volume.read_only, trees.volume.notes
    assert trees.live.lookup(1, b"present")
    trees.live.create(1, b"goes on", 0o644, Caller())
    trees.live.sync()
    return trees


@pytest.mark.parametrize(
    "operation",
    [
        lambda trees: trees.create(b"new"),
        lambda trees: trees.roll_back(b"1"),
        lambda trees: trees.pin(trees.volume.live),
    ],
    ids=["create", "roll back", "pin"],
)
def test_a_page_of_the_table_that_rotted(operation: Callable[[Snapshots], object]) -> None:
    """Whatever needs an empty place has to look for one there."""
    device = sample()
    spoil_page(device, "snapshots", 2)
    refused(device, operation)


def test_of_several_none_is_deleted_where_one_is_damaged() -> None:
    device = sample()
    spoil_record(
        device, b"3", lambda record: setattr(record, "inode", f.RootNode(4096, (0x7FFFFFFF, *record.inode.ptr[1:])))
    )
    trees = refused(device, lambda trees: trees.delete([b"1", b"2", b"3", b"4"]))
    assert [trees.find(b"%d" % number).id for number in range(COUNT)]
    trees.delete([b"1", b"2", b"4"])
    assert len(trees) == COUNT - 3


def test_a_name_that_is_not_in_the_index() -> None:
    """Only whoever finds the record otherwise meets it."""
    device = sample()
    trees = Snapshots(Volume.open(device))
    place = trees.find(b"3").place
    with trees.volume.operation():
        trees._table._remove_from_index(b"3", place)
    with pytest.raises(Corrupt, match="not in the index"), trees.volume.operation():
        trees.volume.forest.drop(place)
    assert not trees.volume.read_only


@pytest.mark.parametrize("discard", [False, True])
def test_a_tree_without_a_list_of_orphans_does_not_become_the_live_one(discard: bool) -> None:
    device = sample()
    trees = Snapshots(Volume.open(device))
    clone = trees.filesystem(trees.create(b"clone", writable=True))
    inode = clone.inodes.get_hidden(f.ORPHAN_INODE, "the test")
    with trees.volume.operation():
        clone._trees.write(clone.inodes.make_writable(inode), 0, b"\3\0\0")
    clone.sync()
    refused(device, lambda trees: trees.roll_back(b"clone", discard=discard))


@pytest.mark.parametrize("count", [0, 3, 0xFFFF_FFFF])
def test_a_wrong_number_of_pins(count: int) -> None:
    device = new_device()
    trees = Snapshots(Volume.open(device))
    trees.pin(trees.volume.live)
    assert trees.volume.extension is not None
    trees.volume.extension.pin_count = count
    trees.volume.commit()
    reader = Volume.open(device, read_only=True)
    assert len(reader.forest.pins()) == 1
    again = Snapshots(Volume.open(device))
    assert again.volume.extension is not None and again.volume.extension.first_pin == 0
    again.live.create(1, b"goes on", 0o644, Caller())
    again.live.sync()


def test_a_chain_of_pins_that_does_not_end() -> None:
    device = new_device()
    trees = Snapshots(Volume.open(device))
    place = trees.volume.forest.place_of(trees.pin(trees.volume.live).id)
    assert trees.volume.extension is not None
    trees.volume.extension.pin_count = 0xFFFF_FFFF
    record = trees._table.get(place)
    record.next_pin = place + 1
    trees._table.replace(place, record)
    trees.volume.commit()
    with pytest.raises(Corrupt, match="leads back"):
        Volume.open(device, read_only=True).forest.pins()
    again = Snapshots(Volume.open(device))
    assert any("stays" in note for note in again.volume.notes)
    assert not again.volume.read_only


def test_the_sample_is_sound() -> None:
    assert_sound(sample())
