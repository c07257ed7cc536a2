"""How much space trees take: what deleting snapshots frees, what a tree or a path takes, and how much of it is shared.

Three questions, each in blocks (or bytes) to the block:

- `freed_by`: what deleting a *set* of snapshots frees. A simulated drop: as the real one it goes top down, takes one parent
  from each block it meets, and goes on below those that have none left; but the numbers of parents taken are kept in a map
  beside the reference counts, and nothing is changed. What is shared among the members of the set alone is freed, too.
- `tree_usage`: all blocks of one tree, and those that only this tree has (deleting it alone would free them).
- `path_usage`: the same for a file or a directory with all that is below it. Exclusive are the blocks that nothing but the
  inodes below the path leads to; so what a second name outside the path leads to counts as well.

Counted are blocks of files, directories and symlinks, of extended attributes, their indirect blocks, the inode file and
the long-name file; of a path, the inode file and the indirect blocks of the long-name file belong to nobody. The trees of
the volume itself (bitmap, checksums, references, the snapshot table, ...) are never counted. Each block counts once, however
many names or clones of files lead to it.

What waits in the reclaim queue holds references, but will be gone whatever is deleted; so do trees that are pinned for
other computations. So both are dropped first in each simulation, and what that frees is in none of the results: they say
what becomes free *because of* the deletion once all is reclaimed.

Costs. `freed_by` reads the indirect blocks and inode leaves that it frees, and visits the first shared blocks below them:
it does not depend on the size of what stays shared. `tree_usage` and `path_usage` read all indirect blocks and inode leaves
(`path_usage`: and directories) of the tree; of several trees, one after the other in the same `Accounts`, `tree` reads only
what is different between one and the next. File data is never read. Memory: 4 bytes for each block of a stretch of
`STRETCH` blocks in which a shared one was met (at worst 0.1 % of a volume with 4 KiB blocks).

All of it speaks of one `Moment`, which `Accounts` are given, so that it can be done in slices (see `steps`) while the volume
changes.

Locking: the core thread only.
"""

from __future__ import annotations

import abc
import array
import contextlib
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from cowfs.errors import NotFound, Stale
from cowfs.fs.filesystem import Filesystem
from cowfs.fs.inode import Inode, InodeTable
from cowfs.fs.moment import Moment
from cowfs.fs.steps import Steps, finish
from cowfs.fs.treescan import DirectoryScan, path_to
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import pointers_from
from cowfs.storage.children import Child, children
from cowfs.storage.transaction import runs_of
from cowfs.storage.tree import Tree
from cowfs.storage.volume import Volume

STRETCH: Final = 128  # blocks whose numbers of parents are kept in one piece of memory


class Usage(NamedTuple):
    """Numbers of blocks: all, those that nothing else leads to, and the others."""

    total: int
    exclusive: int
    shared: int


def freed_by(volume: Volume, places: Iterable[int]) -> int:
    """Bytes that deleting the snapshots and clones at these places of the snapshot table frees, together.

    Raises NotFound, Corrupt, DeviceError.
    """
    trees = [tree_at(volume, place) for place in sorted(set(places))]
    with _now(volume) as accounts:
        return finish(accounts.freed_by(trees))


def tree_usage(volume: Volume, tree: Tree) -> Usage:
    """What a tree takes: the live one, a snapshot or a clone. Raises Corrupt, DeviceError."""
    with _now(volume) as accounts:
        return finish(accounts.tree(tree))


def path_usage(filesystem: Filesystem, ino: int) -> Usage:
    """What inode `ino` takes, and if it is a directory all below it. Raises Stale, Corrupt, DeviceError."""
    with _now(filesystem.volume) as accounts:
        return finish(accounts.path(filesystem.tree, ino, filesystem.inodes))


def tree_at(volume: Volume, place: int) -> Tree:
    """The tree of the snapshot or clone at a place, without opening it. Raises NotFound."""
    record = volume.forest.table.get(place)
    try:
        volume.forest.place_of(record.id)
    except NotFound:
        return Tree(volume.trees, record.id, record, writable=False)
    return volume.forest.open(place)


@contextlib.contextmanager
def _now(volume: Volume) -> Iterator[Accounts]:
    """To count with in one go."""
    moment = Moment(volume)
    try:
        yield Accounts(moment)
    finally:
        moment.end()


