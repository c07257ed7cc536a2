"""Walking all block trees of a state: what every block is used for, and how many parents it has.

Each block is entered once, with its role (what kind of tree, which level); a further pointer to it only counts a parent,
so the walk takes time in proportion to the number of pointers on the medium, whatever is shared, and ends whatever the
bytes say. Memory: one byte for each block of the regions in which blocks are in use, about 20 bytes for each inode, and
100 bytes for each shared block, and two bytes for each block of the regions with files of odd sizes.

This is a second opinion: nothing here knows the space map, the block trees or `children()` of the storage room.
"""

from __future__ import annotations

import array
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from cowfs.check import problem as p
from cowfs.check.flipped import without_flipped_bit
from cowfs.check.reader import BlockReader
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c
from cowfs.ondisk.codecs import InodeCodec
from cowfs.ondisk.geometry import pointers_from
from cowfs.ondisk.times import NANOSECONDS

# Kinds of tree beyond those that blocks can be shared in (f.KIND_FILE, f.KIND_INODES, f.KIND_LONG_NAMES).
BITMAP: Final = 3
CHECKSUMS: Final = 4
REFERENCES: Final = 5
SNAPSHOTS: Final = 6
SNAPSHOT_INDEX: Final = 7
RECLAIM: Final = 8
SETTINGS: Final = 9
KIND_NAMES: Final = (
    "file",
    "inode file",
    "long-name file",
    "bitmap",
    "checksum tree",
    "reference counts",
    "snapshot table",
    "snapshot index",
    "reclaim queue",
    "settings",
)
ZERO_ROLE: Final = 255
NANOSECOND_MASK: Final = (1 << 30) - 1
_PTR: Final = next(i for i, item in enumerate(f.DiskInode.LAYOUT) if item.name == "ptr")
_BEHIND_PTR: Final = _PTR + f.POINTER_COUNT
_LEVEL_BITS: Final = 3
assert f.FOREIGN_LEVEL_MAX + 1 < 1 << _LEVEL_BITS
assert len(KIND_NAMES) << _LEVEL_BITS < ZERO_ROLE

TYPES_WITH_CONTENTS: Final = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
TYPES_OF_DEVICES: Final = (stat.S_IFCHR, stat.S_IFBLK)
TYPES: Final = (*TYPES_WITH_CONTENTS, *TYPES_OF_DEVICES, stat.S_IFIFO, stat.S_IFSOCK)


def role_of(kind: int, level: int) -> int:
    """The byte that says what a block is used for; 0 is kept for blocks that are not used."""
    return kind << _LEVEL_BITS | level + 1


def role_parts(role: int) -> tuple[int, int]:
    """Kind and level of a role."""
    return role >> _LEVEL_BITS, (role & (1 << _LEVEL_BITS) - 1) - 1


def role_name(role: int) -> str:
    """A role in words."""
    if role == ZERO_ROLE:
        return "zero block"
    kind, level = role_parts(role)
    return f"{KIND_NAMES[kind]} level {level}"


