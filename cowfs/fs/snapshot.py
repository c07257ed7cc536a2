"""Snapshots and clones by name, and the filesystem objects of all trees that are in use.

Duty: what people do with trees: take, list, rename, protect, delete, roll back, branch. The trees themselves, and why each
of these is a constant amount of work, are `storage.forest`'s business. A change here becomes durable with the next commit,
which the caller makes: creating and rolling back promise it.

What a policy for rolling snapshots made is marked as *automatic*, and remembered (`automatic`). Whoever renames one of these
makes it his own.

A rollback makes a new `Filesystem` of the live tree: the old object, and whatever was learned from it (inode numbers held
by the kernel, open handles), belongs to a tree that is no more, and must not be used.

Locking: the core thread only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from cowfs.errors import Exists, InvalidArgument, NameTooLong, NotFound, NotPermitted
from cowfs.fs.attributes import NANOSECONDS, AtimeMode
from cowfs.fs.automatic import AutomaticSnapshots
from cowfs.fs.clock import file_time
from cowfs.fs.filesystem import Filesystem
from cowfs.fs.orphans import OrphanList
from cowfs.fs.steps import TICKS, Steps, Watch, sort
from cowfs.ondisk import format as f
from cowfs.storage.forest import TREE_COST
from cowfs.storage.snapshots import SnapshotTable, description_of, name_of, printable
from cowfs.storage.tree import Tree
from cowfs.storage.volume import TREE_COPIES_MAX, Tier, Volume

OPEN_TREES_MAX: Final = 64  # trees without users that are kept ready
BEFORE_ROLLBACK: Final = b"before-rollback-"
AUTOMATIC: Final = b"auto-"


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot (read-only) or a clone (writable). `created` is in nanoseconds since 1970, `origin` 0 the live tree."""

    place: int
    id: int
    name: bytes
    description: bytes
    created: int
    serial: int
    origin: int
    writable: bool
    protected: bool
    automatic: bool


