"""The tests' own reading of a volume: both slots, everything that their states need, and whether the counts are right.

Only the declarations of `cowfs.ondisk` are used, and no code of the storage room.
"""

from __future__ import annotations

import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c, qnx_crc
from cowfs.ondisk.geometry import Geometry, pointers_from
from cowfs.storage.device import Device

WITH_CONTENTS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)


@dataclass
class State:
    """What one valid slot says, and all blocks that it needs."""

    slot: int
    geometry: Geometry
    superblock: f.Superblock
    extension: f.Extension
    manifest: dict[int, int]
    parents: Counter[int] = field(default_factory=Counter)  # of blocks that may be shared
    system: dict[int, bytes] = field(default_factory=dict)  # pages and nodes of system trees
    checksum_blocks: set[int] = field(default_factory=set)
    checksums: dict[int, bytes] = field(default_factory=dict)  # by page
    bitmap: dict[int, bytes] = field(default_factory=dict)
    references: dict[int, bytes] = field(default_factory=dict)

    @property
    def serial(self) -> int:
        return self.superblock.serial

    @property
    def needed(self) -> set[int]:
        """Every block that the state cannot do without."""
        return {*self.parents, *self.system, *self.extension.zero_blocks}


class WalkError(AssertionError):
    """The bytes do not form a state."""


def read_state(device: Device, geometry: Geometry, slot: int) -> State | None:
    """The state of a slot, None where the slot is not valid. Raises WalkError where a valid slot leads to nonsense."""
    start = geometry.slot_offsets[slot - 1]
    raw = device.read(start, f.SLOT_AREA_SIZE)
    superblock = f.Superblock.unpack(raw)
    area = raw[f.EXTENSION_OFFSET :]
    if superblock.magic != f.QNX_MAGIC or superblock.checksum != qnx_crc(raw[f.CRC_START : f.RECORD_SIZE]):
        return None
    if superblock.anchor.magic != f.ANCHOR_MAGIC or superblock.anchor.checksum != crc32c(area):
        return None
    count = f.ManifestHeader.unpack(area, f.MANIFEST_OFFSET).count
    at = f.MANIFEST_OFFSET + f.ManifestHeader.SIZE
    entries = [f.ManifestEntry.unpack(area, at + i * f.MANIFEST_ENTRY_SIZE) for i in range(count)]
    manifest = {entry.block: entry.checksum for entry in entries}
    state = State(slot, geometry, superblock, f.Extension.unpack(area), manifest)
    _Walk(device, state).run()
    return state


def manifest_holds(device: Device, state: State) -> bool:
    """Whether every block that the manifest names has the checksum given there."""
    size = state.geometry.block_size
    return all(crc32c(device.read(state.geometry.block_offset(b), size)) == c for b, c in state.manifest.items())


