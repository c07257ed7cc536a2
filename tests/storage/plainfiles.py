"""Files without names on a volume, with a model of their contents: what the storage room does, without the room above.

Every file is an orphan (link count 0, on the orphan list), so that the checker accepts the volume. Files are made to share
their blocks by hand: roots are copied and their top pointers gain a parent. Trees that share the inode file are snapshots
that can be written.
"""

from __future__ import annotations

import random
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from walker import newest_state, problems

from cowfs.check import check_image
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import geometry_for_size, pointers_from, pointers_to
from cowfs.ondisk.records import Buffer
from cowfs.storage.blocktree import Root, WritableRoot
from cowfs.storage.device import MemoryDevice
from cowfs.storage.forest import TREE_COST
from cowfs.storage.mkvolume import make_volume
from cowfs.storage.tree import Tree
from cowfs.storage.volume import Tier, Volume

MIB = 1 << 20
BLOCK_SIZES = (512, 1024, 2048, 4096)
OPERATION_BLOCKS = 24  # tree copies of one operation here


def new_device(size: int = 4 * MIB, block_size: int = 4096) -> MemoryDevice:
    """A freshly formatted volume in memory."""
    device = MemoryDevice(size)
    make_volume(device, geometry_for_size(size, block_size), label=b"", uuid=bytes(range(16)), now_ns=10**18)
    return device


class Contents:
    """The model of a file: a size and the pieces that are not zeros."""

    PIECE = 512

    def __init__(self) -> None:
        self.size = 0
        self._pieces: dict[int, bytes] = {}

    def copy(self) -> Contents:
        other = Contents()
        other.size, other._pieces = self.size, dict(self._pieces)
        return other

    def write(self, offset: int, data: bytes) -> None:
        self.size = max(self.size, offset + len(data))
        done = 0
        while done < len(data):
            number, at = divmod(offset + done, self.PIECE)
            part = data[done : done + self.PIECE - at]
            old = self._pieces.get(number, bytes(self.PIECE)) if len(part) < self.PIECE else b""
            self._pieces[number] = old[:at] + part + old[at + len(part) :]
            done += len(part)

    def resize(self, size: int) -> None:
        if size < self.size:
            for number in [number for number in self._pieces if (number + 1) * self.PIECE > size]:
                keep = max(0, size - number * self.PIECE)
                if keep:
                    self._pieces[number] = self._pieces[number][:keep].ljust(self.PIECE, b"\0")
                else:
                    del self._pieces[number]
        self.size = size

    def read(self, offset: int, size: int) -> bytes:
        size = max(0, min(size, self.size - offset))
        first = offset // self.PIECE
        last = (offset + size + self.PIECE - 1) // self.PIECE
        raw = b"".join(self._pieces.get(number, bytes(self.PIECE)) for number in range(first, last))
        start = offset - first * self.PIECE
        return raw[start : start + size]

    def places(self) -> list[int]:
        """Offsets of the pieces that are there."""
        return [number * self.PIECE for number in sorted(self._pieces)]


class FileTree:
    """One inode file, of the live tree or of a clone; and the models of the files in it."""

    def __init__(self, tree: Tree, place: int = -1) -> None:
        self.tree = tree
        self.place = place  # in the snapshot table
        self.files: dict[int, Contents] = {}


