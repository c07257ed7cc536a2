"""The form that the ends of trees had before: holes behind them in indirect blocks, and holes in which they lie."""

from __future__ import annotations

import array
import stat
from collections.abc import Iterable

from damage import Image

from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import pointers_to
from cowfs.storage.device import MemoryDevice

_WITH_CONTENTS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)


def give_older_form(device: MemoryDevice) -> int:
    """Changes a volume that was unmounted cleanly, all that its live tree leads to; how many blocks are changed."""
    image = Image(device)
    zero = image.zero_blocks
    nowhere = {f.NO_BLOCK, *zero}
    seen: set[int] = set()
    changed = 0

    def below(pointers: Iterable[int], level: int) -> None:
        nonlocal changed
        for block in pointers:
            if level and block not in nowhere and block not in seen:
                seen.add(block)
                words = image.words(block)
                below(words, level - 1)
                if f.NO_BLOCK in words:
                    words = [zero[level - 1] if word == f.NO_BLOCK else word for word in words]
                    image.put(block, pointers_to(array.array("I", words), "<"))
                    changed += 1

    superblock = image.superblock
    for root in (superblock.inode, superblock.longfile, superblock.bitmap):
        below(root.ptr, root.levels)
    for number in range(1, superblock.num_inodes + 1):
        inode = image.inode(number)
        if inode.status and stat.S_IFMT(inode.mode) in _WITH_CONTENTS:
            below(inode.ptr, inode.levels)
            if inode.levels == 1 and not inode.blocks:  # nothing but holes: they had no indirect blocks
                for slot, block in enumerate(inode.ptr):
                    if block not in nowhere:
                        image.set_bit(block, 0)
                        inode.ptr = (*inode.ptr[:slot], zero[1], *inode.ptr[slot + 1 :])
                image.set_inode(number, inode)
    image.finish()
    return changed
