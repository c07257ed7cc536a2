"""Reference counts as they were at one moment, for whoever counts while others write.

Locking: the core thread only.
"""

from __future__ import annotations

from cowfs.errors import Corrupt
from cowfs.ondisk import format as f
from cowfs.storage.pagedtree import PagedTree


class CountsThen:
    """The reference counts as they were when it was made; what changed since is kept aside, page by page.

    Made by `SpaceMap.freeze`. Memory: a page of old counts for each page in which one was changed.
    """

    def __init__(self, references: PagedTree, num_blocks: int) -> None:
        self._references = references
        self._num_blocks = num_blocks
        self._occupied = references.occupied
        self._old: dict[int, bytes] = {}

    def extra_parents(self, block: int) -> int:
        """Parents beyond the first. Raises Corrupt for a number that no block has."""
        return int.from_bytes(self.run(block, 1), "little")

    def run(self, start: int, count: int) -> bytes:
        """The counts of a run, as they lie on disk. Raises Corrupt for a run beyond the end."""
        if not 0 <= start <= self._num_blocks - count:
            found = start + count - 1
            raise Corrupt("pointer beyond the end of the volume", wanted=f"< {self._num_blocks}", found=found)
        if not self._occupied:
            return bytes(count * f.REFERENCE_SIZE)
        size = self._references.page_size
        index, at = divmod(start * f.REFERENCE_SIZE, size)
        end = at + count * f.REFERENCE_SIZE
        if end <= size:
            return bytes(self._page(index)[at:end])
        pages = b"".join(self._page(number) for number in range(index, index - (-end // size)))
        return pages[at:end]

    def shared(self, start: int, count: int) -> bool:
        """Whether any block of a run had parents beyond the first. Raises Corrupt for a run beyond the end."""
        raw = self.run(start, count)
        return raw.count(0) != len(raw)

    def keep(self, index: int) -> None:
        """A page of counts is about to change."""
        if self._occupied and index not in self._old:
            self._old[index] = bytes(self._references.page(index))

    def _page(self, index: int) -> bytes | bytearray:
        old = self._old.get(index)
        return self._references.page(index) if old is None else old
