"""Reference counts: blocks with a second and a hundredth parent, written through each and dropped in any order.

Contents are compared with a model, counts with the number of parents that a walk finds, and when all is gone the space is
back to the block.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from plainfiles import BLOCK_SIZES, MIB, PlainFiles, random_change

from cowfs.errors import TooManyLinks
from cowfs.ondisk import format as f
from cowfs.storage import blocktree
from cowfs.storage.blocktree import BlockTrees, Root
from cowfs.storage.transaction import Transaction


def assert_nothing_is_shared(files: PlainFiles, blocks_before: int) -> None:
    """Space is back to the block, and so is what the counts themselves took."""
    files.drain()
    files.check()
    assert files.blocks_in_use() == blocks_before
    for tree in (files.volume.references, files.volume.reclaim_tree):
        assert list(tree.blocks()) == []


def file_of_levels(files: PlainFiles, levels: int, choose: random.Random) -> int:
    """A file whose tree has just so many levels: some blocks at its start, some at its end."""
    number = files.create()
    fanout = files.block_size // 4
    blocks = 16 * fanout**levels
    files.write(number, 0, choose.randbytes(5 * files.block_size))
    end = min(blocks * files.block_size, files.volume.geometry.file_size_max)
    files.write(number, end - 4 * files.block_size, choose.randbytes(3 * files.block_size + 7))
    assert files.root(number).levels == levels
    return number


@pytest.mark.parametrize(
    ("block_size", "levels", "parents"),
    [(512, levels, parents) for levels in range(4) for parents in (2, 100)] + [(4096, 1, 2), (4096, 3, 20)],
)
def test_a_file_is_shared_by_files(block_size: int, levels: int, parents: int) -> None:
    choose = random.Random(f"{block_size}.{levels}.{parents}")
    files = PlainFiles.make(8 * MIB, block_size)
    before = files.blocks_in_use()
    numbers = [file_of_levels(files, levels, choose)]
    files.volume.commit()
    blocks = files.blocks_in_use()
    while len(numbers) < parents:
        numbers.append(files.clone(choose.choice(numbers)))
    files.check()
    inode_blocks = -(-parents // files.per_leaf) + 2
    assert files.blocks_in_use() - blocks <= 2 * inode_blocks  # nothing but inodes and the list of them was copied
    size = files.live.files[numbers[0]].size

    def offsets() -> int:
        return choose.choice((0, choose.randrange(6 * block_size), max(0, size - choose.randrange(1, 6 * block_size))))

    choose.shuffle(numbers)
    for step, number in enumerate(numbers):
        for _ in range(2):
            random_change(files, number, 0, choose, offsets)
        if step % 25 == 0:
            files.check()
    files.check()
    choose.shuffle(numbers)
    for step, number in enumerate(numbers):
        if choose.random() < 0.3:
            files.resize(number, files.live.files[number].size // 2)
        files.remove(number)
        if step % 25 == 0:
            files.check()
    assert_nothing_is_shared(files, before)
    files.close()


@pytest.mark.parametrize("parents", [2, 100])
@pytest.mark.parametrize("inode_leaves", [1, 17 * 128])
def test_an_inode_file_is_shared_by_trees(inode_leaves: int, parents: int) -> None:
    """The inode file of level 0 and 2, with files in it, in two trees and in a hundred."""
    choose = random.Random(f"{inode_leaves}.{parents}")
    files = PlainFiles.make(4 * MIB, 512, inode_leaves=inode_leaves)
    before = files.blocks_in_use()
    numbers = [file_of_levels(files, levels, choose) for levels in (0, 2)]
    assert files.volume.live.inodes.levels == (0 if inode_leaves == 1 else 2)
    if inode_leaves > 1:
        last = files.create(number=files.volume.live.num_inodes)
        files.write(last, 0, choose.randbytes(30_000))
        numbers.append(last)
    while len(files.all) < parents:
        files.snapshot(choose.choice(list(files.all)))
    files.check()
    trees = list(files.all)
    choose.shuffle(trees)
    for step, tree in enumerate(trees):
        random_change(files, choose.choice(numbers), tree, choose, lambda: choose.randrange(40_000))
        if step % 33 == 0:
            files.check()
    files.check()
    trees.remove(0)
    choose.shuffle(trees)
    for step, tree in enumerate(trees):
        files.drop_tree(tree)
        if choose.random() < 0.3:
            files.volume.reclaim_slice(choose.choice((1, 50, 4096)))
        if step % 33 == 0:
            files.check()
    for number in numbers:
        files.remove(number)
    assert_nothing_is_shared(files, before)
    files.close()


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_everything_mixed(block_size: int, seed: int) -> None:
    """Clones of files in snapshots of snapshots, changed and dropped in any order, with commits and reclaim in between."""
    choose = random.Random(seed)
    files = PlainFiles.make(4 * MIB, block_size, inode_leaves=20)
    before = files.blocks_in_use()
    file_of_levels(files, seed, choose)
    file_of_levels(files, 3, choose)
    size_max = files.volume.geometry.file_size_max

    def offsets() -> int:
        return choose.choice((0, choose.randrange(100_000), size_max - choose.randrange(50_000, 60_000)))

    for step in range(100):
        tree = choose.choice(list(files.all))
        numbers = list(files.all[tree].files)
        action = choose.random()
        if action < 0.1 and len(files.all) < 6:
            files.snapshot(tree)
        elif action < 0.2 and tree:
            files.drop_tree(tree)
        elif action < 0.3 and numbers and len(numbers) < 8:
            files.clone(choose.choice(numbers), tree)
        elif action < 0.35 and numbers:
            files.remove(choose.choice(numbers), tree)
        elif action < 0.45:
            files.volume.commit()
        elif action < 0.5:
            files.volume.reclaim_slice(choose.choice((1, 10, 4096)))
        elif numbers:
            random_change(files, choose.choice(numbers), tree, choose, offsets)
        if step % 20 == 19:
            files.check()
    for tree in [tree for tree in files.all if tree]:
        files.drop_tree(tree)
    for number in list(files.live.files):
        files.remove(number)
    assert_nothing_is_shared(files, before)
    files.close()


@pytest.mark.parametrize("keep", [0, 1, 20, 33])
def test_a_cut_through_the_inode_file_lets_go_of_what_is_in_it(keep: int) -> None:
    """Inode leaves have children, unlike the leaves of files."""
    files = PlainFiles.make(4 * MIB, 512, inode_leaves=40)
    before = files.blocks_in_use()
    for number in (3, 70, 100, 160):
        files.create(number=number)
        files.write(number, 0, bytes([number]) * 40_000)
    tree = files.snapshot()
    for number in (3, 100, 160):
        files.write(number, 5_000, b"changed" * 5_000, tree)
    where = files.all[tree]
    for leaves in (keep, 0):
        files.volume.trees.resize(where.tree.writable_inodes(), leaves * 512)
    files.drop_tree(tree)
    files.drain()
    files.check()
    for number in (3, 70, 100, 160):
        files.remove(number)
    assert_nothing_is_shared(files, before)


def test_a_zero_block_is_never_counted() -> None:
    """Holes are shared by everybody, from the start."""
    files = PlainFiles.make(block_size=512)
    numbers = [file_of_levels(files, 3, random.Random(0))]
    numbers += [files.clone(numbers[0]) for _ in range(5)]
    for number in numbers:
        files.write(number, 100_000, b"x" * 3000)
    assert files.volume.spacemap is not None
    assert [files.volume.spacemap.extra_parents(block) for block in files.volume.zero_blocks] == [0, 0, 0, 0]
    for number in numbers:
        files.remove(number)
    files.drain()
    assert all(files.volume.spacemap.in_use(block) for block in files.volume.zero_blocks)
    files.check()


# --- overflow ---


def test_a_full_count_refuses_another_parent_before_anything_changes() -> None:
    files = PlainFiles.make(block_size=512)
    number = file_of_levels(files, 1, random.Random(0))
    files.volume.commit()
    volume = files.volume
    assert volume.tx is not None
    assert volume.spacemap is not None
    tops = [(p, f.KIND_FILE, 1) for p in files.root(number).ptr if not files.trees.is_hole(p)]
    full = tops[-1][0]
    volume.spacemap.set_extra_parents(full, f.REFERENCE_MAX)
    changes = volume.tx.changes
    with pytest.raises(TooManyLinks):
        volume.tx.add_parents(tops)
    assert volume.tx.changes == changes
    assert [volume.spacemap.extra_parents(block) for block, _, _ in tops] == [0] * (len(tops) - 1) + [f.REFERENCE_MAX]
    with pytest.raises(TooManyLinks):  # one more would fit, two do not
        volume.spacemap.set_extra_parents(full, f.REFERENCE_MAX - 1)
        volume.tx.add_parents([tops[-1], tops[-1]])
    volume.spacemap.set_extra_parents(full, 0)
    files.check()


@pytest.mark.parametrize("operation", ["write", "resize"])
def test_a_full_count_below_refuses_to_copy_before_that_block_changes(operation: str) -> None:
    """Copying an indirect block gives each of its children a parent."""
    files = PlainFiles.make(block_size=512)
    number = file_of_levels(files, 1, random.Random(0))
    clone = files.clone(number)
    files.volume.commit()
    volume = files.volume
    assert volume.spacemap is not None
    child = files.trees.pointer(files.root(number), 3)
    volume.spacemap.set_extra_parents(child, f.REFERENCE_MAX)
    free = volume.spacemap.free
    indirect = files.root(number).ptr[0]
    with pytest.raises(TooManyLinks), files.change(number) as token:
        if operation == "write":
            files.trees.write(token, 512, b"x" * 512)
        else:
            files.trees.resize(token, 1024)
    assert volume.spacemap.extra_parents(indirect) == 1
    assert volume.spacemap.free >= free - 2  # the inode's leaf was copied
    volume.spacemap.set_extra_parents(child, 0)
    files.verify()
    files.check()
    files.write(clone, 0, b"y" * 5000)
    files.check()


# --- the order ---


class Model:
    """Trees of depth two in a few lines: what counts are for, and what becomes of them in the wrong order."""

    def __init__(self) -> None:
        self.contents: dict[int, list[int] | str] = {}
        self.extra: dict[int, int] = {}
        self.roots: dict[str, int] = {}

    def add(self, contents: list[int] | str) -> int:
        block = len(self.contents) + 1
        self.contents[block] = contents
        self.extra[block] = 0
        return block

    def build(self, root: str, leaves: str) -> None:
        self.roots[root] = self.add([self.add(leaf) for leaf in leaves])

    def share(self, root: str, other: str) -> None:
        self.roots[other] = self.roots[root]
        self.extra[self.roots[root]] += 1

    def shadow(self, block: int) -> int:
        """All blocks are born in this generation: in place, unless there are more parents."""
        if not self.extra[block]:
            return block
        contents = self.contents[block]
        if isinstance(contents, list):
            for child in contents:
                self.extra[child] += 1
        self.extra[block] -= 1
        return self.add(list(contents) if isinstance(contents, list) else contents)

    def top_down(self, root: str, leaf: int, value: str) -> None:
        top = self.roots[root] = self.shadow(self.roots[root])
        pointers = self.pointers(top)
        pointers[leaf] = self.shadow(pointers[leaf])
        self.contents[pointers[leaf]] = value

    def leaf_first(self, root: str, leaf: int, value: str) -> None:
        """Wrong: the leaf has one parent, so it seems to be writable; that its parent has two is seen too late."""
        new = self.shadow(self.pointers(self.roots[root])[leaf])
        self.contents[new] = value
        top = self.roots[root] = self.shadow(self.roots[root])
        self.pointers(top)[leaf] = new

    def pointers(self, block: int) -> list[int]:
        contents = self.contents[block]
        assert isinstance(contents, list)
        return contents

    def read(self, root: str) -> str:
        return "".join(str(self.contents[leaf]) for leaf in self.pointers(self.roots[root]))

    def counted(self) -> dict[int, int]:
        """Parents beyond the first, counted."""
        parents = list(self.roots.values())
        for block in set(parents):
            parents += self.pointers(block)
        return {block: parents.count(block) - 1 for block in set(parents)}


def changed_model(write: Callable[[Model, str, int, str], None]) -> Model:
    model = Model()
    model.build("live", "abc")
    model.share("live", "snapshot")
    write(model, "live", 1, "X")
    return model


def test_the_right_order_in_the_model() -> None:
    model = changed_model(Model.top_down)
    assert (model.read("live"), model.read("snapshot")) == ("aXc", "abc")
    assert model.counted() == {block: model.extra[block] for block in model.counted()}


def test_the_wrong_order_fails_in_the_model() -> None:
    model = changed_model(Model.leaf_first)
    assert model.read("snapshot") == "aXc", "the write went through to the snapshot"
    assert model.counted() != {block: model.extra[block] for block in model.counted()} or model.read("live") == "aXc"


@pytest.mark.interpreted
def test_the_wrong_order_fails_on_a_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same mistake made in the real code: leaves are looked at before what is above them is shadowed."""

    def leaf_first(self: BlockTrees, root: Root, tx: Transaction, index: int) -> blocktree._Leaves:
        pointers, slot, _ = self._container(root, index)
        assert pointers is not None
        return blocktree._Leaves(pointers, slot, bytearray())  # each leaf seems to be one to write where it lies

    files = PlainFiles.make(block_size=512)
    number = files.create()
    files.write(number, 0, bytes(range(1, 101)) * 200)  # one generation for all of it
    clone = files.clone(number)
    monkeypatch.setattr(BlockTrees, "_leaves_for_write", leaf_first)
    files.write(clone, 1024, b"X" * 512)
    with pytest.raises(AssertionError, match="file 3, at 0"):
        files.verify()