class Accounts:
    """What can be counted of one moment. The trees given are snapshots, or pinned, or nothing is done between two slices."""

    def __init__(self, moment: Moment) -> None:
        self._moment = moment
        self._volume = moment.volume
        self._drop: Simulation | None = None  # of what is as good as gone
        self._count: Count | None = None
        self._counted: list[Child] = []  # the tops of the tree that is in it

    def freed_by(self, trees: Iterable[Tree]) -> Steps[int]:
        """Bytes that deleting all of these trees, each given once, frees together. Raises Busy, Corrupt, DeviceError."""
        drop = yield from self._simulation()
        for tree in trees:
            yield from drop.lose(_tops(self._volume, tree))
        return drop.freed * self._volume.geometry.block_size

    def tree(self, tree: Tree) -> Steps[Usage]:
        """What a tree takes. Raises Busy, Corrupt, DeviceError."""
        tops = _tops(self._volume, tree)
        count, self._count = self._count or Count(self._moment), None  # gone, should it be broken off
        yield from count.add(tops)
        yield from count.remove(self._counted)
        self._count, self._counted = count, tops
        drop = yield from self._simulation()
        yield from drop.lose(tops)
        return Usage(count.blocks, drop.freed, count.blocks - drop.freed)

    def path(self, tree: Tree, ino: int, inodes: InodeTable | None = None) -> Steps[Usage]:
        """What an inode takes, with all below it. Raises Busy, Stale, Corrupt, DeviceError."""
        drop = yield from self._simulation()
        table = inodes or InodeTable(self._volume, tree)
        return (yield from _PathUsage(self._moment, drop, tree, table).run(ino))

    def _simulation(self) -> Steps[Simulation]:
        """One that has dropped what waits in the reclaim queue and what is pinned, and does not count that as freed."""
        if self._drop is None:
            drop = Simulation(self._moment)
            for pinned in self._moment.pins:
                yield from drop.lose(_tops(self._volume, pinned))
            yield from drop.lose_queue()
            self._drop = drop
        return Simulation(self._moment, self._drop)


def _tops(volume: Volume, tree: Tree) -> list[Child]:
    return volume.trees.tops((tree.inodes, tree.longnames))


def _without_children(kind: int, level: int) -> bool:
    return level == 0 and kind != f.KIND_INODES


