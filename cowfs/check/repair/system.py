"""The end of each round: bitmap, reference counts, checksums and all numbers anew from what is counted, and a slot.

All blocks that the mended trees lead to are counted as a check counts them. Pages of the three trees that are right as
they are stay; all others, and all indirect blocks, are written to new blocks. Since that changes what is in use, pages are
added until nothing changes any more: a page that was given up never comes back, so that ends.
"""

from __future__ import annotations

import array
from typing import Final

from cowfs.check import counts as c
from cowfs.check import problem as p
from cowfs.check.reader import BlockReader, State, contents_of
from cowfs.check.repair.workspace import Checks, Workspace
from cowfs.check.tables import check_reclaim
from cowfs.check.trees import (
    BITMAP,
    CHECKSUMS,
    RECLAIM,
    REFERENCES,
    SETTINGS,
    SNAPSHOT_INDEX,
    SNAPSHOTS,
    ZERO_ROLE,
    InodePage,
    TreeWalk,
    role_of,
    used_runs,
)
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c, qnx_crc
from cowfs.ondisk.geometry import pointers_to
from cowfs.storage.device import Device

_COUNTED: Final = (BITMAP, REFERENCES, CHECKSUMS)
_ENTRY_WORDS: Final = {BITMAP: 1, REFERENCES: 1, CHECKSUMS: 2}


def rebuild(ws: Workspace, slot: int, serial: int) -> None:
    """Makes everything that describes the mended trees true, and writes it all as commit `serial` to slot 1 or 2."""
    ws.store_trees()
    state = State(slot, ws.geometry, ws.superblock, ws.extension, [])
    reader = BlockReader(ws.device, state, p.Report(ws.device.name, listed_max=0))
    walk = TreeWalk(reader, reader.report)
    _count(ws, reader, walk)
    for tree in ws.trees:
        settle_numbers(ws, reader, walk, tree.id)
    before = len(ws.sums)
    ws.store_trees()
    if len(ws.sums) != before:  # records of snapshots moved
        walk = TreeWalk(reader, reader.report)
        _count(ws, reader, walk)
    _Counted(ws, walk, reader).write()
    ws.superblock.serial = ws.extension.serial = serial
    ws.superblock.atime = ws.now_ns // 1_000_000_000 & 0xFFFFFFFF
    ws.extension.commit_time = max(ws.now_ns, 0)
    write_slot(ws.device, ws.geometry.slot_offsets[slot - 1], ws.superblock, ws.extension)


def _count(ws: Workspace, reader: BlockReader, walk: TreeWalk) -> None:
    extension = ws.extension
    walk.enter_zero_blocks()
    for kind, root in (
        (SNAPSHOTS, extension.snapshots),
        (SNAPSHOT_INDEX, extension.snapshot_index),
        (RECLAIM, extension.reclaim),
        (SETTINGS, extension.settings),
    ):
        walk.walk_system(kind, root)
    for tree in ws.trees:
        walk.walk_files(tree)
    for entry in check_reclaim(reader, reader.report, extension):
        walk.walk_reclaim_entry(entry)


