"""Inodes in memory: reading them from the inode file, changing them, allocating and freeing them.

Duty: one `Inode` object per inode number, cached; the set of changed ones, written back into their leaves when a commit
is sealed; the search for a free inode at bounded cost; checks of everything that an inode's bytes can say wrong.

Invariants:
- I6 `make_writable` shadows an inode's leaf before the inode is changed in this epoch and before any of its pointers is
  followed for writing. A clean inode equals its bytes in the leaf. What `make_writable` returned dies with the epoch.
- The status byte of a new inode, and the zeros of a freed one, are in the leaf at once: the search for a free inode reads
  the leaf. All else is written back at the seal.
- There is one object for a number. What was found stays in memory until half of the bound of others were found after it;
  a changed inode, or one with an access time that is not written yet, stays until it is written. So an operation may hold
  what it found until it ends, but nobody holds an inode of a tree that changes from one operation to the next: he asks by
  number again.

Locking: the core thread only.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from os import makedev
from typing import Final

from cowfs.errors import Corrupt, NoSpace, Stale
from cowfs.fs.attributes import NANOSECONDS, STAT_BLOCK_SIZE, Attributes, decode_device, new_attributes
from cowfs.fs.freelist import FreeList
from cowfs.ondisk import format as f
from cowfs.ondisk.codecs import STATUS_OFFSET, InodeCodec
from cowfs.ondisk.records import Buffer
from cowfs.ondisk.times import TIME_MAX, TIME_MIN, decode_time, encode_time
from cowfs.storage.blocktree import Root, WritableRoot
from cowfs.storage.tree import Tree
from cowfs.storage.volume import Volume

INODE_CACHE_MAX = 1 << 20  # clean inodes kept in memory, however much there is
INODE_BYTES: Final = 1536  # of the memory for clean metadata, for each inode kept: they may take two thirds of it
DIRTY_INODES_MAX = 512  # changed ones that an operation may find waiting: what a seal has to write back at once
INODES_MAX = f.INODE_COUNT_MAX  # inode numbers are 32 bits
NEVER: Final = -1  # an epoch that does not exist

_WITH_DATA = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)
_TYPES = frozenset({*_WITH_DATA, *_DEVICES, stat.S_IFIFO, stat.S_IFSOCK})


def clamp_time(time_ns: int) -> int:
    """The nearest time that the format can hold."""
    return time_ns if TIME_MIN <= time_ns <= TIME_MAX else min(max(time_ns, TIME_MIN), TIME_MAX)


class Inode:
    """An inode in memory. Times are nanoseconds since 1970, `birth` is seconds, `rdev` the stored device number."""

    __slots__ = (
        "atime",
        "attributes",
        "birth",
        "ctime",
        "epoch",
        "flags",
        "generation",
        "gid",
        "links",
        "mode",
        "mtime",
        "number",
        "rdev",
        "root",
        "token",
        "uid",
        "xattr_index",
        "xattr_inode",
    )

    def __init__(self, number: int, mode: int, uid: int, gid: int, now: int, root: Root) -> None:
        self.number = number
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.links = 1
        self.birth = now // NANOSECONDS & 0xFFFFFFFF
        self.mtime = self.atime = self.ctime = now
        self.flags = 0
        self.generation = 0
        self.rdev = 0
        self.xattr_inode = 0
        self.root = root
        self.epoch = NEVER  # in which it was made writable
        self.token: WritableRoot | None = None
        self.attributes: Attributes | None = None  # kept until the next change
        self.xattr_index: dict[bytes, tuple[int, int]] | None = None  # see `xattr`

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.mode & 0o170000 == stat.S_IFDIR

    @property
    def is_regular(self) -> bool:
        """Whether it is a regular file."""
        return self.mode & 0o170000 == stat.S_IFREG

    @property
    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return self.mode & 0o170000 == stat.S_IFLNK

    @property
    def is_hidden(self) -> bool:
        """Whether no name may lead to it."""
        return bool(self.flags & f.INODE_FLAG_HIDDEN)

    @property
    def has_data(self) -> bool:
        """Whether its pointers name blocks."""
        return self.mode & 0o170000 in _WITH_DATA


class InodeTable:
    """The inodes of one tree."""

    def __init__(self, volume: Volume, tree: Tree) -> None:
        geometry = volume.geometry
        self.tree = tree
        self.cached: dict[int, Inode] = {}
        self._older: dict[int, Inode] = {}  # what `cached` was before it was full and begun anew
        self._volume = volume
        self._trees = volume.trees
        self._own = not volume.foreign
        self._codec = InodeCodec(geometry.order)
        self._block_size = geometry.block_size
        self._fanout = geometry.fanout
        self._per_leaf = geometry.inodes_per_block
        self._size_max = geometry.file_size_max
        self._level_max = f.FOREIGN_LEVEL_MAX if volume.foreign else f.LEVEL_MAX
        self._dirty: dict[int, Inode] = {}
        self._late_atimes: dict[int, Inode] = {}
        self._prepared: list[int | None] = []
        self._last_leaf: tuple[int, int, Buffer] = (-1, 0, b"")  # index, `Transaction.changes` then, contents
        self.on_change: Callable[[], None] = lambda: None  # something will have to be written back
        self._closed = False
        self._full = max(1, min(INODE_CACHE_MAX, volume.cache_bytes // INODE_BYTES) // 2)  # inodes in each of the two
        if tree.num_inodes * f.INODE_SIZE > tree.inodes.size:
            raise Corrupt("inode file", wanted=f"{tree.num_inodes} inodes", found=f"{tree.inodes.size} bytes")
        leaves = tree.num_inodes // self._per_leaf
        self._free = FreeList(min(max(tree.inode_hint - 1, 0) // self._per_leaf, leaves), self._has_free)

    # --- reading ---

    def find(self, number: int) -> Inode | None:
        """Inode `number`, None where there is none or it is free. Raises Stale after `close`, Corrupt, DeviceError."""
        inode = self.cached.get(number)
        if inode is None:
            if self._closed:
                raise Stale("the tree is no more")
            inode = self.find_in_memory(number)
            if inode is None and 0 < number <= self.tree.num_inodes:
                inode = self._load(number)
            if inode is not None:
                self._keep(inode)
        return inode

    def get(self, number: int, whose: str) -> Inode:
        """Inode `number`, which something on the disk names: not to find it, or to find it hidden, is damage."""
        inode = self.find(number)
        if inode is None:
            wanted = f"1..{self.tree.num_inodes}, in use"
            raise Corrupt(f"{whose} names an inode that is not there", wanted=wanted, found=number)
        if inode.flags & f.INODE_FLAG_HIDDEN:
            raise Corrupt(f"{whose} names hidden inode {number}")
        return inode

    def get_hidden(self, number: int, whose: str) -> Inode:
        """The hidden inode `number`, which something on the disk names."""
        inode = self.find(number)
        if inode is None or not inode.is_hidden or not inode.is_regular:
            raise Corrupt(f"{whose} names inode {number}, which is not a hidden file")
        return inode

    def attributes(self, inode: Inode) -> Attributes:
        """What stat(2) tells of an inode; built once per change."""
        attributes = inode.attributes
        if attributes is None:
            root = inode.root
            size = root.size
            units = self._block_size // STAT_BLOCK_SIZE
            blocks = root.blocks * units if self._own else -(-size // STAT_BLOCK_SIZE)
            major, minor = decode_device(inode.rdev)
            # fmt: off
            attributes = inode.attributes = new_attributes((
                inode.number, inode.generation, inode.mode, inode.links, inode.uid, inode.gid,
                makedev(major, minor) if inode.rdev else 0, size, blocks,
                inode.atime, inode.mtime, inode.ctime, inode.birth * NANOSECONDS, self._block_size,
            ))
            # fmt: on
        return attributes

    def _load(self, number: int) -> Inode | None:
        index, place = divmod(number - 1, self._per_leaf)
        leaf = self.leaf(index)
        fields = self._codec.unpack_from(leaf, place * f.INODE_SIZE)
        (size, uid, gid, birth, mtime, atime, ctime, mode, links, *ptr, levels, status) = fields[:-7]
        if not (status & f.STATUS_USED if self._own else mode):
            return None
        inode = Inode(number, mode, uid, gid, 0, Root(f.KIND_FILE, size, ptr, levels))
        inode.birth = birth
        if self._own:
            flags, mtime_extra, atime_extra, ctime_extra, blocks, generation, xattr_inode = fields[-7:]
            inode.mtime = decode_time(mtime, mtime_extra)
            inode.atime = decode_time(atime, atime_extra)
            inode.ctime = decode_time(ctime, ctime_extra)
            inode.flags = flags
            inode.generation = generation
            inode.xattr_inode = xattr_inode
            inode.root.blocks = blocks
            inode.links = links
        else:
            # The tail of a foreign inode is QNX's own. Its times are unsigned, and a count of 0 was never kept.
            inode.mtime = mtime * NANOSECONDS
            inode.atime = atime * NANOSECONDS
            inode.ctime = ctime * NANOSECONDS
            inode.links = max(links, 1)
        self._verify(inode)
        return inode

    def leaf(self, index: int) -> Buffer:
        """A leaf, for reading only. Inodes are often asked for in a row, as by a listing: the last leaf is remembered."""
        tx = self._volume.tx
        changes = 0 if tx is None else tx.changes
        last, changes_then, leaf = self._last_leaf
        if last != index or changes_then != changes:
            leaf = self._trees.leaf(self.tree.inodes, index)
            self._last_leaf = index, changes, leaf
        return leaf

    def _verify(self, inode: Inode) -> None:
        """Raises Corrupt where an inode's values cannot be; makes the root of a type without data an empty one."""
        what = f"inode {inode.number}"
        root = inode.root
        kind = stat.S_IFMT(inode.mode)
        if kind not in _TYPES:
            raise Corrupt(f"{what}: type", wanted="a file type", found=f"{inode.mode:#o}")
        if kind not in _WITH_DATA:
            if self._own and kind in _DEVICES:
                inode.rdev = root.ptr[0] if root.ptr[0] != f.NO_BLOCK else 0
            inode.root = Root(f.KIND_FILE)
            return
        if root.levels > self._level_max:
            raise Corrupt(f"{what}: levels", wanted=f"<= {self._level_max}", found=root.levels)
        if root.size > self._size_max:
            raise Corrupt(f"{what}: size", wanted=f"<= {self._size_max}", found=root.size)
        if root.size > f.POINTER_COUNT * self._fanout**root.levels * self._block_size:
            raise Corrupt(f"{what}: {root.size} bytes do not fit into {root.levels} levels")
        if kind == stat.S_IFLNK and root.size > f.SYMLINK_SIZE_MAX:
            raise Corrupt(f"{what}: length of a symlink", wanted=f"<= {f.SYMLINK_SIZE_MAX}", found=root.size)

    def find_in_memory(self, number: int) -> Inode | None:
        """An inode that is in memory; of any other its leaf says all."""
        for inodes in (self.cached, self._older, self._dirty, self._late_atimes):
            inode = inodes.get(number)
            if inode is not None:
                return inode
        return None

    def held(self, numbers: Sequence[int]) -> set[int]:
        """Those of the inodes that are in memory."""
        wanted = set(numbers)
        result: set[int] = set()
        for inodes in (self.cached, self._older, self._dirty, self._late_atimes):
            if inodes:
                result |= wanted & inodes.keys()
        return result

    def _keep(self, inode: Inode) -> None:
        """Keeps an inode that was just found, and forgets those that were found longest ago once there are too many."""
        self.cached[inode.number] = inode
        if len(self.cached) >= self._full:
            self._older, self.cached = self.cached, {}

    @property
    def in_memory(self) -> int:
        """How many inodes are kept in memory, besides what waits to be written; some may count twice."""
        return len(self.cached) + len(self._older)

    def _forget(self, number: int) -> None:
        self.cached.pop(number, None)
        self._older.pop(number, None)

    def forget_clean(self) -> None:
        """Lets go of all that does not wait to be written."""
        self.cached, self._older = {}, {}

    def close(self) -> None:
        """The tree is no more: nothing is found or made writable any longer."""
        self._closed = True
        for inode in self._dirty.values():
            inode.token = None
        for inodes in (self.cached, self._older, self._dirty, self._late_atimes):
            inodes.clear()

    # --- changing ---

    def make_writable(self, inode: Inode) -> WritableRoot:
        """Must come before every change of an inode (I6); the token for its block tree, valid in this epoch.

        Raises Stale after `close`, Corrupt, DeviceError, before anything changed.
        """
        token = inode.token
        if token is None or inode.epoch != self._trees.epoch:
            if self._closed:
                raise Stale("the tree is no more")
            assert self._dirty.get(inode.number, inode) is inode, f"inode {inode.number} is changed by two"
            self._trees.prepare_leaf(self.tree.writable_inodes(), (inode.number - 1) // self._per_leaf)
            inode.epoch = self._trees.epoch
            token = inode.token = self._trees.token(inode.root)
            self.on_change()
            self._dirty[inode.number] = inode
            self._keep(inode)
        inode.attributes = None
        return token

    def is_writable(self, inode: Inode) -> bool:
        """Whether `make_writable` has nothing left to do in this epoch."""
        return inode.token is not None and inode.epoch == self._trees.epoch

    def allocate(self, mode: int, uid: int, gid: int, now: int) -> Inode:
        """A new inode in use, with link count 1; `prepare_allocation` came before, and space has been admitted."""
        index = self._take_leaf()
        leaf = self._writable_leaf(index)
        place = leaf[STATUS_OFFSET :: f.INODE_SIZE].find(f.STATUS_FREE)
        offset = place * f.INODE_SIZE
        leaf[offset + STATUS_OFFSET] = f.STATUS_IN_USE
        self.tree.free_inodes -= 1
        inode = Inode(index * self._per_leaf + place + 1, mode, uid, gid, now, Root(f.KIND_FILE))
        inode.generation = self._volume.next_generation() & 0xFFFFFFFF
        inode.epoch = self._trees.epoch
        inode.token = self._trees.token(inode.root)
        self.on_change()
        self._dirty[inode.number] = inode
        self._keep(inode)
        return inode

    def allocate_copy(self, source: Inode, root: Root, *, mode: int, links: int, xattr_inode: int = 0, now: int) -> int:
        """As `allocate`: a copy of an inode, maybe of another tree, but for what is given. It is new: so are birth and ctime.

        It is in its leaf at once, and not kept in memory: many can be made, and a seal has nothing to do with them.
        """
        index = self._take_leaf()
        leaf = self._writable_leaf(index)
        place = leaf[STATUS_OFFSET :: f.INODE_SIZE].find(f.STATUS_FREE)
        inode = Inode(index * self._per_leaf + place + 1, mode, source.uid, source.gid, now, root)
        inode.atime, inode.mtime = source.atime, source.mtime
        inode.flags, inode.rdev = source.flags, source.rdev
        inode.links, inode.xattr_inode = links, xattr_inode
        inode.generation = self._volume.next_generation() & 0xFFFFFFFF
        self.on_change()
        self._store(inode, leaf, place * f.INODE_SIZE)
        self.tree.free_inodes -= 1
        return inode.number

    def add_link(self, number: int) -> None:
        """Gives an inode one more link; in its leaf at once where it is not in memory."""
        inode = self.find_in_memory(number)
        if inode is not None:
            self.make_writable(inode)
            inode.links += 1
            return
        index, place = divmod(number - 1, self._per_leaf)
        leaf = self._writable_leaf(index)
        inode = self._load(number)
        if inode is None:
            raise Corrupt("a copied inode is not there", wanted="in use", found=number)
        inode.links += 1
        self._store(inode, leaf, place * f.INODE_SIZE)

    def release(self, inode: Inode) -> None:
        """Makes a writable inode, whose blocks were let go before, a free one."""
        index, place = divmod(inode.number - 1, self._per_leaf)
        leaf = self._writable_leaf(index)
        offset = place * f.INODE_SIZE
        leaf[offset : offset + f.INODE_SIZE] = f.FREE_INODE_BYTES
        self.tree.free_inodes += 1
        self._free.add(index)
        del self._dirty[inode.number]
        self._late_atimes.pop(inode.number, None)
        self._forget(inode.number)

    def set_atime_late(self, inode: Inode, now: int) -> int:
        """Moves an access time in memory only; returns how many such are waiting to be written."""
        inode.atime = now
        inode.attributes = None
        if inode.number not in self._dirty:
            self._late_atimes[inode.number] = inode
            self._keep(inode)
        return len(self._late_atimes)

    @property
    def late_atime_leaves(self) -> int:
        """How many leaves writing the waiting access times would change."""
        return len({(number - 1) // self._per_leaf for number in self._late_atimes})

    def write_late_atimes(self) -> None:
        """Makes the inodes with waiting access times ordinary changed ones; space has been admitted."""
        for inode in list(self._late_atimes.values()):
            self.make_writable(inode)
        self._late_atimes.clear()

    @property
    def has_changes(self) -> bool:
        """Whether inodes were changed that are not written back yet."""
        return bool(self._dirty)

    def forget_late_atimes(self) -> None:
        """Gives waiting access times up: there is no room to write them."""
        for inode in self._late_atimes.values():
            self._forget(inode.number)
        self._late_atimes.clear()

    @property
    def crowded(self) -> bool:
        """Whether so many changed inodes wait to be written back that a seal would take long."""
        return len(self._dirty) > DIRTY_INODES_MAX

    def write_back(self) -> None:
        """Puts every changed inode into its leaf, and with it the late access times of its neighbours."""
        self._trees.settle()  # what is written back names the places of all data (I46)
        leaves: dict[int, list[Inode]] = {}
        for number, inode in self._dirty.items():
            leaves.setdefault((number - 1) // self._per_leaf, []).append(inode)
            self._late_atimes.pop(number, None)
        for number, inode in list(self._late_atimes.items()):
            neighbours = leaves.get((number - 1) // self._per_leaf)
            if neighbours is not None:
                neighbours.append(inode)
                del self._late_atimes[number]
        for index in sorted(leaves):
            leaf = self._writable_leaf(index)
            for inode in leaves[index]:
                self._store(inode, leaf, (inode.number - 1) % self._per_leaf * f.INODE_SIZE)
                inode.epoch = NEVER
                inode.token = None
        self._dirty.clear()
        self.tree.inode_hint = self._free.hint * self._per_leaf + 1

    def _store(self, inode: Inode, leaf: bytearray, offset: int) -> None:
        root = inode.root
        ptr = root.ptr
        if inode.mode & 0o170000 in _DEVICES:
            ptr = [inode.rdev, *ptr[1:]]
        mtime, mtime_extra = encode_time(inode.mtime)
        atime, atime_extra = encode_time(inode.atime)
        ctime, ctime_extra = encode_time(inode.ctime)
        self._codec.pack_into(
            leaf,
            offset,
            root.size,
            inode.uid,
            inode.gid,
            inode.birth,
            mtime,
            atime,
            ctime,
            inode.mode,
            inode.links,
            *ptr,
            root.levels,
            f.STATUS_IN_USE,
            inode.flags,
            mtime_extra,
            atime_extra,
            ctime_extra,
            root.blocks,
            inode.generation,
            inode.xattr_inode,
        )

    # --- the inode file ---

    def _writable_leaf(self, index: int) -> bytearray:
        return self._trees.writable_leaf(self.tree.writable_inodes(), index)

    def _has_free(self, index: int) -> bool:
        leaf = self._trees.leaf(self.tree.inodes, index)
        return f.STATUS_FREE in leaf[STATUS_OFFSET :: f.INODE_SIZE]

    def prepare_allocation(self, count: int = 1) -> None:
        """Does all that can fail of `count` (1 or 2) calls of `allocate`, before anything changes.

        Raises NoSpace, Corrupt, DeviceError.
        """
        self._prepared = []
        first = self._find_leaf(0)
        if count == 1:
            self._prepared = [first]
        elif first is None:
            self._prepared = [None, self.tree.num_inodes // self._per_leaf]  # the one that the first adds
        elif self._count_free(first) >= count:
            self._prepared = [first, first]
        else:
            with self._free.set_aside(first):
                self._prepared = [first, self._find_leaf(1)]

    def _find_leaf(self, taken: int) -> int | None:
        """A leaf with a free inode, besides `taken` ones; None where the file must grow."""
        tree = self.tree
        leaves = tree.num_inodes // self._per_leaf
        if tree.free_inodes > taken:
            found = self._free.find(leaves)
            if found is None and not self._can_grow:
                found = self._free.find(leaves, leaves)
                if found is None:
                    raise Corrupt("free inodes", wanted=tree.free_inodes, found=taken)
            return found
        if not self._can_grow:
            raise NoSpace("no free inode")
        if not taken:
            self._free.none_free(leaves)
        return None

    def _count_free(self, index: int) -> int:
        leaf = self._trees.leaf(self.tree.inodes, index)
        return bytes(leaf[STATUS_OFFSET :: f.INODE_SIZE]).count(f.STATUS_FREE)

    def _take_leaf(self) -> int:
        """The next leaf that `prepare_allocation` found; the file grows where its bounded search found none."""
        index = self._prepared.pop(0) if self._prepared else None
        if index is None:
            tree = self.tree
            index = tree.num_inodes // self._per_leaf
            self._trees.resize(tree.writable_inodes(), (index + 1) * self._block_size)
            tree.num_inodes = (index + 1) * self._per_leaf
            tree.free_inodes += self._per_leaf
            self._free.add(index)
        return index

    @property
    def _can_grow(self) -> bool:
        size = (self.tree.num_inodes // self._per_leaf + 1) * self._block_size
        return size <= min(self._size_max, INODES_MAX * f.INODE_SIZE)
