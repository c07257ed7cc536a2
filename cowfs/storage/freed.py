"""What a generation freed, until it may be given out again (I2): a bit for each block, by pages of the bitmap.

A file that is overwritten at random frees ten thousands of single blocks. As bits they are forgotten a page at once, whatever
their number, so publishing a commit takes as long for very many pieces as for a few; and they take no more memory than the
bitmap itself.

Locking: the core thread only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from cowfs.storage.bits import set_bits
from cowfs.storage.layers import bit_runs

_ANYTHING: Final = re.compile(rb"[^\x00]{1,64}")
_LONG: Final = re.compile(rb"[^\x00]?\xff+[^\x00]?")
_LONG_BLOCKS: Final = 15  # so many in a row have a byte of ones among them


class RunList:
    """Blocks as runs of (first, count); what continues the last one is joined to it."""

    __slots__ = ("count", "runs")

    def __init__(self) -> None:
        self.runs: list[tuple[int, int]] = []
        self.count = 0

    def add(self, first: int, count: int) -> None:
        """Enters a run."""
        self.count += count
        if self.runs and sum(self.runs[-1]) == first:
            first, before = self.runs.pop()
            count += before
        self.runs.append((first, count))


class Freed:
    """Blocks freed in one generation: `pages` has their bits, by the number of the bitmap's page.

    `spans` says in which bytes of a page they are: most commits free a few blocks that lie near each other.
    """

    __slots__ = ("count", "page_size", "pages", "spans")

    def __init__(self, page_size: int) -> None:
        """`page_size`: bytes of a page of the bitmap."""
        self.page_size = page_size
        self.pages: dict[int, bytearray] = {}
        self.spans: dict[int, tuple[int, int]] = {}
        self.count = 0

    def add(self, index: int, bit: int, count: int) -> None:
        """Enters blocks of one page that are not there yet."""
        set_bits(self._page(index, bit >> 3, (bit + count - 1) >> 3), bit, count)
        self.count += count

    def add_one(self, index: int, at: int, mask: int) -> None:
        """Enters one block, by the byte of the page and the bit's value in it."""
        self._page(index, at, at)[at] |= mask
        self.count += 1

    def add_each(self, index: int, bits: list[int]) -> None:
        """Enters blocks that lie anywhere in a page, ascending."""
        if bits:
            page = self._page(index, bits[0] >> 3, bits[-1] >> 3)
            for bit in bits:
                page[bit >> 3] |= 1 << (bit & 7)
            self.count += len(bits)

    def _page(self, index: int, first: int, last: int) -> bytearray:
        """A page of which these bytes, and what is between them, may get bits."""
        page = self.pages.get(index)
        if page is None:
            page = self.pages[index] = bytearray(self.page_size)
            self.spans[index] = first, last + 1
            return page
        start, end = self.spans[index]
        if first < start or last >= end:
            self.spans[index] = min(start, first), max(end, last + 1)
        return page

    @property
    def memory(self) -> int:
        """Bytes that remembering this takes, about."""
        return len(self.pages) * self.page_size

    def runs(self, least: int = 1) -> list[tuple[int, int]]:
        """As runs of at least so many, in ascending order. Much that is shorter is passed over quickly."""
        found = RunList()
        for first, count in self._pieces(_LONG if least >= _LONG_BLOCKS else _ANYTHING):
            found.add(first, count)
        return [run for run in found.runs if run[1] >= least]

    def _pieces(self, pattern: re.Pattern[bytes]) -> Iterator[tuple[int, int]]:
        for index, page in sorted(self.pages.items()):
            start = index * self.page_size * 8
            for match in pattern.finditer(page):
                at, end = match.span()
                for bit, count, there in bit_runs(page, at * 8, (end - at) * 8):
                    if there:
                        yield start + bit, count
