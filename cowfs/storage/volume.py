"""The volume: opening, admission to space, reclaim and the life of its parts. `commit` holds the commit protocol.

Opening for reading takes the newest valid slot whose manifest holds. Opening for writing first flushes the device and
drops its cached pages (a killed daemon may have left an unflushed superblock in the page cache), then makes an empty
commit into the other slot before the first block is written, so that both slots name the same state.

Invariants (the whole list with reasons: docs/DESIGN.md):
- I11 After a failed write or flush nothing is written any more until the volume is opened anew.
- I12 An operation that was admitted, and a commit, find the blocks they need. The floor below every operation is what one
  generation may take for system trees: all pages of bitmap, checksums and references once, though the old ones come back
  only later (I2); and, for good, what these trees may still grow. Pages of the other system trees count from the moment
  they are dirty. Above the floor, removing has a margin of its own, and writing leaves two.

Locking: everything belongs to the single core thread except `SealedCommit.write_out`.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

from cowfs.errors import (
    BaseChanged,
    Corrupt,
    DeviceError,
    InvalidArgument,
    NoSpace,
    ReadOnly,
    SpaceShort,
    UnreadableData,
    Unsupported,
)
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c
from cowfs.ondisk.geometry import Geometry
from cowfs.storage.blockio import BlockStore
from cowfs.storage.blocktree import Root, WritableRoot
from cowfs.storage.commit import SealedCommit, Sealer, Watcher
from cowfs.storage.device import Device
from cowfs.storage.discard import Discards
from cowfs.storage.forest import TREE_COST, Forest
from cowfs.storage.freed import Freed
from cowfs.storage.lateblocks import LateTrees
from cowfs.storage.layers import Buried, layered, overlay_key
from cowfs.storage.pagedtree import (
    CHECKSUM_ENTRY_WORDS,
    BitmapTree,
    ChecksumTree,
    PagedTree,
    tree_capacity_blocks,
)
from cowfs.storage.reclaim import ReclaimQueue
from cowfs.storage.snapshots import SnapshotTable
from cowfs.storage.spacemap import SpaceMap
from cowfs.storage.superblock import (
    COUNTER_MAX,
    Slot,
    SlotSet,
    check_features,
    mend_slot_pointer,
    read_slots,
)
from cowfs.storage.transaction import Transaction
from cowfs.storage.tree import LIVE_TREE, Tree

MARGIN_MIN: Final = 12  # blocks that one tier leaves to the next: the tree copies of one operation
MARGIN_MAX: Final = 48
TREE_COPIES_MAX: Final = 3  # margins; an estimate above this is for data as well
HOOK_BLOCKS: Final = 16  # what one hook of `before_seal` may allocate at most
WANTS_COMMIT_BYTES = 8 << 20  # dirty metadata after which a commit should begin: sealing so much takes some 10 ms
MUST_WAIT_BYTES = 48 << 20  # dirty metadata after which writers should wait for it
SEALED: Final = "the volume is sealed: 'cowfs unseal' allows writing again"
CACHE_BYTES_DEFAULT: Final = 48 << 20  # clean metadata in memory, about


def system_capacity(geometry: Geometry) -> int:
    """Blocks of the bitmap, the checksums and the references, if every page of them is there."""
    blocks = geometry.num_blocks
    return (
        tree_capacity_blocks(geometry, -(-blocks // 8))
        + tree_capacity_blocks(geometry, blocks * f.CHECKSUM_SIZE, CHECKSUM_ENTRY_WORDS)
        + tree_capacity_blocks(geometry, blocks * f.REFERENCE_SIZE)
    )


def margin_of(num_blocks: int) -> int:
    """Blocks that one tier leaves to the next in a volume of so many."""
    return max(MARGIN_MIN, min(MARGIN_MAX, num_blocks // 64))


class Tier(enum.IntEnum):
    """Who asks for space: each may use what the ones before it must leave."""

    WRITE = 0  # everything that adds
    REMOVE = 1  # unlink, truncate
    SYSTEM = 2  # reclaim, snapshot deletion, rollback


class Operation:
    """Around one change: a failure after the first change of state must never be committed, so it latches.

    UnreadableData does not: it says that nothing but shadowing was done in the place where it was raised. Operations do
    not nest, so a volume has one of these, whose `changes_before` says what had been done before the running one.
    """

    __slots__ = ("_volume", "changes_before")

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.changes_before = 0

    def __enter__(self) -> None:
        tx = self._volume.tx
        assert tx is not None
        self.changes_before = tx.changes

    def restart(self) -> None:
        """What was done up to now is no part of the operation: making room for it is not."""
        self.__enter__()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc is None:
            return
        volume = self._volume
        assert volume.tx is not None
        changed = volume.tx.changes != self.changes_before
        if changed and not isinstance(exc, UnreadableData) and not volume.read_only:
            volume.latch(exc)


class Volume:
    """An open volume. Made by `Volume.open`."""

    def __init__(self, device: Device, slot: Slot, *, read_only_reason: str, watcher: Watcher | None = None) -> None:
        self.device = device
        self.watcher = watcher
        self.geometry = slot.geometry
        self.superblock = slot.superblock
        self.extension = slot.extension
        self.notes: list[str] = []
        self.foreign = slot.extension is None
        self.read_only_reason = read_only_reason
        self.latched = False
        self.inline_commits = True
        self.before_seal: list[Callable[[], None]] = []  # each may allocate HOOK_BLOCKS
        self.newest_slot = slot.number
        self.serial = slot.serial
        self.slots_agree = False
        self.discards: Discards | None = None
        """Where what commits free goes back to the medium (`-o discard`)."""
        self.moved_from: int | None = None
        """While the volume gets another size: where slot 2 was (see `resize`)."""
        self._manifests = {slot.number} if slot.manifest else set()  # the slots that have one
        self.clock: Callable[[], int] = time.time_ns
        self.commits = 0
        self.seals = 0
        self.store = BlockStore(device, slot.geometry)
        self.cache_bytes = CACHE_BYTES_DEFAULT
        """What `limit_caches` was told; whoever keeps something for each inode looks at it, too."""
        layers = layered(device)
        self.buried: Buried | None = None if layers is None else layers.buried
        zero = slot.extension.zero_blocks if slot.extension else ()
        self.zero_blocks: tuple[int, ...] = zero
        self.system_trees: list[PagedTree] = []
        tx = None if slot.extension is None else self._open_system(slot.superblock, slot.extension)
        self.tx: Transaction | None = tx
        self.spacemap: SpaceMap | None = None if tx is None else tx.spacemap
        self.trees = LateTrees(self.store, zero, tx)
        self.trees.on_failure = self.latch
        self.live = Tree(self.trees, LIVE_TREE, slot.superblock, writable=not read_only_reason)
        self._sealed_changes = 0
        self._operation = Operation(self)
        self._sealer = Sealer(self)
        self._in_flight: SealedCommit | None = None
        # Freed in the newest durable generation: reusable after the next one (I2).
        self._held_back = Freed(slot.geometry.block_size)
        self.measure()

    # --- opening ---

    @classmethod
    def open(
        cls,
        device: Device,
        *,
        read_only: bool = False,
        superblock: int | None = None,
        base: int = 0,
        clock: Callable[[], int] = time.time_ns,
        unseal: bool = False,
        watcher: Watcher | None = None,
    ) -> Volume:
        """Opens the volume on `device` at byte `base`; `superblock` (1 or 2) insists on that slot's state.

        `unseal`: a sealed one is unsealed by that; else it opens read-only.

        Raises NotAVolume, Corrupt, Unsupported, DeviceError, InvalidArgument. A foreign volume, one with unknown read-only
        compatible features, and one whose newest state cannot be read opens read-only; `notes` says so.
        """
        if superblock not in (None, 1, 2):
            raise InvalidArgument(f"there is no superblock slot {superblock}, only 1 and 2")
        if not read_only and not device.read_only:
            device.flush()
            device.drop_cache()
        slots = read_slots(device, base)
        notes = list(slots.notes)
        slot, unreadable = _choose(device, slots, superblock, notes)
        _check_layers(device, slot)
        notes += _cut_short(device, slot)
        reason = "opened read-only" if read_only else "the image is read-only" if device.read_only else unreadable
        if slot.extension is None:
            reason = reason or "a foreign volume, without the cowfs extension area: never written"
        else:
            unknown = check_features(slot.extension)
            if unseal and not reason and not unknown:
                slot.extension.read_only_compatible &= ~f.READ_ONLY_COMPATIBLE_SEALED
            sealed = SEALED if slot.extension.is_sealed else ""
            reason = reason or unknown or sealed
        if not read_only and reason:
            notes.append(f"read-only: {reason}")
        volume = cls(device, slot, read_only_reason=reason, watcher=watcher)
        volume.notes += notes
        volume.clock = clock
        if not reason:  # the next commit's is above both
            volume.serial = max(slots.serial_max, slot.serial)
        volume._manifests = {number for number, found in slots.slots.items() if found.manifest}
        if not volume.read_only:
            mend_slot_pointer(device, slots, slot)
            if volume.extension is not None:
                volume.extension.resizing = 0
            volume.commit_empty()
            if volume.extension is not None and (volume.extension.first_pin or volume.extension.overlay.spent):
                volume.drop_pins()
        return volume

    def _open_system(self, superblock: f.Superblock, extension: f.Extension) -> Transaction:
        """The trees that belong to the volume, and what changes them."""
        store, zero = self.store, extension.zero_blocks
        if len(set(zero)) != f.ZERO_BLOCK_COUNT or any(z >= store.num_blocks for z in zero):
            raise Corrupt("zero blocks", wanted="four numbers in the volume", found=zero)
        if max(extension.generation, extension.snapshot_id) >= COUNTER_MAX:
            raise Corrupt("a counter of the volume cannot be", found=(extension.generation, extension.snapshot_id))
        if max(superblock.free_blocks, extension.system_blocks) > store.num_blocks:
            found = f"{superblock.free_blocks} free ones, {extension.system_blocks} of the system"
            raise Corrupt("counts of blocks", wanted=f"<= {store.num_blocks}", found=found)
        overlay = extension.overlay
        if overlay.buried_free > superblock.free_blocks or overlay.buried_system > extension.system_blocks:
            found = f"{overlay.buried_free} free ones, {overlay.buried_system} of the system"
            raise Corrupt("counts of buried blocks", wanted="no more than there are", found=found)
        self.checksums = ChecksumTree(store, zero, extension.checksums, extension.checksum_checks)
        self.bitmap = BitmapTree("bitmap", store, zero, superblock.bitmap)
        self.references = PagedTree("references", store, zero, extension.references)
        self.snapshots = PagedTree("snapshots", store, zero, extension.snapshots)
        self.snapshot_index = PagedTree("snapshot_index", store, zero, extension.snapshot_index)
        self.reclaim_tree = PagedTree("reclaim", store, zero, extension.reclaim)
        self.settings = PagedTree("settings", store, zero, extension.settings)
        for tree, wanted in (
            (self.checksums, store.num_blocks * f.CHECKSUM_SIZE),
            (self.references, store.num_blocks * f.REFERENCE_SIZE),
            (self.bitmap, -(-store.num_blocks // 8)),
        ):
            levels = store.geometry.levels_of(store.geometry.blocks_of(wanted), tree.fanout)
            if (tree.size, tree.levels) != (wanted, levels):
                found = f"{tree.size} with {tree.levels}"
                raise Corrupt(f"{tree.name} tree: size", wanted=f"{wanted} with {levels} levels", found=found)
        store.checksums = self.checksums
        store.on_write_error = self.latch
        self.system_trees = [
            self.bitmap,
            self.references,
            self.snapshots,
            self.snapshot_index,
            self.reclaim_tree,
            self.settings,
            self.checksums,
        ]
        spacemap = SpaceMap(
            store,
            self.bitmap,
            self.references,
            self.checksums,
            free=superblock.free_blocks,
            hints=(extension.data_hint, extension.metadata_hint),
            buried=self.buried,
            buried_free=extension.overlay.buried_free,
        )
        self.bitmap.evictable = spacemap.evictable
        self.reclaim = ReclaimQueue(self.reclaim_tree, extension.reclaim_count)
        tx = Transaction(store, spacemap, self.reclaim, zero)
        tx.on_leak = self.notes.append
        self._without_reserve = (self.reclaim_tree, self.snapshots, self.snapshot_index, self.settings)
        for tree in self._without_reserve:
            tree.on_write = self._count_change
        table = SnapshotTable(self.snapshots, self.snapshot_index, extension.snapshot_count)
        self.forest = Forest(self, table)
        return tx

    def _count_change(self) -> None:
        assert self.tx is not None
        self.tx.changes += 1

    def drop_pins(self) -> None:
        """Drops the pins that a session left (I20), and base trees of no use; if that cannot be yet, the next one tries."""
        assert self.extension is not None
        try:
            while self.extension.overlay.spent:
                with self.operation():
                    self.admit(TREE_COST, Tier.SYSTEM)
                    self.forest.drop_spent_base()
            while (place := self.forest.next_leftover()) is not None:
                with self.operation():
                    self.admit(TREE_COST, Tier.SYSTEM)
                    self.forest.drop(place)
        except (Corrupt, DeviceError, NoSpace) as error:
            self.notes.append(f"a tree that was kept for a computation stays: {error}")

    # --- state ---

    @property
    def read_only(self) -> bool:
        """Whether nothing may be written."""
        return bool(self.read_only_reason)

    def check_writable(self) -> None:
        """Raises ReadOnly, with the reason, where nothing may be written."""
        if self.read_only_reason:
            raise ReadOnly(f"read-only: {self.read_only_reason}")

    def latch(self, error: BaseException) -> None:
        """Turns the volume read-only until it is opened anew (I11)."""
        if not self.latched:
            self.latched = True
            self.read_only_reason = f"after an error: {error}"
            self.notes.append(f"the volume is read-only from now on: {error}")

    def operation(self) -> Operation:
        """To stand around one change, in a `with` statement."""
        return self._operation

    def limit_caches(self, size: int) -> None:
        """Keeps about `size` bytes of clean metadata in memory at most, inodes included, from now on."""
        self.cache_bytes = size
        self.store.limit_cache(size * 3 // 8)
        for tree in self.system_trees:  # only that of checksums, and of references, ever has so much
            tree.limit_cache(size // 8)

    def token(self, root: Root) -> WritableRoot:
        """See BlockTrees.token."""
        return self.trees.token(root)

    @property
    def epoch(self) -> int:
        """Grows whenever a remembered "this is writable" dies: at each seal, snapshot and clone."""
        return self.trees.epoch

    def next_generation(self) -> int:
        """A new inode generation (32 bits are stored); the counter never goes back, rollback included."""
        assert self.extension is not None
        self.extension.generation += 1
        return self.extension.generation & 0xFFFFFFFF

    @property
    def dirty(self) -> bool:
        """Whether there is something that a commit would make durable."""
        return self.tx is not None and self.tx.changes != self._sealed_changes

    @property
    def wants_commit(self) -> bool:
        """Whether so much is dirty in memory that a commit should begin now."""
        return self.dirty_bytes > WANTS_COMMIT_BYTES

    @property
    def must_wait(self) -> bool:
        """Whether so much is dirty in memory that writers should wait for a commit."""
        return self.dirty_bytes > MUST_WAIT_BYTES

    @property
    def dirty_bytes(self) -> int:
        """Bytes of metadata in memory that wait for a commit, about."""
        if self.spacemap is None:
            return 0
        # Asked by every change. Dropping what is shared dirties references and the bitmap, but no checksums.
        pages = self.bitmap.dirty_count + self.references.dirty_count + self.checksums.dirty_count
        return (len(self.store.dirty) + pages) * self.store.block_size + self.spacemap.freed.memory

    # --- space ---

    def measure(self) -> None:
        """Works out what has to stay free, for a volume that has its size from now on."""
        self.margin = margin_of(self.geometry.num_blocks)
        """Blocks that one tier leaves to the next."""
        self._capacity = system_capacity(self.geometry)
        self._floors = self._sealed_floors()

    def _floor(self, tier: Tier) -> int:
        """Blocks that an operation of this tier must leave (I12)."""
        return self._floors[tier]

    def _sealed_floors(self) -> tuple[int, ...]:
        """The floor of each tier. All as of the last seal, so that what the open generation places still counts in full."""
        extension = self.extension
        if extension is None:
            return ()
        records = extension.snapshot_count
        record_pages = -(-f.SnapshotRecord.SIZE // self.geometry.block_size)
        others = sum(
            tree_capacity_blocks(self.geometry, size, pages_max=pages) + f.SYSTEM_LEVEL_MAX
            for size, pages in (
                (extension.snapshots.size, records * record_pages),
                (extension.snapshot_index.size, records),
                (extension.settings.size, None),
                (extension.reclaim_count * f.ReclaimEntry.SIZE, None),
            )
            if size
        )
        # Of what is buried nothing comes back: it counts as not there yet.
        growth = max(0, self._capacity + others - (extension.system_blocks - extension.overlay.buried_system))
        floor, margin = self._capacity + growth, self.margin  # of the last tier
        return tuple([floor + (Tier.SYSTEM - tier) * margin for tier in range(Tier.SYSTEM + 1)])

    @property
    def _available(self) -> int:
        """Blocks that can be given out now, without those that the next seal may take and no floor is for."""
        assert self.spacemap is not None
        spacemap = self.spacemap
        at_seal = self.forest.store_cost + len(self.before_seal) * HOOK_BLOCKS
        return spacemap.available - self.trees.count - self._unplaced - at_seal

    @property
    def _unplaced(self) -> int:
        """Blocks that dirty pages of the trees without a reserve may take."""
        total = 0
        for tree in self._without_reserve:
            if tree.unplaced:
                total += tree.unplaced_max
        return total

    def admit(self, blocks: int, tier: Tier = Tier.WRITE) -> None:
        """Before an operation changes anything: makes sure of `blocks` free blocks (its data and its tree copies).

        Raises SpaceShort where a commit or reclaim would help (only with `inline_commits` off; else that is done here,
        so tokens taken before are void), NoSpace where nothing helps. The tree copies of removing never need more than
        the margin: what an estimate says beyond that is for shapes that a full volume of this size cannot have.
        """
        assert self.tx is not None
        if self.inline_commits and self.must_wait and not self._in_flight:
            self.commit()
            self._operation.restart()
        if tier is not Tier.WRITE and blocks <= TREE_COPIES_MAX * self.margin:
            blocks = min(blocks, self.margin)
        while self._available < self._floor(tier) + blocks:
            if self.trees.count:
                self.trees.settle()
                self._operation.restart()
                continue
            if self._bring_forward():
                continue
            if not self.reclaim.ready:
                raise NoSpace(missing=self._floor(tier) + blocks - self._available)
            if not self.inline_commits:
                raise SpaceShort
            self.reclaim_slice()
            self.commit()
            self._operation.restart()

    def _bring_forward(self) -> bool:
        """Commits until what was freed, or counted twice, may be used; False if that is nothing. Raises SpaceShort."""
        assert self.spacemap is not None and self.tx is not None
        if self.discards is not None and self.discards.cancel():
            return True
        if not (self.spacemap.held or self.spacemap.withheld or self._unplaced or self._in_flight):
            return False
        if self._in_flight or not self.inline_commits:
            raise SpaceShort
        self.commit()
        self.commit()
        self._operation.restart()
        return True

    def reclaim_slice(self, blocks: int = 4096) -> bool:
        """Drops up to about `blocks` blocks of the reclaim queue; True while more can be done.

        Raises SpaceShort where a commit has to come first (only with `inline_commits` off).
        """
        if self.tx is None or self.read_only:
            return False
        while blocks > 0 and self.reclaim.ready:
            # One entry makes at most a block's worth of new ones, four pages. With nothing to bring forward it is the
            # margin that pays for them.
            if self._available < self._floor(Tier.SYSTEM) + self.margin:
                self._bring_forward()
            with self.operation():
                blocks -= self.tx.reclaim_one()
        return self.reclaim.ready > 0

    def free_blocks_for_statfs(self) -> tuple[int, int]:
        """(free now or after the next commits, thereof what ordinary writes may use)."""
        if self.spacemap is None:
            return self.superblock.free_blocks, 0
        free = self.spacemap.free - self.spacemap.buried_free - self.trees.growth
        return free, max(0, free - self._floor(Tier.WRITE))

    # --- commit ---

    def seal(self, *, complete: bool = False) -> SealedCommit:
        """Ends the open generation: everything that was done becomes a commit to be written out by any thread.

        `complete`: without a manifest. Nothing else of the volume runs meanwhile; a failure latches.
        """
        self.check_writable()
        assert self._in_flight is None, "one commit at a time"
        assert self.tx is not None
        try:
            for hook in list(self.before_seal):
                hook()
            changed = self.dirty
            sealed = self._sealer.seal(changed=changed, complete=complete)
        except BaseException as error:
            self.latch(error)
            raise
        self._sealed_changes = self.tx.changes
        self._floors = self._sealed_floors()
        self.trees.end_epoch()
        self.seals += 1
        self._in_flight = sealed
        if self.watcher is not None:
            self.watcher.sealed(self, sealed)
        return sealed

    def publish(self, sealed: SealedCommit) -> None:
        """The commit is durable: its slot is the newest, and what was freed a generation before may be reused (I2)."""
        assert sealed is self._in_flight and self.spacemap is not None
        self._in_flight = None
        self.newest_slot = sealed.slot
        self.serial = sealed.serial
        self.slots_agree = not sealed.changed
        self._manifests.discard(sealed.slot)
        if sealed.manifest_count:
            self._manifests.add(sealed.slot)
        self.commits += 1
        self.spacemap.release(self._held_back)
        if self.discards is not None:
            self.discards.take(self._held_back)
        self._held_back = sealed.freed
        if sealed.move is not None:
            self._has_moved()
        self.store.sealed = {}
        for block in sealed.metadata:
            self.store.keep(block, sealed.blocks[block])
        for tree in self.system_trees:
            tree.trim_cache()
        if self.watcher is not None:
            self.watcher.published(self, sealed)

    def _has_moved(self) -> None:
        """The volume has another size, and slot 2 its place (I40)."""
        assert self.spacemap is not None and self.extension is not None
        self.moved_from = None
        self.spacemap.admit_new()
        self.measure()
        self.extension.resizing = 0
        self._count_change()  # that is in neither slot yet

    def publish_failed(self, sealed: SealedCommit, error: BaseException) -> None:
        """The write-out failed: it may or may not be on the medium, so nothing is written any more (I11)."""
        assert sealed is self._in_flight
        self._in_flight = None
        self.latch(error)

    @property
    def manifest_pending(self) -> bool:
        """Whether the newest slot has a manifest, which opening would have to verify."""
        return self.newest_slot in self._manifests

    @property
    def committing(self) -> bool:
        """Whether a sealed commit is being written out."""
        return self._in_flight is not None

    def commit(self, *, complete: bool = False) -> None:
        """Seal, write out and publish in one go. Raises DeviceError (and latches) when the device fails."""
        self.finish(self.seal(complete=complete))

    def finish(self, sealed: SealedCommit) -> None:
        """Writes a sealed commit out and publishes it. Raises DeviceError (and latches) when the device fails."""
        try:
            sealed.write_out()
        except BaseException as error:
            self.publish_failed(sealed, error)
            raise
        self.publish(sealed)

    def commit_empty(self) -> None:
        """Names the present state in the other slot as well."""
        assert not self.dirty
        self.commit(complete=True)

    def settle(self) -> None:
        """A clean end: everything committed, both slots complete and naming the same state, slot 1 newest."""
        if self.read_only:
            return
        for hook in list(self.before_seal):
            hook()
        if self.dirty:
            self.commit(complete=True)
        while not self.slots_agree or self.newest_slot != 1 or self._manifests:
            self.commit(complete=True)

    @property
    def spare(self) -> int:
        """Blocks that can be given out now and are more than anything needs to be left."""
        return max(0, self._available - self._floor(Tier.WRITE))

    def close(self) -> None:
        """Settles where the volume is writable, and closes the device in any case."""
        try:
            self.settle()
            if self.discards is not None:
                self.discards.finish()
        finally:
            self.device.close()


def _choose(device: Device, slots: SlotSet, wanted: int | None, notes: list[str]) -> tuple[Slot, str]:
    """The slot whose state is opened: the newest whose manifest holds, or the one insisted on; why not to write to it."""
    if wanted is not None:
        if wanted not in slots.slots:
            raise Corrupt(f"{device.name}: superblock slot {wanted} is not valid")
        return slots.slots[wanted], ""
    if len({slot.superblock.volume_id for slot in slots.slots.values()}) > 1:
        raise Corrupt(f"{device.name}: the two superblock slots belong to different volumes; choose one")
    unreadable = f"a newer state may be there that cannot be read ({slots.unreadable})" if slots.unreadable else ""
    newest = slots.newest
    try:
        problem = manifest_problem(device, newest)
    except DeviceError as error:
        problem = str(error)
        unreadable = f"slot {newest.number} holds a newer state that cannot be read ({error})"
    if not problem:
        return newest, unreadable
    other = slots.slots.get(3 - newest.number)
    if other is None or other.extension is None:
        raise Corrupt(
            f"{device.name}: slot {newest.number} names a block that was not written ({problem}), "
            "and there is no other slot"
        )
    notes.append(
        f"slot {newest.number} (serial {newest.serial}) was not completely written ({problem}); using the other"
    )
    return other, unreadable


def _check_layers(device: Device, slot: Slot) -> None:
    """Raises Unsupported where an overlay comes without the base that its state names, or a whole volume with one."""
    layers = layered(device)
    if slot.extension is None or not slot.extension.is_overlay:
        if layers is not None:
            raise Unsupported(f"{device.name}: the state in slot {slot.number} is not that of an overlay")
        return
    overlay = slot.extension.overlay
    if layers is None:
        raise Unsupported(f"{device.name} is an overlay, which cannot be used without its base")
    if overlay_key(overlay) != layers.key:
        raise BaseChanged(f"{device.name}: the state in slot {slot.number} belongs to another state of the base")
    base = layers.buried.base
    if (base.num_blocks, base.block_size) != (overlay.base_blocks, slot.geometry.block_size):
        raise Corrupt(f"{device.name}: blocks of the base", wanted=overlay.base_blocks, found=base.num_blocks)
    if base.num_blocks > slot.geometry.num_blocks or not 1 <= overlay.depth <= f.LAYERS_MAX:
        raise Corrupt(f"{device.name}: an overlay of {slot.geometry.num_blocks} blocks at depth {overlay.depth}")


def _cut_short(device: Device, slot: Slot) -> list[str]:
    """Raises Corrupt where the device ends before the volume does; a foreign volume is read as far as it is there."""
    wanted = slot.geometry.end if slot.extension else slot.geometry.slot_offsets[1] + f.RECORD_SIZE
    if device.size() >= wanted:
        return []
    text = f"{device.name} is cut short: its superblock says {wanted} bytes, it has {device.size()}"
    if slot.extension is not None:
        raise Corrupt(text)
    return [text]


def manifest_problem(device: Device, slot: Slot) -> str:
    """Why the slot's manifest does not hold, an empty string where it does. Raises DeviceError."""
    geometry = slot.geometry
    for entry in slot.manifest:
        if entry.block >= geometry.num_blocks:
            return f"manifest names block {entry.block}"
        data = device.read(geometry.block_offset(entry.block), geometry.block_size)
        if crc32c(data) != entry.checksum:
            return f"block {entry.block}"
    return ""
