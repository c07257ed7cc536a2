"""The reclaim queue: subtrees that nobody names any more, waiting to be dropped in bounded slices.

An entry takes over its parent's reference, so that dropping the largest file or snapshot is a constant amount of work at
once, and the rest follows later, one slice a transaction. The queue is a stack (last in, first out), so its length is
bounded by depth and fan-out, and an interruption at any commit leaves a queue from which the work goes on.

Locking: the core thread only.
"""

from __future__ import annotations

from cowfs.errors import Corrupt
from cowfs.ondisk import format as f
from cowfs.storage.pagedtree import PagedTree


class ReclaimQueue:
    """A stack of ReclaimEntry in a system tree."""

    def __init__(self, tree: PagedTree, count: int) -> None:
        self.tree = tree
        self.count = count
        self.holds = 0
        """How many wait for it not to be worked off; who needs the space does it all the same."""
        self.popped = 0
        """Entries taken out so far."""
        self._postponed = 0  # the lowest entries, which could not be read in this session
        if count * f.ReclaimEntry.SIZE > tree.size:
            raise Corrupt("reclaim queue", wanted=f"at most {tree.size} bytes", found=f"{count} entries")

    @property
    def ready(self) -> int:
        """Entries that can be worked off now."""
        return self.count - self._postponed

    def prepare_push(self, count: int) -> None:
        """Reads what queueing so many entries needs. Raises Corrupt, DeviceError."""
        start = self.count * f.ReclaimEntry.SIZE
        self.tree.load(start, count * f.ReclaimEntry.SIZE)

    def push(self, block: int, kind: int, level: int) -> None:
        """Queues a subtree, with the one reference that its parent held. Raises Corrupt, DeviceError, with nothing queued."""
        entry = f.ReclaimEntry(block, kind, level)
        self.tree.write(self.count * f.ReclaimEntry.SIZE, entry.pack())
        self.count += 1

    def pop(self) -> f.ReclaimEntry | None:
        """The entry queued last, None if none is ready. Raises Corrupt, DeviceError, before anything changes."""
        if not self.ready:
            return None
        size = f.ReclaimEntry.SIZE
        entry = f.ReclaimEntry.unpack(self.tree.read((self.count - 1) * size, size))
        self.tree.write((self.count - 1) * size, bytes(size))
        self.count -= 1
        self.popped += 1
        return entry

    def give_up(self) -> None:
        """What is queued now waits until the volume is next opened: the queue itself cannot be read."""
        self._postponed = self.count

    def postpone(self, entry: f.ReclaimEntry) -> None:
        """Puts an entry back, to be tried again when the volume is next opened."""
        size = f.ReclaimEntry.SIZE
        place = self._postponed * size
        self.tree.write(self.count * size, self.tree.read(place, size) if self.ready else bytes(size))
        self.tree.write(place, entry.pack())
        self.count += 1
        self._postponed += 1
