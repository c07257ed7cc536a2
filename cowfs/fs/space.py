"""How many blocks an operation may need: the estimates that are admitted before anything changes. Generous constants.

Changing one leaf of a block tree copies the blocks on its path: the leaf and one indirect block for each level, and one
more where the tree gains a level.
"""

from __future__ import annotations

from cowfs.fs.inode import Inode
from cowfs.fs.orphans import CHANGED_BLOCKS_MAX
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import Geometry
from cowfs.storage.blocktree import Root
from cowfs.storage.tree import Tree


def path(root: Root) -> int:
    """Blocks that changing one leaf may copy or add."""
    return root.levels + 2


def inode_cost(tree: Tree, inodes: int) -> int:
    """Blocks for changing or allocating so many inodes."""
    return inodes * path(tree.inodes)


def name_cost(tree: Tree, inodes: int, *directories: Inode) -> int:
    """Blocks for changing so many inodes and an entry in each of the directories."""
    # Removing an entry changes its leaf and the last one; each entry may have a long name.
    blocks = inodes * (tree.inodes.levels + 2)
    for directory in directories:
        blocks += 2 * path(directory.root) + path(tree.longnames)
    return blocks


def orphan_cost(tree: Tree, levels: int) -> int:
    """Blocks for writing what waits of the orphan list, which has `levels` indirect levels."""
    leaves = CHANGED_BLOCKS_MAX + 2  # one more that is too many, and the last one
    return path(tree.inodes) + leaves + 2 * (levels + 1)


def data_cost(tree: Tree, geometry: Geometry, offset: int, size: int) -> int:
    """Blocks for writing `size` bytes at byte `offset` of a file."""
    blocks = (offset + size - 1) // geometry.block_size - offset // geometry.block_size + 1
    # A range of leaves touches at each level one indirect block per fan-out and one more at either end; where it begins
    # behind the end of the file, the path to that is changed, too, which has the levels that the tree gains.
    return blocks + blocks // (geometry.fanout - 1) + 3 * f.LEVEL_MAX + path(tree.inodes)