class Usage:
    """Roles and extra parents of all blocks. A page is as long as one block of the bitmap reaches."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.page_blocks = block_size * 8
        self.pages: dict[int, bytearray] = {}
        self.extra: dict[int, int] = {}
        self.tails: dict[int, array.array[int]] = {}  # by page: bytes of a block before the end of a file; 0: all

    def role(self, block: int) -> int:
        """What the block is used for; 0: nothing."""
        page = self.pages.get(block // self.page_blocks)
        return page[block % self.page_blocks] if page is not None else 0

    def set(self, block: int, role: int) -> None:
        """Enters a block."""
        index, at = divmod(block, self.page_blocks)
        page = self.pages.get(index)
        if page is None:
            page = self.pages[index] = bytearray(self.page_blocks)
        page[at] = role

    def set_run(self, first: int, count: int, role: int) -> bool:
        """Enters `count` contiguous blocks if none of them is used yet and they lie in one page."""
        index, at = divmod(first, self.page_blocks)
        if at + count > self.page_blocks:
            return False
        page = self.pages.get(index)
        if page is None:
            page = self.pages[index] = bytearray(self.page_blocks)
        if page.count(0, at, at + count) != count:
            return False
        page[at : at + count] = bytes([role]) * count
        return True

    def set_tail(self, block: int, size: int) -> None:
        """Only the first `size` bytes of the block lie before the end of a file."""
        index, at = divmod(block, self.page_blocks)
        page = self.tails.get(index)
        if page is None:
            page = self.tails[index] = array.array("H", bytes(2 * self.page_blocks))
        page[at] = min(page[at] or size, size)

    def used(self) -> int:
        """Number of blocks in use."""
        return sum(len(page) - page.count(0) for page in self.pages.values())


@dataclass(slots=True)
class FileTree:
    """A tree of files: the live one (id 0), a snapshot or a clone."""

    id: int
    inode: f.RootNode
    longfile: f.RootNode
    num_inodes: int
    free_inodes: int


@dataclass(slots=True)
class InodePage:
    """What is remembered of the inodes in one block of the inode file."""

    modes: array.array[int]
    links: array.array[int]
    used: bytearray  # 0 free, 1 in use, 2 in use and hidden
    xattr: dict[int, int] = field(default_factory=dict)  # by index in the page, the holder's number


@dataclass(slots=True)
class _Owner:
    """Whose tree is being walked, for messages; and what of the general rules is different for it."""

    kind: int
    tree: int = 0
    inode: int | None = None
    tail: int = 0  # bytes of the last leaf before the end; 0: all
    on_leaf: Callable[[int, int, bool], None] | None = None  # (index, block, seen for the first time)
    dropped: bool = False  # a subtree that nothing leads to: where its end was is not known

    @property
    def own(self) -> bool:
        """Whether it is a tree that no other driver knows: in its indirect blocks, holes are behind the end."""
        return self.kind > BITMAP


class TreeWalk:
    """Walks trees one after the other and enters their blocks into `usage`.

    `untrusted` has the blocks of the checksum tree that are not what their parent says: the checksum wanted and the one
    found, or None below such a block. Below one in which a single bit is flipped the walk goes on without the flip.
    """

    def __init__(self, reader: BlockReader, report: p.Report) -> None:
        self.reader = reader
        self.report = report
        self.geometry = reader.geometry
        self.foreign = reader.state.extension is None
        self.zero_blocks = reader.state.zero_blocks
        self.usage = Usage(reader.num_blocks, reader.block_size)
        self.inode_pages: dict[int, InodePage] = {}  # by block
        self.leaf_blocks: dict[int, dict[int, int]] = {BITMAP: {}, CHECKSUMS: {}, REFERENCES: {}}
        self.system_blocks = 0
        self.holes_behind_end = 0  # lists of pointers in which the end has its older form
        self.untrusted: dict[int, tuple[int, int] | None] = {}
        self._inode_codec = InodeCodec(reader.geometry.order)
        self._leaves_below: dict[int, int] = {}  # by indirect block: leaves below that are no holes

    # --- zero blocks ---

    def enter_zero_blocks(self) -> None:
        """Checks Z0..Z3 and enters them."""
        for level, block in enumerate(self.zero_blocks):
            if block >= self.usage.num_blocks or block in self.zero_blocks[:level]:
                self.report.add(p.ZERO_BLOCK_NUMBER, f"Z{level} is block {block}")
                continue
            self.usage.set(block, ZERO_ROLE)
            words = self.reader.pointers(block)
            wanted = self.zero_blocks[level - 1] if level else 0
            if words.count(wanted) != len(words):
                text = f"Z{level} is not full of " + (f"pointers to block {wanted}" if level else "zeros")
                self.report.add(p.ZERO_BLOCK_CONTENTS, text, block=block)

    # --- trees ---

    def walk_system(self, kind: int, root: f.RootNode, size: int | None = None) -> None:
        """A tree of the volume's own; with `size` it must have just that size and the least depth for it."""
        name = KIND_NAMES[kind]
        if size is not None:
            levels = self.geometry.levels_of(self.geometry.blocks_of(size))
            if (root.size, root.levels) != (size, levels):
                found = f"{root.size} bytes with {root.levels} levels"
                self.report.add(p.ROOT_NODE, f"{name}: {size} bytes with {levels} levels wanted, {found} found")
        leaves = self.leaf_blocks.get(kind)

        def on_leaf(index: int, block: int, first: bool) -> None:
            if leaves is not None and first:
                leaves[index] = block

        self._walk_root(root, _Owner(kind, on_leaf=on_leaf), f.LEVEL_MAX)

    def walk_files(self, tree: FileTree) -> None:
        """The inode file, the long-name file, and the contents of all inodes of a tree of files."""
        most = f.FOREIGN_LEVEL_MAX if self.foreign else f.LEVEL_MAX

        def on_inodes(index: int, block: int, first: bool) -> None:
            if first:
                self._enter_inodes(index, block, tree)

        self._walk_root(tree.inode, _Owner(f.KIND_INODES, tree.id, on_leaf=on_inodes), most)
        self._walk_root(tree.longfile, _Owner(f.KIND_LONG_NAMES, tree.id), most)

    def walk_reclaim_entry(self, entry: f.ReclaimEntry) -> None:
        """A dropped subtree: as deep as the entry says, and as wide as it can be."""

        def on_inodes(index: int, block: int, first: bool) -> None:
            if first:
                self._enter_inodes(index, block, None)

        on_leaf = on_inodes if entry.kind == f.KIND_INODES else None
        owner = _Owner(entry.kind, on_leaf=on_leaf, dropped=True)
        limit = self.geometry.fanout**entry.level
        self._walk_children((entry.block,), entry.level, 0, limit, owner)

    def walk_checksums(self, root: f.RootNode, checks: tuple[int, ...]) -> None:
        """The checksum tree: every block of it is compared with what its parent says."""
        fanout = self.reader.block_size // f.CHECKED_POINTER_SIZE
        size = self.usage.num_blocks * f.CHECKSUM_SIZE
        pages = self.geometry.blocks_of(size)
        levels = self.geometry.levels_of(pages, fanout)
        if (root.size, root.levels) != (size, levels):
            wanted = f"{size} bytes with {levels} levels wanted"
            self.report.add(p.ROOT_NODE, f"checksum tree: {wanted}, {root.size} bytes with {root.levels} levels found")
            if root.levels > f.SYSTEM_LEVEL_MAX:
                return
        self._walk_checked(root.ptr, checks, root.levels, 0, fanout, trusted=True)

    def _walk_checked(
        self,
        words: tuple[int, ...] | array.array[int],
        checks: tuple[int, ...] | array.array[int],
        level: int,
        first: int,
        fanout: int,
        *,
        trusted: bool,
    ) -> None:
        pages = self.geometry.blocks_of(self.usage.num_blocks * f.CHECKSUM_SIZE)
        for i, (block, wanted) in enumerate(zip(words, checks, strict=True)):
            index = first + i * fanout**level
            if block == f.NO_BLOCK:
                if wanted:
                    self.report.add(p.CHECKSUM_TREE, f"an absent subtree has the checksum {wanted:#010x}")
                continue
            if index >= pages:
                self.report.add(p.POINTER_BEHIND_END, "checksum tree", block=block)
                continue
            if block >= self.usage.num_blocks:
                self.report.add(p.POINTER_RANGE, f"checksum tree: block {block} of {self.usage.num_blocks}")
                continue
            if not self._claim(block, level, _Owner(CHECKSUMS)):
                continue
            data = self.reader.block(block)
            found = crc32c(data)
            if found != wanted:
                self.report.add(p.CHECKSUM_TREE, f"{wanted:#010x} wanted, {found:#010x} found", block=block)
            whole = data
            if not trusted or found != wanted:
                self.untrusted[block] = (wanted, found) if trusted else None
                whole = (without_flipped_bit(data, wanted, found) if trusted else None) or data
            if level == 0:
                self.leaf_blocks[CHECKSUMS][index] = block
            else:
                pairs = pointers_from(whole, self.geometry.order)
                below = block not in self.untrusted or whole is not data
                self._walk_checked(pairs[0::2], pairs[1::2], level - 1, index, fanout, trusted=below)

    # --- the general walk ---

    def _walk_root(self, root: f.RootNode, owner: _Owner, levels_max: int) -> None:
        name = KIND_NAMES[owner.kind]
        if root.levels > levels_max:
            self.report.add(p.ROOT_NODE, f"{name}: {root.levels} levels, at most {levels_max} can be", tree=owner.tree)
            return
        blocks = self.geometry.blocks_of(root.size)
        capacity = f.POINTER_COUNT * self.geometry.fanout**root.levels
        if blocks > capacity:
            text = f"{name}: {root.size} bytes do not fit into {root.levels} levels"
            self.report.add(p.ROOT_NODE, text, tree=owner.tree)
        self._walk_children(root.ptr, root.levels, 0, min(blocks, capacity), owner)

    def _walk_children(
        self,
        words: tuple[int, ...] | array.array[int],
        level: int,
        first: int,
        limit: int,
        owner: _Owner,
    ) -> int:
        """Enters the blocks that `words`, pointers to blocks at `level`, name; returns how many leaves are no holes.

        `first` is the index of the first leaf below; `limit` the first leaf index behind the end.
        """
        span: int = self.geometry.fanout**level
        inside = min(len(words), max(0, -(-(limit - first) // span)))
        hole = self.zero_blocks[level] if level < len(self.zero_blocks) else f.NO_BLOCK
        if not self.foreign:
            cut = inside > 0 and first + inside * span > limit
            self._check_end(words, level, inside, cut, limit, owner)
        if owner.tail and level == 0 and first < limit <= first + inside:
            last = words[limit - 1 - first]
            if self.reader.leads(last):
                self.usage.set_tail(last, owner.tail)
        if level == 0 and inside > 4 and owner.on_leaf is None and self._enter_run(words, inside, owner):
            return inside
        count = 0
        for i in range(inside):
            block = words[i]
            if (block == hole and block != f.NO_BLOCK) or (block == f.FOREIGN_HOLE and self.foreign):
                continue
            if block == f.NO_BLOCK:
                if not self.foreign and not owner.dropped:
                    leaf = first + i * span
                    self._report(
                        p.POINTER_MISSING, f"{KIND_NAMES[owner.kind]}: ~0 at level {level}, leaf {leaf}", owner
                    )
                continue
            if block >= self.usage.num_blocks:
                text = f"{KIND_NAMES[owner.kind]}: block {block} of {self.usage.num_blocks} at level {level}"
                self._report(p.POINTER_RANGE, text, owner)
                count += level == 0  # it is no hole
                continue
            count += self._enter(block, level, first + i * span, limit, owner)
        return count

    def _check_end(
        self, words: tuple[int, ...] | array.array[int], level: int, inside: int, cut: bool, limit: int, owner: _Owner
    ) -> None:
        """What is behind the `inside` pointers that are below the end; `cut`: the end lies within what the last names."""
        behind = words[inside:]
        top = not isinstance(words, array.array)
        hole = self.zero_blocks[level] if level < len(self.zero_blocks) else f.NO_BLOCK
        ends = behind.count(f.NO_BLOCK) if top or not owner.own else 0
        holes = 0 if top or hole == f.NO_BLOCK else behind.count(hole)
        if ends + holes != len(behind):
            text = f"{KIND_NAMES[owner.kind]}: pointers at level {level} behind leaf {limit}"
            self._report(p.POINTER_BEHIND_END, text, owner)
        if not owner.own and (holes or (cut and words[inside - 1] == hole)):
            self.holes_behind_end += 1

    def _enter(self, block: int, level: int, first: int, limit: int, owner: _Owner) -> int:
        new = self._claim(block, level, owner)
        if level == 0:
            if owner.on_leaf is not None:
                owner.on_leaf(first, block, new)
            return 1
        if not new:
            return self._leaves_below.get(block, 0)
        words = self.reader.pointers(block)
        count = self._walk_children(words, level - 1, first, limit, owner)
        self._leaves_below[block] = count
        return count

    def _enter_run(self, words: tuple[int, ...] | array.array[int], count: int, owner: _Owner) -> bool:
        """The usual case at once: leaves of a file that lie one behind the other and that nobody else has."""
        if not isinstance(words, array.array):
            return False
        start = words[0]
        if words[count - 1] - start != count - 1 or words[count - 1] >= self.usage.num_blocks:
            return False
        if any(start <= zero < start + count for zero in self.zero_blocks):
            return False
        if words[:count] != array.array("I", range(start, start + count)):
            return False
        return self.usage.set_run(start, count, role_of(owner.kind, 0))

    def _claim(self, block: int, level: int, owner: _Owner) -> bool:
        """Enters one more parent of a block; whether it is the first."""
        role = role_of(owner.kind, level)
        found = self.usage.role(block)
        if found == 0:
            self.usage.set(block, role)
            if owner.kind >= f.KIND_COUNT:
                self.system_blocks += 1
            return True
        if found == ZERO_ROLE:
            text = f"Z{self.zero_blocks.index(block)} used as {role_name(role)}"
            self._report(p.ZERO_BLOCK_LEVEL, text, owner, block)
        elif found != role:
            self._report(p.BLOCK_TWO_ROLES, f"{role_name(found)} and {role_name(role)}", owner, block)
        elif owner.kind >= f.KIND_COUNT or self.foreign:
            self._report(p.BLOCK_SHARED, role_name(role), owner, block)
        else:
            self.usage.extra[block] = self.usage.extra.get(block, 0) + 1
        return False

    def _report(self, kind: p.Kind, text: str, owner: _Owner, block: int | None = None) -> None:
        self.report.add(kind, text, block=block, inode=owner.inode, tree=owner.tree)

    # --- inodes ---

    def _enter_inodes(self, index: int, block: int, tree: FileTree | None) -> None:
        """Reads a block of the inode file: enters what its inodes hold, and remembers what names are compared with."""
        count = self.geometry.inodes_per_block
        data = self.reader.block(block)
        unpack = self._inode_codec.unpack_from
        zeros = array.array("H", bytes(2 * count))
        page = self.inode_pages[block] = InodePage(zeros, zeros[:], bytearray(count))
        for i, offset in enumerate(range(0, len(data), f.INODE_SIZE)):
            if data[offset : offset + f.INODE_SIZE] == f.FREE_INODE_BYTES:
                continue
            fields = unpack(data, offset)
            values = (*fields[:_PTR], fields[_PTR:_BEHIND_PTR], *fields[_BEHIND_PTR:])
            inode = f.DiskInode(*values)
            if self.foreign and not inode.mode:
                continue
            page.modes[i] = inode.mode
            page.links[i] = inode.links
            page.used[i] = 1
            if not self.foreign:
                page.used[i] += inode.flags & f.INODE_FLAG_HIDDEN
                if inode.xattr_inode:
                    page.xattr[i] = inode.xattr_inode
            number = index * count + i + 1
            self._enter_contents(inode, _Owner(f.KIND_FILE, tree.id if tree else 0, number if tree else None))

    def _enter_contents(self, inode: f.DiskInode, owner: _Owner) -> None:
        kind = stat.S_IFMT(inode.mode)
        if not self.foreign:
            self._check_fields(inode, owner)
        if kind not in TYPES:
            self._report(p.INODE_TYPE, f"mode {inode.mode:#o}", owner)
            return
        if kind not in TYPES_WITH_CONTENTS:
            known = 1 if kind in TYPES_OF_DEVICES and not self.foreign else 0
            if any(pointer != f.NO_BLOCK for pointer in inode.ptr[known:]):
                self._report(p.INODE_POINTERS, f"mode {inode.mode:#o}", owner)
            if inode.size:
                self._report(p.INODE_SIZE, f"{inode.size} bytes with mode {inode.mode:#o}", owner)
            return
        most = f.FOREIGN_LEVEL_MAX if self.foreign else f.LEVEL_MAX
        if inode.levels > most:
            self._report(p.INODE_SIZE, f"{inode.levels} levels, at most {most} can be", owner)
            return
        limit = self.geometry.blocks_of(inode.size)
        capacity = f.POINTER_COUNT * self.geometry.fanout**inode.levels
        if limit > capacity:
            self._report(p.INODE_SIZE, f"{inode.size} bytes do not fit into {inode.levels} levels", owner)
        elif not self.foreign:
            owner.tail = inode.size % self.reader.block_size
        leaves = self._walk_children(inode.ptr, inode.levels, 0, min(limit, capacity), owner)
        if leaves != inode.blocks and not self.foreign:
            self._report(p.INODE_BLOCKS, f"{leaves} blocks counted, {inode.blocks} found", owner)

    def _check_fields(self, inode: f.DiskInode, owner: _Owner) -> None:
        if inode.status not in (f.STATUS_USED, f.STATUS_IN_USE):
            self._report(p.INODE_STATUS, f"status {inode.status}", owner)
        if inode.flags & ~f.INODE_FLAG_HIDDEN:
            self._report(p.INODE_FIELD, f"unknown flags {inode.flags:#x}", owner)
        for extra in (inode.mtime_extra, inode.atime_extra, inode.ctime_extra):
            if extra & NANOSECOND_MASK >= NANOSECONDS:
                self._report(p.INODE_FIELD, f"{extra & NANOSECOND_MASK} nanoseconds", owner)


def used_runs(page: bytearray, is_used: bytes) -> Iterator[tuple[int, int]]:
    """(first, count) of the runs of blocks in a page of `Usage` whose role maps to 1 in the table `is_used`."""
    flags = page.translate(is_used)
    start = flags.find(1)
    while start >= 0:
        end = flags.find(0, start)
        if end < 0:
            end = len(flags)
        yield start, end - start
        start = flags.find(1, end)
