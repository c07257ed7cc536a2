"""Which leaves are writable is remembered while nothing can have changed that, and not a moment longer (I6)."""

from __future__ import annotations

import pytest
from support import new_device

from cowfs.ondisk import format as f
from cowfs.storage.blocktree import BlockTrees, Root, WritableRoot
from cowfs.storage.transaction import Transaction
from cowfs.storage.volume import Volume


class Table:
    """A block tree of metadata leaves, and what its owner knows of it."""

    def __init__(self, volume: Volume) -> None:
        assert volume.tx is not None
        self.volume = volume
        self.trees: BlockTrees = volume.trees
        self.tx: Transaction = volume.tx
        self.root = Root(f.KIND_FILE)
        self.trees.resize(self.token, 40 * volume.geometry.block_size)
        for index in (0, 39):
            self.leaf(index)[:3] = b"old"

    @property
    def token(self) -> WritableRoot:
        return self.volume.token(self.root)

    def leaf(self, index: int) -> bytearray:
        return self.trees.writable_leaf(self.token, index)

    def block(self, index: int) -> int:
        return self.trees.pointer(self.root, index)


def new_table() -> Table:
    return Table(Volume.open(new_device()))


@pytest.mark.interpreted
def test_a_writable_leaf_is_found_without_a_descent() -> None:
    table = new_table()
    reads: list[int] = []
    read = table.volume.store.read
    table.volume.store.read = lambda block: (reads.append(block), read(block))[1]  # type: ignore[method-assign]
    changes = table.tx.changes
    assert table.leaf(39) is table.leaf(39)
    assert reads == []
    assert table.tx.changes == changes + 2, "each time it may have been changed"


def test_a_leaf_that_was_shared_is_copied() -> None:
    table = new_table()
    blocks = table.block(0), table.block(39)
    (other,) = table.trees.share([table.root])
    for index in (0, 39):
        table.leaf(index)[:3] = b"new"
        assert bytes(table.trees.leaf(other, index)[:3]) == b"old"
    assert (table.trees.pointer(other, 0), table.trees.pointer(other, 39)) == blocks
    assert blocks != (table.block(0), table.block(39))


def test_a_single_leaf_that_was_shared_is_copied() -> None:
    table, names = new_table(), Root(f.KIND_LONG_NAMES)
    token = table.volume.token(names)
    table.trees.resize(token, 2 * table.volume.geometry.block_size)
    table.trees.writable_leaf(token, 0)[:3] = b"old"
    table.trees.share_leaf(token, 1, table.trees.pointer(names, 0))
    table.trees.writable_leaf(token, 0)[:3] = b"new"
    assert bytes(table.trees.leaf(names, 1)[:3]) == b"old"


def test_a_leaf_that_was_sealed_is_copied() -> None:
    table = new_table()
    sealed = table.block(39)
    table.volume.commit()
    table.leaf(39)[:3] = b"new"
    assert table.block(39) != sealed
    assert bytes(table.volume.store.read(sealed)[:3]) == b"old"


def test_a_leaf_that_was_cut_off_is_a_new_one() -> None:
    table = new_table()
    gone = table.leaf(39)
    table.trees.resize(table.token, table.volume.geometry.block_size)
    table.trees.resize(table.token, 40 * table.volume.geometry.block_size)
    assert table.block(39) == f.NO_BLOCK
    assert table.leaf(39) is not gone
    assert not any(table.leaf(39))
    assert table.block(39) in table.volume.store.dirty


def test_a_leaf_that_was_punched_is_a_new_one() -> None:
    table = new_table()
    gone = table.leaf(0)
    table.trees.punch(table.token, 0)
    assert table.leaf(0) is not gone
    assert not any(table.leaf(0))


def test_a_leaf_that_was_written_as_data_is_the_new_contents() -> None:
    table = new_table()
    size = table.volume.geometry.block_size
    table.volume.commit()
    table.leaf(0)
    table.trees.write(table.token, 0, b"x" * size)
    assert bytes(table.leaf(0)) == b"x" * size
