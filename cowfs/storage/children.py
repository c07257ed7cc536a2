"""What the children of a block are: the one function that shadowing, reclaiming and accounting all use.

A pointer that is ~0 or names one of Z0..Z3 is a hole and no child. Only inodes in use whose type is file, directory or
symlink have children: a free inode has none, and a device inode keeps its device number in pointer 0. Everything else is
checked against the volume's bounds here. (`check` has its own reading of these rules.)
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from typing import Final

from cowfs.errors import Corrupt
from cowfs.ondisk import format as f
from cowfs.ondisk.codecs import InodeCodec
from cowfs.ondisk.records import Buffer
from cowfs.storage.blockio import BlockStore

Child = tuple[int, int, int]
"""(block, kind, level)"""

_CODECS: Final[dict[str, InodeCodec]] = {order: InodeCodec(order) for order in ("<", ">")}
_WITH_BLOCKS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)


def children(store: BlockStore, zero_blocks: tuple[int, ...], data: Buffer, kind: int, level: int) -> list[Child]:
    """The children of a block whose contents are `data`. Raises Corrupt for a pointer or level that cannot be."""
    if level > 0:
        return [(pointer, kind, level - 1) for pointer in pointers_in(store, zero_blocks, data)]
    if kind != f.KIND_INODES:
        return []
    found: list[Child] = []
    for mode, *ptr, levels, status in _CODECS[store.geometry.order].each_pointers(data):
        if status & f.STATUS_USED:
            found += _of_inode(store, zero_blocks, mode, ptr, levels)
    return found


def pointers_in(store: BlockStore, zero_blocks: tuple[int, ...], data: Buffer) -> list[int]:
    """The pointers of an indirect block that are no holes. Raises Corrupt for one that cannot be."""
    pointers = store.words(data).tolist()
    holes = {f.NO_BLOCK, *zero_blocks}
    if not holes.isdisjoint(pointers):
        pointers = [pointer for pointer in pointers if pointer not in holes]
    if pointers:
        _checked(store, max(pointers))
    return pointers


def inode_children(store: BlockStore, zero_blocks: tuple[int, ...], inode: f.DiskInode) -> list[Child]:
    """The blocks that an inode's pointers name."""
    return _of_inode(store, zero_blocks, inode.mode, inode.ptr, inode.levels) if inode.status & f.STATUS_USED else []


def _of_inode(
    store: BlockStore, zero_blocks: tuple[int, ...], mode: int, ptr: Sequence[int], levels: int
) -> list[Child]:
    if stat.S_IFMT(mode) not in _WITH_BLOCKS:
        return []
    if levels > f.LEVEL_MAX:
        raise Corrupt("inode levels", wanted=f"<= {f.LEVEL_MAX}", found=levels)
    return [(_checked(store, p), f.KIND_FILE, levels) for p in ptr if p != f.NO_BLOCK and p not in zero_blocks]


def _checked(store: BlockStore, pointer: int) -> int:
    if pointer >= store.num_blocks:
        raise Corrupt("pointer beyond the end of the volume", wanted=f"< {store.num_blocks}", found=pointer)
    return pointer
