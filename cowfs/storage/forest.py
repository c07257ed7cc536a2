"""The trees of a volume: the live one, and the snapshots and clones in the snapshot table.

Duty: taking, dropping and exchanging whole trees, each a constant amount of work: at most 16 pointers of the inode file and
16 of the long-name file gain or lose a parent, whatever lies below them; one record of the table changes. What a dropped
tree had to itself goes through the reclaim queue. No tree depends on another: blocks know their number of parents, not who
they are.

Invariants:
- I6 Taking or exchanging a tree ends the epoch: what was writable may now be shared.
- I20 A pin, which keeps a tree for one computation, does not outlive its session: opening for writing drops what a crash left,
  and finds it without looking at other records.
- I19 The live tree's roots stand in the superblock, a snapshot's in its record; those of an open clone in memory and, from
  each seal on, in its record.

Locking: the core thread only. Changed inodes have been written back, and space has been admitted, by the caller.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cowfs.errors import Corrupt, NotFound, NotPermitted, NotSupported
from cowfs.ondisk import format as f
from cowfs.storage.children import Child
from cowfs.storage.snapshots import SnapshotTable
from cowfs.storage.superblock import build_slot
from cowfs.storage.tree import Tree

if TYPE_CHECKING:
    from cowfs.storage.volume import Volume

PIN_FLAGS = f.SNAPSHOT_INTERNAL | f.SNAPSHOT_PIN
BASE_FLAGS = f.SNAPSHOT_INTERNAL | f.SNAPSHOT_BASE
TREE_COST = 8  # blocks that taking a tree may add, beside the references that have their own reserve


class Forest:
    """All trees of one volume with an extension area."""

    def __init__(self, volume: Volume, table: SnapshotTable) -> None:
        self.table = table
        self._volume = volume
        self._open: dict[int, tuple[int, Tree]] = {}  # by id: place in the table, tree

    def open(self, place: int) -> Tree:
        """The tree of a snapshot (read-only) or of a clone (writable where the volume is). Raises NotFound, Corrupt."""
        record = self.table.get(place)
        known = self._open.get(record.id)
        if known is not None:
            return known[1]
        writable = bool(record.flags & f.SNAPSHOT_WRITABLE) and not self._volume.read_only
        tree = Tree(self._volume.trees, record.id, record, writable=writable)
        self._open[record.id] = place, tree
        return tree

    def forget(self, tree_id: int) -> None:
        """The tree is no longer used; what it changed has been sealed."""
        self._open.pop(tree_id, None)

    def forget_all(self) -> None:
        """None of the trees is used any more; what was changed in them has been sealed."""
        self._open.clear()

    def take(
        self, name: bytes, description: bytes, *, flags: int, source: Tree | int, created: int
    ) -> tuple[int, f.SnapshotRecord]:
        """A new snapshot, or clone, of a tree or of the record at a place; (place, record).

        Raises Exists, InvalidArgument, NameTooLong, TooManyLinks, Corrupt, DeviceError, before anything changes.
        """
        volume = self._volume
        assert volume.tx is not None and volume.extension is not None
        origin = source if isinstance(source, Tree) else self._tree_at(source)
        self.table.prepare_insert(None if flags & f.SNAPSHOT_INTERNAL else name)
        volume.tx.add_parents(self._tops(origin))
        record = self._record(name, description, flags, origin, created)
        place = self.table.insert(record)
        self._changed()
        return place, record

    def check_drop(self, place: int) -> tuple[f.SnapshotRecord, Tree]:
        """What `drop` removes; reads all that it needs. Raises what `drop` raises."""
        assert self._volume.tx is not None
        record = self.table.get(place)
        if record.flags & f.SNAPSHOT_PROTECTED:
            raise NotPermitted("the snapshot is protected")
        tree = self._tree_at(place)
        self.table.prepare_remove(place)
        self._volume.tx.check_drop(self._tops(tree))
        return record, tree

    def drop(self, place: int) -> f.SnapshotRecord:
        """Removes a snapshot or clone. Raises NotFound, NotPermitted for a protected one, Corrupt, DeviceError.

        Before anything changes; but many at once need `check_drop` of all before the first.
        """
        record, tree = self.check_drop(place)
        self._volume.trees.settle()
        if record.flags & f.SNAPSHOT_PIN:
            self._unchain(place, record)
        self.table.remove(place)
        self._open.pop(record.id, None)
        self._drop_tops(tree)
        self._changed()
        return record

    # --- pins ---

    def pin(self, source: Tree, created: int) -> Tree:
        """Keeps a tree as it is now, until `unpin`: a tree to read from. Raises what `take` raises."""
        volume = self._volume
        assert volume.tx is not None and volume.extension is not None
        self.table.prepare_insert(None)
        volume.tx.add_parents(self._tops(source))
        record = self._record(b"", b"", PIN_FLAGS, source, created)
        record.next_pin = volume.extension.first_pin
        place = self.table.insert(record)
        volume.extension.first_pin = place + 1
        volume.extension.pin_count += 1
        self._changed()
        return self.open(place)

    def unpin(self, tree: Tree) -> None:
        """Lets go of a pinned tree. Raises NotFound, Corrupt, before anything changes."""
        self.drop(self.place_of(tree.id))

    def pins(self) -> list[Tree]:
        """The trees that are pinned now. Raises Corrupt where the chain is broken."""
        return [self._tree_at(place) for place, _ in self._chain()]

    def next_leftover(self) -> int | None:
        """The place of a pin to drop, as long as there is one. Raises Corrupt where the chain is broken."""
        extension = self._volume.extension
        assert extension is not None
        return self._pin(extension.first_pin)[0] if extension.first_pin else None

    @property
    def named_count(self) -> int:
        """How many snapshots and clones there are, without pins and the trees of layers below."""
        extension = self._volume.extension
        assert extension is not None
        overlay = extension.overlay
        return max(0, self.table.count - extension.pin_count - overlay.depth - overlay.spent)

    def _unchain(self, place: int, record: f.SnapshotRecord) -> None:
        """Takes a pin off the chain, whose length is the number of computations under way."""
        extension = self._volume.extension
        assert extension is not None
        before = None
        for at, one in self._chain():
            if at == place:
                break
            before = at, one
        else:
            raise Corrupt("the chain of pins does not lead to one", found=place)
        if before is None:
            extension.first_pin = record.next_pin
        else:
            before[1].next_pin = record.next_pin
            self.table.replace(*before)
        extension.pin_count = max(extension.pin_count - 1, 0)

    def _chain(self) -> Iterator[tuple[int, f.SnapshotRecord]]:
        """(place, record) of all pins, the newest first. Raises Corrupt where the chain is broken."""
        extension = self._volume.extension
        assert extension is not None
        following = extension.first_pin
        met: set[int] = set()
        while following:
            place, record = self._pin(following)
            if place in met:
                raise Corrupt("the chain of pins leads back to one", found=place)
            met.add(place)
            yield place, record
            following = record.next_pin

    def _pin(self, following: int) -> tuple[int, f.SnapshotRecord]:
        """(place, record) of the pin that the chain names next."""
        try:
            record = self.table.get(following - 1)
        except NotFound:
            record = f.SnapshotRecord()
        if record.flags != PIN_FLAGS:
            raise Corrupt("the chain of pins leads to a record that is none", found=following - 1)
        return following - 1, record

    # --- layers below ---

    def keep_base(self, created: int) -> None:
        """Keeps the live tree as that of the base, for resets; those of the layers below that one follow it in a chain."""
        volume = self._volume
        assert volume.tx is not None and volume.extension is not None
        overlay = volume.extension.overlay
        volume.tx.add_parents(self._tops(volume.live))
        record = self._record(b"", b"", BASE_FLAGS, volume.live, created)
        record.next_pin = overlay.base_snapshot
        overlay.base_snapshot = self.table.insert(record) + 1
        self._changed()

    def drop_spent_base(self) -> None:
        """Lets go of the first base tree, which is of no use: its layer was merged, or copied. Raises Corrupt."""
        extension = self._volume.extension
        assert extension is not None
        place = self._first_base()
        following = self.table.get(place).next_pin
        self.drop(place)
        extension.overlay.base_snapshot = following
        extension.overlay.spent -= 1

    @property
    def base_place(self) -> int:
        """The place of the base's tree in the table. Raises NotSupported where there is no base, Corrupt."""
        extension = self._volume.extension
        assert extension is not None
        if not extension.is_overlay:
            raise NotSupported("the volume is not an overlay: it has no base to go back to")
        if extension.overlay.spent:
            raise Corrupt("the base's tree is not the first one", found=extension.overlay.spent)
        return self._first_base()

    def _first_base(self) -> int:
        assert self._volume.extension is not None
        place = self._volume.extension.overlay.base_snapshot - 1
        try:
            flags = self.table.get(place).flags
        except NotFound:
            flags = 0
        if flags != BASE_FLAGS:
            raise Corrupt("the record of the base's tree is none", found=place)
        return place

    # --- exchanging ---

    def roll_back(self, place: int, *, save_as: bytes | None, created: int) -> f.SnapshotRecord | None:
        """The live tree becomes what a snapshot is; what it was is saved under a name (its record is returned), or dropped.

        Raises what `take` raises, before anything changes.
        """
        volume = self._volume
        assert volume.tx is not None
        live, target = volume.live, self._tree_at(place)
        if save_as is not None:
            self.table.prepare_insert(save_as)
        else:
            volume.tx.check_drop(self._tops(live))
        volume.tx.add_parents(self._tops(target))
        saved = None
        if save_as is None:
            self._drop_tops(live)
        else:
            saved = self._record(save_as, b"", 0, live, created)
            self.table.insert(saved)
        live.become(target)
        self._changed()
        return saved

    @property
    def take_cost(self) -> int:
        """Blocks that taking a tree may add: TREE_COST, and a new index where the old one gets too full."""
        return TREE_COST + self.table.growth_cost

    @property
    def store_cost(self) -> int:
        """Blocks that `store_clones` may take at most, however many of them are dirty already."""
        if not self._open:
            return 0
        pages = sum(tree.writable and not tree.idle for _, tree in self._open.values())
        return pages + self._volume.snapshots.nodes_max if pages else 0

    def store_clones(self) -> None:
        """Puts the roots of changed clones into their records: part of each seal."""
        for place, tree in self._open.values():
            if tree.writable and not tree.idle:
                record = self.table.get(place)
                before = record.pack()
                tree.store_in(record)
                if record.pack() != before:
                    self.table.replace(place, record)

    def exported_record(self, place: int) -> bytes:
        """A superblock record that names the tree at a place as if it were the live one, for readers that know only qnx6.

        In both slots of a copy of the image it lets them see that tree: a snapshot is a committed superblock. The bitmap,
        the counts of blocks and the serial are the present ones; there is no anchor, so it never passes for a slot of ours.
        What an open clone has changed since the last seal is not in it. Raises NotFound, Corrupt, DeviceError.
        """
        record = self.table.get(place)
        superblock = f.Superblock.unpack(self._volume.superblock.pack())
        superblock.inode, superblock.longfile = record.inode, record.longfile
        superblock.num_inodes, superblock.free_inodes = record.num_inodes, record.free_inodes
        superblock.serial = self._volume.serial
        superblock.magic = f.QNX_MAGIC  # in a copy of all layers, what is there is a whole volume
        superblock.anchor = f.no_anchor()
        return build_slot(superblock, None, ())[0]

    def place_of(self, tree_id: int) -> int:
        """The place of an open tree's record. Raises NotFound."""
        if tree_id not in self._open:
            raise NotFound
        return self._open[tree_id][0]

    def _tree_at(self, place: int) -> Tree:
        record = self.table.get(place)
        known = self._open.get(record.id)
        return known[1] if known else Tree(self._volume.trees, record.id, record, writable=False)

    def _record(self, name: bytes, description: bytes, flags: int, origin: Tree, created: int) -> f.SnapshotRecord:
        extension = self._volume.extension
        assert extension is not None
        record = f.SnapshotRecord(
            id=extension.snapshot_id,
            flags=flags,
            created=created,
            origin=origin.id,
            serial=self._volume.serial + 1,
            name_length=len(name),
            description_length=len(description),
            name=name,
            description=description,
        )
        extension.snapshot_id += 1
        origin.store_in(record)
        return record

    def _tops(self, tree: Tree) -> list[Child]:
        """The blocks that the roots of a tree name."""
        return self._volume.trees.tops((tree.inodes, tree.longnames))

    def _drop_tops(self, tree: Tree) -> None:
        assert self._volume.tx is not None
        for pointer, kind, level in self._tops(tree):
            self._volume.tx.drop(pointer, kind, level)

    def _changed(self) -> None:
        volume = self._volume
        assert volume.tx is not None
        volume.tx.changes += 1
        volume.trees.end_epoch()
