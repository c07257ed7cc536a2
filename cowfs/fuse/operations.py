"""The kernel's requests, passed to the core: numbers and bytes in, attributes and errnos out.

A handler runs from start to end without a pause, so each operation of the core is atomic, and no lock is needed. Only
what waits anyway, for a commit or for space, lets others run; what it found before is then looked at anew.

The kernel counts the lookups of each inode that it was told of, and takes them back with forget; open handles count as
well. `Filesystem.hold` and `unhold` keep these counts, so that an unlinked file lives as long as someone can reach it.

The kernel is the cache: it keeps names, attributes and contents, so what arrives here it did not know. What pyfuse3 does
not pass on (ioctl, fallocate, lseek, copy_file_range) cannot be served here. Its readdir names only the handle, so each
directory is opened, and its listing is not cached by the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Any

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, SetattrFields, StatvfsData

from cowfs import control
from cowfs.control.host import Host
from cowfs.errors import (
    Corrupt,
    CowfsError,
    CrossTree,
    Exists,
    FileTooBig,
    InvalidArgument,
    NoAttribute,
    NoSpace,
    NotFound,
    NotPermitted,
)
from cowfs.fs.attributes import RENAME_NOREPLACE, AtimeMode, Attributes, Caller
from cowfs.fs.filesystem import Filesystem
from cowfs.fs.listing import PagedEntry
from cowfs.fs.snapshot import Snapshots
from cowfs.fuse import convert, late
from cowfs.fuse.commits import CommitScheduler
from cowfs.fuse.control_file import DIRECTORY_NODE, DOTS, ControlDirectory, ControlHandle
from cowfs.fuse.handlers import Cold, DirectoryHandle, FileHandle, answers, changes, waits
from cowfs.fuse.lost import LostWrites
from cowfs.fuse.missing import MissingNames
from cowfs.fuse.options import MountOptions
from cowfs.fuse.query import QueryHandle
from cowfs.fuse.trees import ROOT_NODE, Trees, forget_attributes
from cowfs.ondisk.acl import ACCESS_NAME

SHORT_SPACE_BYTES = 64 << 20
SHORT_SPACE_PART = 20
"""With less available than these bytes, or than this part of the volume, files opened only for writing bypass the kernel's
write cache, so that a full volume is an error of write(2) and not of close(2)."""
FULL_BLOCKS = 256
"""With fewer blocks available, or a part of the volume as above, a file that lost data is taken to go on losing it."""
COMMANDS_MAX = 64
"""Commands in progress at once. Each keeps a worker waiting, and what it waits for may need requests to be served: with all
workers waiting the mount would stand still."""

PAGE_ENTRIES = 32
"""Entries that a listing prepares at once, before it is known how many fit into a reply."""

log = logging.getLogger(__name__)


class Operations(pyfuse3.Operations):
    """The handlers. All run in the trio thread."""

    supports_dot_lookup = True

    def __init__(
        self, trees: Trees, snapshots: Snapshots | None, commits: CommitScheduler, host: Host, options: MountOptions
    ) -> None:
        self.commits = commits
        self.commits_each = options.sync
        self.enable_writeback_cache = options.caches_writes
        self.trees = trees
        self._volume = trees.root.volume
        self._xattrs = options.xattrs
        self.enable_acl = options.xattrs and not self._volume.foreign
        self._touches = options.atime is not AtimeMode.NOATIME and not self._volume.read_only
        self._size_max = self._volume.geometry.file_size_max
        self._host = host
        self._control = ControlDirectory(host, trees, snapshots)
        self._folder = self._control.folder
        self._control_shown = not (self._volume.foreign and _has_name(trees.root, control.DIRECTORY_NAME))
        self._lost = LostWrites()
        self.missing = MissingNames()
        self._negative = convert.negative_entry()
        self._handles: dict[int, Any] = {}
        self._handle_number = 0
        self._commands = 0  # in progress

    # --- names ---

    @answers
    def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """The object of a name; one that does not exist is an answer, too."""
        if parent_inode >= convert.CONTROL_NODES:
            if self._folder is not None and parent_inode == self._folder.node and name not in DOTS:
                return self._entry(*self._folder.lookup(name))
            return self._control.lookup(parent_inode, name)
        if parent_inode == ROOT_NODE and name == control.DIRECTORY_NAME and self._control_shown:
            return self._control.entry(DIRECTORY_NODE)
        tree, ino = self._place(parent_inode)
        if (
            name == b"."
        ):  # of anything: so a file handle of NFS or open_by_handle_at(2) finds what the kernel has forgotten
            return self._entry(tree, tree.getattr(ino))
        if not tree.directories.is_hot(ino):
            _require_warm(tree, ino)
        try:
            attributes = tree.lookup(ino, name)
        except NotFound:
            self.missing.tell(parent_inode, name)
            return self._negative
        return self._entry(tree, attributes)

    @changes
    def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """A new regular file, opened."""
        tree, parent = self._new_name(parent_inode, name)
        attributes = tree.create(parent, name, stat.S_IMODE(mode) | stat.S_IFREG, _caller(ctx))
        entry = self._entry(tree, attributes)
        direct = self._bypasses_cache(flags)
        writer = ctx.pid if self.enable_writeback_cache and not direct else 0
        handle = FileHandle(tree, entry.st_ino, kills_privileges=ctx.uid != 0, cached_writer=writer)
        tree.hold(attributes.ino)
        return self._opened(handle, direct=direct), entry

    @changes
    def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        """A new object of any type that is neither a directory nor a symlink."""
        tree, parent = self._new_name(parent_inode, name)
        return self._entry(tree, tree.create(parent, name, mode, _caller(ctx), rdev=rdev))

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        """A new directory; in the folder of snapshots a new snapshot."""
        if self._in_folder(parent_inode):
            await self._command_for(ctx, "snapshot create", name)
            return await self.lookup(parent_inode, name, ctx)
        return await self._mkdir(parent_inode, name, mode, ctx)

    @changes
    def _mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        tree, parent = self._new_name(parent_inode, name)
        return self._entry(tree, tree.mkdir(parent, name, stat.S_IMODE(mode), _caller(ctx)))

    @changes
    def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        """A new symlink."""
        tree, parent = self._new_name(parent_inode, name)
        return self._entry(tree, tree.symlink(parent, name, target, _caller(ctx)))

    @changes
    def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        """A further name of an object."""
        new_tree, parent = self._new_name(new_parent_inode, new_name)
        tree, ino = self._place(inode)
        if tree is not new_tree:
            raise CrossTree
        tree.link(ino, parent, new_name)
        return self._entry(tree, tree.getattr(ino))

    @changes
    def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Takes a name away, and with the last one the object, unless it is still in use."""
        tree, parent = self._old_name(parent_inode, name)
        tree.unlink(parent, name)
        self.commits.start_reclaim()

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Takes an empty directory away; in the folder of snapshots a snapshot, whatever is in it."""
        if self._in_folder(parent_inode):
            await self._command_for(ctx, "snapshot delete", name)
            self.commits.start_reclaim()
            return
        await self._rmdir(parent_inode, name)

    @changes
    def _rmdir(self, parent_inode: int, name: bytes) -> None:
        tree, parent = self._old_name(parent_inode, name)
        tree.rmdir(parent, name)
        self.commits.start_reclaim()

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        """Moves a name, or exchanges two; in the folder of snapshots it gives a snapshot a new name."""
        if self._in_folder(parent_inode_old) and self._in_folder(parent_inode_new):
            await self._command_for(ctx, "snapshot rename", name_old, name_new, refused=flags & ~RENAME_NOREPLACE != 0)
            return
        if self._in_folder(parent_inode_old) or self._in_folder(parent_inode_new):
            raise FUSEError(errno.EXDEV)
        await self._rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    @changes
    def _rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int
    ) -> None:
        tree, old_parent = self._old_name(parent_inode_old, name_old)
        new_tree, new_parent = self._new_name(parent_inode_new, name_new)
        if tree is not new_tree:
            raise CrossTree
        tree.rename(old_parent, name_old, new_parent, name_new, flags)
        self.commits.start_reclaim()

    @answers
    def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        """The target of a symlink."""
        tree, ino = self._place(inode)
        target = tree.readlink(ino)
        if self._touches:
            tree.touch_atime(ino)
        return target

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """The kernel takes lookups back. There is nobody to answer an error to; the log has it."""
        # Freeing needs no room first: what made the orphan has asked for it, and what there is no space for waits.
        for node, count in inode_list:
            try:
                if node >= convert.CONTROL_NODES:
                    self._control.forget(node, count)
                elif node & convert.INODE_MASK != ROOT_NODE:
                    tree, ino = self._place(node)
                    tree.unhold(ino, count)
            except Exception as error:
                convert.answer(error, "forget")

    # --- attributes ---

    @answers
    def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        """Attributes of an object."""
        if inode >= convert.CONTROL_NODES:
            return self._control.entry(inode)
        if self._lost and self._no_space() and self._lost.concerns(inode, ctx.pid):
            raise NoSpace
        tree, ino = self._place(inode)
        return convert.entry(tree.getattr(ino), inode)

    @changes
    def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        """Changes attributes; a new size is one of them."""
        if inode >= convert.CONTROL_NODES:
            if fields.update_mode or fields.update_uid or fields.update_gid:
                raise NotPermitted
            return self._control.entry(inode)
        tree, ino = self._place(inode)
        if fields.update_size and not 0 <= attr.st_size <= self._size_max:
            raise FileTooBig
        attributes = tree.setattr(
            ino,
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
            caller=_caller(ctx),
        )
        if fields.update_size:
            self.commits.start_reclaim()
        return convert.entry(attributes, inode)

    @answers
    def statfs(self, ctx: RequestContext) -> StatvfsData:
        """The volume in numbers."""
        return convert.statvfs(self.trees.root.statfs())

    # --- extended attributes ---

    @answers
    def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        """The value of one. Older kernels ask for security.capability before each write(2)."""
        tree, ino = self._xattr_place(inode)
        return tree.getxattr(ino, name)

    @changes
    def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        """Sets one. pyfuse3 itself has looked after XATTR_CREATE and XATTR_REPLACE."""
        tree, ino = self._xattr_place(inode)
        keeps = name != ACCESS_NAME or _may_keep_setgid(ctx, tree.getattr(ino).gid)
        tree.setxattr(ino, name, value, keep_setgid=keeps)

    @answers
    def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        """The names of all."""
        if inode >= convert.CONTROL_NODES:
            return []
        tree, ino = self._xattr_place(inode)
        return tree.listxattr(ino)

    @changes
    def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        """Takes one away."""
        tree, ino = self._xattr_place(inode)
        tree.removexattr(ino, name)

    # --- files ---

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        """Opens a file; the kernel has checked the permission, and leaves O_TRUNC to us."""
        if inode >= convert.CONTROL_NODES:
            return await self._open_control(inode, ctx)
        return await self._open(inode, flags, ctx)

    @waits
    async def _open_control(self, node: int, ctx: RequestContext) -> FileInfo:
        with self._one_more_command():  # opening a query carries it out
            handle = await self._control.open(node, ctx.uid)
        return self._opened(handle, direct=True)

    @changes
    def _open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        tree, ino = self._place(inode)
        kills = ctx.uid != 0
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        privileged = writes and kills and _has_privileges(tree.getattr(ino).mode)
        if flags & os.O_TRUNC:
            tree.truncate(ino, 0, kill_privileges=kills)
            self.commits.start_reclaim()
            if privileged:
                forget_attributes(inode)
        direct = privileged or self._bypasses_cache(flags)
        writer = ctx.pid if self.enable_writeback_cache and writes and not direct else 0
        handle = FileHandle(tree, inode, kills_privileges=kills, privileged=privileged, cached_writer=writer)
        tree.hold(ino)
        return self._opened(handle, direct=direct)

    @answers
    def read(self, fh: int, off: int, size: int) -> bytes:
        """Bytes of a file; fewer than asked for at its end."""
        handle: FileHandle | ControlHandle | QueryHandle = self._handles[fh]
        if not isinstance(handle, FileHandle):
            return handle.read(off, size)
        tree, ino = handle.tree, handle.ino
        data = tree.read(ino, off, size)
        if self._touches:
            tree.touch_atime(ino)
        return data

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Changes bytes of a file, or carries out a command."""
        handle: Any = self._handles.get(fh)
        if isinstance(handle, ControlHandle):
            return await self._command(handle, buf)
        try:
            return await self._write(handle, off, buf)
        except FUSEError as error:
            if error.errno == errno.ENOSPC and isinstance(handle, FileHandle) and handle.cached_writer:
                self._lose(handle.node)
            raise

    @property
    def has_open_files(self) -> bool:
        """Whether a file is open."""
        return any(isinstance(handle, FileHandle) for handle in self._handles.values())

    def _in_folder(self, parent_node: int) -> bool:
        return self._folder is not None and parent_node == self._folder.node

    @waits
    async def _command_for(self, ctx: RequestContext, words: str, *names: bytes, refused: bool = False) -> None:
        """Carries out a command that is meant by an operation in the folder of snapshots."""
        assert self._folder is not None
        self._folder.check_caller(ctx.uid)
        if refused:
            raise InvalidArgument("not for snapshots")
        texts = [name.decode("utf-8", "surrogateescape") for name in names]
        with self._one_more_command():
            await late.commands_loaded(self._host)
            from cowfs.control import commands

            await commands.execute(control.Command((*words.split(), *texts)), self._host)

    @waits
    async def _command(self, handle: ControlHandle, buf: bytes) -> int:
        with self._one_more_command():
            return await handle.write(buf)

    @contextlib.contextmanager
    def _one_more_command(self) -> Iterator[None]:
        if self._commands >= COMMANDS_MAX:
            raise FUSEError(errno.EAGAIN)
        self._commands += 1
        try:
            yield
        finally:
            self._commands -= 1

    @changes
    def _write(self, handle: FileHandle, off: int, buf: bytes) -> int:
        if off + len(buf) > self._size_max:
            raise FileTooBig
        cached = handle.cached_writer != 0
        count = handle.tree.write(handle.ino, off, buf, kill_privileges=handle.kills_privileges, was_cached=cached)
        if handle.privileged:
            handle.privileged = False
            forget_attributes(handle.node)
        if self._lost:
            self._lost.discard(handle.node)
        return count

    @answers
    def release(self, fh: int) -> None:
        """The last descriptor of a handle was closed."""
        handle = self._handles.pop(fh, None)
        if isinstance(handle, FileHandle):
            if self._lost and not self._cached_writers(handle.node):
                self._lost.discard(handle.node)
            handle.tree.unhold(handle.ino)

    @waits
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Everything done so far becomes durable, this file's part with it."""
        if isinstance(self._handles[fh], FileHandle):
            await self.commits.commit()

    # --- directories ---

    @answers
    def opendir(self, inode: int, ctx: RequestContext) -> int:
        """Begins a listing."""
        if inode >= convert.CONTROL_NODES:
            return self._register(DirectoryHandle(None, inode))
        tree, ino = self._place(inode)
        tree.getattr(ino)
        tree.hold(ino)
        return self._register(DirectoryHandle(tree, inode))

    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        """The next entries, with their attributes. From the start it is a new listing, as rewinddir(3) wants it."""
        handle = self._handles.get(fh)
        if isinstance(handle, DirectoryHandle) and handle.tree is None:
            await self._list_control(handle, start_id, token)
        else:
            await self._list_tree(fh, start_id, token)

    @waits
    async def _list_control(self, handle: DirectoryHandle, start_id: int, token: ReaddirToken) -> None:
        await self._control.list(handle, start_id, token)

    @answers
    def _list_tree(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        handle: DirectoryHandle = self._handles[fh]
        tree = handle.tree
        assert tree is not None
        if start_id == 0:
            _require_warm(tree, handle.ino)
        if handle.listing is None:
            handle.listing = tree.listing(handle.ino)
        if start_id == 0 and self._touches:
            tree.touch_atime(handle.ino)
        told: list[int] = []
        begin, full = start_id, False
        size = max(handle.page_size, PAGE_ENTRIES)
        while not full:
            try:
                page = handle.listing.page(start_id, size)
            except CowfsError as error:
                # An error now would take back what the reply holds already, and whose lookups count; the next call meets it.
                if start_id == begin:
                    raise
                log.error("readdir: %s", error)
                break
            if not page:
                break
            full = not self._list(tree, token, page, told)
            start_id = page[-1][0]
            size = PAGE_ENTRIES
        handle.page_size = len(told)
        tree.hold_each(told)

    @answers
    def releasedir(self, fh: int) -> None:
        """Ends a listing."""
        handle: DirectoryHandle | None = self._handles.pop(fh, None)
        if handle is not None and handle.tree is not None:
            handle.tree.unhold(handle.ino)

    @waits
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Names are part of the same commit as everything else."""
        await self.commits.commit()

    # --- inside ---

    def _place(self, node: int) -> tuple[Filesystem, int]:
        """The tree and the inode number of a node."""
        if node >= convert.CONTROL_NODES:
            raise NotPermitted
        return self.trees.place(node)

    def _xattr_place(self, node: int) -> tuple[Filesystem, int]:
        if not self._xattrs:
            raise FUSEError(errno.ENOSYS)  # the kernel asks no more
        if node >= convert.CONTROL_NODES:
            raise NoAttribute
        return self._place(node)

    def _new_name(self, parent_node: int, name: bytes) -> tuple[Filesystem, int]:
        """The directory that gets a name."""
        if parent_node == ROOT_NODE and name == control.DIRECTORY_NAME and self._control_shown:
            raise Exists
        return self._place(parent_node)

    def _old_name(self, parent_node: int, name: bytes) -> tuple[Filesystem, int]:
        """The directory that loses a name."""
        if parent_node == ROOT_NODE and name == control.DIRECTORY_NAME and self._control_shown:
            raise NotPermitted
        return self._place(parent_node)

    def _entry(self, tree: Filesystem, attributes: Attributes) -> EntryAttributes:
        """The answer that tells the kernel of an inode, which counts as a lookup."""
        node = self.trees.node(tree, attributes.ino)
        if attributes.ino != ROOT_NODE:  # a root directory stays, whether the kernel knows it or not
            tree.hold(attributes.ino)
        return convert.entry(attributes, node)

    def open_nodes(self, tree: Filesystem) -> list[int]:
        """The nodes of a tree that somebody has open."""
        handles = (handle for handle in self._handles.values() if isinstance(handle, FileHandle))
        return [handle.node for handle in handles if handle.tree is tree]

    def _register(self, handle: object) -> int:
        self._handle_number += 1
        self._handles[self._handle_number] = handle
        return self._handle_number

    def _opened(self, handle: FileHandle | ControlHandle | QueryHandle, *, direct: bool) -> FileInfo:
        return FileInfo(fh=self._register(handle), direct_io=direct, keep_cache=True)

    @property
    def _short_blocks(self) -> int:
        """With less available, space counts as short."""
        geometry = self._volume.geometry
        return min(SHORT_SPACE_BYTES // geometry.block_size, geometry.num_blocks // SHORT_SPACE_PART)

    def _bypasses_cache(self, flags: int) -> bool:
        """Whether writes through a new descriptor go past the kernel's cache: where what it keeps might find no place.

        A descriptor that can read, too, may be mapped, and without its cache the kernel maps nothing shared (ENODEV):
        databases could not even be opened any more. They hear of a full volume from fsync(2).
        """
        if flags & os.O_ACCMODE != os.O_WRONLY or not self.enable_writeback_cache:
            return False
        return self._volume.free_blocks_for_statfs()[1] < self._short_blocks

    def _no_space(self) -> bool:
        """Whether what the kernel caches would be lost."""
        return self._volume.free_blocks_for_statfs()[1] < min(FULL_BLOCKS, self._short_blocks)

    def _lose(self, node: int) -> None:
        """There was no space for what a write(2) had left to the kernel. The next one asks before it does so again."""
        self._lost.add(node, self._cached_writers(node))
        forget_attributes(node)

    def _cached_writers(self, node: int) -> list[int]:
        """The threads that opened a file for writing through the kernel's cache and have not closed it."""
        handles = (handle for handle in self._handles.values() if isinstance(handle, FileHandle))
        return [handle.cached_writer for handle in handles if handle.node == node and handle.cached_writer]

    def _list(self, tree: Filesystem, token: ReaddirToken, page: list[PagedEntry], told: list[int]) -> bool:
        """Adds entries to the reply to readdir, and to `told` those whose lookups count; False where it is full."""
        reply, tree_bits = pyfuse3.readdir_reply, tree.node_bits
        entry = EntryAttributes()  # each is copied into the reply
        entry.st_blksize = self._volume.geometry.block_size
        last: object = None
        for cookie, name, ino, attributes in page:
            node = self.trees.node(tree, ino) if ino == ROOT_NODE else tree_bits | ino
            if isinstance(attributes, Corrupt):
                # The kernel shows the name of an entry whose attributes cannot be, so that it can be removed.
                log.error("inode %d: %s", ino, attributes)
                added = reply(token, name, convert.damaged(node), cookie)
            else:
                entry.generation, entry.st_size, entry.st_blocks, common = attributes
                if common is not last:
                    convert.fill_common(entry, common)
                    last = common
                entry.st_ino = node
                added = reply(token, name, entry, cookie)
            if not added:
                return False
            if cookie > len(DOTS) and ino != ROOT_NODE:
                told.append(ino)
        return True


def _require_warm(tree: Filesystem, ino: int) -> None:
    if tree.is_cold(ino):
        raise Cold(tree, ino)


def _caller(context: RequestContext) -> Caller:
    """Who asks. Where the kernel has applied the umask already, applying it again changes nothing."""
    return Caller(context.uid, context.gid, context.umask & 0o777)


def _may_keep_setgid(context: RequestContext, gid: int) -> bool:
    """Whether who changes the permissions of a file of that group may leave its setgid bit set."""
    if context.uid == 0 or context.gid == gid:
        return True
    try:
        return gid in pyfuse3.get_sup_groups(context.pid)
    except (OSError, RuntimeError):  # the process has gone
        return False


def _has_privileges(mode: int) -> bool:
    """Whether a write by anybody but root changes the mode."""
    return bool(mode & stat.S_ISUID) or mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID | stat.S_IXGRP


def _has_name(filesystem: Filesystem, name: bytes) -> bool:
    """Whether the root of a volume has an entry of that name."""
    try:
        filesystem.lookup(ROOT_NODE, name)
    except CowfsError:
        return False
    return True
