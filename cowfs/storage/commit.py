"""The commit protocol: seal, write out, publish.

1. *Seal* (nothing else runs): dirty system pages get blocks by a worklist, since placing one changes the bitmap and the
   checksums, which are system trees themselves; it ends when no page is unplaced, and each is placed once. Then contents
   are final: every dirty block's crc32c goes into the checksum tree, the tree's own sums from the leaves upwards, the top
   ones into the extension area.
2. *Write out* (any thread): all blocks and the slot's extension area, flush, then the 512-byte record, flush. Where the
   blocks that no earlier flush covers fit into the manifest, blocks and slot are written together and flushed once:
   opening verifies the manifest and falls back to the other slot.
3. *Publish* (core thread): the slot counts as the newest; waiters are answered by the caller.

Invariants:
- I13 A valid record g proves that everything of g - 1 was flushed: g is written only after g - 1 was published.
- I14 Everything that can fail comes before the record is written.
- I40 When slot 2 moves, what finds it leads to a complete state that holds everything durable, whatever is torn.
- I15 A manifest names every block born in the generation that the state still uses; if they do not all fit, there is none
  and two flushes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from cowfs.errors import Corrupt
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c
from cowfs.ondisk.geometry import Geometry
from cowfs.ondisk.records import Buffer
from cowfs.storage.blockio import contiguous
from cowfs.storage.device import Device
from cowfs.storage.freed import Freed
from cowfs.storage.superblock import build_slot, write_slot_pointer

if TYPE_CHECKING:
    from cowfs.storage.volume import Volume

SMALL_BYTES: Final = 256 << 10
"""A commit of no more is a small one: a quick device has it on the medium in less than a millisecond."""


@dataclass(slots=True)
class SlotMove:
    """The volume gets another size with a commit: slot 2 has another place, and slot 1 is written as well.

    The commit before is in slot 1, which leads to slot 2 at `old_offset` until it is written anew. Should that be torn, the
    boot block leads to the new slot 2; so it is written before (I40).
    """

    geometry: Geometry
    old_offset: int
    record: bytes
    area: bytes

    def write_out(self, device: Device, record: bytes, area: bytes) -> None:
        """Writes new slot 2, boot block, slot 1, each flushed, then wipes the old slot 2. Raises DeviceError."""
        slot1, slot2 = self.geometry.slot_offsets
        device.write(slot2, [record, area])
        device.flush()
        write_slot_pointer(device, self.geometry)
        device.flush()
        device.write(slot1, [self.record, self.area])
        device.flush()
        device.write(self.old_offset, [bytes(f.SLOT_AREA_SIZE)])


@dataclass(slots=True)
class SealedCommit:
    """A generation that nobody changes any more, ready to be written. `changed` is False for an empty commit."""

    device: Device
    serial: int
    slot: int
    slot_offset: int
    runs: list[tuple[int, list[Buffer]]]  # (byte offset, contents)
    record: bytes
    area: bytes
    changed: bool
    one_flush: bool
    manifest_count: int
    freed: Freed
    blocks: dict[int, Buffer]
    born_bytes: int  # allocated in the generation, whether still in use, written before the seal, or neither
    metadata: list[int] = field(default_factory=list)
    move: SlotMove | None = None  # then serial and slot are those of slot 1, which ends it

    @property
    def is_small(self) -> bool:
        """Whether it takes one flush, of little: `SMALL_BYTES` at most, those included that were written before the seal."""
        return self.one_flush and self.move is None and self.born_bytes <= SMALL_BYTES

    def write_out(self) -> None:
        """Makes the commit durable. Raises DeviceError; the volume must then be latched, whatever was written."""
        device = self.device
        self.write_blocks()
        if self.move is not None:
            self.move.write_out(device, self.record, self.area)
            return
        if self.one_flush:
            device.write(self.slot_offset, [self.record, self.area])
            device.flush()
            return
        device.write(self.slot_offset + f.EXTENSION_OFFSET, [self.area])
        device.flush()
        device.write(self.slot_offset, [self.record])
        device.flush()

    def write_blocks(self) -> None:
        """Writes everything but the slot. Raises DeviceError."""
        for offset, pieces in self.runs:
            self.device.write(offset, pieces)


class Watcher(Protocol):
    """Is told of the commits of a volume, from its opening on: for tests of what a power cut leaves."""

    def sealed(self, volume: Volume, sealed: SealedCommit) -> None:
        """A generation was sealed."""

    def published(self, volume: Volume, sealed: SealedCommit) -> None:
        """A commit is durable."""


class Sealer:
    """Seals the generations of one volume."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume

    def seal(self, *, changed: bool, complete: bool) -> SealedCommit:
        """The open generation as a commit. On return the volume is in the next generation."""
        volume = self._volume
        store, spacemap = volume.store, volume.spacemap
        assert spacemap is not None and volume.extension is not None
        volume.forest.store_clones()
        self._place()
        blocks, sums = self._contents()
        born = self._born(sums)
        born_bytes = spacemap.born_count * store.block_size
        manifest = {} if complete or born is None else born
        one_flush = born is not None and (not complete or not (blocks or born))
        self._fill_records()
        record, area = build_slot(volume.superblock, volume.extension, sorted(manifest.items()))
        move = self._move(volume.moved_from) if volume.moved_from is not None else None
        metadata = list(store.dirty)
        store.sealed = blocks
        store.dirty = {}
        store.dirty_data = {}
        slot = 3 - volume.newest_slot if move is None else 1
        geometry = volume.geometry
        return SealedCommit(
            device=volume.device,
            serial=volume.superblock.serial,
            slot=slot,
            slot_offset=geometry.slot_offsets[slot - 1],
            runs=[(geometry.block_offset(first), pieces) for first, pieces in contiguous(blocks)],
            record=record,
            area=area,
            changed=changed,
            one_flush=one_flush,
            manifest_count=len(manifest),
            freed=spacemap.seal(),
            blocks=blocks,
            born_bytes=born_bytes,
            metadata=metadata,
            move=move,
        )

    def _move(self, old_offset: int) -> SlotMove:
        """Slot 1 for the state that was just put into records: the same with the next serial."""
        volume = self._volume
        assert volume.newest_slot == 1
        volume.superblock.serial += 1
        record, area = build_slot(volume.superblock, volume.extension, ())
        return SlotMove(volume.geometry, old_offset, record, area)

    def _place(self) -> None:
        """Gives every dirty system page a block. Ends: each page and node is placed at most once per generation."""
        spacemap, extension = self._volume.spacemap, self._volume.extension
        assert spacemap is not None and extension is not None

        store = self._volume.store

        def free(block: int) -> None:
            if spacemap.is_buried(block):
                extension.overlay.buried_system -= 1
            spacemap.free_run(block, 1)
            store.forget(block)

        def replace(block: int) -> int:
            new = spacemap.replace_metadata(block)
            if new < 0:
                new = spacemap.allocate_metadata()
                free(block)
            else:
                store.forget(block)  # what is replaced in one step is not buried
            return new

        trees = self._volume.system_trees
        while waiting := [tree for tree in trees if tree.unplaced]:
            for tree in waiting:
                tree.place(spacemap.allocate_metadata, replace, free)

    def _contents(self) -> tuple[dict[int, Buffer], dict[int, int]]:
        """Everything to be written by block, and the crc32c of each; afterwards no system tree is dirty."""
        volume = self._volume
        blocks: dict[int, Buffer] = {**volume.store.dirty_data, **volume.store.dirty}
        for tree in volume.system_trees:
            if tree is not volume.checksums:
                blocks.update(tree.take_contents())
        sums = {block: crc32c(data) for block, data in blocks.items()}
        volume.checksums.set_each(sums)
        for block, data in volume.checksums.take_contents():
            blocks[block] = data
            sums[block] = crc32c(data)
        return blocks, sums

    def _born(self, sums: dict[int, int]) -> dict[int, int] | None:
        """The blocks born in this generation and still in use, with their crc32c; None if they are too many."""
        spacemap, checksums = self._volume.spacemap, self._volume.checksums
        assert spacemap is not None
        if spacemap.born_count > f.MANIFEST_ENTRY_MAX:
            return None
        if spacemap.born_count == len(sums):
            return sums  # no other was born (I1), so none of them was freed, nor written before
        born: dict[int, int] = {}
        for start, count in spacemap.born_runs:
            for block in range(start, start + count):
                if spacemap.in_use(block):
                    value = sums.get(block)
                    born[block] = checksums.get(block) if value is None else value
        return born

    def _fill_records(self) -> None:
        volume = self._volume
        superblock, extension, spacemap = volume.superblock, volume.extension, volume.spacemap
        assert extension is not None and spacemap is not None
        now = max(volume.clock(), 0)
        trees = volume.system_trees
        volume.live.store_in(superblock)
        superblock.serial = volume.serial + 1
        superblock.atime = now // 1_000_000_000 & 0xFFFFFFFF
        superblock.free_blocks = spacemap.free
        superblock.bitmap = volume.bitmap.root_node()
        extension.commit_time = now
        extension.data_hint = spacemap.data_hint
        extension.metadata_hint = spacemap.metadata_hint
        extension.reclaim_count = volume.reclaim.count
        extension.snapshot_count = volume.forest.table.count
        extension.checksums = volume.checksums.root_node()
        extension.references = volume.references.root_node()
        extension.snapshots = volume.snapshots.root_node()
        extension.snapshot_index = volume.snapshot_index.root_node()
        extension.reclaim = volume.reclaim_tree.root_node()
        extension.settings = volume.settings.root_node()
        extension.checksum_checks = tuple(volume.checksums.top_checks)
        system_blocks = extension.system_blocks + sum([tree.block_delta for tree in trees])
        if min(system_blocks, extension.snapshot_count, extension.overlay.buried_system) < 0:
            found = f"{extension.snapshot_count} snapshots, {system_blocks} blocks of the system"
            raise Corrupt("a count of the volume was too low", found=found)
        extension.system_blocks = system_blocks
        extension.overlay.buried_free = spacemap.buried_free
        for tree in trees:
            tree.block_delta = 0
