"""Who holds a block: the files, in the live tree and in every snapshot and clone, and what of them lies in it.

Two passes over each tree. The first goes through the inode file and through the indirect blocks of all files, and looks for
pointers to the blocks wanted. The second, only for trees that have some, goes through the directories for the names of the
inodes found. The volume is damaged: what cannot be read is passed over, and what lies behind it is not found.

It runs in slices while the volume is used. A tree that can be written is read from its root anew for each leaf of the inode
file; where something changes while a leaf's files are looked through, that leaf is done again, in the end in one go. What a
snapshot's blocks hold stays as it is while the snapshot is there; what was learned of them is kept until the next commit,
since only after that a block may have become another.

Locking: the core thread only.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cowfs.errors import Corrupt, CowfsError, DeviceError, NotFound
from cowfs.fs.steps import Steps
from cowfs.fs.treescan import DirectoryScan, split
from cowfs.ondisk import format as f
from cowfs.storage.blocktree import Root
from cowfs.storage.snapshots import name_of
from cowfs.storage.tree import LIVE_TREE, Tree
from cowfs.storage.volume import Volume

NAMED_TREES_MAX: Final = 16
"""Trees in which names are searched for; of what others hold, the inode number is told."""
PATHS_MAX: Final = 16  # of one inode, in one tree
_SLICE: Final = 32  # blocks read between two yields
_ATTEMPTS: Final = 3
_INODE: Final = "the inode"
_WITH_BLOCKS: Final = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)


@dataclass(slots=True)
class Owner:
    """A holder of a block. `snapshot` is None for the live tree and for what belongs to the volume as a whole; `paths` are
    those below the mount point."""

    what: str
    snapshot: bytes | None = None
    inode: int | None = None
    paths: list[bytes] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        snapshot = None if self.snapshot is None else self.snapshot.decode("utf-8", "surrogateescape")
        paths = [path.decode("utf-8", "surrogateescape") for path in self.paths]
        return {"what": self.what, "snapshot": snapshot, "inode": self.inode, "paths": paths}


@dataclass(slots=True)
class _Leaf:
    """What a block of the inode file says: the blocks wanted that its inodes hold, and what the second pass needs."""

    hits: list[tuple[int, int, str]] = field(default_factory=list)  # (place of the inode, block, what)
    directories: list[int] = field(default_factory=list)  # places
    holders: list[tuple[int, int]] = field(default_factory=list)  # (place, inode number of its xattrs)


@dataclass(slots=True)
class _Found:
    """The first pass over one tree."""

    hits: list[tuple[int, int, str]] = field(default_factory=list)  # (inode number, block, what)
    slots: dict[int, int] = field(default_factory=dict)  # by long-name slot, its block
    directories: set[int] = field(default_factory=set)
    holders: dict[int, int] = field(default_factory=dict)  # by holder of xattrs, whose they are


class OwnerSearch:
    """The search for the owners of `blocks`. After `steps`, `owners` has them by block."""

    def __init__(self, volume: Volume, blocks: set[int]) -> None:
        self.owners: dict[int, list[Owner]] = {block: [] for block in blocks}
        self._volume = volume
        self._wanted = blocks
        self._trees = volume.trees
        self._is_hole = volume.trees.is_hole
        self._fanout = volume.geometry.fanout
        self._block_size = volume.geometry.block_size
        self._per_leaf = volume.geometry.inodes_per_block
        self._known: dict[int, _Leaf] = {}
        self._commits = volume.commits
        self._reads = 0

    def steps(self) -> Steps[None]:
        """The search, in slices."""
        yield from self._system_trees()
        named = 0
        for name, place, tree_id in self._all_trees():
            try:
                found = yield from self._first_pass(place, tree_id)
                if not found.hits and not found.slots:
                    continue
                named += 1
                paths: dict[int, list[bytes]] = {}
                if named <= NAMED_TREES_MAX:
                    paths = yield from self._names(place, tree_id, found)
            except NotFound:  # the snapshot has been deleted
                continue
            prefix = b"" if name is None else b".cowfs/snapshots/" + name + b"/"
            self._enter(name, prefix, found, paths)

    def _enter(self, name: bytes | None, prefix: bytes, found: _Found, paths: dict[int, list[bytes]]) -> None:
        for number, block, what in found.hits:
            whose = found.holders.get(number, number)
            if whose != number:
                what_of = "extended attributes"
            else:
                what_of = "the list of unlinked files" if number == f.ORPHAN_INODE else what
            owned = [prefix + path for path in paths.get(whose, ())]
            if owned or what != _INODE:
                self.owners[block].append(Owner(what_of, name, whose or None, owned))
        for slot, block in found.slots.items():
            owned = [prefix + path for path in paths.get(-1 - slot, ())]
            self.owners[block].append(Owner(f"long name {slot}", name, None, owned))

    # --- the trees ---

    def _system_trees(self) -> Steps[None]:
        for level, block in enumerate(self._volume.zero_blocks):
            if block in self._wanted:
                self.owners[block].append(Owner(f"zero block Z{level}: all holes"))
        for tree in self._volume.system_trees:
            try:
                for block in tree.blocks():
                    if block in self._wanted:
                        self.owners[block].append(Owner(f"{tree.name} of the volume"))
            except (Corrupt, DeviceError):
                continue
            yield

    def _all_trees(self) -> Iterator[tuple[bytes | None, int, int]]:
        """(name, place in the snapshot table, id) of all trees, the live one first."""
        yield None, -1, LIVE_TREE
        try:
            table = self._volume.forest.table
            places = [
                (name_of(record), place, record.id) for place, record in table if not record.flags & f.SNAPSHOT_INTERNAL
            ]
        except CowfsError:
            return
        yield from places

    def _tree(self, place: int, tree_id: int) -> Tree:
        """The tree as it is now. Raises NotFound where it has been deleted, Corrupt, DeviceError."""
        volume = self._volume
        if place < 0:
            return volume.live
        record = volume.forest.table.get(place)
        if record.id != tree_id:
            raise NotFound
        try:
            volume.forest.place_of(tree_id)
        except NotFound:
            return Tree(volume.trees, tree_id, record, writable=False)
        return volume.forest.open(place)

    def _write_back(self) -> None:
        """Puts what only memory knows of changed inodes into the trees."""
        if not self._volume.read_only:
            for hook in list(self._volume.before_seal):
                hook()

    # --- the first pass: pointers ---

    def _first_pass(self, place: int, tree_id: int) -> Steps[_Found]:
        found = _Found()
        index = 0
        while True:
            tree = self._tree(place, tree_id)
            if index * self._block_size >= tree.inodes.size:
                break
            self._write_back()
            block, index = self._next_leaf(tree.inodes, index, "inode file", found)
            if block is None:
                yield from self._breathe()
                continue
            leaf = yield from self._leaf(block, tree.writable)
            base = index * self._per_leaf + 1
            if block in self._wanted:
                found.hits.append((0, block, f"inodes {base}..{base + self._per_leaf - 1}"))
            found.hits += [(base + at, hit, what) for at, hit, what in leaf.hits]
            found.directories.update(base + at for at in leaf.directories)
            found.holders.update((holder, base + at) for at, holder in leaf.holders)
            index += 1
            yield from self._breathe()
        yield from self._long_names(place, tree_id, found)
        return found

    def _long_names(self, place: int, tree_id: int, found: _Found) -> Steps[None]:
        index = 0
        while True:
            root = self._tree(place, tree_id).longnames
            if index * self._block_size >= root.size:
                return
            block, index = self._next_leaf(root, index, "file of long names", found)
            if block is not None:
                if block in self._wanted:
                    found.slots[index] = block
                index += 1
            yield from self._breathe()

    def _next_leaf(self, root: Root, index: int, what: str, found: _Found) -> tuple[int | None, int]:
        """(block, index) of the leaf at `index`; (None, where to go on) where there is none, or the way is damaged."""
        words: Sequence[int] = root.ptr
        span = self._fanout**root.levels
        rest = index
        for level in range(root.levels, -1, -1):
            slot, rest = divmod(rest, span)
            if slot >= len(words):
                return None, root.size
            block = words[slot]
            if self._is_hole(block):
                return None, index - rest + span
            if level == 0:
                return block, index
            if block in self._wanted:
                hit = (0, block, f"pointers of the {what}")
                if hit not in found.hits:
                    found.hits.append(hit)
            below = self._words(block)
            if below is None:
                return None, index - rest + span
            words = below
            span //= self._fanout
        raise AssertionError

    def _leaf(self, block: int, writable: bool) -> Steps[_Leaf]:
        volume = self._volume
        if volume.commits != self._commits:
            self._commits = volume.commits
            self._known.clear()
        known = None if writable else self._known.get(block)
        if known is not None:
            return known
        changes = volume.tx.changes if volume.tx is not None else 0
        leaf = _Leaf()
        for attempt in range(_ATTEMPTS):
            leaf = _Leaf()
            stale = False
            for _ in self._look(block, leaf):
                if attempt < _ATTEMPTS - 1:
                    yield
                if writable and volume.tx is not None and volume.tx.changes != changes:
                    changes = volume.tx.changes
                    stale = True
                    break
            if not stale:
                break
        if not writable:
            self._known[block] = leaf
        return leaf

    def _look(self, block: int, leaf: _Leaf) -> Steps[None]:
        """Looks through the inodes in a block of the inode file."""
        if block in self._wanted:
            leaf.hits += [(place, block, _INODE) for place in range(self._per_leaf)]
        try:
            data = bytes(self._volume.store.read(block))
        except (Corrupt, DeviceError):
            return
        for place in range(self._per_leaf):
            offset = place * f.INODE_SIZE
            if data[offset : offset + f.INODE_SIZE] == f.FREE_INODE_BYTES:
                continue
            inode = f.DiskInode.unpack(data, offset, self._volume.geometry.order)
            kind = stat.S_IFMT(inode.mode)
            if kind == stat.S_IFDIR:
                leaf.directories.append(place)
            if inode.xattr_inode:
                leaf.holders.append((place, inode.xattr_inode))
            if kind in _WITH_BLOCKS and inode.levels <= f.LEVEL_MAX:
                yield from self._contents(inode.ptr, inode.levels, 0, place, leaf)

    def _contents(self, words: Sequence[int], level: int, first: int, place: int, leaf: _Leaf) -> Steps[None]:
        """The pointers below a root or an indirect block: to blocks at `level`, the first of them over leaf `first`."""
        span = self._fanout**level * self._block_size
        if not self._wanted.isdisjoint(words):
            for slot, block in enumerate(words):
                if block in self._wanted and not self._is_hole(block):
                    start = (first + slot) * span
                    what = f"bytes {start}..{start + span - 1}"
                    leaf.hits.append((place, block, what if level == 0 else f"pointers to {what}"))
        if level == 0:
            return
        for slot, block in enumerate(words):
            if self._is_hole(block):
                continue
            self._reads += 1
            if self._reads % _SLICE == 0:
                yield
            below = self._words(block)
            if below is not None:
                yield from self._contents(below, level - 1, (first + slot) * self._fanout, place, leaf)

    def _words(self, block: int) -> Sequence[int] | None:
        """An indirect block; None where it cannot be read."""
        try:
            return self._volume.store.words(self._volume.store.read(block)).tolist()
        except (Corrupt, DeviceError):
            return None

    def _breathe(self) -> Steps[None]:
        self._reads += 1
        if self._reads % _SLICE == 0:
            yield

    # --- the second pass: names ---

    def _names(self, place: int, tree_id: int, found: _Found) -> Steps[dict[int, list[bytes]]]:
        """Paths by inode number; by -1 - slot those of unreadable long names."""
        numbers = {found.holders.get(number, number) for number, _, _ in found.hits} - {0}
        paths: dict[int, list[bytes]] = {}
        if f.ROOT_INODE in numbers:
            paths[f.ROOT_INODE] = [b"."]
        pending: list[tuple[int, bytes]] = [(f.ROOT_INODE, b"")]
        seen: set[int] = {f.ROOT_INODE}
        while pending:
            directory, path = pending.pop()
            index = 0
            while True:
                self._write_back()
                tree = self._tree(place, tree_id)
                scan = DirectoryScan(self._volume, tree)
                root = self._directory_root(tree, directory)
                if root is None or index * self._block_size >= root.size:
                    break
                try:
                    entries = scan.leaf(root, index)
                except (Corrupt, DeviceError):
                    entries = b""
                for entry in split(entries):
                    self._look_at(scan, entry, path, (numbers, found, paths, seen), pending)
                index += 1
                yield from self._breathe()
        return paths

    def _look_at(
        self,
        scan: DirectoryScan,
        entry: bytes,
        path: bytes,
        state: tuple[set[int], _Found, dict[int, list[bytes]], set[int]],
        pending: list[tuple[int, bytes]],
    ) -> None:
        numbers, found, paths, seen = state
        number, slot = scan.number(entry), scan.slot(entry)
        wanted = number in numbers or (slot is not None and slot in found.slots)
        enters = number in found.directories and number not in seen
        if not (wanted or enters):
            return
        try:
            name = scan.name(entry)
        except (Corrupt, DeviceError):
            name = b"(unreadable name of inode %d)" % number
        whole = path + name
        for key in (number, None if slot is None else -1 - slot):
            if key is not None and (key in numbers or -1 - key in found.slots):
                known = paths.setdefault(key, [])
                if len(known) < PATHS_MAX:
                    known.append(whole)
        if enters:
            seen.add(number)
            pending.append((number, whole + b"/"))

    def _directory_root(self, tree: Tree, number: int) -> Root | None:
        """The root of a directory's contents; None where there is none, or it cannot be read."""
        index, place = divmod(number - 1, self._per_leaf)
        try:
            data = self._trees.leaf(tree.inodes, index)
        except (Corrupt, DeviceError):
            return None
        inode = f.DiskInode.unpack(data, place * f.INODE_SIZE, self._volume.geometry.order)
        if stat.S_IFMT(inode.mode) != stat.S_IFDIR or inode.levels > f.LEVEL_MAX:
            return None
        return Root(f.KIND_FILE, inode.size, list(inode.ptr), inode.levels)
