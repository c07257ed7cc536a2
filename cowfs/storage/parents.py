"""How many parents blocks have: the reference tree, which counts those beyond the first.

Counting them is `transaction`'s business. What is asked or changed of blocks that lie anywhere goes page by page.

Locking: the core thread only.
"""

from __future__ import annotations

import array
import bisect
import itertools
from collections.abc import Iterator

from cowfs.errors import Corrupt, TooManyLinks
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import pointers_from, pointers_to
from cowfs.ondisk.records import ByteOrder
from cowfs.storage.frozen import CountsThen
from cowfs.storage.pagedtree import PagedTree


class ParentCounts:
    """The counts of one volume, of `num_blocks` blocks."""

    def __init__(self, references: PagedTree, num_blocks: int, order: ByteOrder) -> None:
        self.references = references
        self.num_blocks = num_blocks
        self._order = order
        self._frozen: list[CountsThen] = []

    def extra_parents(self, block: int) -> int:
        """Parents beyond the first. Raises Corrupt for a number that no block has."""
        if block >= self.num_blocks:
            raise Corrupt("pointer beyond the end of the volume", wanted=f"< {self.num_blocks}", found=block)
        if not self.references.occupied:
            return 0
        offset = block * f.REFERENCE_SIZE
        index, at = divmod(offset, self.references.page_size)
        return int.from_bytes(self.references.page(index)[at : at + f.REFERENCE_SIZE], "little")

    def extra_parents_each(self, start: int, count: int) -> array.array[int]:
        """Parents beyond the first of each block of a run. Raises Corrupt for a run beyond the end."""
        if not 0 <= start <= self.num_blocks - count:
            raise Corrupt(
                "pointer beyond the end of the volume", wanted=f"< {self.num_blocks}", found=start + count - 1
            )
        if not self.references.occupied:
            return array.array("I", bytes(count * f.REFERENCE_SIZE))
        raw = self.references.read(start * f.REFERENCE_SIZE, count * f.REFERENCE_SIZE)
        return pointers_from(raw, self._order)

    def shared(self, start: int, count: int) -> bool:
        """Whether any block of a run has parents beyond the first. Raises Corrupt for a run beyond the end."""
        return any(self.extra_parents_each(start, count))

    def shared_runs_of(self, start: int, count: int) -> list[tuple[int, int, bool]]:
        """A run in pieces: (first, number, whether they have parents beyond the first). Raises Corrupt beyond the end."""
        if count == 1:
            return [(start, 1, self.extra_parents(start) > 0)]
        counts = self.extra_parents_each(start, count)
        if not any(counts):
            return [(start, count, False)]
        pieces = []
        for extra, group in itertools.groupby(map(bool, counts)):
            number = sum(1 for _ in group)
            pieces.append((start, number, extra))
            start += number
        return pieces

    def set_extra_parents(self, block: int, count: int) -> None:
        """Stores a count. Raises TooManyLinks where it does not fit; `transaction` checks that before it changes anything."""
        if not 0 <= count <= f.REFERENCE_MAX:
            raise TooManyLinks(f"block {block}: {count} extra parents do not fit")
        index, at = divmod(block * f.REFERENCE_SIZE, self.references.page_size)
        for counts in self._frozen:
            counts.keep(index)
        self.references.page_for_write(index)[at : at + f.REFERENCE_SIZE] = count.to_bytes(f.REFERENCE_SIZE, "little")

    def add_extra_parents(self, start: int, count: int, change: int) -> None:
        """Adds `change` to the count of each block of a run. Raises TooManyLinks, before anything changes."""
        if count == 1:
            self.set_extra_parents(start, self.extra_parents(start) + change)
            return
        counts = [extra + change for extra in self.extra_parents_each(start, count)]
        if min(counts) < 0 or max(counts) > f.REFERENCE_MAX:
            raise TooManyLinks(f"blocks from {start} on: {min(counts)} to {max(counts)} extra parents do not fit")
        offset = start * f.REFERENCE_SIZE
        size = self.references.page_size
        for frozen in self._frozen:
            for index in range(offset // size, (offset + count * f.REFERENCE_SIZE - 1) // size + 1):
                frozen.keep(index)
        self.references.write(offset, pointers_to(array.array("I", counts), self._order))

    def lose_parents(self, blocks: list[int]) -> list[int]:
        """Takes a parent from each of some blocks, ascending, a block named twice loses two; those that have none left."""
        if blocks and not 0 <= blocks[0] <= blocks[-1] < self.num_blocks:
            raise Corrupt("pointer beyond the end of the volume", wanted=f"< {self.num_blocks}", found=blocks[-1])
        if not self.references.occupied:
            return blocks
        alone: list[int] = []
        for index, first, part in by_page(blocks, self.references.page_size // f.REFERENCE_SIZE):
            counts = pointers_from(self.references.page(index), self._order)
            before = len(alone)
            for block in part:
                if counts[block - first]:
                    counts[block - first] -= 1
                else:
                    alone.append(block)
            if len(alone) - before < len(part):
                self._set_page_of_references(index, counts)
        return alone

    def gain_parents(self, blocks: list[int]) -> None:
        """Gives each of some blocks, ascending, one more parent; whether it has room for that was asked before."""
        for index, first, part in by_page(blocks, self.references.page_size // f.REFERENCE_SIZE):
            counts = pointers_from(self.references.page(index), self._order)
            for block in part:
                counts[block - first] += 1
            self._set_page_of_references(index, counts)

    def most_extra_parents(self, blocks: list[int]) -> int:
        """The highest number of extra parents of some blocks, ascending. Raises Corrupt for one beyond the end."""
        if blocks and not 0 <= blocks[0] <= blocks[-1] < self.num_blocks:
            raise Corrupt("pointer beyond the end of the volume", wanted=f"< {self.num_blocks}", found=blocks[-1])
        most = 0
        if self.references.occupied:
            for index, first, part in by_page(blocks, self.references.page_size // f.REFERENCE_SIZE):
                counts = pointers_from(self.references.page(index), self._order)
                lowest, highest = part[0] - first, part[-1] - first
                row = highest - lowest == len(part) - 1
                these = counts[lowest : highest + 1] if row else [counts[block - first] for block in part]
                most = max(most, *these)
        return most

    def _set_page_of_references(self, index: int, counts: array.array[int]) -> None:
        for frozen in self._frozen:
            frozen.keep(index)
        self.references.page_for_write(index)[:] = pointers_to(counts, self._order)

    def freeze(self) -> CountsThen:
        """All counts as they are now, whatever changes later: a constant amount of work. To be ended by `thaw`."""
        counts = CountsThen(self.references, self.num_blocks)
        self._frozen.append(counts)
        return counts

    def thaw(self, counts: CountsThen) -> None:
        """Nobody asks these counts any more."""
        self._frozen.remove(counts)


def by_page(blocks: list[int], page_blocks: int) -> Iterator[tuple[int, int, list[int]]]:
    """Ascending blocks by the page that tells of them: its index, the first block it tells of, those that are meant."""
    at = 0
    while at < len(blocks):
        index = blocks[at] // page_blocks
        first = index * page_blocks
        end = bisect.bisect_left(blocks, first + page_blocks, at)
        yield index, first, blocks[at:end]
        at = end