class _Numbers:
    """A small number for each block, 0 at first."""

    def __init__(self) -> None:
        self._stretches: dict[int, array.array[int]] = {}

    def get(self, block: int) -> int:
        numbers = self._stretches.get(block // STRETCH)
        return 0 if numbers is None else numbers[block % STRETCH]

    def add(self, block: int, change: int) -> int:
        """The number afterwards."""
        index, place = divmod(block, STRETCH)
        numbers = self._stretches.get(index)
        if numbers is None:
            numbers = self._stretches[index] = array.array("I", bytes(STRETCH * 4))
        numbers[place] += change
        return numbers[place]


class _Walk(abc.ABC):
    """Going down from blocks."""

    def __init__(self, moment: Moment) -> None:
        self._moment = moment
        self._volume = moment.volume
        self._counts = moment.counts

    @abc.abstractmethod
    def _enter(self, block: int, extra: int) -> bool:
        """Whether to go on below a block, which has so many extra parents."""

    @abc.abstractmethod
    def _enter_alone(self, start: int, count: int) -> None:
        """A run of so many blocks without children, and with one parent each."""

    def _down(self, tops: Iterable[Child]) -> Steps[None]:
        pending = list(tops)
        while pending:
            block, kind, level = pending.pop()
            if _without_children(kind, level):
                self._enter_run(block, 1)
            elif self._enter(block, self._counts.extra_parents(block)):
                volume = self._volume
                found = children(volume.store, volume.zero_blocks, volume.store.read(block), kind, level)
                if _without_children(kind, level - 1):
                    for start, count in runs_of([child for child, _, _ in found]):
                        self._enter_run(start, count)
                else:
                    pending += found
                yield from self._moment.pause()

    def _enter_run(self, start: int, count: int) -> None:
        """A run of blocks without children."""
        if not self._counts.shared(start, count):
            self._enter_alone(start, count)
            return
        counts = pointers_from(self._counts.run(start, count), self._volume.geometry.order)
        for block, extra in zip(range(start, start + count), counts, strict=True):
            self._enter(block, extra)


class Count(_Walk):
    """`blocks`: distinct ones that can be reached from those that were added.

    Kept is how many of its parents were reached, for each block with several; one with one parent is met when that is.
    """

    def __init__(self, moment: Moment) -> None:
        super().__init__(moment)
        self.blocks = 0
        self._reached = _Numbers()
        self._change = 1

    def add(self, tops: Iterable[Child]) -> Steps[None]:
        """These blocks gain a parent; those that had none, and what is below them, are counted from now on."""
        self._change = 1
        return self._down(tops)

    def remove(self, tops: Iterable[Child]) -> Steps[None]:
        """The opposite: these lose a parent that was added."""
        self._change = -1
        return self._down(tops)

    def _enter(self, block: int, extra: int) -> bool:
        if extra and self._reached.add(block, self._change) != (1 if self._change > 0 else 0):
            return False
        self.blocks += self._change
        return True

    def _enter_alone(self, start: int, count: int) -> None:
        self.blocks += count * self._change


class Simulation(_Walk):
    """What would become free if parents let go of blocks. Nothing is changed. `freed`: blocks so far; of an overlay without
    those that a layer below uses, which are no space.

    `base` is another one that went before, which does not change any more.
    """

    def __init__(self, moment: Moment, base: Simulation | None = None) -> None:
        super().__init__(moment)
        assert moment.volume.spacemap is not None
        self.freed = 0
        self._spacemap = moment.volume.spacemap
        self._base = base
        self._lost = _Numbers()

    def lose_queue(self) -> Steps[None]:
        """What waits in the reclaim queue goes."""
        size = f.ReclaimEntry.SIZE
        for place in range(self._moment.queue_count):
            entry = f.ReclaimEntry.unpack(self._volume.reclaim.tree.read(place * size, size))
            yield from self.lose([(entry.block, entry.kind, entry.level)])

    def lose(self, blocks: Iterable[Child]) -> Steps[None]:
        """A parent lets go of each of these blocks."""
        return self._down(blocks)

    def extra_parents(self, block: int) -> int:
        """Parents beyond the first, as far as they have not let go."""
        return self._counts.extra_parents(block) - self.lost(block)

    def lost(self, block: int) -> int:
        """Parents that have let go."""
        return self._lost.get(block) + (0 if self._base is None else self._base.lost(block))

    def _enter(self, block: int, extra: int) -> bool:
        if extra:
            before = 0 if self._base is None else self._base.lost(block)
            if self._lost.add(block, 1) + before <= extra:
                return False
        self.freed += self._spacemap.unburied(block, 1)
        return True

    def _enter_alone(self, start: int, count: int) -> None:
        self.freed += self._spacemap.unburied(start, count)


class _PathUsage:
    """One run of `Accounts.path`."""

    def __init__(self, moment: Moment, drop: Simulation, tree: Tree, inodes: InodeTable) -> None:
        volume = moment.volume
        self._moment = moment
        self._volume = volume
        self._tree = tree
        self._inodes = inodes
        self._count = Count(moment)
        self._drop = drop
        self._scan = DirectoryScan(volume, tree)
        self._per_leaf = volume.geometry.inodes_per_block
        self._alone: dict[int, bool] = {}  # by leaf of the inode file

    def run(self, ino: int) -> Steps[Usage]:
        """Everything below `ino`."""
        if self._inodes.find(ino) is None:
            raise Stale
        met: set[int] = set()  # directories, and what has several names
        pending = array.array("I", [ino])
        while pending:
            inode = self._inodes.get(pending.pop(), "a directory entry")
            if inode.is_directory or inode.links != 1:
                if inode.number in met:
                    continue
                met.add(inode.number)
            yield from self._add(inode)
            if inode.is_directory:
                for entries in self._scan.chunks(inode.root):
                    pending.extend(self._scan.numbers(entries))
                    yield from self._add_names(entries)
            yield from self._moment.pause()
        return Usage(self._count.blocks, self._drop.freed, self._count.blocks - self._drop.freed)

    def _add(self, inode: Inode) -> Steps[None]:
        """The blocks of an inode and of its extended attributes."""
        yield from self._add_root(inode)
        if inode.xattr_inode:
            holder = self._inodes.get_hidden(inode.xattr_inode, f"inode {inode.number}")
            yield from self._add_root(holder)

    def _add_root(self, inode: Inode) -> Steps[None]:
        blocks = self._volume.trees.tops([inode.root]) if inode.has_data else []
        if blocks:
            yield from self._count.add(blocks)
            if self._is_alone((inode.number - 1) // self._per_leaf):
                yield from self._drop.lose(blocks)

    def _is_alone(self, leaf: int) -> bool:
        """Whether no other tree has this leaf of the inode file, so that its inodes are the parents of their blocks."""
        alone = self._alone.get(leaf)
        if alone is None:
            blocks = path_to(self._volume.trees, self._tree.inodes, leaf)
            alone = self._alone[leaf] = not any(map(self._drop.extra_parents, blocks))
        return alone

    def _add_names(self, entries: bytes) -> Steps[None]:
        """The blocks of long names in entries of a directory."""
        root = self._tree.longnames
        for slot in self._scan.long_slots(entries):
            *above, block = path_to(self._volume.trees, root, slot)
            yield from self._count.add([(block, root.kind, 0)])
            if not any(map(self._drop.extra_parents, above)):
                yield from self._drop.lose([(block, root.kind, 0)])
