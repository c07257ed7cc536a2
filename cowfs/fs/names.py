"""Operations on names: lookup, create, mkdir, symlink, link, unlink, rmdir, rename.

They follow POSIX.1-2024 and, where it leaves a choice, Linux. What each touches: a changed directory gets new mtime and
ctime, an inode whose link count changes, or that is renamed, a new ctime.

Locking: the core thread only.
"""

from __future__ import annotations

import os
import stat

from cowfs.errors import (
    Busy,
    Corrupt,
    Exists,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NoAttribute,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    TooManyLinks,
)
from cowfs.fs import acl
from cowfs.fs.attributes import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Attributes,
    Caller,
    device_fits,
    encode_device,
)
from cowfs.fs.core import Core, check_name
from cowfs.fs.directory import Directory
from cowfs.fs.inode import Inode, clamp_time
from cowfs.fs.space import data_cost, inode_cost, name_cost, orphan_cost, path
from cowfs.ondisk import format as f
from cowfs.ondisk.acl import ACCESS_NAME, DEFAULT_NAME
from cowfs.storage.volume import Tier

_PERMISSIONS = 0o7777
_TYPE_MASK = 0o170000
_NODE_TYPES = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
_DEVICE_TYPES = (stat.S_IFCHR, stat.S_IFBLK)
_DOTS = (b".", b"..")


