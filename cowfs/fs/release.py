"""Releasing trees that no name leads to: orphaned directories that hold something, in slices.

The root of such a tree is on the orphan list, so every committed state knows of it, and every one in between is sound. A
slice takes entries out of the directories, the last one first. A directory that holds something is not descended into: its
entry goes, and it is put on the list itself, to be dealt with before its parent. So no slice depends on how deep or how wide
the tree is, the list grows by the depth of the tree at most, and after a crash the next mount goes on with what the list says.

Locking: the core thread only.
"""

from __future__ import annotations

from cowfs.errors import Corrupt, NoSpace, SpaceShort
from cowfs.fs.core import DOTS
from cowfs.fs.inode import Inode
from cowfs.fs.names import NameOperations
from cowfs.fs.space import inode_cost, orphan_cost
from cowfs.storage.volume import Tier

RELEASE_SLICE = 16
"""Entries that one slice takes out: a few milliseconds."""


class ReleaseOperations(NameOperations):
    """What is done with orphaned directories."""

    def release_slice(self, entries: int = RELEASE_SLICE) -> bool:
        """Takes some entries out of orphaned directories, and frees what is empty; True while there is more to do.

        What there is no space for waits for the next call, what cannot be read for the next mount. Raises SpaceShort,
        DeviceError.
        """
        for _ in range(entries):
            if not self._doomed or self.volume.read_only:
                return False
            number = self._doomed[-1]
            try:
                self._release_one(number)
            except SpaceShort:
                raise
            except NoSpace:
                if not self._short:
                    self._note("no space to free what has no name any more; it is tried again later")
                self._short = True
                return False
            except Corrupt as error:
                self._note(f"inode {number}, which has no name, stays: {error}")
                self._doomed.remove(number)
        return bool(self._doomed)

    def _release_one(self, number: int) -> None:
        """Takes the last entry out of a directory, or frees it if that was the last."""
        inode = self.inodes.get(number, "the list of orphans")
        directory = self.directories.open(inode)
        last = len(directory) - 1
        if last < DOTS:
            orphans = self._orphans
            assert orphans is not None
            with self.volume.operation():
                self._admit(orphan_cost(self.tree, orphans.levels) + inode_cost(self.tree, 2), Tier.REMOVE)
                self.inodes.make_writable(inode)
                orphans.remove(number)
                self._free(inode)
            self._doomed.remove(number)
            return
        child = self.inodes.get(directory.number(last), f"directory {number}")
        full = child.is_directory and self._is_full(child, number)
        with self.volume.operation():
            self._admit(self._removal_cost(inode), Tier.REMOVE)
            now = self._now()
            root = self.inodes.make_writable(inode)
            self.inodes.make_writable(child)
            self.directories.remove(inode, root, last)
            if full:
                self._doom(child)
            else:
                self._drop_link(child, now)

    def _is_full(self, child: Inode, number: int) -> bool:
        """Whether a directory in directory `number` has entries. Raises Corrupt for one that hangs elsewhere as well."""
        directory = self.directories.open(child)
        if directory.number(1) != number:
            raise Corrupt(
                f"directory {child.number}, which it names, hangs elsewhere", wanted=number, found=directory.number(1)
            )
        return len(directory) > DOTS

    def _doom(self, child: Inode) -> None:
        """A directory with entries lost its name: it is released next."""
        assert self._orphans is not None
        child.links = 0
        self._orphans.add(child.number)
        self._doomed.append(child.number)
