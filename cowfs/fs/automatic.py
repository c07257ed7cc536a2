"""The automatic snapshots of a volume, remembered, so that a policy need not search the snapshot table for them.

Duty: which snapshots a policy made and may delete, by their ids, and whether the live tree is worth a new one. Reading the
table once, in slices, is what it costs to know them; from the beginning of that, `Snapshots` reports every change.

Invariants:
- I27 What no command deletes is deleted only if its record is marked automatic and not protected.
- Once `loaded`, these are exactly the records with the flag `SNAPSHOT_AUTOMATIC`, except those whose record cannot be
  read: what cannot be read is never deleted.

Locking: the core thread only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final, NamedTuple

from cowfs.errors import Busy, Corrupt, DeviceError, NotFound
from cowfs.fs import usage
from cowfs.fs.steps import TICKS, Steps, Watch
from cowfs.fs.treescan import differing_leaves
from cowfs.ondisk import codecs
from cowfs.ondisk import format as f
from cowfs.storage.snapshots import SnapshotTable
from cowfs.storage.volume import Volume

_OTHERS: Final = f.SNAPSHOT_WRITABLE | f.SNAPSHOT_INTERNAL  # what no policy made, whatever else a record says

log = logging.getLogger(__name__)


class Automatic(NamedTuple):
    """A snapshot that a policy made. `created` is in nanoseconds since 1970."""

    id: int
    created: int
    place: int
    protected: bool


class AutomaticSnapshots:
    """Those of one volume, by id. Nothing is kept, and nothing read, before `load_steps` begins."""

    def __init__(self, table: SnapshotTable) -> None:
        self.loaded = False
        self._table = table
        self._known: dict[int, Automatic] = {}
        self._newest = 0  # the highest id, 0 where there is none or it has to be found
        self._loading = False

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[Automatic]:
        """In no order that means anything."""
        return iter(self._known.values())

    def __contains__(self, number: int) -> bool:
        """Whether there is one with this id."""
        return number in self._known

    def get(self, number: int) -> Automatic | None:
        """The one with this id, None where there is none."""
        return self._known.get(number)

    @property
    def newest(self) -> Automatic | None:
        """The one with the highest id."""
        if not self._newest:
            self._newest = max(self._known, default=0)
        return self._known.get(self._newest)

    def load_steps(self) -> Steps[None]:
        """Reads the whole table, in slices; what is changed meanwhile is noted as ever."""
        self._loading = True
        place = 0
        while place < self._table.places:
            try:
                self.note(place, self._table.get(place))
            except NotFound:
                pass
            except (Corrupt, DeviceError) as error:
                log.warning("the snapshot at place %d cannot be read, and is left alone: %s", place, error)
            place += 1
            if place % TICKS == 0:
                yield
        self.loaded = True

    def note(self, place: int, record: f.SnapshotRecord) -> None:
        """A record was made, or has changed."""
        if not self._loading:
            return
        if record.flags & f.SNAPSHOT_AUTOMATIC and not record.flags & _OTHERS:
            protected = bool(record.flags & f.SNAPSHOT_PROTECTED)
            self._known[record.id] = Automatic(record.id, record.created, place, protected)
            if record.id > self._newest and (self._newest or len(self._known) == 1):
                self._newest = record.id
        else:
            self.forget(record.id)

    def forget(self, number: int) -> None:
        """A snapshot is no more."""
        self._known.pop(number, None)
        if number == self._newest:
            self._newest = 0


def differs_steps(volume: Volume, place: int) -> Steps[bool]:
    """Whether the live tree differs from the snapshot at a place in more than access times, in slices.

    Whatever changes a file changes its inode, so the blocks of the inode file that the trees do not share are all that is
    looked at, until the first one that differs; where the roots are equal, nothing is. A tree that is being changed is taken
    for a different one, and changed inodes have been written back. Raises NotFound, Corrupt, DeviceError.
    """
    trees, live = volume.trees, volume.live
    older = usage.tree_at(volume, place)
    if (live.inodes.size, live.longnames.size) != (older.inodes.size, older.longnames.size):
        return True
    if any(True for _ in differing_leaves(trees, live.longnames, older.longnames)):
        return True
    watch = Watch(volume, [live], [place])
    for index in differing_leaves(trees, live.inodes, older.inodes):
        leaves = [codecs.without_access_times(trees.leaf(tree.inodes, index)) for tree in (live, older)]
        if leaves[0] != leaves[1]:
            return True
        try:
            yield from watch.tick()
        except Busy:
            return True
    return False
