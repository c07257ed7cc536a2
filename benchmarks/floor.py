"""The floor: a filesystem in memory that does nothing but answer, through pyfuse3 and the session loop of cowfs.

What cowfs cannot be faster than: the kernel's way to a process and back, pyfuse3, and Python's dictionaries. It keeps the
same kernel caches for the same time as cowfs. Nothing of it is durable, its fsync does nothing, and it checks nothing.

    python -m benchmarks.floor MOUNTPOINT
"""

from __future__ import annotations

import errno
import gc
import os
import stat
import sys
import time
from collections.abc import Sequence

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, SetattrFields, StatvfsData

from cowfs.fuse import loop, mounts
from cowfs.fuse.convert import CACHE_SECONDS, negative_entry
from cowfs.fuse.server import READ_AHEAD_KILOBYTES, WORKERS_IDLE, WORKERS_MAX

BLOCK = 4096


class Node:
    """An inode: what the kernel is told of it, and its contents, of which it has one kind."""

    __slots__ = ("children", "data", "entry", "lookups", "target")

    def __init__(self, number: int, mode: int, ctx: RequestContext | None) -> None:
        now = time.time_ns()
        entry = self.entry = EntryAttributes()
        entry.st_ino = number
        entry.st_mode = mode
        entry.st_nlink = 2 if stat.S_ISDIR(mode) else 1
        entry.st_uid = ctx.uid if ctx else os.getuid()
        entry.st_gid = ctx.gid if ctx else os.getgid()
        entry.st_blksize = BLOCK
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = now
        entry.entry_timeout = entry.attr_timeout = CACHE_SECONDS
        self.lookups = 0
        self.data = bytearray()
        self.children: dict[bytes, Node] = {}
        self.target = b""

    def resize(self) -> None:
        """Tells of a new size."""
        self.entry.st_size = len(self.data)
        self.entry.st_blocks = -(-len(self.data) // BLOCK) * 8


class Floor(pyfuse3.Operations):
    """The handlers."""

    enable_writeback_cache = True

    def __init__(self) -> None:
        self._root = Node(pyfuse3.ROOT_INODE, stat.S_IFDIR | 0o755, None)
        self._nodes: dict[int, Node] = {pyfuse3.ROOT_INODE: self._root}
        self._listings: dict[int, list[tuple[bytes, Node]]] = {}
        self._last = int(pyfuse3.ROOT_INODE)
        self._negative = negative_entry()

    def _new(self, parent: int, name: bytes, mode: int, ctx: RequestContext) -> Node:
        where = self._nodes[parent]
        if name in where.children:
            raise FUSEError(errno.EEXIST)
        self._last += 1
        node = self._nodes[self._last] = where.children[name] = Node(self._last, mode & ~ctx.umask, ctx)
        if stat.S_ISDIR(mode):
            where.entry.st_nlink += 1
        return self._known(node)

    @staticmethod
    def _known(node: Node) -> Node:
        node.lookups += 1
        return node

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """A name, or that there is none."""
        node = self._nodes[parent_inode].children.get(name)
        return self._negative if node is None else self._known(node).entry

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """The kernel takes lookups back."""
        for number, count in inode_list:
            node = self._nodes.get(number)
            if node is not None:
                node.lookups -= count
                self._drop_unused(node)

    def _drop_unused(self, node: Node) -> None:
        if not node.entry.st_nlink and node.lookups <= 0:
            self._nodes.pop(node.entry.st_ino, None)

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        """What is known of an inode."""
        return self._nodes[inode].entry

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        """Changes what is asked for."""
        node = self._nodes[inode]
        entry = node.entry
        if fields.update_size:
            if attr.st_size < len(node.data):
                del node.data[attr.st_size :]
            else:
                node.data.extend(bytes(attr.st_size - len(node.data)))
            node.resize()
        if fields.update_mode:
            entry.st_mode = attr.st_mode
        if fields.update_uid:
            entry.st_uid = attr.st_uid
        if fields.update_gid:
            entry.st_gid = attr.st_gid
        if fields.update_atime:
            entry.st_atime_ns = attr.st_atime_ns
        if fields.update_mtime:
            entry.st_mtime_ns = attr.st_mtime_ns
        return entry

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """A new file, opened."""
        node = self._new(parent_inode, name, stat.S_IFREG | stat.S_IMODE(mode), ctx)
        return FileInfo(fh=node.entry.st_ino, keep_cache=True), node.entry

    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        """A new object."""
        return self._new(parent_inode, name, mode, ctx).entry

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        """A new directory."""
        return self._new(parent_inode, name, stat.S_IFDIR | stat.S_IMODE(mode), ctx).entry

    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        """A new symbolic link."""
        node = self._new(parent_inode, name, stat.S_IFLNK | 0o777, ctx)
        node.target = target
        node.entry.st_size = len(target)
        return node.entry

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        """Where a symbolic link points to."""
        return self._nodes[inode].target

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        """A further name."""
        node = self._nodes[inode]
        self._nodes[new_parent_inode].children[new_name] = node
        node.entry.st_nlink += 1
        return self._known(node).entry

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Takes a name away."""
        node = self._nodes[parent_inode].children.pop(name)
        node.entry.st_nlink -= 1
        self._drop_unused(node)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Takes an empty directory away."""
        where = self._nodes[parent_inode]
        node = where.children[name]
        if node.children:
            raise FUSEError(errno.ENOTEMPTY)
        del where.children[name]
        where.entry.st_nlink -= 1
        node.entry.st_nlink = 0
        self._drop_unused(node)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        """Moves a name over another one."""
        old, new = self._nodes[parent_inode_old], self._nodes[parent_inode_new]
        if flags:
            raise FUSEError(errno.EINVAL)
        replaced = new.children.get(name_new)
        if replaced is not None and replaced.children:
            raise FUSEError(errno.ENOTEMPTY)
        node = new.children[name_new] = old.children.pop(name_old)
        if stat.S_ISDIR(node.entry.st_mode):
            old.entry.st_nlink -= 1
            new.entry.st_nlink += 1
        if replaced is not None:
            replaced.entry.st_nlink -= 1
            self._drop_unused(replaced)

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        """Opens a file."""
        if flags & os.O_TRUNC:
            node = self._nodes[inode]
            node.data.clear()
            node.resize()
        return FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Bytes of a file."""
        return bytes(memoryview(self._nodes[fh].data)[off : off + size])

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Changes bytes of a file."""
        node = self._nodes[fh]
        data = node.data
        if off > len(data):
            data.extend(bytes(off - len(data)))
        grows = off + len(buf) > len(data)
        data[off : off + len(buf)] = buf
        if grows:
            node.resize()
        return len(buf)

    async def release(self, fh: int) -> None:
        """Nothing is kept of an open file."""

    async def fsync(self, fh: int, datasync: bool) -> None:
        """Nothing becomes durable here."""

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        """Begins a listing."""
        self._last += 1
        self._listings[self._last] = list(self._nodes[inode].children.items())
        return self._last

    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        """The next entries."""
        listing = self._listings[fh]
        for index in range(start_id, len(listing)):
            name, node = listing[index]
            if not pyfuse3.readdir_reply(token, name, node.entry, index + 1):
                return
            node.lookups += 1

    async def releasedir(self, fh: int) -> None:
        """Ends a listing."""
        del self._listings[fh]

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Nothing becomes durable here."""

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """Numbers that look like room."""
        result = StatvfsData()
        result.f_bsize = result.f_frsize = BLOCK
        result.f_blocks = result.f_bfree = result.f_bavail = 1 << 24
        result.f_files = result.f_ffree = result.f_favail = 1 << 24
        result.f_namemax = 255
        return result


async def _serve(mountpoint: str) -> None:
    async def raise_read_ahead() -> None:
        status = await trio.to_thread.run_sync(os.stat, mountpoint, abandon_on_cancel=True)
        mounts.raise_read_ahead(status.st_dev, READ_AHEAD_KILOBYTES)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(raise_read_ahead)
        await pyfuse3.main(WORKERS_IDLE, WORKERS_MAX)


def main(mountpoint: str) -> None:
    """Serves until it is unmounted."""
    os.umask(0)
    pyfuse3.init(Floor(), mountpoint, {"fsname=floor", "subtype=floor", "default_permissions"})
    try:
        loop.install()
        gc.freeze()
        trio.run(_serve, mountpoint)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main(sys.argv[1])