class _Walk:
    def __init__(self, device: Device, state: State) -> None:
        self.device = device
        self.state = state
        self.geometry = state.geometry
        self.fanout = state.geometry.block_size // 4
        self.zero = set(state.extension.zero_blocks)
        self.nowhere = {f.NO_BLOCK, *self.zero}

    def run(self) -> None:
        s, e = self.state.superblock, self.state.extension
        self.state.bitmap = dict(self.system(s.bitmap))
        self.state.references = dict(self.system(e.references))
        self.checksum_tree(e)
        snapshots = self.table(e.snapshots)
        self.table(e.snapshot_index)
        self.table(e.settings)
        reclaim = self.table(e.reclaim)
        self.files(s.inode, s.longfile)
        for at in range(0, len(snapshots) - f.SnapshotRecord.SIZE + 1, f.SnapshotRecord.SIZE):
            record = f.SnapshotRecord.unpack(snapshots, at)
            if record.id:
                self.files(record.inode, record.longfile)
        for number in range(e.reclaim_count):
            entry = f.ReclaimEntry.unpack(reclaim, number * f.ReclaimEntry.SIZE)
            self.enter([entry.block], entry.kind, entry.level)

    def block(self, block: int) -> bytes:
        if not 0 <= block < self.geometry.num_blocks:
            raise WalkError(f"pointer to block {block} of {self.geometry.num_blocks}")
        return self.device.read(self.geometry.block_offset(block), self.geometry.block_size)

    def real(self, pointers: Iterable[int]) -> list[int]:
        return [p for p in pointers if p not in self.nowhere]

    def claim(self, block: int) -> bytes:
        if block in self.state.system or block in self.zero:
            raise WalkError(f"block {block} of a system tree is used twice")
        data = self.state.system[block] = self.block(block)
        return data

    def system(self, root: f.RootNode) -> Iterator[tuple[int, bytes]]:
        """(index, contents) of the pages of a system tree."""

        def below(pointers: Iterable[int], level: int, first: int) -> Iterator[tuple[int, bytes]]:
            for i, pointer in enumerate(pointers):
                if not self.real([pointer]):
                    continue
                data = self.claim(pointer)
                index = first + i * self.fanout**level
                if level:
                    yield from below(pointers_from(data, "<"), level - 1, index)
                else:
                    yield index, data

        return below(root.ptr, root.levels, 0)

    def table(self, root: f.RootNode) -> bytes:
        """The contents of a small system tree."""
        pages = dict(self.system(root))
        size = self.geometry.block_size
        return b"".join(pages.get(i, bytes(size)) for i in range(-(-root.size // size)))

    def checksum_tree(self, e: f.Extension) -> None:
        def below(pairs: Iterable[tuple[int, int]], level: int, first: int, fanout: int) -> None:
            for i, (pointer, check) in enumerate(pairs):
                if pointer == f.NO_BLOCK:
                    continue
                data = self.claim(pointer)
                self.state.checksum_blocks.add(pointer)
                if crc32c(data) != check:
                    raise WalkError(f"block {pointer} of the checksum tree has not the checksum that its parent holds")
                index = first + i * fanout**level
                if level:
                    words = pointers_from(data, "<")
                    below(zip(words[0::2], words[1::2], strict=True), level - 1, index, fanout)
                else:
                    self.state.checksums[index] = data

        below(zip(e.checksums.ptr, e.checksum_checks, strict=True), e.checksums.levels, 0, self.fanout // 2)

    def files(self, inode: f.RootNode, longfile: f.RootNode) -> None:
        self.enter(inode.ptr, f.KIND_INODES, inode.levels)
        self.enter(longfile.ptr, f.KIND_LONG_NAMES, longfile.levels)

    def enter(self, pointers: Iterable[int], kind: int, level: int) -> None:
        """Counts a parent for each pointer; what is below a block is counted when the block is met first."""
        parents = self.state.parents
        real = self.real(pointers)
        if max(real, default=0) >= self.geometry.num_blocks:
            raise WalkError(f"pointer to block {max(real)} of {self.geometry.num_blocks}")
        if level == 0 and kind != f.KIND_INODES:
            parents.update(real)
            return
        for pointer in real:
            parents[pointer] += 1
            if parents[pointer] > 1:
                continue
            if level:
                self.enter(pointers_from(self.block(pointer), "<"), kind, level - 1)
            elif kind == f.KIND_INODES:
                data = self.block(pointer)
                for at in range(0, len(data), f.INODE_SIZE):
                    found = f.DiskInode.unpack(data, at)
                    if found.status & f.STATUS_USED and stat.S_IFMT(found.mode) in WITH_CONTENTS:
                        self.enter(found.ptr, f.KIND_FILE, found.levels)


def _words(pages: dict[int, bytes], block_size: int) -> dict[int, int]:
    """The words that are not 0, by index."""
    per_page = block_size // 4
    return {
        index * per_page + i: word
        for index, data in pages.items()
        for i, word in enumerate(pointers_from(data, "<"))
        if word
    }


def problems(device: Device, state: State) -> list[str]:
    """Everything about a state that is not as it should be, counted here."""
    found: list[str] = []
    geometry, size = state.geometry, state.geometry.block_size
    used = state.needed
    both = state.parents.keys() & (state.system.keys() | set(state.extension.zero_blocks))
    if both:
        found.append(f"both in a system tree and in a file: {sorted(both)}")
    marked: set[int] = set()
    for index, page in state.bitmap.items():
        inside = min(size * 8, geometry.num_blocks - index * size * 8)
        bits = int.from_bytes(page, "little")
        if bits >> inside != (1 << size * 8 - inside) - 1:
            found.append("bits behind the last block are not 1")
        digits = bin(bits & (1 << inside) - 1)[:1:-1]
        marked.update(index * size * 8 + match.start() for match in re.finditer("1", digits))
    if geometry.num_blocks % (size * 8) and geometry.num_blocks // (size * 8) not in state.bitmap:
        found.append("bits behind the last block are a hole")
    if marked != used:
        found.append(f"marked, not used: {sorted(marked - used)[:20]}; used, not marked: {sorted(used - marked)[:20]}")
    if state.superblock.free_blocks != geometry.num_blocks - len(used):
        found.append(f"{geometry.num_blocks - len(used)} blocks free, {state.superblock.free_blocks} said")
    if state.extension.system_blocks != len(state.system):
        found.append(f"{len(state.system)} system blocks, {state.extension.system_blocks} said")
    extra = {block: count - 1 for block, count in state.parents.items() if count > 1}
    said = _words(state.references, size)
    if extra != said:
        found.append(f"extra parents counted {sorted(extra.items() - said.items())[:20]}")
        found.append(f"extra parents said {sorted(said.items() - extra.items())[:20]}")
    for block in sorted(used - state.checksum_blocks):
        page, at = divmod(block, size // 4)
        wanted = state.checksums.get(page, bytes(size))[4 * at : 4 * at + 4]
        if crc32c(device.read(geometry.block_offset(block), size)).to_bytes(4, "little") != wanted:
            found.append(f"block {block} has not the checksum that is recorded for it")
    return found


def newest_state(device: Device, geometry: Geometry) -> State:
    """The state that opening takes."""
    states = [state for state in (read_state(device, geometry, n) for n in (1, 2)) if state is not None]
    states.sort(key=lambda state: (-state.serial, state.slot))
    if not manifest_holds(device, states[0]):
        del states[0]
    return states[0]