class PlainFiles:
    """The files of a volume. Everything is stored at once in the blocks of the open generation, nothing is cached."""

    def __init__(self, volume: Volume, *, inode_leaves: int = 1) -> None:
        """`inode_leaves` makes the inode file larger (by holes), and so its tree deeper."""
        self.volume = volume
        self.trees = volume.trees
        self.block_size = volume.geometry.block_size
        self.per_leaf = self.block_size // f.INODE_SIZE
        self.live = FileTree(volume.live)
        self.all: dict[int, FileTree] = {0: self.live}
        more = inode_leaves - volume.live.num_inodes // self.per_leaf
        if inode_leaves > 1 and more > 0:
            self._grow(volume.live, more)

    @classmethod
    def make(cls, size: int = 4 * MIB, block_size: int = 4096, *, inode_leaves: int = 1) -> PlainFiles:
        return cls(Volume.open(new_device(size, block_size)), inode_leaves=inode_leaves)

    def reopened(self, device: MemoryDevice | None = None) -> PlainFiles:
        """The same files on the volume opened again."""
        other = PlainFiles(Volume.open(device or self.volume.device))
        for number, where in self.all.items():
            if number:
                other.all[number] = FileTree(other.volume.forest.open(where.place), where.place)
            other.all[number].files = where.files
        return other

    # --- operations ---

    def create(self, tree: int = 0, number: int | None = None) -> int:
        """A new empty file; `number` says which inode, which must be free."""
        where = self.all[tree]
        with self._operation(OPERATION_BLOCKS):
            number = number or self._free_number(where)
            inode = f.DiskInode(mode=stat.S_IFREG | 0o600, status=f.STATUS_IN_USE, links=0, generation=number)
            self._store_inode(where, number, inode)
            where.tree.free_inodes -= 1
            self._list_orphan(tree, number, present=True)
        where.files[number] = Contents()
        return number

    @contextmanager
    def _operation(self, blocks: int, tier: Tier = Tier.WRITE) -> Iterator[None]:
        self.volume.check_writable()
        with self.volume.operation():
            self.volume.admit(blocks, tier)
            yield

    @contextmanager
    def change(self, number: int, tree: int = 0) -> Iterator[WritableRoot]:
        """The writable root of a file; strictly top down: its inode's leaf first."""
        where = self.all[tree]
        self._leaf_for_write(where, number)
        inode = self.inode(number, tree)
        root = Root(f.KIND_FILE, inode.size, list(inode.ptr), inode.levels, inode.blocks)
        token = self.volume.token(root)
        yield token
        inode.size, inode.ptr, inode.levels, inode.blocks = root.size, tuple(root.ptr), root.levels, root.blocks
        self._store_inode(where, number, inode)

    def write(self, number: int, offset: int, data: bytes, tree: int = 0) -> None:
        blocks = len(data) // self.block_size
        with self._operation(blocks + blocks // 64 + OPERATION_BLOCKS), self.change(number, tree) as token:
            self.trees.write(token, offset, data)
        self.all[tree].files[number].write(offset, data)

    def resize(self, number: int, size: int, tree: int = 0) -> None:
        tier = Tier.WRITE if size > self.all[tree].files[number].size else Tier.REMOVE
        with self._operation(OPERATION_BLOCKS, tier), self.change(number, tree) as token:
            self.trees.resize(token, size)
        self.all[tree].files[number].resize(size)

    def remove(self, number: int, tree: int = 0) -> None:
        where = self.all[tree]
        with self._operation(OPERATION_BLOCKS, Tier.REMOVE):
            self._list_orphan(tree, number, present=False)
            with self.change(number, tree) as token:
                self.trees.drop_all(token)
            leaf = self._leaf_for_write(where, number)
            at = self._place(number)
            leaf[at : at + f.INODE_SIZE] = f.FREE_INODE_BYTES
            where.tree.free_inodes += 1
        del where.files[number]

    def clone(self, number: int, tree: int = 0) -> int:
        """Another file of the same tree with the same blocks."""
        assert self.volume.tx is not None
        where = self.all[tree]
        other = self.create(tree)
        self._leaf_for_write(where, number)  # no count is changed before every ancestor is writable (I6)
        inode = self.inode(number, tree)
        self.volume.tx.add_parents([(p, f.KIND_FILE, inode.levels) for p in inode.ptr if not self.trees.is_hole(p)])
        copy = self.inode(other, tree)
        copy.size, copy.ptr, copy.levels, copy.blocks = inode.size, inode.ptr, inode.levels, inode.blocks
        self._store_inode(where, other, copy)
        self.trees.epoch += 1
        where.files[other] = where.files[number].copy()
        return other

    def snapshot(self, tree: int = 0) -> int:
        """A tree that shares everything with this one, and can be written."""
        self.volume.admit(self.volume.forest.take_cost)
        name = b"s%d" % (max(self.all) + 1)
        origin = self.all[tree]
        place, record = self.volume.forest.take(
            name, b"", flags=f.SNAPSHOT_WRITABLE, source=origin.tree, created=10**18
        )
        new = self.all[record.id] = FileTree(self.volume.forest.open(place), place)
        new.files = {number: contents.copy() for number, contents in origin.files.items()}
        return record.id

    def drop_tree(self, tree: int) -> None:
        """Deletes a snapshot."""
        self.volume.admit(TREE_COST, Tier.SYSTEM)
        self.volume.forest.drop(self.all.pop(tree).place)

    # --- looking ---

    def inode(self, number: int, tree: int = 0) -> f.DiskInode:
        return f.DiskInode.unpack(self._leaf(self.all[tree], number), self._place(number))

    def root(self, number: int, tree: int = 0) -> Root:
        """The root of a file, for reading."""
        inode = self.inode(number, tree)
        return Root(f.KIND_FILE, inode.size, list(inode.ptr), inode.levels, inode.blocks)

    def read(self, number: int, offset: int, size: int, tree: int = 0) -> bytes:
        return self.trees.read(self.root(number, tree), offset, size)

    def verify(self) -> None:
        """Compares every file of every tree with its model."""
        for tree, where in self.all.items():
            for number, contents in where.files.items():
                root = self.root(number, tree)
                assert root.size == contents.size
                places = contents.places()
                at = 0
                while at < len(places):
                    end = at + 1
                    while end < len(places) and places[end] == places[end - 1] + contents.PIECE:
                        end += 1
                    size = (end - at) * contents.PIECE
                    found, wanted = self.trees.read(root, places[at], size), contents.read(places[at], size)
                    assert found == wanted, f"tree {tree}, file {number}, at {places[at]}"
                    at = end
                for offset in (0, contents.size // 2, contents.size - 700):
                    found, wanted = self.trees.read(root, max(offset, 0), 600), contents.read(max(offset, 0), 600)
                    assert found == wanted, f"tree {tree}, file {number}, at {offset}"
                self._verify_form(root)

    def _verify_form(self, root: Root) -> None:
        """I9 and I10 on raw pointers; and the count of blocks."""
        leaves = -(-root.size // self.block_size)
        zero, span = self.volume.zero_blocks, (self.block_size // 4) ** root.levels
        blocks = 0

        def below(pointers: list[int], level: int, first: int) -> None:
            nonlocal blocks
            width = (self.block_size // 4) ** level
            for i, pointer in enumerate(pointers):
                index = first + i * width
                if index >= leaves:
                    assert pointer == f.NO_BLOCK, f"a pointer behind the end, level {level}"
                elif pointer == zero[level]:
                    assert index + width <= leaves, f"the end lies in a hole of level {level}"
                else:
                    assert pointer != f.NO_BLOCK, "~0 below the end"
                    assert pointer not in zero, "a zero block at a level that is not its own"
                    if level:
                        words = pointers_from(self.trees.store.read(pointer), "<").tolist()
                        below(words, level - 1, index)
                    else:
                        blocks += 1

        assert leaves <= 16 * span
        below(root.ptr, root.levels, 0)
        assert blocks == root.blocks
        tail = root.size % self.block_size
        pointer = self.trees.pointer(root, leaves - 1) if tail else f.NO_BLOCK
        if pointer != f.NO_BLOCK:
            assert not any(self.trees.store.read_run(pointer, 1)[tail:]), "bytes behind the end"

    def check(self) -> None:
        """Commits, compares everything, and lets both checkers count."""
        self.volume.commit()
        self.verify()
        state = newest_state(self.volume.device, self.volume.geometry)
        assert problems(self.volume.device, state) == []
        check_image(self.volume.device)

    def close(self) -> None:
        """A clean end, and the check."""
        self.volume.settle()
        check_image(self.volume.device)

    def drain(self) -> None:
        """Works off the reclaim queue and brings all freed blocks forward."""
        while self.volume.reclaim_slice():
            pass
        self.volume.commit()
        self.volume.commit()

    def blocks_in_use(self) -> int:
        """Blocks of files, without those of the live inode file, which only grows. Exact when nothing is dirty."""
        assert self.volume.spacemap is not None
        assert self.volume.extension is not None
        system = self.volume.extension.system_blocks + f.ZERO_BLOCK_COUNT
        return self.volume.geometry.num_blocks - self.volume.spacemap.free - system - self._inode_file_blocks()

    def _inode_file_blocks(self) -> int:
        root = self.volume.live.inodes

        def below(pointers: list[int], level: int) -> int:
            real = [pointer for pointer in pointers if not self.trees.is_hole(pointer)]
            if level == 0:
                return len(real)
            return sum(1 + below(pointers_from(self.trees.store.read(p), "<").tolist(), level - 1) for p in real)

        return below(root.ptr, root.levels)

    # --- inodes ---

    def _place(self, number: int) -> int:
        """Byte offset of an inode in its leaf."""
        return (number - 1) % self.per_leaf * f.INODE_SIZE

    def _leaf(self, where: FileTree, number: int) -> Buffer:
        return self.trees.leaf(where.tree.inodes, (number - 1) // self.per_leaf)

    def _leaf_for_write(self, where: FileTree, number: int) -> bytearray:
        return self.trees.writable_leaf(where.tree.writable_inodes(), (number - 1) // self.per_leaf)

    def _store_inode(self, where: FileTree, number: int, inode: f.DiskInode) -> None:
        leaf = self._leaf_for_write(where, number)
        at = self._place(number)
        leaf[at : at + f.INODE_SIZE] = inode.pack()

    def _free_number(self, where: FileTree) -> int:
        for number in range(f.FIRST_FREE_INODE, where.tree.num_inodes + 1):
            if not f.DiskInode.unpack(self._leaf(where, number), self._place(number)).status:
                return number
        self._grow(where.tree, 1)
        return where.tree.num_inodes - self.per_leaf + 1

    def _grow(self, tree: Tree, leaves: int) -> None:
        self.trees.resize(tree.writable_inodes(), tree.inodes.size + leaves * self.block_size)
        tree.num_inodes += leaves * self.per_leaf
        tree.free_inodes += leaves * self.per_leaf

    def _list_orphan(self, tree: int, number: int, *, present: bool) -> None:
        with self.change(f.ORPHAN_INODE, tree) as token:
            listed = pointers_from(self.trees.read(token.root, 0, token.root.size), "<")
            if present:
                listed.append(number)
            else:
                listed.remove(number)
            self.trees.resize(token, len(listed) * f.ORPHAN_ENTRY_SIZE)
            self.trees.write(token, 0, pointers_to(listed, "<"))


def random_change(files: PlainFiles, number: int, tree: int, choose: random.Random, offsets: Callable[[], int]) -> None:
    """A write or a truncation of one file."""
    size = files.all[tree].files[number].size
    if choose.random() < 0.75:
        length = choose.choice((1, 100, files.block_size, 3 * files.block_size, 5000, 20000))
        offset = offsets()
        length = min(length, files.volume.geometry.file_size_max - offset)
        files.write(number, offset, choose.randbytes(length), tree)
    else:
        files.resize(number, choose.choice((0, size // 2, offsets(), max(0, size - 1))), tree)
