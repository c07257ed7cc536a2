"""A tree of files: the live one, each snapshot and each clone. Its roots and counters, as a superblock names them.

What belongs to a tree: the inode file, the long-name file and their counters. Everything else (the bitmap, checksums,
references, the snapshot table, the reclaim queue, the settings, generation and snapshot counters) belongs to the volume.
"""

from __future__ import annotations

from typing import Final, Protocol

from cowfs.errors import Corrupt
from cowfs.ondisk import format as f
from cowfs.storage.blocktree import BlockTrees, Root, WritableRoot, check_root

LIVE_TREE: Final = 0


class TreeRecord(Protocol):
    """What names a tree: a superblock, or a record of the snapshot table."""

    inode: f.RootNode
    longfile: f.RootNode
    num_inodes: int
    free_inodes: int


class Tree:
    """`inode_hint`: no free inode has a lower number; `longname_hint`: no free long-name slot has.

    `incarnation` grows when the tree becomes another: whatever was learned of it before is void.
    """

    def __init__(self, trees: BlockTrees, tree_id: int, record: TreeRecord, *, writable: bool) -> None:
        self.trees = trees
        self.id = tree_id
        self.writable = writable
        self.incarnation = 0
        self.idle = False  # nobody changes it: its record, if it is a clone, is up to date
        self._token: WritableRoot | None = None  # for the inode file
        self.inodes = _root(record.inode, f.KIND_INODES)
        self.longnames = _root(record.longfile, f.KIND_LONG_NAMES)
        geometry = trees.store.geometry
        own = bool(trees.zero_blocks)
        level_max = f.LEVEL_MAX if own else f.FOREIGN_LEVEL_MAX
        check_root(self.inodes, geometry.block_size, geometry.fanout, "inode file", level_max)
        check_root(self.longnames, geometry.block_size, geometry.fanout, "long-name file", level_max)
        self.num_inodes = self.inodes.size // f.INODE_SIZE
        self.free_inodes = record.free_inodes
        if own and not self.free_inodes <= self.num_inodes <= f.INODE_COUNT_MAX:
            raise Corrupt("inode counts", found=f"{self.free_inodes} of {self.num_inodes} free")
        self.inode_hint = record.inode.hint
        self.longname_hint = record.longfile.hint

    def writable_inodes(self) -> WritableRoot:
        """The token for the inode file: the roots of a writable tree lie in memory, so they always are writable."""
        assert self.writable
        token = self._token
        if token is None or token.epoch != self.trees.epoch or token.root is not self.inodes:
            token = self._token = self.trees.token(self.inodes)
        return token

    def writable_longnames(self) -> WritableRoot:
        """The token for the long-name file."""
        assert self.writable
        return self.trees.token(self.longnames)

    def store_in(self, record: TreeRecord) -> None:
        """Enters the tree's roots and counters into a superblock or snapshot record."""
        record.inode = _node(self.inodes, self.inode_hint)
        record.longfile = _node(self.longnames, self.longname_hint)
        record.num_inodes = self.num_inodes
        record.free_inodes = self.free_inodes

    def become(self, other: Tree) -> None:
        """Takes over the roots and counters of another tree; the references are the caller's business."""
        self.inodes = _copy(other.inodes)
        self.longnames = _copy(other.longnames)
        self.num_inodes, self.free_inodes = other.num_inodes, other.free_inodes
        self.inode_hint, self.longname_hint = other.inode_hint, other.longname_hint
        self.incarnation += 1


def _root(node: f.RootNode, kind: int) -> Root:
    return Root(kind, node.size, list(node.ptr), node.levels)


def _copy(root: Root) -> Root:
    return Root(root.kind, root.size, list(root.ptr), root.levels, root.blocks)


def _node(root: Root, hint: int) -> f.RootNode:
    return f.RootNode(root.size, tuple(root.ptr), root.levels, hint=hint)
