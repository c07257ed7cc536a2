"""The open generation: allocation, reference counting and *shadow*, the only door to writeable blocks.

A block's parents are the root nodes of the live tree, of snapshots and clones, indirect blocks and inodes; the reference
tree counts those beyond the first. To change a block it is shadowed: if it was born in the open generation and has one
parent it is changed in place; else it is copied to a free block, and the old one loses a parent. If the old one had
several parents, both copies now point to the same children, so each child gains one.

Invariants:
- I1 Nothing outside the blocks born in the open generation is ever written.
- I6 No block's count is read or changed until every ancestor up to the root node is writable in this generation: callers
  descend from a WritableRoot, shadowing each level before they look at the next.
- I8 A reference count that would overflow is refused before anything changes.

Locking: the core thread only.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

from cowfs.errors import Corrupt, DeviceError, TooManyLinks
from cowfs.ondisk import format as f
from cowfs.ondisk.records import Buffer
from cowfs.storage.blockio import BlockStore, pointer_bytes
from cowfs.storage.children import Child, children, pointers_in
from cowfs.storage.reclaim import ReclaimQueue
from cowfs.storage.spacemap import SpaceMap

_NOTHING = b"\xff" * f.POINTER_SIZE  # NO_BLOCK, in either byte order
ROW_RUNS = 16  # runs of fewer blocks are treated block by block, by the page of what is known of them
INLINE_INDIRECT_BLOCKS = 4  # a dropped tree with at most so many level-1 blocks is freed at once


class Transaction:
    """What may be done to blocks between two commits. One per volume; generations follow one another in it."""

    def __init__(
        self, store: BlockStore, spacemap: SpaceMap, reclaim: ReclaimQueue, zero_blocks: tuple[int, ...]
    ) -> None:
        self.store = store
        self.spacemap = spacemap
        self.reclaim = reclaim
        self.zero_blocks = zero_blocks
        self.holes = frozenset((f.NO_BLOCK, *zero_blocks))
        self.changes = 0  # grows with every change
        self.on_leak: Callable[[str], None] = lambda note: None
        self._block_size = store.block_size

    def is_hole(self, pointer: int) -> bool:
        """Whether a pointer names no block of its own."""
        return pointer in self.holes

    def writable_in_place(self, block: int) -> bool:
        """Whether a block whose ancestors are writable may be changed where it lies (I6: ask only top down)."""
        return self.spacemap.born(block) and not self.spacemap.extra_parents(block)

    def in_place_pieces(self, pointers: list[int]) -> list[tuple[int, bool]]:
        """Pieces of a row of pointers to leaves, as `writable_in_place` of each: (how many, whether)."""
        runs = runs_of(pointers) if self.holes.isdisjoint(pointers) else []
        if not runs or len(runs) * ROW_RUNS > len(pointers):
            stay = self.in_place_among(pointers)
            if not stay:
                return [(len(pointers), False)]
            return [
                (sum(1 for _ in group), in_place)
                for in_place, group in itertools.groupby(map(stay.__contains__, pointers))
            ]
        pieces: list[tuple[int, bool]] = []
        for start, count in runs:
            for first, number, born in self.spacemap.born_runs_of(start, count):
                if not born:
                    pieces.append((number, False))
                    continue
                for _, part, shared in self.spacemap.shared_runs_of(first, number):
                    pieces.append((part, not shared))
        return pieces

    def in_place_among(self, pointers: list[int]) -> set[int]:
        """Those of some pointers to leaves for which `writable_in_place` holds."""
        named = sorted(pointer for pointer in pointers if pointer not in self.holes)
        return {block for block in self.spacemap.born_among(named) if not self.spacemap.extra_parents(block)}

    # --- shadow ---

    def shadow(self, pointer: int, kind: int, level: int, inside: int = 0) -> tuple[int, bytearray]:
        """The writable form of the block that `pointer` names: (its number, its buffer to change in place).

        The caller has made every ancestor writable and stores the number in the parent. A hole becomes a new block:
        zeros, or `inside` pointers to holes, and ~0 behind them, where the tree has ended (I9). Raises Corrupt,
        DeviceError, NoSpace, TooManyLinks, each before anything changes.
        """
        store = self.store
        if pointer in self.holes:
            new = self.spacemap.allocate_metadata()
            buffer = bytearray(self._empty(level, inside))
            self.changes += 1
            store.put(new, buffer)
            return new, buffer
        ready = store.dirty.get(pointer)  # what is there was born in this generation
        if ready is not None and not self.spacemap.extra_parents(pointer):
            return pointer, ready
        if self.writable_in_place(pointer):
            ready = bytearray(store.read(pointer))
            store.put(pointer, ready)
            return pointer, ready
        data = store.read(pointer)
        extra = self.spacemap.extra_parents(pointer)
        gaining = self._gaining(self._children(data, kind, level)) if extra else []
        new = -1 if extra else self.spacemap.replace_metadata(pointer)
        replaced = new >= 0
        if not replaced:
            new = self.spacemap.allocate_metadata()
        self.changes += 1
        if extra:
            self._gain(gaining)
            self.spacemap.set_extra_parents(pointer, extra - 1)
        else:
            if not replaced:
                self.spacemap.free_run(pointer, 1)
            store.forget(pointer)
        buffer = bytearray(data)
        store.put(new, buffer)
        return new, buffer

    def _empty(self, level: int, inside: int) -> bytes:
        if level == 0:
            return bytes(self._block_size)
        geometry = self.store.geometry
        holes = pointer_bytes([self.zero_blocks[level - 1]], geometry)
        return holes * inside + _NOTHING * (geometry.fanout - inside)

    # --- file data ---

    def allocate_data(self, count: int, near: int | None) -> list[tuple[int, int]]:
        """Runs of blocks for file data, `count` in all, as few as can be found. `near`: the file's block before."""
        runs = []
        while count > 0:
            start, length = self.spacemap.allocate_data(count, near)
            self.changes += 1
            runs.append((start, length))
            near = start + length - 1
            count -= length
        return runs

    # --- references ---

    def add_parents(self, blocks: list[Child]) -> None:
        """Each block gains a parent. Refused as a whole, before anything changes, if one count would overflow (I8)."""
        gaining = self._gaining([block for block, _, _ in blocks])
        self.changes += 1
        self._gain(gaining)

    def check_parents(self, blocks: list[Child]) -> None:
        """Raises TooManyLinks where `add_parents` would; reads all that it needs."""
        self._gaining([block for block, _, _ in blocks])

    def _gaining(self, blocks: list[int]) -> list[int]:
        """Blocks that are to gain a parent each, ascending; one that is named twice is there twice. Raises TooManyLinks."""
        ordered = sorted(blocks)
        if self.spacemap.most_extra_parents(ordered) + 1 > f.REFERENCE_MAX or (
            len(set(blocks)) < len(blocks)
            and any(self.spacemap.extra_parents(block) + n > f.REFERENCE_MAX for block, n in Counter(blocks).items())
        ):
            raise TooManyLinks(f"a block cannot have more than {f.REFERENCE_MAX} extra parents")
        return ordered

    def _gain(self, ordered: list[int]) -> None:
        runs = runs_of(ordered)
        if len(runs) * ROW_RUNS > len(ordered):
            self.spacemap.gain_parents(ordered)
            return
        for first, count in runs:
            self.spacemap.add_extra_parents(first, count, 1)

    def _children(self, data: Buffer, kind: int, level: int) -> list[int]:
        if level > 0:
            return pointers_in(self.store, self.zero_blocks, data)
        return [block for block, _, _ in children(self.store, self.zero_blocks, data, kind, level)]

    def drop(self, pointer: int, kind: int, level: int) -> None:
        """A parent lets go of a subtree: its block loses one parent, or, with none left, is freed or queued.

        Where the queue has rotted, the subtree stays allocated: that must not keep its file from being removed.
        """
        if self.is_hole(pointer):
            return
        self.changes += 1
        if level == 0 and kind != f.KIND_INODES:
            self.drop_data(pointer, 1)
            return
        extra = self.spacemap.extra_parents(pointer)
        if extra:
            self.spacemap.set_extra_parents(pointer, extra - 1)
            return
        try:
            self.reclaim.push(pointer, kind, level)
        except Corrupt as error:
            self.on_leak(f"blocks that were freed stay allocated: {error}")

    def check_drop(self, blocks: list[Child]) -> None:
        """Reads all that dropping these blocks needs, before anything changes. Raises Corrupt, DeviceError."""
        for block, _, _ in blocks:
            self.spacemap.extra_parents(block)
            if not self.spacemap.in_use(block):
                raise Corrupt("a block is to be freed that is free already", block=block)
        self.reclaim.prepare_push(len(blocks))

    def drop_data(self, start: int, count: int) -> None:
        """A parent lets go of a run of leaves that have no children."""
        self.changes += 1
        spacemap = self.spacemap
        for first, number, shared in spacemap.shared_runs_of(start, count):
            if shared:
                spacemap.add_extra_parents(first, number, -1)
            else:
                spacemap.free_run(first, number)
                self.store.forget_run(first, number)

    def drop_leaves(self, blocks: list[int]) -> None:
        """The same for leaves that lie anywhere, no holes; one that is named twice loses two parents."""
        runs = runs_of(blocks)
        if len(runs) * ROW_RUNS <= len(blocks):
            for start, count in runs:
                self.drop_data(start, count)
            return
        self.changes += 1
        gone = self.spacemap.lose_parents(sorted(blocks))
        self.spacemap.free_blocks(gone)
        self.store.forget_blocks(set(gone))

    def _drop_all(self, found: list[Child], kind: int, level: int) -> int:
        """Lets go of all children of a block; returns how many there are."""
        if level == 1 and kind != f.KIND_INODES:
            self.drop_leaves([block for block, _, _ in found])
        else:
            for block, child_kind, child_level in found:
                self.drop(block, child_kind, child_level)
        return len(found)

    def drop_now(self, pointer: int, kind: int, level: int) -> int:
        """As `drop`, but a subtree of level 1 is freed at once; returns the number of blocks looked at."""
        if level != 1 or kind == f.KIND_INODES or self.is_hole(pointer) or self.spacemap.extra_parents(pointer):
            self.drop(pointer, kind, level)
            return 1
        try:
            found = children(self.store, self.zero_blocks, self.store.read(pointer), kind, level)
        except (Corrupt, DeviceError):
            self.drop(pointer, kind, level)  # what cannot be read must not keep its file from being removed
            return 1
        count = self._drop_all(found, kind, level)
        self.drop_data(pointer, 1)
        return count + 1

    def reclaim_one(self) -> int:
        """Works off one entry of the reclaim queue; returns the number of blocks looked at, 0 if it was empty.

        A block that the device cannot read waits for the next session; so does all that is queued where the queue cannot be
        read. A block with a wrong checksum, or that points where nothing can be, is left allocated with all below it, and so
        is what an impossible entry led to: space is lost, nothing else; `check` finds it. `on_leak` is told of all these.
        """
        try:
            entry = self.reclaim.pop()
        except (Corrupt, DeviceError) as error:
            self.reclaim.give_up()
            self.on_leak(f"what was freed stays allocated until the volume is next opened: {error}")
            return 0
        if entry is None:
            return 0
        self.changes += 1
        block, kind, level = entry.block, entry.kind, entry.level
        try:
            if kind >= f.KIND_COUNT or level > f.LEVEL_MAX:
                raise Corrupt("reclaim entry", wanted="a kind and level", found=entry.to_text())
            extra = self.spacemap.extra_parents(block)
            found = [] if extra else children(self.store, self.zero_blocks, self.store.read(block), kind, level)
        except DeviceError as error:
            self.reclaim.postpone(entry)
            self.on_leak(f"blocks that were freed stay allocated until the volume is next opened: {error}")
            return 1
        except Corrupt as error:
            self.on_leak(f"blocks that were freed stay allocated: {error}")
            return 1
        if extra:
            self.spacemap.set_extra_parents(block, extra - 1)
            return 1
        count = self._drop_all(found, kind, level)
        self.drop_data(block, 1)
        return count + 1


def runs_of(pointers: list[int]) -> list[tuple[int, int]]:
    """Block numbers in the order given, gathered into runs of consecutive ones: (first, count)."""
    if not pointers:
        return []
    first, count = pointers[0], len(pointers)
    if pointers[-1] - first == count - 1 and pointers == list(range(first, first + count)):
        return [(first, count)]
    runs: list[tuple[int, int]] = []
    start = previous = first
    for pointer in pointers[1:]:
        if pointer != previous + 1:
            runs.append((start, previous - start + 1))
            start = pointer
        previous = pointer
    runs.append((start, previous - start + 1))
    return runs