class Snapshots:
    """All trees of one volume. `live` is the filesystem of the live tree, a new object after each rollback."""

    def __init__(
        self,
        volume: Volume,
        *,
        clock: Callable[[], int] = file_time,
        atime: AtimeMode = AtimeMode.RELATIME,
    ) -> None:
        self.volume = volume
        self.live = Filesystem(volume, clock=clock, atime=atime)
        self.automatic = AutomaticSnapshots(self._table)
        self._clock = clock
        self._atime = atime
        self.mentioned: dict[int, int] = {}  # by id: the place in the table, of those known outside by their id
        self._numbered = (b"", 0)  # the last name that `_name_by_time` had to number, without its number, and that
        self._filesystems: dict[int, Filesystem] = {}  # of snapshots and clones, the one used longest ago first

    # --- finding ---

    def find(self, name: bytes) -> SnapshotInfo:
        """The snapshot or clone of that name. Raises NotFound, Corrupt."""
        place = self._table.find(name)
        return _info(place, self._table.get(place))

    def at(self, place: int, tree_id: int) -> SnapshotInfo:
        """The snapshot or clone at a place of the table, if it still is the one with this id. Raises NotFound."""
        record = self._table.get(place)
        if record.id != tree_id:
            raise NotFound
        return _info(place, record)

    def __iter__(self) -> Iterator[SnapshotInfo]:
        """All that have a name, in no order that means anything."""
        for place, record in self._table:
            if not record.flags & f.SNAPSHOT_INTERNAL:
                yield _info(place, record)

    def page_steps(self, place: int, count: int) -> Steps[tuple[list[SnapshotInfo], int]]:
        """At most `count` of those at or behind a place of the table that have a name, and the place to go on from.

        What is created or deleted between two pages may or may not be met, all others are, once. The end of the table is
        reached when the page is empty.
        """
        table = self._table
        infos: list[SnapshotInfo] = []
        ticks = 0
        while place < table.places and len(infos) < count:
            if not table.is_empty(place):
                record = table.get(place)
                if not record.flags & f.SNAPSHOT_INTERNAL:
                    infos.append(_info(place, record))
            place += 1
            ticks += 1
            if ticks % TICKS == 0:
                yield
        return infos, place

    def list_steps(self) -> Steps[list[SnapshotInfo]]:
        """All that have a name, the oldest first; of those created or deleted meanwhile, some."""
        infos: list[SnapshotInfo] = []
        place = 0
        while place < self._table.places:
            page, place = yield from self.page_steps(place, TICKS)
            infos += page
            yield
        return (yield from sort(infos, lambda info: info.id, Watch(self.volume, ())))

    def __len__(self) -> int:
        return self.volume.forest.named_count

    def filesystem(self, info: SnapshotInfo) -> Filesystem:
        """The files of a snapshot or clone. Raises NotFound, Corrupt, DeviceError."""
        found = self._filesystems.pop(info.id, None)
        if found is None:
            self._close_unused()
            tree = self.volume.forest.open(info.place)
            found = Filesystem(self.volume, clock=self._clock, atime=self._atime, tree=tree)
        self._filesystems[info.id] = found
        return found

    def opened(self, tree_id: int) -> Filesystem:
        """The filesystem, in use, of the tree with this id. Raises NotFound."""
        if tree_id not in self._filesystems:
            raise NotFound
        return self._filesystems[tree_id]

    def now(self) -> int:
        """The time, in nanoseconds since 1970."""
        return self._clock()

    def all_open(self) -> list[Filesystem]:
        """The live filesystem and those of all trees in use."""
        return [self.live, *self._filesystems.values()]

    # --- changing ---

    def create(
        self, name: bytes, *, description: bytes = b"", writable: bool = False, source: bytes | None = None
    ) -> SnapshotInfo:
        """Takes a snapshot, or a clone, of the live tree or of the snapshot or clone `source`.

        Raises Exists, InvalidArgument, NameTooLong, NotFound, NoSpace, SpaceShort, before anything changes.
        """
        origin = None if source is None else self.find(source)
        flags = f.SNAPSHOT_WRITABLE if writable else 0
        return self._create(
            name, description, flags, self.volume.live if origin is None else origin.place, self._clock()
        )

    def create_automatic(self) -> SnapshotInfo:
        """Takes a snapshot of the live tree for a policy, and names it after the time. Raises NoSpace, SpaceShort."""
        now = self._clock()
        return self._create(self._name_by_time(AUTOMATIC, now), b"", f.SNAPSHOT_AUTOMATIC, self.volume.live, now)

    def _create(self, name: bytes, description: bytes, flags: int, source: Tree | int, now: int) -> SnapshotInfo:
        self._check(name, description)
        self._make_ready(self.volume.forest.take_cost)
        with self.volume.operation():
            place, record = self.volume.forest.take(name, description, flags=flags, source=source, created=max(now, 0))
        self.automatic.note(place, record)
        return _info(place, record)

    def delete(self, names: Sequence[bytes]) -> list[SnapshotInfo]:
        """Deletes all of these, or, where one cannot be, none: what only they held is dropped by reclaim.

        Raises NotFound, NotPermitted for a protected one, SpaceShort, Corrupt, DeviceError, before anything changes. NoSpace
        only for several: one alone always can be.
        """
        infos = self.deletable(names)
        self._make_ready(self._drop_cost(len(infos)), Tier.SYSTEM)
        with self.volume.operation():
            for info in infos:
                self.volume.forest.check_drop(info.place)
            for info in infos:
                self._forget(info.id)
                self.mentioned.pop(info.id, None)
                self.volume.forest.drop(info.place)
                self.automatic.forget(info.id)
        return infos

    def deletable(self, names: Sequence[bytes]) -> list[SnapshotInfo]:
        """Those of these names, each once. Raises NotFound, NotPermitted for a protected one."""
        infos = [self.find(name) for name in dict.fromkeys(names)]
        for info in infos:
            if info.protected:
                raise NotPermitted(f"snapshot {printable(info.name)} is protected")
        return infos

    def rename(self, name: bytes, new_name: bytes) -> SnapshotInfo:
        """Gives a snapshot or clone another name; an automatic one is so no more.

        Raises NotFound, Exists, InvalidArgument, NameTooLong.
        """
        info = self.find(name)
        if name == new_name:
            return info
        with self.volume.operation():
            self.volume.admit(self.volume.forest.take_cost)
            self._table.rename(info.place, new_name)
            self._set_flags(info.place, off=f.SNAPSHOT_AUTOMATIC)
        return self.find(new_name)

    def protect(self, name: bytes, *, on: bool) -> SnapshotInfo:
        """Forbids, or allows, to delete a snapshot or clone. Raises NotFound."""
        info = self.find(name)
        with self.volume.operation():
            self.volume.admit(TREE_COST, Tier.SYSTEM)
            if on:
                self._set_flags(info.place, on=f.SNAPSHOT_PROTECTED)
            else:
                self._set_flags(info.place, off=f.SNAPSHOT_PROTECTED)
        return self.find(name)

    def pin(self, tree: Tree) -> Tree:
        """Keeps a tree as it is now for one long computation: a tree to read from, with whatever it holds.

        A constant amount of work, which no commit has to follow. Whoever pins calls `unpin`; what a crash leaves is dropped
        when the volume is next opened for writing. Raises NoSpace, SpaceShort, TooManyLinks, before anything changes.
        """
        return self.pin_all([tree])[0]

    def pin_all(self, trees: Sequence[Tree], *, before: Callable[[], None] = lambda: None) -> list[Tree]:
        """`pin` of several trees at the same moment; `before` is called right before, when nothing is short any more."""
        self.volume.check_writable()
        self._make_ready(TREE_COST * max(len(trees), 1), Tier.SYSTEM)
        with self.volume.operation():
            before()
            return [self.volume.forest.pin(tree, max(self._clock(), 0)) for tree in trees]

    def unpin(self, tree: Tree) -> None:
        """Lets go of a pinned tree: what only it held is dropped by reclaim. Raises NoSpace, SpaceShort."""
        if self.volume.read_only:
            self.volume.forest.forget(tree.id)
            return
        with self.volume.operation():
            self.volume.admit(TREE_COST, Tier.SYSTEM)
            self.volume.forest.unpin(tree)

    def roll_back(self, name: bytes, *, discard: bool = False) -> SnapshotInfo | None:
        """The live tree becomes what a snapshot or clone is. The present is saved first, unless `discard`: its record.

        Raises NotFound, NoSpace, SpaceShort, Corrupt, DeviceError, before anything changes. Newer snapshots stay. `live` is
        another object afterwards.
        """
        target = self.find(name)
        return self._go_back(target, None if discard else self._name_by_time(BEFORE_ROLLBACK, self._clock()))

    def reset(self, keep: bytes | None = None) -> SnapshotInfo | None:
        """The live tree of an overlay becomes that of its base. The present is kept under a name, if one is given: its record.

        Snapshots and clones stay. Raises NotSupported where there is no base, and what `roll_back` does. `live` is another
        object afterwards.
        """
        place = self.volume.forest.base_place
        self.volume.check_writable()
        if keep is not None:
            self._table.check_new_name(keep)
        return self._go_back(_info(place, self._table.get(place)), keep)

    def _go_back(self, target: SnapshotInfo, save_as: bytes | None) -> SnapshotInfo | None:
        OrphanList(self.volume, self.filesystem(target).inodes)  # read once more when it is the live tree's
        self._make_ready(self.volume.forest.take_cost, Tier.SYSTEM)
        with self.volume.operation():
            saved = self.volume.forest.roll_back(target.place, save_as=save_as, created=max(self._clock(), 0))
            self.live.detach()
            self.live = Filesystem(self.volume, clock=self._clock, atime=self._atime)
        return None if saved is None or save_as is None else self.find(save_as)

    def close(self) -> None:
        """A clean end: writes back all trees and settles the volume; the device stays open."""
        for filesystem in [*self._filesystems.values(), self.live]:
            filesystem.unhold_all()
            filesystem.finish()
        if not self.volume.read_only:
            self.volume.drop_pins()
        self.live.close()

    # --- inside ---

    @property
    def _table(self) -> SnapshotTable:
        return self.volume.forest.table

    def _drop_cost(self, count: int) -> int:
        """Blocks to be admitted for deleting so many: for a few what removing can always have, for more all of it."""
        cost, margin = TREE_COST * count, self.volume.margin
        return cost if cost <= margin else max(cost, TREE_COPIES_MAX * margin + 1)

    def _set_flags(self, place: int, *, on: int = 0, off: int = 0) -> None:
        record = self._table.get(place)
        record.flags = record.flags & ~off | on
        self._table.replace(place, record)
        self.automatic.note(place, record)
        assert self.volume.tx is not None
        self.volume.tx.changes += 1

    def _make_ready(self, cost: int, tier: Tier = Tier.WRITE) -> None:
        """Admits what follows, and puts what only memory knows into the trees, before one of them is shared.

        An operation of its own: where what follows is refused, nothing is half done.
        """
        with self.volume.operation():
            self.volume.admit(cost, tier)
            for hook in list(self.volume.before_seal):
                hook()

    def _check(self, name: bytes, description: bytes) -> None:
        self.volume.check_writable()
        if len(description) > f.SNAPSHOT_DESCRIPTION_MAX:
            raise NameTooLong(f"a description has at most {f.SNAPSHOT_DESCRIPTION_MAX} bytes")
        if b"\0" in description:
            raise InvalidArgument("a description has no NUL byte")
        self._table.check_new_name(name)

    def _name_by_time(self, prefix: bytes, now: int) -> bytes:
        """A name that is not taken: the prefix and the second, and a number where there are several."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now // NANOSECONDS)).encode()
        name = first = prefix + moment
        number = 1
        if first == self._numbered[0]:  # many in one second: the numbers below were taken the last time
            number = self._numbered[1]
            name = first + b"-%d" % number
        while True:
            try:
                self._table.check_new_name(name)
            except Exists:
                number += 1
                name = first + b"-%d" % number
            else:
                if number > 1:
                    self._numbered = first, number
                return name

    def _forget(self, tree_id: int) -> None:
        filesystem = self._filesystems.pop(tree_id, None)
        if filesystem is not None:
            filesystem.detach()

    def _close_unused(self) -> None:
        """Bounds how many trees without users are kept. A clone goes only while nothing of it waits for a commit."""
        for tree_id, filesystem in list(self._filesystems.items()):
            if len(self._filesystems) < OPEN_TREES_MAX:
                return
            if filesystem.idle and not filesystem.in_use:
                self._forget(tree_id)
                self.volume.forest.forget(tree_id)


def _info(place: int, record: f.SnapshotRecord) -> SnapshotInfo:
    return SnapshotInfo(
        place,
        record.id,
        name_of(record),
        description_of(record),
        record.created,
        record.serial,
        record.origin,
        bool(record.flags & f.SNAPSHOT_WRITABLE),
        bool(record.flags & f.SNAPSHOT_PROTECTED),
        bool(record.flags & f.SNAPSHOT_AUTOMATIC),
    )
