"""Finding something free at bounded cost: free inodes (a unit is a leaf of the inode file), free long-name slots.

Invariant: every unit below `frontier` with something free is in the list of known ones. So the lower of the two is a
true hint for the next mount ("nothing below is free"), and a search that gives up has lost nothing: it goes on where it
stopped. Units at and behind the frontier are looked at a few per call, so that no call walks a whole file. A unit that
cannot be read is passed over, so that it costs one call and not all that follow, but the hint stays below it.

Locking: the core thread only.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Callable, Iterator

KNOWN_MAX = 1 << 16  # units kept in memory; more are found again by the frontier
PROBE_MAX = 64  # units that one call looks at
_ALL_SEEN = 1 << 64


class FreeList:
    """The free units of a file. `probe(unit)` tells whether the unit has something free."""

    __slots__ = ("_aside", "_heap", "_known", "_probe", "_unseen", "frontier")

    def __init__(self, start: int, probe: Callable[[int], bool]) -> None:
        self.frontier = start
        self._probe = probe
        self._heap: list[int] = []
        self._aside = -1
        self._known: set[int] = set()
        self._unseen = _ALL_SEEN  # the lowest unit that could not be looked at

    def find(self, end: int, probes: int = PROBE_MAX) -> int | None:
        """The lowest known unit with something free, or the first of at most `probes` further ones below `end`.

        None: nothing found within the bound. The unit stays in the list; it leaves it when it is seen to be full. What
        `probe` raises gets out; that unit is passed over from then on, but the hint stays below it.
        """
        heap = self._heap
        while heap:
            if self._look(heap[0]):
                return heap[0]
            self._known.discard(heapq.heappop(heap))
        stop = min(end, self.frontier + probes)
        while self.frontier < stop:
            unit = self.frontier
            self.frontier += 1
            if unit != self._aside and self._look(unit):
                self.add(unit)
                return unit
        return None

    @contextlib.contextmanager
    def set_aside(self, unit: int) -> Iterator[None]:
        """Meanwhile `find` finds another unit than the one it found last."""
        self._known.discard(heapq.heappop(self._heap))
        self._aside = unit  # it may lie at or behind the frontier, too
        try:
            yield
        finally:
            self._aside = -1
            self.add(unit)

    def _look(self, unit: int) -> bool:
        try:
            return self._probe(unit)
        except BaseException:
            self._unseen = min(self._unseen, unit)
            if unit in self._known:
                self._known.discard(heapq.heappop(self._heap))
            raise

    def add(self, unit: int) -> None:
        """`unit` has something free now."""
        if unit in self._known:
            return
        self._known.add(unit)
        heapq.heappush(self._heap, unit)
        if len(self._heap) > KNOWN_MAX:
            self.frontier = min(self.frontier, self._heap[0])
            self._heap.clear()
            self._known.clear()

    def none_free(self, end: int) -> None:
        """Nothing below `end` is free: another count says so."""
        self.frontier = end
        self._unseen = _ALL_SEEN
        self._heap.clear()
        self._known.clear()

    @property
    def hint(self) -> int:
        """A unit below which nothing is free."""
        hint = min(self.frontier, self._unseen)
        return min(self._heap[0], hint) if self._heap else hint
