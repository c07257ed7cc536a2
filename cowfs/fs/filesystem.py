"""The filesystem as its users see it: numbers and bytes in, attributes and bytes out, `CowfsError` for what goes wrong.

Synchronous and single-threaded; it knows neither FUSE nor trio. This module has the operations on inodes (data, attributes,
extended attributes, the volume's numbers); `names` has those on names, `core` what they share.

Locking: the core thread only.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable
from typing import Final

from cowfs.errors import Corrupt, FileTooBig, InvalidArgument, IsADirectory, NoAttribute, NoSpace, NotPermitted
from cowfs.fs import acl
from cowfs.fs.attributes import NANOSECONDS, AtimeMode, Attributes, Caller, Statfs, without_privileges
from cowfs.fs.clock import file_time
from cowfs.fs.clone import CloneOperations
from cowfs.fs.inode import Inode, clamp_time
from cowfs.fs.listing import Listing
from cowfs.fs.space import data_cost, inode_cost, path
from cowfs.fs.xattr import check_name as check_xattr_name
from cowfs.ondisk import format as f
from cowfs.ondisk.acl import ACCESS_NAME, DEFAULT_NAME
from cowfs.ondisk.records import Buffer
from cowfs.storage.blocktree import WritableRoot
from cowfs.storage.tree import Tree
from cowfs.storage.volume import Tier, Volume

LATE_ATIMES_MAX = 8192  # access times kept in memory before they are written for their own sake
CACHED_MAX: Final = 60 * NANOSECONDS
"""Longer than Linux keeps what was written to itself (30 seconds, and the time that writing it back takes)."""
_ASKED_BY_KERNEL: Final = frozenset((b"security.capability", ACCESS_NAME, DEFAULT_NAME))  # of every file
_DAY: Final = 24 * 3600 * NANOSECONDS
_PERMISSIONS: Final = 0o7777


class Filesystem(CloneOperations):
    """One tree of files: the live one of a volume, or `tree`. On a writable one, creation frees the orphans of a crash.

    `clock` gives the time in nanoseconds since 1970.
    """

    def __init__(
        self,
        volume: Volume,
        *,
        clock: Callable[[], int] = file_time,
        atime: AtimeMode = AtimeMode.RELATIME,
        tree: Tree | None = None,
    ) -> None:
        super().__init__(volume, clock=clock, atime=atime, tree=tree)

    # --- attributes ---

    def getattr(self, ino: int) -> Attributes:
        """Raises Stale for an inode that is not in use, Corrupt, DeviceError."""
        inode = self._inode(ino)
        return inode.attributes or self.inodes.attributes(inode)

    def setattr(
        self,
        ino: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
        caller: Caller | None = None,
    ) -> Attributes:
        """Changes what is given; the new attributes.

        A new owner takes setuid and setgid away from everything but directories, unless `mode` says otherwise; so does a
        new size, unless `caller` is root. An access control list follows the mode. ctime moves with every change, to
        `ctime_ns` if that is given. Times that the format cannot hold become the nearest that it can. Raises what
        `truncate` raises.
        """
        self._check_writable()
        inode = self._inode(ino)
        if size is not None:
            self._check_size(inode, size)
        lists = b"" if mode is None or not inode.xattr_inode else self._lists_with_mode(inode, mode)
        with self.volume.operation():
            self._admit_setattr(inode, size, lists)
            root = self.inodes.make_writable(inode)
            if size is not None:
                self._set_size(inode, root, size, caller is None or caller.uid != 0)
            if mode is not None:
                inode.mode = stat.S_IFMT(inode.mode) | (mode & _PERMISSIONS)
                if lists:
                    self.xattrs.store(inode, lists, self._now())
            if uid is not None or gid is not None:
                inode.uid = inode.uid if uid is None else uid
                inode.gid = inode.gid if gid is None else gid
                if mode is None and not inode.is_directory:
                    inode.mode = without_privileges(inode.mode)
            if atime_ns is not None:
                inode.atime = clamp_time(atime_ns)
            if mtime_ns is not None:
                inode.mtime = clamp_time(mtime_ns)
            inode.ctime = self._now() if ctime_ns is None else clamp_time(ctime_ns)
        return self.inodes.attributes(inode)

    def touch_atime(self, ino: int) -> None:
        """The inode's contents were read: moves its access time as the mode of the mount says.

        In memory; it is written with other changes nearby, or at the end.
        """
        mode = self._atime
        if mode is AtimeMode.NOATIME or self.volume.read_only or not self.tree.writable:
            return
        inode = self._inode(ino)
        now = self._now()
        atime = inode.atime
        if mode is AtimeMode.RELATIME and inode.mtime < atime and inode.ctime < atime and now - atime < _DAY:
            return
        if self.inodes.set_atime_late(inode, now) > LATE_ATIMES_MAX:
            self._write_late_atimes()

    def _write_late_atimes(self) -> None:
        leaves = self.inodes.late_atime_leaves
        if not leaves:
            return
        with self.volume.operation():
            try:
                self._admit(leaves * path(self.tree.inodes))
            except NoSpace:
                self.inodes.forget_late_atimes()
            else:
                self.inodes.write_late_atimes()

    # --- data ---

    def read(self, ino: int, offset: int, size: int) -> bytes:
        """At most `size` bytes from byte `offset` on, fewer only at the end of the file; holes are zeros.

        Raises IsADirectory, InvalidArgument for what has no data, Corrupt, DeviceError.
        """
        inode = self._inode(ino)
        _check_regular(inode)
        return self._trees.read(inode.root, offset, size)

    def write(
        self, ino: int, offset: int, data: Buffer, *, kill_privileges: bool = True, was_cached: bool = False
    ) -> int:
        """Stores bytes at byte `offset`, beyond the end too; the number stored, less than given only at the size limit.

        `kill_privileges`: the writer may not keep setuid, and setgid of a file that its group may execute. `was_cached`: the
        bytes were written earlier, into the kernel's cache, and the kernel says the times itself, if they are not as it was
        told before. So times that may be of that moment stay; others move, since a crash may come before it says so. Raises
        FileTooBig, NoSpace, IsADirectory, InvalidArgument, Corrupt, DeviceError.
        """
        self._check_writable()
        inode = self._inode(ino)
        _check_regular(inode)
        size = len(data)
        if offset < 0:
            raise InvalidArgument("a negative offset")
        if not size:
            return 0
        room = self._geometry.file_size_max - offset
        if room <= 0:
            raise FileTooBig
        if size > room:
            data = memoryview(data)[:room]
            size = room
        with self.volume.operation():
            self._admit(data_cost(self.tree, self._geometry, offset, size))
            root = self.inodes.make_writable(inode)
            self._trees.write_late(root, offset, data)
            now = self._now()
            if not (was_cached and 0 <= now - inode.mtime < CACHED_MAX):
                inode.mtime = inode.ctime = now
            if kill_privileges and inode.mode & (stat.S_ISUID | stat.S_ISGID):
                inode.mode = without_privileges(inode.mode)
        return size

    def truncate(self, ino: int, size: int, *, kill_privileges: bool = True) -> Attributes:
        """Sets the size in bytes: what lies beyond is gone, what is new reads as zeros. mtime moves even if it is equal.

        Raises FileTooBig, InvalidArgument, IsADirectory, NoSpace, Corrupt, DeviceError.
        """
        self._check_writable()
        inode = self._inode(ino)
        self._check_size(inode, size)
        with self.volume.operation():
            self._admit_setattr(inode, size)
            self._set_size(inode, self.inodes.make_writable(inode), size, kill_privileges)
        return self.inodes.attributes(inode)

    def _check_size(self, inode: Inode, size: int) -> None:
        _check_regular(inode)
        if size < 0:
            raise InvalidArgument("a negative size")
        if size > self._geometry.file_size_max:
            raise FileTooBig
        if size > inode.root.size:
            self._trees.check_growth(inode.root)

    def _admit_setattr(self, inode: Inode, size: int | None, lists: bytes = b"") -> None:
        """Space for the inode, for the last block, the paths to the old end and the new one, and for rewritten lists."""
        if size is None and not lists and self.inodes.is_writable(inode):
            return  # as when the kernel tells the times of what was just written
        cost = inode_cost(self.tree, 1) + (0 if size is None else 2 * (f.LEVEL_MAX + 1)) + self._lists_cost(lists)
        # Lists of more than a block are data, and must not use what is kept back for removing.
        adds = len(lists) > self._geometry.block_size or bool(lists and self._has_snapshots)
        adds = adds or self._takes_blocks(inode, size)
        self._admit(cost, Tier.WRITE if adds else Tier.REMOVE)

    def _takes_blocks(self, inode: Inode, size: int | None) -> bool:
        """Whether changing an inode, and its size, takes blocks for good, which must not be what is kept back for removing.

        A shorter file can: the path to its new end becomes its own.
        """
        root = inode.root
        if size is not None and size > root.size:
            return True
        if self._shares_inode(inode):
            return True
        return size is not None and 0 < size < root.size and self._trees.cut_takes_blocks(root, size)

    def _shares_inode(self, inode: Inode) -> bool:
        """Whether a snapshot has the block of an inode, or what leads to it, too."""
        leaf = (inode.number - 1) // self._geometry.inodes_per_block
        return self._has_snapshots and self._trees.shares(self.tree.inodes, leaf)

    @property
    def _has_snapshots(self) -> bool:
        return self.volume.forest.table.count > 0

    def _set_size(self, inode: Inode, root: WritableRoot, size: int, kill_privileges: bool) -> None:
        if size != inode.root.size:
            self._trees.resize(root, size)
        inode.mtime = inode.ctime = self._now()
        if kill_privileges and inode.mode & (stat.S_ISUID | stat.S_ISGID):
            inode.mode = without_privileges(inode.mode)

    def readlink(self, ino: int) -> bytes:
        """The target of a symbolic link. Raises InvalidArgument for anything else, Corrupt, DeviceError."""
        inode = self._inode(ino)
        if not inode.is_symlink:
            raise InvalidArgument("not a symbolic link")
        target = self._trees.read(inode.root, 0, inode.root.size)
        if not target:
            raise Corrupt(f"inode {ino}: a symlink without a target")
        if b"\0" in target:
            raise Corrupt(f"inode {ino}: the target of a symlink has a zero byte")
        return target

    def listing(self, ino: int) -> Listing:
        """Begins to list a directory. Raises NotADirectory, Corrupt, DeviceError."""
        return Listing(self, ino)

    # --- extended attributes ---

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """The value of an attribute. Raises NoAttribute, NotSupported, OutOfRange, Corrupt, DeviceError."""
        inode = self._inode(ino)
        if not inode.xattr_inode and name in _ASKED_BY_KERNEL:
            raise NoAttribute
        if inode.xattr_inode == 0 or inode.xattr_index is None or name not in inode.xattr_index:
            # A name that cannot be set on this type is not there: `get` says so.
            with contextlib.suppress(NotPermitted):
                check_xattr_name(inode, name)
        return self.xattrs.get(inode, name)

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int = 0, *, keep_setgid: bool = True) -> None:
        """Sets an attribute; `flags` may insist on a new (XATTR_CREATE) or an old one (XATTR_REPLACE).

        The mode follows an access control list, of which nothing is kept that the mode can say; `keep_setgid`: the caller
        may leave the bit set then. Raises Exists, NoAttribute, AttributeTooBig, NotSupported, OutOfRange, NotPermitted,
        InvalidArgument, AccessDenied, NoSpace.
        """
        self._check_writable()
        inode = self._inode(ino)
        check_xattr_name(inode, name)
        mode = inode.mode
        plain = False
        if name in acl.NAMES:
            acl.check_kind(mode, name)
            entries = acl.parse(value)
            if name == ACCESS_NAME:
                plain = acl.is_plain(entries)
                mode = acl.mode_of(entries, mode if keep_setgid else mode & ~stat.S_ISGID)
        data = self.xattrs.with_value(inode, name, value, flags)
        if plain:
            data = self._without(inode, name)
        with self.volume.operation():
            if data and not inode.xattr_inode:
                self.inodes.prepare_allocation()
            cost = data_cost(self.tree, self._geometry, 0, max(len(data), 1))
            self._admit(cost + inode_cost(self.tree, 1))
            self.inodes.make_writable(inode)
            now = self._now()
            self.xattrs.store(inode, data, now)
            inode.mode = mode
            inode.ctime = now

    def _without(self, inode: Inode, name: bytes) -> bytes:
        """What is left of an inode's attributes without one that it may have."""
        try:
            return self.xattrs.without(inode, name)
        except NoAttribute:
            return self.xattrs.current(inode)

    def _lists_with_mode(self, inode: Inode, mode: int) -> bytes:
        """An inode's attributes when its access control list has followed the mode; nothing if they stay as they are."""
        old = self._acl(inode, ACCESS_NAME)
        new = old and acl.with_mode(old, mode)
        return b"" if not new or new == old else self.xattrs.with_value(inode, ACCESS_NAME, acl.encode(new), 0)

    def removexattr(self, ino: int, name: bytes) -> None:
        """Removes an attribute. Raises NoAttribute, NotSupported, OutOfRange, NoSpace.

        As on Linux's other filesystems, an access control list that is not there is removed without an error.
        """
        self._check_writable()
        inode = self._inode(ino)
        check_xattr_name(inode, name)
        if name in acl.NAMES and name not in self.xattrs.names(inode):
            return
        data = self.xattrs.without(inode, name)
        with self.volume.operation():
            cost = data_cost(self.tree, self._geometry, 0, max(len(data), 1)) + inode_cost(self.tree, 1)
            # What is left is written anew; only where that is little, and nobody keeps what it replaces, may it use what is
            # kept back for removing.
            adds = cost > self.volume.margin or self._shares_inode(inode) or bool(data and self._has_snapshots)
            self._admit(cost, Tier.WRITE if adds else Tier.REMOVE)
            self.inodes.make_writable(inode)
            now = self._now()
            self.xattrs.store(inode, data, now)
            inode.ctime = now

    def listxattr(self, ino: int) -> list[bytes]:
        """The names of all attributes. Raises Corrupt, DeviceError."""
        return self.xattrs.names(self._inode(ino))

    # --- the whole ---

    def statfs(self) -> Statfs:
        """The volume's numbers. Inodes grow on demand, so free ones are what free blocks could hold."""
        geometry = self._geometry
        free, available = self.volume.free_blocks_for_statfs()
        more = 0 if self.volume.foreign else available * geometry.inodes_per_block
        used = self.tree.num_inodes - self.tree.free_inodes
        files_free = min(self.tree.free_inodes + more, f.INODE_COUNT_MAX - used)
        return Statfs(
            geometry.block_size, geometry.num_blocks, free, available, used + files_free, files_free, f.NAME_MAX
        )

    def sync(self) -> None:
        """Makes everything done so far durable. Raises ReadOnly where a failure has made that impossible."""
        if self.volume.read_only and not self.volume.latched:
            return
        self.volume.check_writable()
        self.free_orphans()
        if self.volume.dirty:
            self.volume.commit()

    def finish(self) -> None:
        """Frees what waits to be freed and writes the access times that wait in memory: before the tree is left."""
        if not self.volume.read_only and self.tree.writable:
            self.free_orphans()
            self._write_late_atimes()

    def close(self) -> None:
        """The end of all use: `finish`, and the volume is settled; the device stays open."""
        self.unhold_all()
        self.finish()
        self.volume.settle()

    # --- for the parts of this package ---

    def inode(self, ino: int) -> Inode:
        """The inode in memory. Raises Stale, Corrupt, DeviceError."""
        return self._inode(ino)

    def entry_attributes(self, ino: int) -> Attributes:
        """Attributes of an inode that a directory entry names. Raises Corrupt, DeviceError."""
        return self.inodes.attributes(self.inodes.get(ino, "a directory entry"))


def _check_regular(inode: Inode) -> None:
    if not inode.is_regular:
        if inode.is_directory:
            raise IsADirectory
        raise InvalidArgument("not a regular file")
