"""A smaller size for a volume that nobody uses: what lies behind the new end moves, then slot 2 does.

Moving a block means that all its parents get another pointer, so they are written anew as well, up to the roots. The new
tree of blocks has the shape of the old one: each block that moves, or leads to one that does, is written once, however many
parents it has, and its new place takes over its count of parents. So what snapshots and clones share stays shared, and no
other count changes (I42). That is one transaction: until its commit is durable the volume is as it was. It is followed by one
that says the same in the other slot, so that nothing in either state lies behind the new end; then slot 2 moves there, by
the same steps as when a volume grows (`resize`, I40). Only then the device is cut.

It reads all metadata of all trees, once each; no data but what moves. Memory: the numbers of the shared blocks that were met;
checksums of what is written.

Locking: the core thread, and nobody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cowfs.errors import Corrupt, InvalidArgument, NotSupported
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import Geometry, geometry_for_size
from cowfs.ondisk.records import Buffer
from cowfs.storage.blockio import pointer_bytes
from cowfs.storage.children import inode_children
from cowfs.storage.device import FileDevice
from cowfs.storage.resize import announce, seal_moved, set_geometry
from cowfs.storage.transaction import runs_of
from cowfs.storage.volume import Volume, margin_of, system_capacity

SLACK: Final = 64  # blocks beside all that is counted
RUN_BLOCKS: Final = 256  # data moved at once


@dataclass(frozen=True, slots=True)
class Plan:
    """What shrinking takes: `moved` blocks behind the new end, `rewritten` blocks of trees of files in all."""

    moved: int
    rewritten: int


class _Mover:
    """Finds, or moves (`really`), what trees of files have at block `limit` and behind it."""

    def __init__(self, volume: Volume, limit: int, *, really: bool) -> None:
        assert volume.spacemap is not None and volume.tx is not None
        self.moved = self.rewritten = 0
        self._volume = volume
        self._store, self._spacemap, self._tx = volume.store, volume.spacemap, volume.tx
        self._limit = limit
        self._really = really
        self._shared: dict[int, int] = {}  # where blocks with several parents are now
        self._shared_leaves: set[int] = set()
        self._placeholder = f.NO_BLOCK - 1  # stands for a new place where nothing is moved

    def move_all(self) -> None:
        """All trees of files. Raises Corrupt, DeviceError, NoSpace; the volume must not be committed then."""
        live = self._volume.live
        for root in (live.inodes, live.longnames):
            moved = self._pointers(root.ptr, root.kind, root.levels)
            if moved is not None and self._really:
                root.ptr = moved
        for place, record in self._volume.forest.table:
            changed = False
            for node, kind in ((record.inode, f.KIND_INODES), (record.longfile, f.KIND_LONG_NAMES)):
                if node.levels > f.LEVEL_MAX:
                    raise Corrupt(f"snapshot record {place}: levels", wanted=f"<= {f.LEVEL_MAX}", found=node.levels)
                pointers = self._pointers(list(node.ptr), kind, node.levels)
                if pointers is not None:
                    node.ptr = tuple(pointers)
                    changed = True
            if changed and self._really:
                self._volume.forest.table.replace(place, record)
        if self._really:
            self._volume.trees.end_epoch()

    def _pointers(self, pointers: list[int], kind: int, level: int) -> list[int] | None:
        """The pointers to children at `level` as they have to be; None: as they are."""
        if level == 0 and kind != f.KIND_INODES:
            return self._leaves(pointers)
        changed = None
        for place, pointer in enumerate(pointers):
            if not self._tx.is_hole(pointer):
                new = self._block(pointer, kind, level)
                if new != pointer:
                    changed = changed or list(pointers)
                    changed[place] = new
        return changed

    def _block(self, block: int, kind: int, level: int) -> int:
        """Where a block that has children is to be found: its new place, or the old one."""
        if block >= self._store.num_blocks:
            raise Corrupt("pointer beyond the end of the volume", block=block, wanted=f"< {self._store.num_blocks}")
        known = self._shared.get(block)
        if known is not None:  # asked first: what was moved has no count any more
            return known
        extra = self._spacemap.extra_parents(block)
        data = self._store.read(block)
        changed = self._inodes(data) if level == 0 else self._indirect(data, kind, level)
        new = block
        if changed is not None or block >= self._limit:
            new = self._write(block, data if changed is None else changed, extra)
        if extra:
            self._shared[block] = new
        return new

    def _indirect(self, data: Buffer, kind: int, level: int) -> bytes | None:
        pointers = self._pointers(self._store.words(data).tolist(), kind, level - 1)
        return None if pointers is None else pointer_bytes(pointers, self._store.geometry)

    def _inodes(self, data: Buffer) -> bytearray | None:
        """A leaf of the inode file with the pointers of its inodes as they have to be."""
        changed = None
        order = self._store.geometry.order
        for offset in range(0, len(data), f.INODE_SIZE):
            raw = bytes(data[offset : offset + f.INODE_SIZE])
            if raw == f.FREE_INODE_BYTES:
                continue
            inode = f.DiskInode.unpack(raw, 0, order)
            if not inode_children(self._store, self._volume.zero_blocks, inode):
                continue
            pointers = self._pointers(list(inode.ptr), f.KIND_FILE, inode.levels)
            if pointers is not None:
                changed = changed or bytearray(data)
                inode.ptr = tuple(pointers)
                changed[offset : offset + f.INODE_SIZE] = inode.pack(order)
        return changed

    def _write(self, block: int, data: Buffer, extra: int) -> int:
        """Gives a block that has children, or a shared leaf, a new place with these contents."""
        self.rewritten += 1
        self.moved += block >= self._limit
        if not self._really:
            return self._placeholder
        new = self._spacemap.allocate_metadata()
        self._tx.changes += 1
        self._store.put_data(new, bytes(data))
        self._take_over(block, new, extra)
        return new

    def _take_over(self, block: int, new: int, extra: int) -> None:
        """The new place has the parents of the old one, which is free."""
        if extra:
            self._spacemap.set_extra_parents(new, extra)
            self._spacemap.set_extra_parents(block, 0)
        self._spacemap.free_run(block, 1)
        self._store.forget(block)

    # --- leaves ---

    def _leaves(self, pointers: list[int]) -> list[int] | None:
        """The pointers to blocks without children: whole runs move at once, unless they are shared."""
        behind = [p for p in pointers if self._limit <= p < f.NO_BLOCK]
        if not behind:
            return None
        places: dict[int, int] = {}
        for first, total in runs_of(behind):
            for start in range(first, first + total, RUN_BLOCKS):
                self._run(start, min(RUN_BLOCKS, first + total - start), places)
        return [places.get(p, p) for p in pointers]

    def _run(self, start: int, count: int, places: dict[int, int]) -> None:
        met = self._shared_leaves and not self._shared_leaves.isdisjoint(range(start, start + count))
        if not met and not self._spacemap.shared(start, count):
            places.update(zip(range(start, start + count), self._move_run(start, count), strict=True))
            return
        for block in range(start, start + count):
            known = self._shared.get(block)
            if known is None:
                extra = self._spacemap.extra_parents(block)
                known = self._write(block, self._store.read_run(block, 1) if self._really else b"", extra)
                if extra:
                    self._shared[block] = known
                    self._shared_leaves.add(block)
            places[block] = known

    def _move_run(self, start: int, count: int) -> Sequence[int]:
        """Moves data that has one parent; the new places."""
        self.rewritten += count
        self.moved += count
        if not self._really:
            return [self._placeholder] * count
        data = memoryview(self._store.read_run(start, count))
        found: list[int] = []
        for first, length in self._tx.allocate_data(count, None):
            at = len(found) * self._store.block_size
            self._store.write_run(first, data[at : at + length * self._store.block_size])
            found += range(first, first + length)
        self._spacemap.free_run(start, count)
        for block in range(start, start + count):
            self._store.forget(block)
        return found


def prepare(volume: Volume) -> None:
    """Before anything is counted: all is committed, and what was deleted is free. Raises NotSupported, DeviceError."""
    volume.check_writable()
    assert volume.spacemap is not None and volume.extension is not None
    if volume.spacemap.buried is not None:
        raise NotSupported("an overlay cannot be made smaller")
    while volume.reclaim_slice():
        volume.commit()
    if volume.reclaim.count:
        raise NotSupported("what was deleted cannot be freed before the volume is repaired: cowfs check --repair")
    volume.commit(complete=True)
    while volume.spacemap.held:
        volume.commit(complete=True)
    volume.forest.forget_all()  # a seal stores the roots of clones that are open


def plan(volume: Volume, geometry: Geometry) -> Plan:
    """What shrinking to `geometry` takes, after `prepare`; nothing is changed.

    Raises InvalidArgument where it does not fit, with the smallest size that does; Corrupt, DeviceError.
    """
    assert volume.spacemap is not None
    limit = geometry.num_blocks
    if volume.geometry.num_blocks - limit < f.SLOT_AREA_SIZE // geometry.block_size:
        raise InvalidArgument(
            f"shrinking by {volume.geometry.end - geometry.end} bytes is too little for slot 2 to move"
        )
    if max(volume.zero_blocks) >= limit:
        raise InvalidArgument("the zero blocks lie behind that size, and cannot be moved")
    found = _look(volume, limit)
    if limit < _least(volume, limit, found):
        least = least_geometry(volume)
        raise InvalidArgument(
            f"{geometry.end} bytes are too few for what is in use and has to stay free: at least {least.end} bytes"
        )
    system = sum(block >= limit for tree in volume.system_trees for block in tree.blocks())
    if found.moved + system != volume.spacemap.used_from(limit):
        raise Corrupt(
            "blocks in use behind the new end",
            wanted=f"{found.moved + system} that something leads to",
            found=f"{volume.spacemap.used_from(limit)}; see cowfs check",
        )
    return found


def least_geometry(volume: Volume) -> Geometry:
    """A smallest size that shrinking can reach now: what would have to be rewritten is counted for a size below it."""
    block_size = volume.geometry.block_size
    minimum = geometry_for_size(f.VOLUME_SIZE_MIN, block_size).num_blocks
    blocks = max(minimum, _least(volume, minimum, Plan(0, 0)))
    wanted = max(blocks, _least(volume, blocks, _look(volume, blocks)))
    return Geometry(block_size, min(wanted, volume.geometry.num_blocks), base=volume.geometry.base)


def _look(volume: Volume, limit: int) -> Plan:
    mover = _Mover(volume, limit, really=False)
    mover.move_all()
    return Plan(mover.moved, mover.rewritten)


def _least(volume: Volume, limit: int, found: Plan) -> int:
    """How many blocks there have to be: what is in use, and either what moving takes, or what has to stay free (I12)."""
    assert volume.spacemap is not None and volume.extension is not None
    used = volume.geometry.num_blocks - volume.spacemap.free
    capacity = system_capacity(Geometry(volume.geometry.block_size, max(limit, 1)))
    system = volume.extension.system_blocks
    moving = used - found.moved + found.rewritten + system + capacity
    staying = used + 2 * capacity + 4 * margin_of(limit)
    return max(moving, staying) + SLACK


def shrink(volume: Volume, geometry: Geometry) -> Plan:
    """All of it. After `prepare`. Raises what `plan` does before anything changes; a failure after that latches."""
    assert volume.spacemap is not None
    found = plan(volume, geometry)
    limit = geometry.num_blocks
    try:
        volume.spacemap.limit_to(limit)
        mover = _Mover(volume, limit, really=True)
        mover.move_all()
        for tree in volume.system_trees:
            if tree.evacuate(limit):
                volume.tx.changes += 1  # type: ignore[union-attr]
        volume.commit(complete=True)
        volume.commit(complete=True)
        if volume.spacemap.used_from(limit):
            raise Corrupt("blocks in use behind the new end", found=volume.spacemap.used_from(limit))
        volume.spacemap.limit_to(limit)
        announce(volume)
        volume.commit(complete=True)
        volume.commit(complete=True)
        while volume.newest_slot != 1:
            volume.commit(complete=True)
        volume.spacemap.shrink(limit)
        set_geometry(volume, geometry)
    except BaseException as error:
        volume.latch(error)
        raise
    volume.finish(seal_moved(volume))
    volume.settle()
    device = volume.device
    if not (isinstance(device, FileDevice) and device.is_block_device):
        device.resize(geometry.end)
        device.flush()
    return found
