"""A tree of files: the live one, and later each snapshot and clone. Its roots and counters, as a superblock names them.

What belongs to a tree: the inode file, the long-name file and their counters. Everything else (the bitmap, checksums,
references, the snapshot table, the reclaim queue, the settings, generation and snapshot counters) belongs to the volume.
"""

from __future__ import annotations

from cowfs.ondisk import format as f
from cowfs.storage.blocktree import BlockTrees, Root, WritableRoot, check_root

LIVE_TREE = 0


class Tree:
    """`inode_hint`: no free inode has a lower number; `longname_hint`: no free long-name slot has."""

    def __init__(self, trees: BlockTrees, tree_id: int, superblock: f.Superblock, *, writable: bool) -> None:
        self.trees = trees
        self.id = tree_id
        self.writable = writable
        self.inodes = _root(superblock.inode, f.KIND_INODES)
        self.longnames = _root(superblock.longfile, f.KIND_LONG_NAMES)
        geometry = trees.store.geometry
        check_root(self.inodes, geometry.block_size, geometry.fanout, "inode file")
        check_root(self.longnames, geometry.block_size, geometry.fanout, "long-name file")
        self.num_inodes = self.inodes.size // f.INODE_SIZE
        self.free_inodes = superblock.free_inodes
        self.inode_hint = superblock.inode.hint
        self.longname_hint = superblock.longfile.hint

    def writable_inodes(self) -> WritableRoot:
        """The token for the inode file: the roots of a writable tree lie in memory, so they always are writable."""
        assert self.writable
        return self.trees.token(self.inodes)

    def writable_longnames(self) -> WritableRoot:
        """The token for the long-name file."""
        assert self.writable
        return self.trees.token(self.longnames)

    def store_in(self, superblock: f.Superblock) -> None:
        """Enters the tree's roots and counters into a superblock record."""
        superblock.inode = _node(self.inodes, self.inode_hint)
        superblock.longfile = _node(self.longnames, self.longname_hint)
        superblock.num_inodes = self.num_inodes
        superblock.free_inodes = self.free_inodes


def _root(node: f.RootNode, kind: int) -> Root:
    return Root(kind, node.size, list(node.ptr), node.levels)


def _node(root: Root, hint: int) -> f.RootNode:
    return f.RootNode(root.size, tuple(root.ptr), root.levels, hint=hint)
