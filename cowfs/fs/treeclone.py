"""Copying a whole tree in slices: inodes are copied, directories written anew, data is shared.

The source is a tree that does not change: a snapshot, or a pin of a writable one, so that the copy is of one point in time,
and a copy into its own source ends. The copy grows below a hidden root and gets its name last, in one operation; until then
nobody sees anything of it. Hard links inside the tree stay hard links; those to names outside it do not.

Memory: one level for each directory on the path, and two numbers for each inode with several links of which not all were met.

Locking: the core thread only. A slice that raises SpaceShort or a DeviceError has done nothing halfway, and can be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

from cowfs.errors import Corrupt, NotADirectory, Stale
from cowfs.fs.attributes import Attributes
from cowfs.fs.filesystem import Filesystem
from cowfs.fs.inode import Inode
from cowfs.fs.treescan import DirectoryScan
from cowfs.ondisk.codecs import ENTRY_SIZE

CLONE_SLICE = 16
"""Entries that one slice copies: a few milliseconds."""


@dataclass(slots=True)
class _Level:
    """A directory being copied: `entries` of its leaf `leaf` - 1, done up to byte `at`; `count` entries of the copy.

    The source's inode can be held, since its tree does not change; the copy's is asked for by its number.
    """

    source: Inode
    copy: int
    count: int = 2
    subdirectories: int = 0
    leaf: int = 0
    entries: bytes = b""
    at: int = 0


class TreeClone:
    """One copy of directory `ino` of `source` under `name` in directory `parent` of `target`."""

    def __init__(
        self,
        source: Filesystem,
        ino: int,
        target: Filesystem,
        parent: int,
        name: bytes,
        *,
        keep_privileges: bool = True,
        entries: int = CLONE_SLICE,
    ) -> None:
        self._source = source
        self._target = target
        self._parent = parent
        self._name = name
        self._keep_privileges = keep_privileges
        self._slice = entries
        self._scan = DirectoryScan(source.volume, source.tree)
        self._block_size = source.volume.geometry.block_size
        self._ino = ino
        self._root: _Level | None = None
        self._levels: list[_Level] = []
        self._path: set[int] = set()  # inode numbers of the directories being copied
        self._linked: dict[int, tuple[int, int]] = {}  # by inode number: its copy, and links that were not met yet
        self.copied = 0

    def step(self) -> bool:
        """Copies some entries; False when nothing is left but `finish`. Raises NoSpace, SpaceShort, Corrupt, Stale."""
        if self._root is None:
            inode = self._source.inode(self._ino)
            if not inode.is_directory:
                raise NotADirectory
            copy = self._target.begin_copy(self._source, inode, self._parent, self._name)
            self._root = _Level(inode, copy)
            self._enter(self._root)
        if self._target.is_gone:
            raise Stale("the tree that was copied to is no more")
        for _ in range(self._slice):
            if not self._ready():
                return False
            self._copy(self._levels[-1])
        return True

    def finish(self) -> Attributes:
        """Gives the copy its name. Raises Exists, NotFound, NoSpace, SpaceShort, TooManyLinks, Stale."""
        root = self._root
        assert root is not None and not self._levels
        if self._target.is_gone:
            raise Stale("the tree that was copied to is no more")
        attributes = self._target.finish_copy(root.copy, root.subdirectories, self._parent, self._name)
        self._root = None
        return attributes

    def abandon(self) -> None:
        """Gives up what was copied, if something was and has no name yet."""
        root, self._root = self._root, None
        self._levels.clear()
        if root is not None:
            self._target.abandon_copy(root.copy, self._parent)

    def _ready(self) -> bool:
        """Whether the last level has an entry to copy; levels without one are done."""
        while self._levels:
            level = self._levels[-1]
            while level.at >= len(level.entries) and level.leaf * self._block_size < level.source.root.size:
                level.entries, level.at = self._scan.leaf(level.source.root, level.leaf), 0
                level.leaf += 1
            if level.at < len(level.entries):
                return True
            self._levels.pop()
            self._path.discard(level.source.number)
        return False

    def _enter(self, level: _Level) -> None:
        self._levels.append(level)
        self._path.add(level.source.number)

    def _copy(self, level: _Level) -> None:
        entry = level.entries[level.at : level.at + ENTRY_SIZE]
        number = self._scan.number(entry)
        known, left = self._linked.get(number, (None, 0))
        inode = self._source.inodes.get(number, f"directory {level.source.number}")
        if number in self._path:
            raise Corrupt(f"directory {number} is found below itself")
        copy = self._target.copy_entry(
            self._source, level.copy, level.count, entry, inode, known, keep_privileges=self._keep_privileges
        )
        level.at += ENTRY_SIZE
        level.count += 1
        self.copied += 1
        if inode.is_directory:
            level.subdirectories += 1
            self._enter(_Level(inode, copy))
        elif known is not None and left == 1:
            del self._linked[number]
        elif inode.links > 1:
            self._linked[number] = copy, (inode.links if known is None else left) - 1