class NameOperations(Core):
    """The operations on names. Inode numbers and bytes in, Attributes out."""

    # --- reading ---

    def lookup(self, parent: int, name: bytes) -> Attributes:
        """The attributes of an entry; '.' and '..' are entries, too. Raises NotFound, NotADirectory, NameTooLong."""
        # The most frequent request of all: written out for speed.
        cached = self.inodes.cached
        inode = cached.get(parent)
        if inode is None or inode.flags:
            inode = self._inode(parent)
        if inode.mode & _TYPE_MASK != stat.S_IFDIR:
            raise NotADirectory
        if len(name) > f.NAME_MAX:
            raise NameTooLong
        directory = self.directories.open(inode)
        index = directory.find(name) if name else -1
        if index < 0 or (inode.links == 0 and name == b".."):
            raise NotFound
        number = directory.number(index)
        found = cached.get(number)
        if found is None or found.attributes is None or found.flags:
            return self.bulk.get(number, f"directory {parent}")
        return found.attributes

    def is_cold(self, ino: int) -> bool:
        """Whether a directory is so large that `load_slice` should read it, until it is not cold, before it is used.

        Whoever does not care uses it all the same. Raises Stale, Corrupt, DeviceError.
        """
        inode = self.inodes.cached.get(ino) or self._inode(ino)
        return inode.is_directory and self.directories.is_cold(inode)

    def load_slice(self, ino: int) -> None:
        """Reads on in a cold directory: a few milliseconds. Raises Stale, Corrupt, DeviceError."""
        inode = self._inode(ino)
        if inode.is_directory and self.directories.is_cold(inode):
            self.directories.read_slice(inode)

    # --- making ---

    def create(self, parent: int, name: bytes, mode: int, caller: Caller, *, rdev: int = 0) -> Attributes:
        """A new regular file, fifo, socket or device node: `mode` says which (regular without type bits).

        `rdev` is the device number in the notation of `os.makedev`. Raises Exists, NotFound, NameTooLong, NoSpace.
        """
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        if kind not in _NODE_TYPES:
            raise InvalidArgument("not a type of file that can be created so")
        device = 0
        if kind in _DEVICE_TYPES:
            major, minor = os.major(rdev), os.minor(rdev)
            if not device_fits(major, minor):
                raise InvalidArgument(f"device number {major}:{minor} does not fit into 12 and 20 bits")
            device = encode_device(major, minor)
        where, directory = self._directory_for_change(parent)
        self._check_new(directory, name)
        mode, lists = self._inheritance(where, kind | mode & _PERMISSIONS, caller)
        with self.volume.operation():
            self.inodes.prepare_allocation(2 if lists else 1)
            self._admit(name_cost(self.tree, 2, where) + self._lists_cost(lists))
            inode = self._new_entry(where, name, mode, caller, lists)
            inode.rdev = device
        return self.inodes.attributes(inode)

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Attributes:
        """A new directory. Raises Exists, NotFound, NameTooLong, TooManyLinks, NoSpace."""
        where, directory = self._directory_for_change(parent)
        self._check_new(directory, name)
        if where.links >= f.LINK_COUNT_MAX:
            raise TooManyLinks
        mode, lists = self._inheritance(where, stat.S_IFDIR | mode & _PERMISSIONS, caller)
        with self.volume.operation():
            self.inodes.prepare_allocation(2 if lists else 1)
            self._admit(name_cost(self.tree, 2, where) + 1 + self._lists_cost(lists))
            inode = self._new_entry(where, name, mode | where.mode & stat.S_ISGID, caller, lists)
            inode.links = 2
            where.links += 1
            self.directories.make_first_block(self.inodes.make_writable(inode), inode.number, parent)
        return self.inodes.attributes(inode)

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Attributes:
        """A new symbolic link. Raises NotFound for an empty target, NameTooLong for one over 4,095 bytes."""
        if not target:
            raise NotFound("an empty target")
        if len(target) > f.SYMLINK_SIZE_MAX:
            raise NameTooLong(f"the target of a symlink has at most {f.SYMLINK_SIZE_MAX} bytes")
        if b"\0" in target:
            raise InvalidArgument("the target of a symlink has no NUL byte")
        where, directory = self._directory_for_change(parent)
        self._check_new(directory, name)
        with self.volume.operation():
            self.inodes.prepare_allocation()
            self._admit(name_cost(self.tree, 2, where) + self._geometry.blocks_of(len(target)) + 2)
            inode = self._new_entry(where, name, stat.S_IFLNK | 0o777, caller)
            self._trees.write(self.inodes.make_writable(inode), 0, target)
        return self.inodes.attributes(inode)

    def link(self, ino: int, parent: int, name: bytes) -> Attributes:
        """One more name for an inode. Raises NotPermitted for a directory, TooManyLinks, NotFound for an orphan."""
        where, directory = self._directory_for_change(parent)
        inode = self._inode(ino)
        self._check_new(directory, name)
        if inode.is_directory:
            raise NotPermitted("a directory has one name only")
        if inode.links == 0:
            raise NotFound("the file has no name any more")
        if inode.links >= f.LINK_COUNT_MAX:
            raise TooManyLinks
        with self.volume.operation():
            self._admit(name_cost(self.tree, 2, where))
            now = self._now()
            root = self.inodes.make_writable(where)
            self.inodes.make_writable(inode)
            self.directories.add(where, root, name, ino)
            inode.links += 1
            inode.ctime = now
            where.mtime = where.ctime = now
        return self.inodes.attributes(inode)

    def _inheritance(self, where: Inode, mode: int, caller: Caller) -> tuple[int, bytes]:
        """Mode and encoded access control lists of a new object. Only without a default list the umask has a say."""
        default = self._acl(where, DEFAULT_NAME) if where.xattr_inode else None
        if default is None:
            return mode & ~caller.umask, b""
        mode, access = acl.inherited(default, mode)
        values = {} if acl.is_plain(access) else {ACCESS_NAME: acl.encode(access)}
        if stat.S_ISDIR(mode):
            values[DEFAULT_NAME] = acl.encode(default)
        return mode, self.xattrs.encode(values) if values else b""

    def _acl(self, inode: Inode, name: bytes) -> acl.Acl | None:
        """One of an inode's access control lists, if it has it. Raises Corrupt, DeviceError."""
        try:
            return acl.parse(self.xattrs.get(inode, name))
        except NoAttribute:
            return None
        except InvalidArgument as error:
            raise Corrupt(f"inode {inode.number}: {name.decode()}: {error}") from None

    def _lists_cost(self, lists: bytes) -> int:
        """Blocks for the hidden inode that holds encoded access control lists."""
        return data_cost(self.tree, self._geometry, 0, len(lists)) + inode_cost(self.tree, 1) if lists else 0

    def _new_entry(self, where: Inode, name: bytes, mode: int, caller: Caller, lists: bytes = b"") -> Inode:
        """A new inode under a new name; everything that can be refused has been."""
        now = self._now()
        root = self.inodes.make_writable(where)
        gid = where.gid if where.mode & stat.S_ISGID else caller.gid
        inode = self.inodes.allocate(mode, caller.uid, gid, now)
        if lists:
            self.xattrs.store(inode, lists, now)
        self.directories.add(where, root, name, inode.number)
        where.mtime = where.ctime = now
        return inode

    # --- removing ---

    def unlink(self, parent: int, name: bytes) -> None:
        """Removes a name of anything but a directory. Raises NotFound, IsADirectory."""
        where, directory = self._directory_for_change(parent)
        if name in _DOTS:
            raise IsADirectory
        check_name(name)
        index, inode = self._entry(directory, name)
        if inode.is_directory:
            raise IsADirectory
        with self.volume.operation():
            self._admit(self._removal_cost(where), Tier.REMOVE)
            now = self._now()
            root = self.inodes.make_writable(where)
            self.inodes.make_writable(inode)
            self.directories.remove(where, root, index)
            where.mtime = where.ctime = now
            self._drop_link(inode, now)

    def rmdir(self, parent: int, name: bytes) -> None:
        """Removes an empty directory. Raises NotFound, NotADirectory, NotEmpty; InvalidArgument for '.'."""
        where, directory = self._directory_for_change(parent)
        if name == b".":
            raise InvalidArgument("'.' cannot be removed")
        if name == b"..":
            raise NotEmpty
        check_name(name)
        index, inode = self._entry(directory, name)
        self._check_removable(inode)
        with self.volume.operation():
            self._admit(self._removal_cost(where), Tier.REMOVE)
            now = self._now()
            root = self.inodes.make_writable(where)
            self.inodes.make_writable(inode)
            self.directories.remove(where, root, index)
            where.links -= 1
            where.mtime = where.ctime = now
            self._drop_link(inode, now)

    def _check_removable(self, inode: Inode) -> None:
        """Raises NotADirectory, NotEmpty."""
        if not inode.is_directory:
            raise NotADirectory
        if len(self.directories.open(inode)) > len(_DOTS):
            raise NotEmpty

    def _removal_cost(self, where: Inode) -> int:
        assert self._orphans is not None
        return name_cost(self.tree, 3, where) + orphan_cost(self.tree, self._orphans.levels)

    def _drop_link(self, inode: Inode, now: int) -> None:
        """A name of a writable inode is gone; a directory has no other."""
        inode.ctime = now
        inode.links = 0 if inode.is_directory else inode.links - 1
        if inode.links <= 0:
            inode.links = 0
            self._unlinked(inode)

    # --- renaming ---

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        """Moves an entry, replacing what has the new name, or with RENAME_EXCHANGE swaps two.

        Raises NotFound, Exists (RENAME_NOREPLACE), NotADirectory, IsADirectory, NotEmpty, TooManyLinks, Busy for '.' and
        '..', InvalidArgument for unknown flags and for a directory moved into itself.
        """
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            raise InvalidArgument("unknown flags")
        old_where, old_directory = self._directory_for_change(parent)
        new_where, new_directory = self._directory_for_change(new_parent)
        if name in _DOTS or new_name in _DOTS:
            raise Busy("'.' and '..' stay where they are")
        check_name(name)
        check_name(new_name)
        index, moved = self._entry(old_directory, name)
        new_index = new_directory.find(new_name)
        target = self.inodes.get(new_directory.number(new_index), "a directory entry") if new_index >= 0 else None
        if target is not None and flags & RENAME_NOREPLACE:
            raise Exists
        if target is None and flags & RENAME_EXCHANGE:
            raise NotFound
        self._check_ancestors(old_where, moved, new_where, target, flags)
        if target is not None and target.number == moved.number:
            return
        if flags & RENAME_EXCHANGE:
            assert target is not None
            self._exchange(old_where, index, moved, new_where, new_index, target)
        else:
            self._move(old_where, old_directory, index, moved, new_where, new_directory, new_index, target, new_name)

    def _check_ancestors(
        self, old_where: Inode, moved: Inode, new_where: Inode, target: Inode | None, flags: int
    ) -> None:
        """Raises where a directory would come to lie in itself, or is to be replaced by what lies in it."""
        if old_where.number == new_where.number:
            return
        if moved.is_directory and self._lies_in(new_where, moved):
            raise InvalidArgument("a directory cannot be moved into itself")
        if target is not None and target.is_directory and self._lies_in(old_where, target):
            if flags & RENAME_EXCHANGE:
                raise InvalidArgument("a directory cannot be moved into itself")
            raise NotEmpty

    def _lies_in(self, inode: Inode, ancestor: Inode) -> bool:
        """Whether a directory is `ancestor` or lies below it. Raises Corrupt for a loop of '..' entries."""
        seen = set()
        while inode.number not in (ancestor.number, f.ROOT_INODE):
            seen.add(inode.number)
            number = self.directories.open(inode).number(1)
            inode = self.inodes.get(number, f"'..' of directory {inode.number}")
            if not inode.is_directory or number in seen:
                raise Corrupt(f"'..' of a directory leads to inode {number}, which is not above it")
        return inode.number == ancestor.number

    def _check_parent_links(self, old_where: Inode, moved: Inode, new_where: Inode, leaves: bool) -> int:
        """By how much the link count of the new parent grows: `leaves` says that a directory there goes away."""
        if old_where.number == new_where.number:
            return 0
        growth = int(moved.is_directory) - int(leaves)
        if growth > 0 and new_where.links >= f.LINK_COUNT_MAX:
            raise TooManyLinks
        return growth

    def _exchange(
        self, old_where: Inode, index: int, moved: Inode, new_where: Inode, new_index: int, target: Inode
    ) -> None:
        growth = self._check_parent_links(old_where, moved, new_where, target.is_directory)
        self._check_parent_links(new_where, target, old_where, moved.is_directory)
        with self.volume.operation():
            cost = name_cost(self.tree, 4, old_where, new_where) + path(moved.root) + path(target.root)
            self._admit(cost)
            now = self._now()
            old_root, new_root = self.inodes.make_writable(old_where), self.inodes.make_writable(new_where)
            self.inodes.make_writable(moved)
            self.inodes.make_writable(target)
            self.directories.replace(new_where, new_root, new_index, moved.number)
            self.directories.replace(old_where, old_root, index, target.number)
            if old_where.number != new_where.number:
                self._set_parent(moved, new_where)
                self._set_parent(target, old_where)
                new_where.links += growth
                old_where.links -= growth
            for inode in (old_where, new_where):
                inode.mtime = inode.ctime = now
            moved.ctime = target.ctime = now

    def _move(
        self,
        old_where: Inode,
        old_directory: Directory,
        index: int,
        moved: Inode,
        new_where: Inode,
        new_directory: Directory,
        new_index: int,
        target: Inode | None,
        new_name: bytes,
    ) -> None:
        if target is not None:
            if moved.is_directory:
                self._check_removable(target)
            elif target.is_directory:
                raise IsADirectory
        elif len(new_name) > f.SHORT_NAME_MAX:
            self._names.prepare()
        growth = self._check_parent_links(old_where, moved, new_where, target is not None and target.is_directory)
        with self.volume.operation():
            self._admit(self._removal_cost(old_where) + name_cost(self.tree, 2, new_where) + path(moved.root))
            now = self._now()
            old_root, new_root = self.inodes.make_writable(old_where), self.inodes.make_writable(new_where)
            self.inodes.make_writable(moved)
            if target is not None:
                self.inodes.make_writable(target)
                self.directories.replace(new_where, new_root, new_index, moved.number)
            else:
                self.directories.add(new_where, new_root, new_name, moved.number)
            self.directories.remove(old_where, old_root, index)
            if moved.is_directory and old_where.number != new_where.number:
                self._set_parent(moved, new_where)
                old_where.links -= 1
                new_where.links += growth
            elif target is not None and target.is_directory:
                old_where.links -= 1
            for inode in (old_where, new_where):
                inode.mtime = inode.ctime = now
            moved.ctime = now
            if target is not None:
                self._drop_link(target, now)

    def _set_parent(self, inode: Inode, where: Inode) -> None:
        """Lets the '..' of a moved directory, which is writable, name its new parent."""
        if inode.is_directory:
            self.directories.replace(inode, self.inodes.make_writable(inode), 1, where.number)

    def _now(self) -> int:
        return clamp_time(self._clock())
