"""A filesystem made of dictionaries: what cowfs must be indistinguishable from. Slow, simple, and wrong in no way we know.

Its operations take what those of `cowfs.fs.Filesystem` take, and raise `Fail` with the errno that is due. An operation that
makes an inode is told the number that it gets (`ino`), and every operation uses the time `now`.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

from cowfs.fs import RENAME_EXCHANGE, RENAME_NOREPLACE, XATTR_CREATE, XATTR_REPLACE, Attributes, Caller

ROOT = 1
SECOND = 1_000_000_000
NAME_MAX = 510
LINK_MAX = 65535
SYMLINK_MAX = 4095
NODE_TYPES = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
TIME_MIN = -(1 << 31) * SECOND
TIME_MAX = ((3 << 32) + (1 << 31)) * SECOND - 1


class Fail(Exception):
    """The operation is refused with this errno."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode[number])
        self.errno = number


@dataclass
class Node:
    """An inode. `pages` are the blocks of a file that are not holes; `entries` the names in a directory."""

    ino: int
    mode: int
    uid: int
    gid: int
    links: int
    atime: int
    mtime: int
    ctime: int
    birth: int
    rdev: int = 0
    size: int = 0
    parent: int = 0
    target: bytes = b""
    pages: dict[int, bytes] = field(default_factory=dict)
    entries: dict[bytes, int] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    atimes: set[int] = field(default_factory=set)  # that may be on the disk, since access times are written late

    def copy(self) -> Node:
        return Node(
            **{
                **self.__dict__,
                "pages": dict(self.pages),
                "entries": dict(self.entries),
                "xattrs": dict(self.xattrs),
                "atimes": set(self.atimes),
            }
        )

    @property
    def kind(self) -> int:
        return stat.S_IFMT(self.mode)

    @property
    def is_directory(self) -> bool:
        return self.kind == stat.S_IFDIR


