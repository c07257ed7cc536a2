"""What all operations share: the parts of one tree, who uses its inodes, and the end of an inode's life.

Duty: `Core` holds the inode table, directories, long names, attributes and orphans of one tree, writes them back when a
commit is sealed, and keeps the counts of users by which an unlinked inode becomes an orphan or is freed.

Every operation goes: check arguments and read, ask for space (`Volume.admit`), make the inodes writable, change. After the
first change only a failing device or damage can stop it, and then the volume is latched (`Volume.operation`).

Locking: the core thread only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from cowfs.errors import (
    Corrupt,
    Exists,
    InvalidArgument,
    NameTooLong,
    NoSpace,
    NotADirectory,
    NotFound,
    ReadOnly,
    Stale,
)
from cowfs.fs.attributes import AtimeMode
from cowfs.fs.bulk import BulkReader
from cowfs.fs.directory import Directories, Directory
from cowfs.fs.inode import Inode, InodeTable
from cowfs.fs.longnames import LongNames
from cowfs.fs.orphans import OrphanList
from cowfs.fs.space import inode_cost, orphan_cost
from cowfs.fs.xattr import Xattrs
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import Geometry
from cowfs.storage.tree import Tree
from cowfs.storage.volume import Tier, Volume

DOTS = 2  # entries that every directory has

_log = logging.getLogger(__name__)


class Core:
    """One tree of files on a volume, and its users."""

    def __init__(
        self,
        volume: Volume,
        *,
        clock: Callable[[], int],
        atime: AtimeMode,
        tree: Tree | None,
    ) -> None:
        self.volume = volume
        self.tree = tree or volume.live
        self.inodes = InodeTable(volume, self.tree)
        self.bulk = BulkReader(volume, self.inodes)
        self._names = LongNames(volume, self.tree)
        self.directories = Directories(volume, self.tree, self._names)
        self.xattrs = Xattrs(volume, self.inodes)
        self._clock = clock
        self._atime = atime
        self._trees = volume.trees
        self.node_bits = 0  # for the door: what its numbers for this tree's inodes have above the inode number
        self._users: dict[int, int] = {}
        self._orphans: OrphanList | None = None
        self._late_orphans: set[int] = set()  # without users, but there was no space to free them
        self._doomed: list[int] = []  # orphaned directories with entries, see `release`; those to go on with last
        self._admitting = False
        self._engaged = False  # whether the tree takes part in seals
        self._changed_at = 0  # how many generations had been sealed when something changed
        self._short = False  # there was no space to go on with them
        if self.tree.writable:
            self._orphans = OrphanList(volume, self.inodes)
            self.inodes.on_change = self._note_change
            if self.tree is volume.live:
                self._engage()
            else:
                self.tree.idle = True
            self._release_orphans(self._orphans)

    @property
    def _geometry(self) -> Geometry:
        """That of the volume, which can be given another size."""
        return self.volume.geometry

    # --- users ---

    def hold(self, ino: int, count: int = 1) -> None:
        """Adds users (kernel lookups, open handles) to an inode: while it has any, unlinking does not free it."""
        self._users[ino] = self._users.get(ino, 0) + count

    def hold_each(self, inos: Sequence[int]) -> None:
        """Adds one user to each of these inodes."""
        users = self._users
        if users.keys().isdisjoint(inos):
            new = dict.fromkeys(inos, 1)
            if len(new) == len(inos):
                users.update(new)
                return
        for ino in inos:
            users[ino] = users.get(ino, 0) + 1

    def unhold(self, ino: int, count: int = 1) -> None:
        """Takes users away; when the last one leaves an orphan, it is freed. Raises Corrupt, DeviceError."""
        left = self._users[ino] - count
        assert left >= 0, f"inode {ino} was held less often than it was let go"
        if left:
            self._users[ino] = left
            return
        del self._users[ino]
        if self._orphans is not None and ino in self._orphans:
            self._late_orphans.add(ino)
            self.free_orphans()

    def unhold_all(self) -> None:
        """All users are gone: with the mount, whose last forgets the kernel need not send. What they kept can be freed."""
        if self._orphans is not None:
            self._late_orphans.update(ino for ino in self._users if ino in self._orphans)
        self._users.clear()

    def users(self, ino: int) -> int:
        """How many users an inode has."""
        return self._users.get(ino, 0)

    @property
    def in_use(self) -> bool:
        """Whether anybody uses an inode of the tree."""
        return bool(self._users)

    def detach(self) -> None:
        """The tree is no more, or no more this one: the object takes no part in commits any longer."""
        self._disengage()
        self._orphans = None
        self._late_orphans.clear()
        self._doomed.clear()
        self.inodes.close()

    def free_orphans(self) -> None:
        """Frees the orphans without users; what there is no space for waits for the next call, or mount.

        What cannot be read waits for the next mount, and keeps no other from being freed. Raises DeviceError.
        """
        orphans = self._orphans
        while self._late_orphans and orphans is not None and not self.volume.read_only:
            number = next(iter(self._late_orphans))
            try:
                self._free_orphan(orphans, number)
            except NoSpace:
                return
            except Corrupt as error:
                self._note(f"orphan {number} stays: {error}")
            self._late_orphans.discard(number)

    def _free_orphan(self, orphans: OrphanList, number: int) -> None:
        with self.volume.operation():
            inode = self.inodes.find(number)
            self._admit(orphan_cost(self.tree, orphans.levels) + inode_cost(self.tree, 2), Tier.REMOVE)
            if inode is None or inode.links or inode.is_hidden:
                self._note(f"inode {number} was on the list of orphans but is none; taken off")
                orphans.remove(number)
            elif inode.is_directory and len(self.directories.open(inode)) > DOTS:
                self._doomed.append(number)
            else:
                self.inodes.make_writable(inode)
                orphans.remove(number)
                self._free(inode)

    def _release_orphans(self, orphans: OrphanList) -> None:
        """After a crash: frees what was unlinked while open. Only a link count of 0 proves an orphan."""
        for number in orphans:
            try:
                self._free_orphan(orphans, number)
            except NoSpace:
                self._note("no space to free all orphans; the next mount tries again")
                return
            except Corrupt as error:
                self._note(f"orphan {number} stays: {error}")
                if self.volume.read_only:
                    return

    def _note(self, text: str) -> None:
        self.volume.notes.append(text)
        _log.warning("%s", text)

    def _unlinked(self, inode: Inode) -> None:
        """The last name of a writable inode is gone."""
        orphans = self._orphans
        assert orphans is not None
        if inode.number in self._users:
            orphans.add(inode.number)
        else:
            self._free(inode)

    def _free(self, inode: Inode) -> None:
        """Lets go of all that a writable inode has, and of the inode."""
        self.xattrs.drop(inode)
        if inode.has_data:
            self._trees.drop_all(self.inodes.make_writable(inode))
        self.directories.forget(inode.number)
        self.inodes.release(inode)

    # --- commits ---

    def _write_back(self) -> None:
        if self._orphans is not None:
            self._orphans.write_back()
        self.inodes.write_back()
        self._names.write_back()
        if self.tree is not self.volume.live and not self._admitting and self._changed_at < self.volume.seals:
            self._disengage()

    @property
    def idle(self) -> bool:
        """Whether the tree on the disk is up to date, with nothing in memory that a commit would add to it."""
        return not self.tree.writable or self.tree.idle or not self.volume.dirty

    def _admit(self, blocks: int, tier: Tier = Tier.WRITE) -> None:
        """As `Volume.admit`, for a change of this tree. Raises SpaceShort, NoSpace.

        Many changed inodes are written back into their leaves here and not all in a seal, while which nothing else runs.
        What a seal may need for a clone is set aside only while the clone is being changed, and so it is asked for here:
        looking at many clones of a full volume must not take the room from what frees some.
        """
        self._admitting = True
        if not self._engaged:
            self._engage()
        try:
            self.volume.admit(blocks, tier)
        except BaseException:
            if self.tree is not self.volume.live and self._changed_at < self.volume.seals:
                self._disengage()
            raise
        finally:
            self._admitting = False
        if self.inodes.crowded:
            self.inodes.write_back()
            self.volume.operation().restart()

    def _note_change(self) -> None:
        self._changed_at = self.volume.seals
        if not self._engaged:
            self._engage()

    def _engage(self) -> None:
        """The tree takes part in seals from now on."""
        self._engaged = True
        self.volume.before_seal.append(self._write_back)
        self.tree.idle = False

    def _disengage(self) -> None:
        if self._engaged:
            self._engaged = False
            self.volume.before_seal.remove(self._write_back)
        self.tree.idle = True

    # --- what operations begin with ---

    def _check_writable(self) -> None:
        self.volume.check_writable()
        if not self.tree.writable:
            raise ReadOnly("a snapshot is read-only")

    def _inode(self, ino: int) -> Inode:
        """The inode that a user names. Raises Stale, Corrupt, DeviceError."""
        inode = self.inodes.cached.get(ino)
        if inode is None:
            inode = self.inodes.find(ino)
        if inode is None or inode.flags & f.INODE_FLAG_HIDDEN:
            raise Stale(f"inode {ino} is not in use")
        return inode

    def _directory(self, ino: int) -> tuple[Inode, Directory]:
        inode = self._inode(ino)
        if not inode.is_directory:
            raise NotADirectory
        return inode, self.directories.open(inode)

    def _directory_for_change(self, ino: int) -> tuple[Inode, Directory]:
        self._check_writable()
        inode, directory = self._directory(ino)
        if inode.links == 0:
            raise NotFound("the directory was removed")
        return inode, directory

    def _entry(self, directory: Directory, name: bytes) -> tuple[int, Inode]:
        """Index and inode of the entry `name`. Raises NotFound, Corrupt, DeviceError."""
        index = directory.find(name)
        if index < 0:
            raise NotFound
        return index, self.inodes.get(directory.number(index), "a directory entry")

    def _check_new(self, directory: Directory, name: bytes) -> None:
        """Raises unless `name` can be a new entry of the directory."""
        check_name(name)
        if directory.find(name) >= 0:
            raise Exists
        if len(name) > f.SHORT_NAME_MAX:
            self._names.prepare()


def check_name(name: bytes) -> None:
    """Raises NotFound, NameTooLong or InvalidArgument for what can be no name of an entry."""
    if not name:
        raise NotFound("an empty name")
    if len(name) > f.NAME_MAX:
        raise NameTooLong
    if b"/" in name or b"\0" in name:
        raise InvalidArgument("a name has no '/' and no NUL byte")
