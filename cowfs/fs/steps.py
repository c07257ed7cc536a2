"""Long computations over whole trees, in slices: a generator yields often, and whoever runs it may do other work between.

One slice is a few milliseconds: at most about a hundred blocks are read, or as many small things done, between two yields.

Invariant: no block number that was read before a yield is followed after it if the block may have been freed meanwhile. The
trees of snapshots do not change, and their blocks stay while they are there; so a `Watch` is asked after each yield
whether the snapshots are still there, and whether blocks were taken or freed since a tree that can be written was first
looked at. (What is changed in a block of the open generation is not noticed: that leads to no wrong block.) To look at a
writable tree over a longer time, take a snapshot of it.

Locking: the core thread only.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterable
from typing import Any, Final, TypeVar

from cowfs.errors import Busy, NotFound
from cowfs.ondisk import format as f
from cowfs.storage.tree import Tree
from cowfs.storage.volume import Volume

TICKS: Final = 128  # small things done in one slice

Item = TypeVar("Item")
Result = TypeVar("Result")
Steps = Generator[None, None, Result]


def finish(steps: Steps[Result]) -> Result:
    """Runs a computation to its end, in one go."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result


class Watch:
    """Whether what a computation looks at is still there: `trees`, and the snapshots and clones at `places`."""

    def __init__(self, volume: Volume, trees: Iterable[Tree], places: Iterable[int] = ()) -> None:
        self._volume = volume
        self._snapshots: list[tuple[int, int]] = []  # (place, id)
        self.writable = False  # whether one of them can change
        self._changes = volume.tx.changes if volume.tx is not None else 0
        self._epoch = volume.epoch
        self._ticks = 0
        for tree in trees:
            self.writable |= tree.writable
            if volume.tx is not None:
                self._add_open(tree)
        for place in places:
            record = volume.forest.table.get(place)
            self._snapshots.append((place, record.id))
            self.writable |= bool(record.flags & f.SNAPSHOT_WRITABLE)

    def _add_open(self, tree: Tree) -> None:
        try:
            self._snapshots.append((self._volume.forest.place_of(tree.id), tree.id))
        except NotFound:
            return  # the live tree, or one whose life is the caller's business

    def check(self) -> None:
        """Raises Busy if it is not."""
        volume = self._volume
        if self.writable and volume.tx is not None and volume.tx.changes != self._changes:
            raise Busy("the files were changed while they were looked at")
        if volume.epoch == self._epoch:
            return
        self._epoch = volume.epoch
        for place, number in self._snapshots:
            try:
                there = volume.forest.table.get(place).id == number
            except NotFound:
                there = False
            if not there:
                raise Busy("a snapshot was deleted while it was looked at")

    def pause(self) -> Steps[None]:
        """Lets others run, then checks. Raises Busy."""
        yield
        self.check()

    def tick(self) -> Steps[None]:
        """Called for each small thing done; each time that there were many, lets others run. Raises Busy."""
        self._ticks += 1
        if self._ticks % TICKS == 0:
            yield from self.pause()


def sort(items: list[Item], key: Callable[[Item], Any], watch: Watch) -> Steps[list[Item]]:
    """The items sorted; the list that is given is consumed."""
    runs = []
    while items:
        runs.append(sorted(items[-TICKS:], key=key))
        del items[-TICKS:]
        yield from watch.pause()
    merged = []
    for item in heapq.merge(*runs, key=key):
        merged.append(item)
        yield from watch.tick()
    return merged
