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

What waits in the reclaim queue holds references, but will be gone whatever is deleted. So the queue is dropped first in
each simulation, and what that frees is in none of the results: they say what becomes free *because of* the deletion once
all is reclaimed.

Costs. `freed_by` reads the indirect blocks and inode leaves that it frees, and visits the first shared blocks below them:
it does not depend on the size of what stays shared. `tree_usage` and `path_usage` read all indirect blocks and inode leaves
(`path_usage`: and directories) of the tree. File data is never read. Memory: 4 bytes for each block of a stretch of
`STRETCH` blocks in which a shared one was met (at worst 0.1 % of a volume with 4 KiB blocks) in the simulation, 1 bit in
the count.

Each has a variant that runs in slices (see `steps`, also for what may not happen meanwhile). The caller has written changed
inodes back (`Volume.before_seal`) where a tree can be written. Writing to *other* trees between slices is allowed; the
result is then right for some state of the counts in between.

Locking: the core thread only.
"""

from __future__ import annotations

import abc
import array
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from cowfs.errors import Busy, NotFound, NotSupported
from cowfs.fs.filesystem import Filesystem
from cowfs.fs.inode import Inode
from cowfs.fs.steps import Steps, Watch, finish
from cowfs.fs.treescan import DirectoryScan, path_to
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import pointers_from
from cowfs.storage.blocktree import Root
from cowfs.storage.children import Child, children
from cowfs.storage.spacemap import SpaceMap
from cowfs.storage.transaction import runs_of
from cowfs.storage.tree import Tree
from cowfs.storage.volume import Volume

STRETCH: Final = 128  # blocks whose lost parents are kept in one piece of memory
_MAP_BITS: Final = 1 << 13  # blocks in one piece of the map of blocks that were met


class Usage(NamedTuple):
    """Numbers of blocks: all, those that nothing else leads to, and the others."""

    total: int
    exclusive: int
    shared: int


def freed_by(volume: Volume, places: Iterable[int]) -> int:
    """Bytes that deleting the snapshots and clones at these places of the snapshot table frees, together.

    Raises NotFound, Corrupt, DeviceError.
    """
    return finish(freed_by_steps(volume, places))


def freed_by_steps(volume: Volume, places: Iterable[int]) -> Steps[int]:
    """`freed_by` in slices. Raises Busy as well, where something that it looks at was changed between two of them."""
    chosen = sorted(set(places))
    trees = [tree_at(volume, place) for place in chosen]
    drop = Simulation(volume, Watch(volume, trees, chosen))
    yield from drop.reclaim()
    before = drop.freed
    for tree in trees:
        yield from drop.lose(_tops(volume, tree))
    return (drop.freed - before) * volume.geometry.block_size


def tree_usage(volume: Volume, tree: Tree) -> Usage:
    """What a tree takes: the live one, a snapshot or a clone. Raises Corrupt, DeviceError."""
    return finish(tree_usage_steps(volume, tree))


def tree_usage_steps(volume: Volume, tree: Tree) -> Steps[Usage]:
    """`tree_usage` in slices. Raises Busy as well."""
    watch = Watch(volume, [tree])
    count, drop = Count(volume, watch), Simulation(volume, watch)
    yield from count.add(_tops(volume, tree))
    yield from drop.reclaim()
    before = drop.freed
    yield from drop.lose(_tops(volume, tree))
    exclusive = drop.freed - before
    return Usage(count.blocks, exclusive, count.blocks - exclusive)


def path_usage(filesystem: Filesystem, ino: int) -> Usage:
    """What inode `ino` takes, and if it is a directory all below it. Raises Stale, Corrupt, DeviceError."""
    return finish(path_usage_steps(filesystem, ino))


def path_usage_steps(filesystem: Filesystem, ino: int) -> Steps[Usage]:
    """`path_usage` in slices. Raises Busy as well."""
    return (yield from _PathUsage(filesystem).run(ino))


def tree_at(volume: Volume, place: int) -> Tree:
    """The tree of the snapshot or clone at a place, without opening it. Raises NotFound."""
    _space(volume)
    record = volume.forest.table.get(place)
    try:
        volume.forest.place_of(record.id)
    except NotFound:
        return Tree(volume.trees, record.id, record, writable=False)
    return volume.forest.open(place)


def _space(volume: Volume) -> SpaceMap:
    if volume.spacemap is None:
        raise NotSupported("a volume that cowfs did not make has no counts of what is shared")
    return volume.spacemap


def _tops(volume: Volume, tree: Tree) -> list[Child]:
    return [*_pointers(volume, tree.inodes), *_pointers(volume, tree.longnames)]


def _pointers(volume: Volume, root: Root) -> list[Child]:
    """The blocks that a root names."""
    is_hole = volume.trees.is_hole
    return [(pointer, root.kind, root.levels) for pointer in root.ptr if not is_hole(pointer)]


def _without_children(kind: int, level: int) -> bool:
    return level == 0 and kind != f.KIND_INODES


class _Walk(abc.ABC):
    """Going down from blocks."""

    def __init__(self, volume: Volume, watch: Watch) -> None:
        self._volume = volume
        self._store = volume.store
        self._space = _space(volume)
        self._watch = watch

    @abc.abstractmethod
    def _enter(self, block: int) -> bool:
        """Whether to go on below a block."""

    @abc.abstractmethod
    def _enter_run(self, start: int, count: int) -> None:
        """A run of blocks without children."""

    def _down(self, tops: Iterable[Child]) -> Steps[None]:
        pending = list(tops)
        while pending:
            block, kind, level = pending.pop()
            if _without_children(kind, level):
                self._enter_run(block, 1)
            elif self._enter(block):
                found = children(self._store, self._volume.zero_blocks, self._store.read(block), kind, level)
                if _without_children(kind, level - 1):
                    for start, count in runs_of([child for child, _, _ in found]):
                        self._enter_run(start, count)
                else:
                    pending += found
                yield from self._watch.pause()

    def _counts(self, start: int, count: int) -> Iterator[tuple[int, int]]:
        """(block, extra parents) of a run."""
        size = f.REFERENCE_SIZE
        raw = self._space.references.read(start * size, count * size)
        return zip(range(start, start + count), pointers_from(raw, self._volume.geometry.order), strict=True)


class Count(_Walk):
    """Distinct blocks. One with one parent is met once at most, so that only the others have to be remembered."""

    def __init__(self, volume: Volume, watch: Watch) -> None:
        super().__init__(volume, watch)
        self.blocks = 0
        self._met: dict[int, bytearray] = {}

    def add(self, tops: Iterable[Child]) -> Steps[None]:
        """Counts these blocks and all below them that were not counted yet."""
        return self._down(tops)

    def _enter(self, block: int) -> bool:
        if self._space.extra_parents(block) and self._meet(block):
            return False
        self.blocks += 1
        return True

    def _enter_run(self, start: int, count: int) -> None:
        self.blocks += count
        if self._space.shared(start, count):
            self.blocks -= sum(extra > 0 and self._meet(block) for block, extra in self._counts(start, count))

    def _meet(self, block: int) -> bool:
        """Whether the block was met before; from now on it was."""
        index, bit = divmod(block, _MAP_BITS)
        piece = self._met.get(index)
        if piece is None:
            piece = self._met[index] = bytearray(_MAP_BITS // 8)
        mask = 1 << (bit & 7)
        before = piece[bit >> 3] & mask
        piece[bit >> 3] |= mask
        return bool(before)


class Simulation(_Walk):
    """What would become free if parents let go of blocks. Nothing is changed. `freed`: blocks so far."""

    def __init__(self, volume: Volume, watch: Watch) -> None:
        super().__init__(volume, watch)
        self.freed = 0
        self._lost: dict[int, array.array[int]] = {}  # parents lost, by stretches of blocks
        self._queue_top: tuple[int, bytes] | None = None

    def reclaim(self) -> Steps[None]:
        """Drops what waits in the reclaim queue; it must not be worked off between the slices that follow."""
        size = f.ReclaimEntry.SIZE
        count = self._volume.reclaim.count
        if not count:
            return
        raw = self._volume.reclaim.tree.read(0, count * size)
        self._queue_top = count, raw[-size:]
        for at in range(0, len(raw), size):
            entry = f.ReclaimEntry.unpack(raw, at)
            yield from self.lose([(entry.block, entry.kind, entry.level)])

    def lose(self, blocks: Iterable[Child]) -> Steps[None]:
        """A parent lets go of each of these blocks."""
        for _ in self._down(blocks):
            yield
            self._check_queue()

    def extra_parents(self, block: int) -> int:
        """Parents beyond the first, as far as they have not let go."""
        return self._space.extra_parents(block) - self._lost_of(block)

    def _check_queue(self) -> None:
        """The entries that were dropped are still there: a queue gives its last one away first."""
        if self._queue_top is not None:
            count, entry = self._queue_top
            size = f.ReclaimEntry.SIZE
            queue = self._volume.reclaim
            if queue.count < count or queue.tree.read((count - 1) * size, size) != entry:
                raise Busy("freed space was reclaimed while it was counted")

    def _enter(self, block: int) -> bool:
        return self._lose_one(block, self._space.extra_parents(block))

    def _enter_run(self, start: int, count: int) -> None:
        if self._space.shared(start, count):
            for block, extra in self._counts(start, count):
                self._lose_one(block, extra)
        else:
            self.freed += count

    def _lose_one(self, block: int, extra: int) -> bool:
        """Whether the block has no parent left."""
        if extra:
            index, place = divmod(block, STRETCH)
            lost = self._lost.get(index)
            if lost is None:
                lost = self._lost[index] = array.array("I", bytes(STRETCH * 4))
            lost[place] += 1
            if lost[place] <= extra:
                return False
        self.freed += 1
        return True

    def _lost_of(self, block: int) -> int:
        lost = self._lost.get(block // STRETCH)
        return 0 if lost is None else lost[block % STRETCH]


class _PathUsage:
    """One run of `path_usage`."""

    def __init__(self, filesystem: Filesystem) -> None:
        volume, tree = filesystem.volume, filesystem.tree
        self._filesystem = filesystem
        self._volume = volume
        self._tree = tree
        watch = Watch(volume, [tree])
        self._watch = watch
        self._count = Count(volume, watch)
        self._drop = Simulation(volume, watch)
        self._scan = DirectoryScan(volume, tree)
        self._per_leaf = volume.geometry.inodes_per_block
        self._alone: dict[int, bool] = {}  # by leaf of the inode file

    def run(self, ino: int) -> Steps[Usage]:
        """Everything below `ino`."""
        yield from self._drop.reclaim()
        before = self._drop.freed
        met: set[int] = set()  # directories, and what has several names
        pending = array.array("I", [self._filesystem.inode(ino).number])
        while pending:
            inode = self._filesystem.inodes.find(pending.pop())
            if inode is None:
                continue  # an empty file that was removed between two slices
            if inode.is_directory or inode.links != 1:
                if inode.number in met:
                    continue
                met.add(inode.number)
            yield from self._add(inode)
            if inode.is_directory:
                for entries in self._scan.chunks(inode.root):
                    pending.extend(self._scan.numbers(entries))
                    yield from self._add_names(entries)
            yield from self._watch.pause()
        exclusive = self._drop.freed - before
        return Usage(self._count.blocks, exclusive, self._count.blocks - exclusive)

    def _add(self, inode: Inode) -> Steps[None]:
        """The blocks of an inode and of its extended attributes."""
        yield from self._add_root(inode)
        if inode.xattr_inode:
            holder = self._filesystem.inodes.get_hidden(inode.xattr_inode, f"inode {inode.number}")
            yield from self._add_root(holder)

    def _add_root(self, inode: Inode) -> Steps[None]:
        blocks = _pointers(self._volume, inode.root) if inode.has_data else []
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
