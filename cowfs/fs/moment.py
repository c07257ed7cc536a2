"""One moment of a volume, held for as long as something is counted: what others change meanwhile does not show.

Three things make it, each a constant amount of work:

- The reference counts are frozen (`SpaceMap.freeze`), so what the counting itself keeps counts for nobody.
- Trees that can be written are pinned afterwards (`Snapshots.pin_all`): their blocks stay, and are not changed.
- The reclaim queue is not worked off, so the blocks of snapshots that are deleted meanwhile stay as well.

Only who is short of space works the queue off all the same: then `check` raises Busy, and the counting begins anew.

A volume that is read-only needs nothing of this; there the trees are taken as they are.

Locking: the core thread only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cowfs.errors import Busy, NotSupported
from cowfs.fs.steps import Steps
from cowfs.storage.tree import Tree
from cowfs.storage.volume import Volume

if TYPE_CHECKING:
    from cowfs.fs.snapshot import Snapshots


class Moment:
    """`counts`: the reference counts; `queue_count`: entries of the reclaim queue; `pins`: trees that were pinned before."""

    def __init__(self, volume: Volume) -> None:
        """Now. The caller has written changed inodes back (`Volume.before_seal`). Raises NotSupported, Corrupt."""
        if volume.spacemap is None:
            raise NotSupported("a volume that cowfs did not make has no counts of what is shared")
        self.volume = volume
        self.pins = volume.forest.pins()
        self.counts = volume.spacemap.freeze()
        self.queue_count = volume.reclaim.count
        volume.reclaim.holds += 1
        self._popped = volume.reclaim.popped
        self._open = True

    def check(self) -> None:
        """Raises Busy where the moment could not be held."""
        if self.volume.reclaim.popped != self._popped:
            raise Busy("space ran short, and what was looked at was freed")

    def pause(self) -> Steps[None]:
        """Lets others run, then checks. Raises Busy."""
        yield
        self.check()

    def end(self) -> None:
        """Nobody looks at it any more. Pinned trees are the caller's business."""
        if self._open:
            self._open = False
            self.volume.reclaim.holds -= 1
            assert self.volume.spacemap is not None
            self.volume.spacemap.thaw(self.counts)


def hold(snapshots: Snapshots, trees: Sequence[Tree]) -> tuple[Moment, list[Tree]]:
    """This moment, and in it these trees, which can be written, to read from: `Snapshots.unpin` lets go of those.

    Raises Corrupt, NoSpace, NotSupported, SpaceShort.
    """
    volume = snapshots.volume
    if volume.read_only or not trees:
        return Moment(volume), list(trees)
    found: list[Moment] = []
    try:
        kept = snapshots.pin_all(trees, before=lambda: found.append(Moment(volume)))
    except BaseException:
        for moment in found:
            moment.end()
        raise
    return found[0], kept
