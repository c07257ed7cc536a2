"""Reading blocks and trees for the checker and for dumps: a device, a geometry, and nothing of the storage room's logic.

Nothing here verifies a checksum: the checker compares all of them in a sweep of its own. Pointers that lead nowhere are
skipped: whoever counts blocks (`trees`) reports them. Every walk is bounded by the number of blocks of the volume,
whatever the bytes say.
"""

from __future__ import annotations

import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cowfs.check import problem as p
from cowfs.errors import DeviceError
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import Geometry, pointers_from
from cowfs.storage.device import Device


@dataclass(slots=True)
class State:
    """The committed state that a slot names. `extension` is None on a foreign volume."""

    number: int
    geometry: Geometry
    superblock: f.Superblock
    extension: f.Extension | None
    manifest: list[f.ManifestEntry]

    @property
    def zero_blocks(self) -> tuple[int, ...]:
        """Z0..Z3, or nothing."""
        return self.extension.zero_blocks if self.extension is not None else ()


@dataclass(slots=True)
class Contents:
    """What a root node or an inode says of its tree."""

    size: int
    ptr: tuple[int, ...]
    levels: int


def contents_of(owner: f.RootNode | f.DiskInode) -> Contents:
    """The tree of a root node or an inode."""
    return Contents(owner.size, owner.ptr, owner.levels)


class BlockReader:
    """Blocks of one state by number. A block that the device cannot read is reported once and then counts as zeros; it is
    in `unreadable` from then on. `damaged` has the blocks whose recorded checksum (first) is not that of their bytes."""

    def __init__(self, device: Device, state: State, report: p.Report) -> None:
        self.device = device
        self.state = state
        self.report = report
        self.geometry = state.geometry
        self.block_size = state.geometry.block_size
        self.num_blocks = state.geometry.num_blocks
        self.zeros = bytes(self.block_size)
        self.nowhere = frozenset((f.NO_BLOCK, *(state.zero_blocks or (f.FOREIGN_HOLE,))))
        self.unreadable: set[int] = set()
        self.damaged: dict[int, tuple[int, int]] = {}
        self._kept: tuple[int, array.array[int]] = (-1, array.array("I"))

    def block(self, number: int) -> bytes:
        """The block's bytes."""
        return self.run(number, 1)

    def run(self, first: int, count: int) -> bytes:
        """The bytes of a run of blocks."""
        try:
            return self.device.read(self.geometry.block_offset(first), count * self.block_size)
        except DeviceError as error:
            if count > 1:
                return b"".join(self.run(number, 1) for number in range(first, first + count))
            if first not in self.unreadable:
                self.unreadable.add(first)
                self.report.add(p.BLOCK_UNREADABLE, str(error), block=first)
            return self.zeros

    def pointers(self, number: int) -> array.array[int]:
        """An indirect block's words."""
        return pointers_from(self.block(number), self.geometry.order)

    def pointers_kept(self, number: int) -> array.array[int]:
        """The same; the block asked for last is remembered."""
        if self._kept[0] != number:
            self._kept = (number, self.pointers(number))
        return self._kept[1]

    def leads(self, pointer: int) -> bool:
        """Whether a pointer names a block of the volume that is not a zero block."""
        return pointer < self.num_blocks and pointer not in self.nowhere

    def leaves(
        self,
        tree: Contents,
        visited: set[int] | None = None,
        repeated: Callable[[int], None] | None = None,
        *,
        leaves_repeat: bool = False,
    ) -> Iterator[tuple[int, int]]:
        """(index, block) of every leaf that is not a hole, in order.

        With `visited`, a block that is in it already is left out and given to `repeated`; with `leaves_repeat` that goes
        for indirect blocks only. Without `visited` the tree must be known to be small.
        """
        levels = min(tree.levels, f.FOREIGN_LEVEL_MAX)
        limit = self.geometry.blocks_of(tree.size)
        yield from self._leaves(tree.ptr, levels, 0, limit, visited, repeated, leaves_repeat)

    def _leaves(
        self,
        words: tuple[int, ...] | array.array[int],
        level: int,
        first: int,
        limit: int,
        visited: set[int] | None,
        repeated: Callable[[int], None] | None,
        leaves_repeat: bool,
    ) -> Iterator[tuple[int, int]]:
        span = self.geometry.fanout**level
        for i, pointer in enumerate(words):
            index = first + i * span
            if index >= limit:
                break
            if not self.leads(pointer):
                continue
            if visited is not None and (level or not leaves_repeat):
                if pointer in visited:
                    if repeated is not None:
                        repeated(pointer)
                    continue
                visited.add(pointer)
            if level == 0:
                yield index, pointer
            else:
                children = self.pointers(pointer)
                yield from self._leaves(children, level - 1, index, limit, visited, repeated, leaves_repeat)


class ContentsReader:
    """The bytes of one tree, at any offset: holes, and what cannot be read, are zeros."""

    def __init__(self, reader: BlockReader, tree: Contents) -> None:
        self.tree = tree
        self._reader = reader
        self._path: dict[int, tuple[int, array.array[int]]] = {}  # by level, the indirect block used last

    def leaf(self, index: int) -> bytes:
        """Leaf `index`."""
        reader = self._reader
        levels = min(self.tree.levels, f.FOREIGN_LEVEL_MAX)
        fanout = reader.geometry.fanout
        slot = index // fanout**levels
        if slot >= f.POINTER_COUNT:
            return reader.zeros
        pointer = self.tree.ptr[slot]
        for level in range(levels, 0, -1):
            if not reader.leads(pointer):
                return reader.zeros
            kept = self._path.get(level)
            if kept is None or kept[0] != pointer:
                kept = self._path[level] = (pointer, reader.pointers(pointer))
            pointer = kept[1][index // fanout ** (level - 1) % fanout]
        return reader.block(pointer) if reader.leads(pointer) else reader.zeros

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`; fewer at the end of the contents."""
        size = min(size, self.tree.size - offset)
        pieces = []
        while size > 0:
            index, at = divmod(offset, self._reader.block_size)
            piece = self.leaf(index)[at : at + size]
            pieces.append(piece)
            offset += len(piece)
            size -= len(piece)
        return b"".join(pieces)
