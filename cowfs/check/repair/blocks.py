"""Mending block trees and the fields of inodes: no pointer leads where it cannot, and every inode can be what it says.

A single flipped bit is turned back. A block of metadata that is lost otherwise is cut out, and a hole takes its place; a
block of file data that is lost stays, so that reading it is an error, unless zeros are asked for. Where two trees claim one
block, the inode file and the long-name file go before files, and of two files the first one keeps it.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from cowfs.check import problem as p
from cowfs.check.flipped import without_flipped_bit
from cowfs.check.reader import Contents, contents_of
from cowfs.check.repair.workspace import Checks, Workspace, root_node
from cowfs.check.trees import (
    NANOSECOND_MASK,
    SETTINGS,
    SNAPSHOTS,
    TYPES,
    TYPES_OF_DEVICES,
    TYPES_WITH_CONTENTS,
    ZERO_ROLE,
    FileTree,
    role_of,
    role_parts,
)
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c
from cowfs.ondisk.codecs import DOT_KEY, ENTRY_SIZE, KEY_OFFSET
from cowfs.ondisk.geometry import pointers_from

_NAMES: Final = {
    f.KIND_INODES: "the inode file",
    f.KIND_LONG_NAMES: "the long names",
    SNAPSHOTS: "the snapshot table",
    SETTINGS: "the settings",
}


@dataclass(slots=True)
class _Tree:
    """A tree being mended: whose it is, and what is different for it."""

    kind: int
    id: int = 0
    inode: int | None = None
    metadata: bool = True  # lost leaves are cut out
    tail: int = 0  # bytes of the last leaf before the end; 0: all
    seen: set[int] | None = None  # for trees that can hold a block only once


@dataclass(slots=True)
class _Mended:
    contents: Contents
    leaves: int
    last: int = -1  # index of the last leaf that is no hole


class BlockMender:
    """Mends the trees of one state. `zero_bad_blocks`: lost file data becomes zeros."""

    def __init__(self, ws: Workspace, problems: list[p.Problem], *, zero_bad_blocks: bool) -> None:
        self._ws = ws
        self._reader = ws.reader
        self._zero_bad_blocks = zero_bad_blocks
        self._fanout = ws.geometry.fanout
        self._order = ws.geometry.order
        self._corrected: dict[int, bytes] = {}
        self.lost: set[int] = set(self._reader.unreadable)
        self._find_damaged()
        at: dict[p.Kind, set[int]] = {p.BLOCK_TWO_ROLES: set(), p.FILE_TAIL: set()}
        for problem in problems:
            if problem.kind in at and problem.block is not None:
                at[problem.kind].add(problem.block)
        self._contested, self._tails = at[p.BLOCK_TWO_ROLES], at[p.FILE_TAIL]
        self._suspects = self._contested | self._tails | self.lost | self._corrected.keys()
        self._strong = self._metadata_roles() if self._contested else {}
        self._memo: dict[tuple[int, int, int, int], tuple[int, int, int]] = {}
        self._new_leaves: dict[tuple[int, int], int] = {}
        self._cuts = 0
        self._seen: dict[int, set[int]] = {}  # by tree, the blocks of its directories

    def _find_damaged(self) -> None:
        checks = Checks(self._ws.found)
        for block in sorted(self._reader.damaged):
            wanted = checks.recorded(block)
            data = self._reader.block(block)
            if wanted is None or crc32c(data) == wanted:
                continue
            mended = without_flipped_bit(data, wanted, crc32c(data))
            if mended is None:
                self.lost.add(block)
            else:
                self._corrected[block] = mended
                self._ws.say(f"block {block}: a flipped bit is turned back")

    def _metadata_roles(self) -> dict[int, int]:
        """Roles of all blocks of the inode files and long-name files: they go before others."""
        roles: dict[int, int] = {}
        for tree in self._ws.trees:
            for kind, root in ((f.KIND_INODES, tree.inode), (f.KIND_LONG_NAMES, tree.longfile)):
                pending = [(pointer, root.levels) for pointer in root.ptr]
                while pending:
                    block, level = pending.pop()
                    if self._reader.leads(block) and block not in roles and level <= f.LEVEL_MAX:
                        roles[block] = role_of(kind, level)
                        if level:
                            pending += [(child, level - 1) for child in self._reader.pointers(block)]
        return roles

    # --- whole trees ---

    def run(self) -> None:
        """All trees of files, and the snapshot table."""
        for tree in self._ws.trees:
            self._mend_files(tree)

    def mend_tables(self) -> None:
        """The snapshot table, whose records are then read again, and the settings."""
        extension = self._ws.extension
        extension.snapshots = root_node(self._mend_root(extension.snapshots, _Tree(SNAPSHOTS, seen=set())).contents)
        cuts = self._cuts
        extension.settings = root_node(self._mend_root(extension.settings, _Tree(SETTINGS, seen=set())).contents)
        if self._cuts > cuts:
            extension.settings = f.RootNode()
            self._ws.say("the settings are lost")
        self._ws.load_records()

    def _mend_files(self, tree: FileTree) -> None:
        mended = self._mend_root(tree.inode, _Tree(f.KIND_INODES, tree.id, seen=set()))
        contents = mended.contents
        leaves: dict[int, int] = {}
        for index, block in self._reader.leaves(contents):
            new = self._new_leaves.get((index, block))
            if new is None:
                new = self._new_leaves[index, block] = self._mend_inodes(index, block, tree)
            if new != block:
                leaves[index] = new
        size = -(-contents.size // self._ws.block_size) * self._ws.block_size
        if size > f.INODE_COUNT_MAX * f.INODE_SIZE:
            size = (mended.last + 1) * self._ws.block_size
            self._ws.say(f"the inode file: no more inodes than can be; {size} bytes are there", tree=tree.id)
        if leaves or size != contents.size:
            contents = self._ws.with_leaves(contents, leaves, size)
        tree.inode = root_node(contents, tree.inode.hint)
        names = self._mend_root(tree.longfile, _Tree(f.KIND_LONG_NAMES, tree.id, seen=set())).contents
        size = -(-names.size // self._ws.block_size) * self._ws.block_size
        tree.longfile = root_node(replace(names, size=size), tree.longfile.hint)

    def _mend_root(self, root: f.RootNode | f.DiskInode, tree: _Tree) -> _Mended:
        contents = self._fitting(contents_of(root), tree)
        ptr, leaves, last = self._mend(
            list(contents.ptr), contents.levels, 0, self._ws.geometry.blocks_of(contents.size), tree, top=True
        )
        return _Mended(Contents(contents.size, tuple(ptr), contents.levels), leaves, last)

    def _fitting(self, tree: Contents, whose: _Tree) -> Contents:
        """A size and levels that fit one another, and the number of top pointers."""
        geometry = self._ws.geometry
        blocks = geometry.blocks_of(tree.size)
        if tree.levels <= f.LEVEL_MAX and blocks <= f.POINTER_COUNT * self._fanout**tree.levels:
            return tree
        tops = max((i + 1 for i, pointer in enumerate(tree.ptr) if pointer != f.NO_BLOCK), default=0)
        for levels in range(f.LEVEL_MAX + 1):
            if -(-blocks // self._fanout**levels) == tops:
                self._say(whose, f"{tree.levels} levels become {levels}, as its size and pointers say")
                return Contents(tree.size, tree.ptr, levels)
        if tree.levels > f.LEVEL_MAX:
            self._say(whose, "its contents are lost: neither levels nor size can be")
            return Contents(0, f.NO_BLOCK_POINTERS, 0)
        size = tops * self._fanout**tree.levels * self._ws.block_size
        measured = _Tree(whose.kind, whose.id, whose.inode, whose.metadata)
        ptr, _, last = self._mend(list(tree.ptr), tree.levels, 0, geometry.blocks_of(size), measured, top=True)
        size = (last + 1) * self._ws.block_size
        self._say(whose, f"its size of {tree.size} bytes cannot be; {size} bytes are there")
        return Contents(size, tuple(ptr), tree.levels)

    # --- pointers ---

    def _mend(
        self, words: list[int], level: int, first: int, limit: int, tree: _Tree, *, top: bool = False
    ) -> tuple[list[int], int, int]:
        """Right pointers for these, to blocks at `level`; how many leaves are no holes; the last of them."""
        span = self._fanout**level
        inside = min(len(words), max(0, -(-(limit - first) // span)))
        hole = self._ws.hole(level)
        own = tree.kind >= f.KIND_COUNT and not top  # no other driver knows it, and it ends with holes
        nowhere = {hole, f.NO_BLOCK} if tree.kind < f.KIND_COUNT and not top else {hole if own else f.NO_BLOCK}
        if not nowhere.issuperset(words[inside:]):
            self._say(tree, f"pointers behind the end, at level {level}, are taken out")
            words = words[:inside] + [hole if own else f.NO_BLOCK] * (len(words) - inside)
        leaves, last = 0, -1
        if level == 0 and tree.seen is None and self._is_plain(words[:inside], hole, tree):
            leaves = inside - words[:inside].count(hole)
            last = max((first + i for i in range(inside) if words[i] != hole), default=-1) if leaves else -1
            return words, leaves, last
        for i in range(inside):
            if words[i] == hole:
                continue
            index = first + i * span
            words[i], below, end = self._mend_pointer(words[i], level, index, limit, tree)
            leaves += below
            last = max(last, end)
        return words, leaves, last

    def _is_plain(self, words: Sequence[int], hole: int, tree: _Tree) -> bool:
        """The usual case at once: leaves with nothing the matter."""
        special = self._reader.nowhere - {hole}
        return (
            bool(words)
            and max(words) < self._reader.num_blocks
            and special.isdisjoint(words)
            and self._suspects.isdisjoint(words)
        )

    def _mend_pointer(self, block: int, level: int, index: int, limit: int, tree: _Tree) -> tuple[int, int, int]:
        """The right pointer, the number of leaves below, the last one's index."""
        if block == f.NO_BLOCK:
            self._say(tree, f"a missing pointer at level {level}, leaf {index}, becomes a hole")
            return self._hole(level, limit - index, tree), 0, -1
        why = self._reason_to_cut(block, level, tree)
        if why:
            end = min(limit, index + self._fanout**level)
            size = self._ws.block_size
            self._cuts += 1
            zeros = "" if tree.metadata else ", and read as zeros"
            self._say(tree, f"{why}: bytes {index * size}..{end * size - 1} are lost{zeros}")
            return self._hole(level, limit - index, tree), 0, -1
        if tree.seen is not None:
            tree.seen.add(block)
        if level == 0:
            return self._mend_leaf(block, index, limit, tree), 1, index
        key = (block, level, min(limit - index, self._fanout**level), index if tree.kind != f.KIND_FILE else 0)
        known = self._memo.get(key) if tree.seen is None and not tree.tail else None
        if known is not None:
            return known[0], known[1], known[2] + index if known[2] >= 0 else -1
        data = self._corrected.get(block) or self._reader.block(block)
        words = pointers_from(data, self._order).tolist()
        before = list(words)
        words, leaves, last = self._mend(words, level - 1, index, limit, tree)
        new = block if words == before and block not in self._corrected else self._ws.put_words(words)
        self._memo[key] = (new, leaves, last - index if last >= 0 else -1)
        return new, leaves, last

    def _hole(self, level: int, leaves: int, tree: _Tree) -> int:
        return self._ws.gap(level, leaves) if tree.kind < f.KIND_COUNT else self._ws.hole(level)

    def _reason_to_cut(self, block: int, level: int, tree: _Tree) -> str:
        if block >= self._reader.num_blocks:
            return f"a pointer to block {block} of {self._reader.num_blocks}"
        if block in self._ws.zero_blocks:
            return f"a zero block at the wrong level {level}"
        if block in self.lost and (level or tree.metadata or self._zero_bad_blocks):
            return f"block {block} is lost"
        if tree.seen is not None and block in tree.seen and (level or tree.kind != f.KIND_LONG_NAMES):
            return f"block {block} stands twice in it"
        if block in self._contested and not self._may_claim(block, level, tree):
            return f"block {block} is used as something else"
        return ""

    def _may_claim(self, block: int, level: int, tree: _Tree) -> bool:
        ours = role_of(tree.kind, level)
        strong = self._strong.get(block)
        if strong is not None:
            return strong == ours
        found = self._ws.found.walk.usage.role(block)
        if found in (0, ours):
            return True
        if found != ZERO_ROLE and role_parts(found)[0] >= f.KIND_COUNT and tree.kind < f.KIND_COUNT:
            self._ws.system_suspect = True  # those are written anew, elsewhere
            return True
        return False

    def _mend_leaf(self, block: int, index: int, limit: int, tree: _Tree) -> int:
        data = self._corrected.get(block)
        if tree.tail and index == limit - 1 and block in self._tails and block not in self.lost:
            data = (data or self._reader.block(block))[: tree.tail]
            self._say(tree, f"the bytes behind its end, in block {block}, become zeros")
        return block if data is None else self._ws.put(data)

    # --- inodes ---

    def _mend_inodes(self, index: int, block: int, tree: FileTree) -> int:
        """A leaf of the inode file; the block of the new one, or the same."""
        data = bytearray(self._reader.block(block))
        before = bytes(data)
        for place, offset in enumerate(range(0, len(data), f.INODE_SIZE)):
            raw = before[offset : offset + f.INODE_SIZE]
            if raw == f.FREE_INODE_BYTES:
                continue
            inode = f.DiskInode.unpack(raw, 0, self._order)
            number = index * self._ws.geometry.inodes_per_block + place + 1
            self._mend_inode(inode, number, tree.id)
            data[offset : offset + f.INODE_SIZE] = inode.pack(self._order)
        return block if data == before else self._ws.put(data)

    def _mend_inode(self, inode: f.DiskInode, number: int, tree: int) -> None:
        whose = _Tree(f.KIND_FILE, tree, number)
        if inode.status not in (f.STATUS_USED, f.STATUS_IN_USE):
            inode.status = f.STATUS_IN_USE
            self._say(whose, "it is marked in use")
        self._mend_fields(inode, whose)
        kind = stat.S_IFMT(inode.mode)
        if kind not in TYPES:
            kind = stat.S_IFDIR if self._is_directory(inode, number) else stat.S_IFREG
            inode.mode = kind | inode.mode & 0o7777
            self._say(whose, "it becomes a " + ("directory" if stat.S_ISDIR(kind) else "regular file"))
        if number == f.ROOT_INODE and kind != stat.S_IFDIR and self._is_directory(inode, number):
            kind = stat.S_IFDIR
            inode.mode = kind | inode.mode & 0o7777
            self._say(whose, "the root becomes a directory again, since its contents are one")
        if kind in TYPES_WITH_CONTENTS:
            self._mend_contents(inode, whose, kind)
            return
        known = 1 if kind in TYPES_OF_DEVICES else 0
        ptr = inode.ptr[:known] + f.NO_BLOCK_POINTERS[known:]
        if inode.ptr != ptr or inode.size:
            inode.ptr, inode.size = ptr, 0
            self._say(whose, "what has no contents has neither size nor pointers")

    def _mend_contents(self, inode: f.DiskInode, whose: _Tree, kind: int) -> None:
        hidden = bool(inode.flags & f.INODE_FLAG_HIDDEN)
        whose.metadata = kind == stat.S_IFDIR or hidden
        whose.tail = inode.size % self._ws.block_size
        if kind == stat.S_IFDIR:
            whose.seen = self._directory_blocks(whose.id)
            whose.tail = 0
        cuts = self._cuts
        mended = self._mend_root(inode, whose)
        if self._cuts > cuts and hidden and whose.inode != f.ORPHAN_INODE:
            mended = _Mended(
                Contents(0, f.NO_BLOCK_POINTERS, 0), 0
            )  # an attribute with a hole in it would be a wrong one
        inode.size, inode.ptr, inode.levels = mended.contents.size, mended.contents.ptr, mended.contents.levels
        if inode.blocks != mended.leaves:
            self._say(whose, f"its count of blocks becomes {mended.leaves}")
            inode.blocks = mended.leaves

    def _directory_blocks(self, tree: int) -> set[int]:
        return self._seen.setdefault(tree, set())

    def _mend_fields(self, inode: f.DiskInode, whose: _Tree) -> None:
        if inode.flags & ~f.INODE_FLAG_HIDDEN:
            inode.flags &= f.INODE_FLAG_HIDDEN
            self._say(whose, "unknown flags are taken away")
        for name in ("mtime_extra", "atime_extra", "ctime_extra"):
            value = getattr(inode, name)
            if value & NANOSECOND_MASK >= 1_000_000_000:
                setattr(inode, name, value & ~NANOSECOND_MASK)
                self._say(whose, "impossible nanoseconds become 0")

    def _is_directory(self, inode: f.DiskInode, number: int) -> bool:
        """Whether the contents begin as those of a directory with this number."""
        if inode.levels > f.LEVEL_MAX:
            return False
        for index, block in self._reader.leaves(contents_of(inode), set()):
            data = self._reader.block(block)
            entry = f.ShortEntry.unpack(data, 0, self._order)
            return index == 0 and entry.inode == number and data[KEY_OFFSET:ENTRY_SIZE] == DOT_KEY
        return False

    def _say(self, tree: _Tree, text: str) -> None:
        name = _NAMES.get(tree.kind)
        self._ws.say(f"{name}: {text}" if name else text, tree=tree.id, inode=tree.inode)