class Model:
    """The whole filesystem."""

    def __init__(self, block_size: int, size_max: int, now: int) -> None:
        self.block_size = block_size
        self.size_max = size_max
        self.now = now
        self.users: dict[int, int] = {}
        root = Node(ROOT, stat.S_IFDIR | 0o755, 0, 0, 2, now, now, now, now // SECOND, parent=ROOT, atimes={now})
        self.nodes = {ROOT: root}

    def copy(self) -> Model:
        """The state, without users, as it would be found on the disk."""
        other = Model(self.block_size, self.size_max, self.now)
        other.nodes = {ino: node.copy() for ino, node in self.nodes.items()}
        return other

    def forget_users(self) -> None:
        """A mount: nobody has anything open, so that what no name leads to is gone."""
        self.users = {}
        self.nodes = {ino: node for ino, node in self.nodes.items() if node.links}

    # --- what operations begin with ---

    def node(self, ino: int) -> Node:
        if ino not in self.nodes:
            raise Fail(errno.ESTALE)
        return self.nodes[ino]

    def directory(self, ino: int) -> Node:
        node = self.node(ino)
        if not node.is_directory:
            raise Fail(errno.ENOTDIR)
        return node

    def changing(self, ino: int) -> Node:
        node = self.directory(ino)
        if not node.links:
            raise Fail(errno.ENOENT)
        return node

    def regular(self, ino: int) -> Node:
        node = self.node(ino)
        if node.is_directory:
            raise Fail(errno.EISDIR)
        if node.kind != stat.S_IFREG:
            raise Fail(errno.EINVAL)
        return node

    def find(self, where: Node, name: bytes) -> Node | None:
        if name == b".":
            return where
        if name == b"..":
            return self.nodes.get(where.parent)
        ino = where.entries.get(name)
        return None if ino is None else self.nodes[ino]

    def check_name(self, name: bytes) -> None:
        if not name:
            raise Fail(errno.ENOENT)
        if len(name) > NAME_MAX:
            raise Fail(errno.ENAMETOOLONG)
        if b"/" in name or b"\0" in name:
            raise Fail(errno.EINVAL)

    def check_new(self, where: Node, name: bytes) -> None:
        self.check_name(name)
        if self.find(where, name) is not None:
            raise Fail(errno.EEXIST)

    # --- names ---

    def lookup(self, parent: int, name: bytes) -> Node:
        where = self.directory(parent)
        if len(name) > NAME_MAX:
            raise Fail(errno.ENAMETOOLONG)
        found = self.find(where, name) if name else None
        if found is None or (not where.links and name == b".."):
            raise Fail(errno.ENOENT)
        return found

    def new(self, where: Node, name: bytes, mode: int, caller: Caller, ino: int) -> Node:
        gid = where.gid if where.mode & stat.S_ISGID else caller.gid
        now = self.now
        node = Node(ino, mode, caller.uid, gid, 1, now, now, now, now // SECOND, atimes={now})
        assert ino not in self.nodes, f"inode {ino} is in use"
        self.nodes[ino] = node
        where.entries[name] = ino
        where.mtime = where.ctime = now
        return node

    def create(self, parent: int, name: bytes, mode: int, caller: Caller, *, rdev: int = 0, ino: int = 0) -> Node:
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        if kind not in NODE_TYPES:
            raise Fail(errno.EINVAL)
        where = self.changing(parent)
        self.check_new(where, name)
        node = self.new(where, name, kind | (mode & 0o7777 & ~caller.umask), caller, ino)
        node.rdev = rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
        return node

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller, *, ino: int = 0) -> Node:
        where = self.changing(parent)
        self.check_new(where, name)
        if where.links >= LINK_MAX:
            raise Fail(errno.EMLINK)
        mode = stat.S_IFDIR | (mode & 0o7777 & ~caller.umask) | (where.mode & stat.S_ISGID)
        node = self.new(where, name, mode, caller, ino)
        node.links = 2
        node.parent = parent
        where.links += 1
        return node

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller, *, ino: int = 0) -> Node:
        if not target:
            raise Fail(errno.ENOENT)
        if len(target) > SYMLINK_MAX:
            raise Fail(errno.ENAMETOOLONG)
        if b"\0" in target:
            raise Fail(errno.EINVAL)
        where = self.changing(parent)
        self.check_new(where, name)
        node = self.new(where, name, stat.S_IFLNK | 0o777, caller, ino)
        node.target = target
        return node

    def link(self, ino: int, parent: int, name: bytes) -> Node:
        where = self.changing(parent)
        node = self.node(ino)
        self.check_new(where, name)
        if node.is_directory:
            raise Fail(errno.EPERM)
        if not node.links:
            raise Fail(errno.ENOENT)
        if node.links >= LINK_MAX:
            raise Fail(errno.EMLINK)
        where.entries[name] = ino
        node.links += 1
        node.ctime = where.mtime = where.ctime = self.now
        return node

    def clone_file(
        self,
        source: object,
        number: int,
        parent: int,
        name: bytes,
        *,
        keep_privileges: bool = True,
        ino: int = 0,
    ) -> Node:
        """A copy of an inode of the same tree."""
        node = self.node(number)
        if node.is_directory:
            raise Fail(errno.EISDIR)
        where = self.changing(parent)
        self.check_new(where, name)
        copy = self.copy_node(node, ino, node.atime)
        if stat.S_ISREG(node.mode) and not keep_privileges:
            self.kill_privileges(copy)
            copy.xattrs.pop(b"security.capability", None)
        where.entries[name] = ino
        where.mtime = where.ctime = self.now
        return copy

    def copy_node(self, node: Node, ino: int, atime: int) -> Node:
        """A new inode that is like another, but for what is new of every inode."""
        assert ino not in self.nodes, f"inode {ino} is in use"
        copy = self.nodes[ino] = node.copy()
        copy.ino, copy.links, copy.ctime, copy.birth = ino, 1, self.now, self.now // SECOND
        copy.atime, copy.atimes = atime, {atime}
        return copy

    def clone_tree(
        self, number: int, parent: int, name: bytes, copies: Callable[[int, bytes], tuple[int, int]]
    ) -> None:
        """A copy of a directory. `copies` tells inode number and access time of what is in a directory of the real copy."""
        pending = [(self.nodes[number].copy(), parent, name)]
        before = {ino: node.copy() for ino, node in self.nodes.items()}
        known: dict[int, Node] = {}
        while pending:
            node, above, entry = pending.pop()
            ino, atime = copies(above, entry)
            where = self.nodes[above]
            where.entries[entry] = ino
            if node.ino in known:
                assert known[node.ino].ino == ino, "a hard link became a file of its own"
                known[node.ino].links += 1
                continue
            assert atime in node.atimes | {node.atime}
            copy = self.copy_node(node, ino, atime)
            if node.is_directory:
                where.links += 1
                copy.links, copy.entries, copy.parent = 2, {}, above
                pending += [(before[child], ino, below) for below, child in node.entries.items()]
            else:
                known[node.ino] = copy
        where = self.nodes[parent]
        where.mtime = where.ctime = self.now

    def unlink(self, parent: int, name: bytes) -> None:
        where = self.changing(parent)
        if name in (b".", b".."):
            raise Fail(errno.EISDIR)
        self.check_name(name)
        node = self.find(where, name)
        if node is None:
            raise Fail(errno.ENOENT)
        if node.is_directory:
            raise Fail(errno.EISDIR)
        self.remove_entry(where, name)
        self.drop(node)

    def rmdir(self, parent: int, name: bytes) -> None:
        where = self.changing(parent)
        if name == b".":
            raise Fail(errno.EINVAL)
        if name == b"..":
            raise Fail(errno.ENOTEMPTY)
        self.check_name(name)
        node = self.find(where, name)
        if node is None:
            raise Fail(errno.ENOENT)
        self.check_removable(node)
        self.remove_entry(where, name)
        where.links -= 1
        self.drop(node)

    def check_removable(self, node: Node) -> None:
        if not node.is_directory:
            raise Fail(errno.ENOTDIR)
        if node.entries:
            raise Fail(errno.ENOTEMPTY)

    def remove_entry(self, where: Node, name: bytes) -> None:
        del where.entries[name]
        where.mtime = where.ctime = self.now

    def drop(self, node: Node) -> None:
        node.ctime = self.now
        node.links = 0 if node.is_directory else node.links - 1
        if not node.links and node.ino not in self.users:
            del self.nodes[node.ino]

    def lies_in(self, node: Node, ancestor: Node) -> bool:
        while node is not ancestor and node.ino != ROOT:
            node = self.nodes[node.parent]
        return node is ancestor

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise Fail(errno.EINVAL)
        old, new = self.changing(parent), self.changing(new_parent)
        if {name, new_name} & {b".", b".."}:
            raise Fail(errno.EBUSY)
        self.check_name(name)
        self.check_name(new_name)
        moved, target = self.find(old, name), self.find(new, new_name)
        if moved is None:
            raise Fail(errno.ENOENT)
        if target is not None and flags == RENAME_NOREPLACE:
            raise Fail(errno.EEXIST)
        if target is None and flags == RENAME_EXCHANGE:
            raise Fail(errno.ENOENT)
        if old is not new and moved.is_directory and self.lies_in(new, moved):
            raise Fail(errno.EINVAL)
        if old is not new and target is not None and target.is_directory and self.lies_in(old, target):
            raise Fail(errno.EINVAL if flags == RENAME_EXCHANGE else errno.ENOTEMPTY)
        if target is moved:
            return
        if flags == RENAME_EXCHANGE:
            assert target is not None
            self.exchange(old, name, moved, new, new_name, target)
            return
        if target is not None:
            if moved.is_directory:
                self.check_removable(target)
            elif target.is_directory:
                raise Fail(errno.EISDIR)
        if moved.is_directory and old is not new and target is None and new.links >= LINK_MAX:
            raise Fail(errno.EMLINK)
        del old.entries[name]
        new.entries[new_name] = moved.ino
        if moved.is_directory:
            old.links -= 1
            new.links += 1
            moved.parent = new.ino
        for node in (old, new):
            node.mtime = node.ctime = self.now
        moved.ctime = self.now
        if target is not None:
            new.links -= target.is_directory
            self.drop(target)

    def exchange(self, old: Node, name: bytes, moved: Node, new: Node, new_name: bytes, target: Node) -> None:
        growth = moved.is_directory - target.is_directory
        if old is not new:
            if (growth > 0 and new.links >= LINK_MAX) or (growth < 0 and old.links >= LINK_MAX):
                raise Fail(errno.EMLINK)
            new.links += growth
            old.links -= growth
        old.entries[name] = target.ino
        new.entries[new_name] = moved.ino
        moved.parent = new.ino if moved.is_directory else 0
        target.parent = old.ino if target.is_directory else 0
        for node in (old, new):
            node.mtime = node.ctime = self.now
        moved.ctime = target.ctime = self.now

    def listing(self, ino: int) -> dict[bytes, int]:
        node = self.directory(ino)
        return {b".": ino, b"..": node.parent, **node.entries} if node.links else {}

    # --- inodes ---

    def getattr(self, ino: int) -> Node:
        return self.node(ino)

    def read(self, ino: int, offset: int, size: int) -> bytes:
        node = self.regular(ino)
        end = min(offset + size, node.size)
        block = self.block_size
        pieces = []
        while offset < end:
            index, at = divmod(offset, block)
            take = min(block - at, end - offset)
            pieces.append(node.pages.get(index, bytes(block))[at : at + take])
            offset += take
        return b"".join(pieces)

    def write(self, ino: int, offset: int, data: bytes, *, kill_privileges: bool = True) -> int:
        node = self.regular(ino)
        if offset < 0:
            raise Fail(errno.EINVAL)
        if not data:
            return 0
        if offset >= self.size_max:
            raise Fail(errno.EFBIG)
        data = data[: self.size_max - offset]
        block = self.block_size
        at = 0
        while at < len(data):
            index, start = divmod(offset + at, block)
            take = min(block - start, len(data) - at)
            page = bytearray(node.pages.get(index, bytes(block)))
            page[start : start + take] = data[at : at + take]
            node.pages[index] = bytes(page)
            at += take
        node.size = max(node.size, offset + len(data))
        node.mtime = node.ctime = self.now
        if kill_privileges:
            self.kill_privileges(node)
        return len(data)

    def truncate(self, ino: int, size: int, *, kill_privileges: bool = True) -> Node:
        node = self.regular(ino)
        if size < 0:
            raise Fail(errno.EINVAL)
        if size > self.size_max:
            raise Fail(errno.EFBIG)
        keep, tail = divmod(size, self.block_size)
        for index in [index for index in node.pages if index >= keep]:
            page = node.pages.pop(index)
            if index == keep and tail:
                node.pages[index] = page[:tail].ljust(self.block_size, b"\0") if size < node.size else page
        node.size = size
        node.mtime = node.ctime = self.now
        if kill_privileges:
            self.kill_privileges(node)
        return node

    def kill_privileges(self, node: Node) -> None:
        node.mode &= ~stat.S_ISUID
        if node.mode & stat.S_IXGRP:
            node.mode &= ~stat.S_ISGID

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
    ) -> Node:
        node = self.node(ino)
        if size is not None:
            self.truncate(ino, size, kill_privileges=caller is None or caller.uid != 0)
        if mode is not None:
            node.mode = node.kind | (mode & 0o7777)
        if uid is not None:
            node.uid = uid
        if gid is not None:
            node.gid = gid
        if (uid is not None or gid is not None) and mode is None and not node.is_directory:
            self.kill_privileges(node)
        if atime_ns is not None:
            node.atime = clamp(atime_ns)
            node.atimes = {node.atime}
        if mtime_ns is not None:
            node.mtime = clamp(mtime_ns)
        node.ctime = self.now if ctime_ns is None else clamp(ctime_ns)
        return node

    def touch_atime(self, ino: int) -> None:
        node = self.node(ino)
        fresh = node.mtime < node.atime and node.ctime < node.atime
        if not fresh or self.now - node.atime >= 24 * 3600 * SECOND:
            node.atime = self.now
            node.atimes.add(self.now)

    def readlink(self, ino: int) -> bytes:
        node = self.node(ino)
        if node.kind != stat.S_IFLNK:
            raise Fail(errno.EINVAL)
        return node.target

    # --- extended attributes ---

    def check_xattr(self, node: Node, name: bytes, *, reading: bool) -> None:
        if not 0 < len(name) <= 255:
            raise Fail(errno.ERANGE)
        namespace = next((n for n in (b"user.", b"trusted.", b"security.", b"system.") if name.startswith(n)), None)
        if namespace is None:
            raise Fail(errno.EOPNOTSUPP)
        if name == namespace or b"\0" in name:
            raise Fail(errno.EINVAL)
        if namespace == b"user." and node.kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise Fail(errno.ENODATA if reading else errno.EPERM)

    def getxattr(self, ino: int, name: bytes) -> bytes:
        node = self.node(ino)
        self.check_xattr(node, name, reading=True)
        if name not in node.xattrs:
            raise Fail(errno.ENODATA)
        return node.xattrs[name]

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        node = self.node(ino)
        self.check_xattr(node, name, reading=False)
        if flags & ~(XATTR_CREATE | XATTR_REPLACE):
            raise Fail(errno.EINVAL)
        if len(value) > 65536:
            raise Fail(errno.E2BIG)
        if flags & XATTR_CREATE and name in node.xattrs:
            raise Fail(errno.EEXIST)
        if flags & XATTR_REPLACE and name not in node.xattrs:
            raise Fail(errno.ENODATA)
        node.xattrs[name] = value
        node.ctime = self.now

    def removexattr(self, ino: int, name: bytes) -> None:
        node = self.node(ino)
        self.check_xattr(node, name, reading=False)
        if name not in node.xattrs:
            raise Fail(errno.ENODATA)
        del node.xattrs[name]
        node.ctime = self.now

    def listxattr(self, ino: int) -> list[bytes]:
        return list(self.node(ino).xattrs)

    # --- users ---

    def hold(self, ino: int, count: int = 1) -> None:
        self.users[ino] = self.users.get(ino, 0) + count

    def unhold(self, ino: int, count: int = 1) -> None:
        self.users[ino] -= count
        if not self.users[ino]:
            del self.users[ino]
            if ino in self.nodes and not self.nodes[ino].links:
                del self.nodes[ino]

    # --- comparing ---

    def attributes(self, node: Node, generation: int) -> Attributes:
        """What stat must tell of a node; the generation is not modelled."""
        size, blocks = node.size, len(node.pages)
        if node.is_directory:
            blocks = -(-(len(node.entries) + 2) * 32 // self.block_size)
            size = blocks * self.block_size
        elif node.target:
            size = len(node.target)
            blocks = -(-size // self.block_size)
        return Attributes(
            ino=node.ino,
            generation=generation,
            mode=node.mode,
            links=node.links,
            uid=node.uid,
            gid=node.gid,
            rdev=node.rdev,
            size=size,
            blocks=blocks * (self.block_size // 512),
            atime_ns=node.atime,
            mtime_ns=node.mtime,
            ctime_ns=node.ctime,
            birth_ns=node.birth * SECOND,
            block_size=self.block_size,
        )


def clamp(time_ns: int) -> int:
    """The nearest time that the format can hold."""
    return min(max(time_ns, TIME_MIN), TIME_MAX)