def settle_numbers(ws: Workspace, reader: BlockReader, walk: TreeWalk, tree_id: int) -> None:
    """The numbers of inodes, and the hints, of one tree."""
    tree = next(tree for tree in ws.trees if tree.id == tree_id)
    per_page = ws.geometry.inodes_per_block
    pages: dict[int, InodePage] = {}
    for index, block in reader.leaves(contents_of(tree.inode), set()):
        page = walk.inode_pages.get(block)
        if page is not None:
            pages[index] = page
    number = min(tree.inode.size // f.INODE_SIZE, f.INODE_COUNT_MAX)
    free = max(0, number - sum(len(page.used) - page.used.count(0) for page in pages.values()))
    if (tree.num_inodes, tree.free_inodes) != (number, free):
        ws.say(f"{number} inodes, {free} of them free", tree=tree_id)
    tree.num_inodes, tree.free_inodes = number, free
    index = 0
    while index in pages and pages[index].used.find(0) < 0:
        index += 1
    lowest = index * per_page + 1 + (pages[index].used.find(0) if index in pages else 0)
    if tree.inode.hint > lowest:
        ws.say(f"the hint for free inodes goes back to {lowest}", tree=tree_id)
        tree.inode.hint = lowest
    slot = 0
    for found, _ in reader.leaves(contents_of(tree.longfile), set(), leaves_repeat=True):
        if found != slot:
            break
        slot += 1
    if tree.longfile.hint > slot:
        ws.say(f"the hint for free long-name slots goes back to {slot}", tree=tree_id)
        tree.longfile.hint = slot


class _Counted:
    """The pages of bitmap, references and checksums: those kept, and those in new blocks."""

    def __init__(self, ws: Workspace, walk: TreeWalk, reader: BlockReader) -> None:
        self._ws = ws
        self._walk = walk
        self._usage = walk.usage
        self._reader = reader
        self._checks = Checks(ws.found)
        self._order = ws.geometry.order
        self._words = ws.block_size // f.CHECKSUM_SIZE
        self._new: dict[int, dict[int, int]] = {kind: {} for kind in _COUNTED}
        self._kept: dict[int, dict[int, int]] = {kind: {} for kind in _COUNTED}
        self._nodes: dict[tuple[int, int, int], int] = {}  # (kind, level, index)
        self._stale: set[tuple[int, int]] = set()  # (kind, index): pages that must have a new block
        self._levels: dict[int, int] = {}
        self._sizes = {
            BITMAP: -(-ws.geometry.num_blocks // 8),
            REFERENCES: ws.geometry.num_blocks * f.REFERENCE_SIZE,
            CHECKSUMS: ws.geometry.num_blocks * f.CHECKSUM_SIZE,
        }
        for kind, size in self._sizes.items():
            self._levels[kind] = ws.geometry.levels_of(ws.geometry.blocks_of(size), self._fanout(kind))

    def write(self) -> None:
        """All of it."""
        self._keep()
        self._compare()
        self._settle()
        self._say()
        self._write_leaves(BITMAP)
        self._write_leaves(REFERENCES)
        roots = {kind: self._write_nodes(kind)[0] for kind in (BITMAP, REFERENCES)}
        self._write_leaves(CHECKSUMS)
        tops, checks = self._write_nodes(CHECKSUMS)
        superblock, extension = self._ws.superblock, self._ws.extension
        superblock.bitmap = f.RootNode(self._sizes[BITMAP], roots[BITMAP], self._levels[BITMAP])
        extension.references = f.RootNode(self._sizes[REFERENCES], roots[REFERENCES], self._levels[REFERENCES])
        extension.checksums = f.RootNode(self._sizes[CHECKSUMS], tops, self._levels[CHECKSUMS])
        extension.checksum_checks = checks
        superblock.free_blocks = self._usage.num_blocks - self._usage.used()
        pages = sum(len(self._new[kind]) + len(self._kept[kind]) for kind in _COUNTED)
        extension.system_blocks = self._walk.system_blocks + pages + len(self._nodes)
        bitmap = {index: int.from_bytes(c.bits_of(page), "little") for index, page in self._usage.pages.items()}
        overlay = extension.overlay
        overlay.buried_free, overlay.buried_system = self._ws.layers.numbers(self._walk, bitmap)
        extension.data_hint = extension.data_hint if extension.data_hint < self._usage.num_blocks else 0
        extension.metadata_hint = 0

    # --- which pages ---

    def _keep(self) -> None:
        """Enters the old pages that may stay."""
        found = self._ws.found
        if self._ws.system_suspect:
            return
        for kind in _COUNTED:
            end = self._ws.geometry.blocks_of(self._sizes[kind])
            for index, block in found.walk.leaf_blocks[kind].items():
                right = index < end and block not in found.reader.damaged and block not in found.reader.unreadable
                if kind == CHECKSUMS:
                    right = index < end and self._checks.trusted_as_it_is(index)
                if right and found.walk.usage.role(block) == role_of(kind, 0) and not self._usage.role(block):
                    self._kept[kind][index] = block
                    self._usage.set(block, role_of(kind, 0))

    def _compare(self) -> None:
        """Finds the pages that must be new, as far as the trees of files decide that."""
        needed = {block // self._words for block in self._usage.extra}
        for index in needed | self._kept[REFERENCES].keys():
            block = self._kept[REFERENCES].get(index)
            if index not in needed:
                assert block is not None
                self._give_up(REFERENCES, index)
            elif block is None or self._ws.reader.block(block) != self._references(index):
                self._stale.add((REFERENCES, index))
        self._stale |= {(CHECKSUMS, block // self._words) for block in self._ws.sums if self._usage.role(block)}
        for level, block in enumerate(self._ws.zero_blocks):
            if self._checks.recorded(block) != crc32c(self._ws.zero_block(level)):
                self._stale.add((CHECKSUMS, block // self._words))
        for index in list(self._kept[BITMAP]):
            if self._ws.reader.block(self._kept[BITMAP][index]) != self._bits(index):
                self._stale.add((BITMAP, index))

    def _settle(self) -> None:
        """Takes blocks until every page and node that is needed has one."""
        while self._stale or self._missing():
            while self._stale:
                kind, index = self._stale.pop()
                if index not in self._new[kind]:
                    if index in self._kept[kind]:
                        self._give_up(kind, index)
                    self._new[kind][index] = self._take(role_of(kind, 0))
            for kind in _COUNTED:
                fanout = self._fanout(kind)
                pages = self._pages(kind)
                if kind == BITMAP:
                    pages = pages | {self._ws.geometry.blocks_of(self._sizes[kind]) - 1}  # nodes are above its end
                for index in sorted(pages):
                    above = index
                    for level in range(1, self._levels[kind] + 1):
                        above //= fanout
                        if (kind, level, above) not in self._nodes:
                            self._nodes[kind, level, above] = self._take(role_of(kind, level))

    def _missing(self) -> bool:
        """Finds pages that became necessary since."""
        page_blocks = self._usage.page_blocks
        last, rest = divmod(self._usage.num_blocks, page_blocks)
        wanted = {index for index, page in self._usage.pages.items() if page.count(0) != len(page)}
        wanted |= {last} if rest else set()
        self._stale |= {(BITMAP, index) for index in wanted - self._pages(BITMAP)}
        for index in wanted & self._usage.pages.keys():
            for start, count in used_runs(self._usage.pages[index], c.IS_USED):
                first = index * page_blocks + start
                for leaf in range(first // self._words, (first + count - 1) // self._words + 1):
                    if leaf not in self._new[CHECKSUMS] and leaf not in self._kept[CHECKSUMS]:
                        self._stale.add((CHECKSUMS, leaf))
        return bool(self._stale)

    def _take(self, role: int) -> int:
        block = self._ws.space.take()
        self._usage.set(block, role)
        self._stale.add((BITMAP, block // self._usage.page_blocks))
        self._stale.add((CHECKSUMS, block // self._words))
        return block

    def _give_up(self, kind: int, index: int) -> None:
        block = self._kept[kind].pop(index)
        self._usage.set(block, 0)
        if block // self._usage.page_blocks not in self._new[BITMAP]:
            self._stale.add((BITMAP, block // self._usage.page_blocks))

    def _pages(self, kind: int) -> set[int]:
        return self._new[kind].keys() | self._kept[kind].keys()

    def _fanout(self, kind: int) -> int:
        return self._ws.geometry.fanout // _ENTRY_WORDS[kind]

    # --- contents ---

    def _bits(self, index: int) -> bytes:
        page = self._usage.pages.get(index)
        bits = int.from_bytes(c.bits_of(page), "little") if page is not None else 0
        inside = max(0, min(self._usage.page_blocks, self._usage.num_blocks - index * self._usage.page_blocks))
        padding = ((1 << self._usage.page_blocks) - 1) ^ ((1 << inside) - 1)
        return (bits | padding).to_bytes(self._ws.block_size, "little")

    def _references(self, index: int) -> bytes:
        first = index * self._words
        extra = self._usage.extra
        words = array.array("I", [extra.get(block, 0) for block in range(first, first + self._words)])
        return pointers_to(words, self._order)

    def _checksums(self, index: int) -> bytes:
        old = self._checks.leaf(index)
        words = array.array("I", old if old is not None else bytes(4 * self._words))
        first = index * self._words
        for at in range(min(self._words, self._usage.num_blocks - first)):
            block = first + at
            role = self._usage.role(block)
            if block in self._ws.sums:
                words[at] = self._ws.sums[block]
            elif role == ZERO_ROLE:
                words[at] = crc32c(self._ws.zero_block(self._ws.zero_blocks.index(block)))
            elif role and old is None:
                words[at] = crc32c(self._ws.reader.block(block))
        return pointers_to(words, self._order)

    def _write_leaves(self, kind: int) -> None:
        contents = {BITMAP: self._bits, REFERENCES: self._references, CHECKSUMS: self._checksums}[kind]
        for index, block in sorted(self._new[kind].items()):
            self._ws.put_at(block, contents(index))

    def _write_nodes(self, kind: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Writes the nodes above the pages; the top pointers, and their checksums."""
        fanout, levels = self._fanout(kind), self._levels[kind]
        below = {**self._kept[kind], **self._new[kind]}
        for level in range(1, levels + 1):
            above: dict[int, int] = {}
            groups: dict[int, dict[int, int]] = {}
            for index, block in below.items():
                groups.setdefault(index // fanout, {})[index % fanout] = block
            children = -(-self._ws.geometry.blocks_of(self._sizes[kind]) // fanout ** (level - 1))
            for (of, at_level, index), node in self._nodes.items():
                if (of, at_level) != (kind, level):
                    continue
                words = [self._absent(kind, level - 1)] * fanout
                if kind == BITMAP:
                    inside = min(fanout, children - index * fanout)
                    words[inside:] = [f.NO_BLOCK] * (fanout - inside)
                for at, block in groups.get(index, {}).items():
                    words[at] = block
                if kind == CHECKSUMS:
                    words = [word for block in words for word in (block, self._check(block))]
                self._ws.put_at(node, pointers_to(array.array("I", words), self._order))
                above[index] = node
            below = above
        span = fanout**levels
        inside = -(-self._ws.geometry.blocks_of(self._sizes[kind]) // span)
        tops = tuple(
            below.get(i, self._absent(kind, levels)) if i < inside else f.NO_BLOCK for i in range(f.POINTER_COUNT)
        )
        return tops, tuple(self._check(block) for block in tops)

    def _absent(self, kind: int, level: int) -> int:
        return f.NO_BLOCK if kind == CHECKSUMS else self._ws.hole(level)

    def _check(self, block: int) -> int:
        if block == f.NO_BLOCK:
            return 0
        known = self._ws.sums.get(block)
        return crc32c(self._ws.reader.block(block)) if known is None else known

    def _say(self) -> None:
        """What of the old counts was wrong is in the report; here only what was taken on trust."""
        unknown = [
            index
            for index in sorted(self._new[CHECKSUMS])
            if self._checks.leaf(index) is None
            and any(
                self._usage.role(block) not in (0, ZERO_ROLE)
                and block not in self._ws.sums
                and block not in self._fresh()
                for block in range(index * self._words, min((index + 1) * self._words, self._usage.num_blocks))
            )
        ]
        for index in unknown:
            first = index * self._words
            self._ws.say(f"blocks {first}..{first + self._words - 1}: checksums computed anew; contents believed")

    def _fresh(self) -> set[int]:
        return set(self._nodes.values()) | {block for kind in _COUNTED for block in self._new[kind].values()}


def write_slot(device: Device, offset: int, superblock: f.Superblock, extension: f.Extension) -> None:
    """Writes a slot with these records, and an empty manifest, at byte `offset`; both checksums are put in."""
    area = (extension.pack() + f.ManifestHeader(0).pack()).ljust(f.EXTENSION_SIZE, b"\0")
    superblock.anchor = f.Anchor(checksum=crc32c(area))
    superblock.checksum = qnx_crc(superblock.pack()[f.CRC_START :])
    device.write(offset, [superblock.pack() + area])
