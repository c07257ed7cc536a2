"""Merge: what an overlay holds becomes the next state of its base.

An overlay has the block numbers of its base and never writes to a block that the base uses. So its own blocks have free
places in the base, the same ones, and its trees are right there as they are. They are copied; then the base's slots are
written anew, and name what the overlay's slots named. Until the first of these writes the base has its old state, from then
on the new one; nothing of the old one is touched.

Which overlay was merged, and which state of it, stands in the base from the first of these writes on (`Extension.merged`),
for good. So an interrupted merge is recognised, however far it came and whatever happened to the base since: the base has
the old state, then all is done again; or that overlay was merged, then what is left is to free what only the old state
needed, and to make the overlay an empty one, or to remove it.

Invariants (docs/DESIGN.md, section 15):
- I44 A merge writes only to blocks of the base that no slot of it needs. Both slots name the same state before that begins.
- I45 The base's new slots are written after all that they lead to is durable, slot 2 first; the overlay's blocks are given up
  only after both are.

Work and memory follow what the overlay changed: parts of the bitmap that it shares with its base are passed over.

Locking: one thread; both devices are locked for writing, and nobody else uses them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from cowfs.errors import Corrupt, DeviceError, InvalidArgument, NoSpace, NotSupported, ReadOnly
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c
from cowfs.ondisk.geometry import Geometry
from cowfs.ondisk.slots import with_resizing
from cowfs.storage.commit import SlotMove
from cowfs.storage.device import Device, FileDevice
from cowfs.storage.layers import Buried, LayeredDevice, bit_runs
from cowfs.storage.overlay import is_merged, leaves_slot_2, renew_overlay, require_overlay, stack
from cowfs.storage.resize import reserve
from cowfs.storage.superblock import Slot, SlotSet, build_slot, mend_slot_pointer, read_slots
from cowfs.storage.volume import SEALED, Volume

COPY_BYTES: Final = 4 << 20
"""Read and written at once at most."""

Progress = Callable[[int, int], None]
"""Told how many bytes were copied, of how many."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a merge has to do. Sizes are bytes. `done`: the base holds the overlay's state already, of an earlier try."""

    blocks: int
    size: int
    old_size: int
    new_size: int
    done: bool


def examine(top: Device, base: Device) -> Plan:
    """What merging the overlay on `top` into `base` takes; nothing is written.

    Raises InvalidArgument (no overlay), ReadOnly (sealed), BaseChanged, NoSpace, NotSupported, Corrupt, DeviceError.
    """
    slots, below = _allowed(top, base)
    old, new = below.newest.geometry, slots.newest.geometry
    if is_merged(slots, below):
        return Plan(0, 0, old.end, old.end, True)
    assert slots.newest.extension is not None
    own = _Own(stack(top, base, slots.newest.extension.overlay), read_only=True)
    file = _file_of(base)
    if file is not None and file.is_block_device and base.size() < new.end:
        raise NotSupported(f"{base.name} is a block device of {base.size()} bytes: {new.end} do not fit")
    size = own.count() * new.block_size
    if file is not None:
        _require_room(file, own, size)
    return Plan(size // new.block_size, size, old.end, max(old.end, new.end), False)


def merge(top: Device, base: Device, *, now_ns: int, progress: Progress = lambda done, total: None) -> None:
    """Makes the newest state of the overlay on `top` that of `base`, unless it is already. `settle_base` has to follow.

    Raises what `examine` does, and Corrupt for a block of the overlay that is damaged; then the base has its old state.
    """
    found, below = _allowed(top, base)
    if is_merged(found, below):
        return
    assert found.newest.extension is not None
    own = _Own(stack(top, base, found.newest.extension.overlay), read_only=False)
    own.volume.settle()
    slots = _make_alike(base)
    geometry = own.volume.geometry
    grows = geometry.num_blocks > slots.newest.geometry.num_blocks
    if grows:
        _announce(base)
        reserve(base, geometry)
    own.copy_to(base, progress)
    base.flush()
    _switch(base, _Successor(own, read_slots(top), read_slots(base), now_ns=now_ns, resizing=int(grows)), geometry)


def _allowed(top: Device, base: Device) -> tuple[SlotSet, SlotSet]:
    """The slots of both. Raises InvalidArgument, ReadOnly, DeviceError."""
    slots, below = require_overlay(top), read_slots(base)
    for device, found in ((top, slots), (base, below)):
        if found.unreadable:  # it may hold a newer state
            raise DeviceError(f"{device.name}: a superblock cannot be read: {found.unreadable}")
        if found.newest.extension is not None and found.newest.extension.is_sealed:
            raise ReadOnly(f"{device.name}: {SEALED}")
    old, new = below.newest.geometry, slots.newest.geometry
    if not leaves_slot_2(old, new) and not is_merged(slots, below):
        raise NotSupported(
            f"{top.name} is only {new.end - old.end} bytes larger than {base.name}, whose second superblock would be"
            f" overwritten with no other one valid: 'cowfs resize {top.name} +{f.SLOT_AREA_SIZE}' first"
        )
    return slots, below


def _file_of(device: Device) -> FileDevice | None:
    """The file that holds a layer's own blocks."""
    while isinstance(device, LayeredDevice):
        device = device.top
    return device if isinstance(device, FileDevice) else None


def settle_base(base: Device) -> list[str]:
    """After `merge`: frees what only the old state needed, and leaves both slots alike. Says what could not be freed."""
    volume = Volume.open(base)
    volume.check_writable()
    notes = []
    try:
        while volume.reclaim_slice():
            volume.commit()
    except (NoSpace, Corrupt) as error:
        notes.append(f"{base.name}: not all that is of no use any more could be freed: {error}")
    volume.settle()
    return notes


def empty_overlay(top: Device, base: Device, *, now_ns: int) -> LayeredDevice:
    """After `settle_base`: the overlay on `top`, which was merged, is an empty one on what `base` holds now.

    Raises InvalidArgument where that is not so, what `overlay.renew_overlay` raises.
    """
    if not is_merged(read_slots(top), read_slots(base)):
        raise InvalidArgument(f"{top.name} was not merged into {base.name}")
    return renew_overlay(top, base, now_ns=now_ns)


# --- what is copied ---


class _Own:
    """The blocks in use in an overlay's state that lie in the overlay itself."""

    def __init__(self, device: LayeredDevice, *, read_only: bool) -> None:
        self.top = device.top
        self.volume = Volume.open(device, read_only=read_only)
        if not read_only:
            self.volume.check_writable()
        self.below = Volume.open(device.base, read_only=True, superblock=read_slots(device.base).newest.number)
        self._buried: Buried = device.buried
        self._page_bits = self.volume.geometry.block_size * 8

    def count(self) -> int:
        """How many there are. Raises Corrupt, DeviceError."""
        return sum(count for _, count in self.runs())

    def runs(self) -> Iterator[tuple[int, int]]:
        """(first, number) of each run, in ascending order. Raises Corrupt, DeviceError."""
        blocks = self.volume.geometry.num_blocks
        for level, index in self.volume.bitmap.changed(self.below.bitmap):
            if level:
                continue
            bits = self.used(self.volume, index) & ~int.from_bytes(self._buried.page(index), "little")
            page = bits.to_bytes(self.volume.geometry.block_size, "little")
            first = index * self._page_bits
            for at, count, own in bit_runs(page, 0, min(self._page_bits, blocks - first)):
                if own:
                    yield first + at, count

    def used(self, volume: Volume, index: int) -> int:
        """The bits of the blocks in use, of a page of the bitmap of the overlay or its base."""
        inside = min(max(volume.geometry.num_blocks - index * self._page_bits, 0), self._page_bits)
        return int.from_bytes(volume.bitmap.page(index), "little") & (1 << inside) - 1 if inside else 0

    def copy_to(self, base: Device, progress: Progress) -> None:
        """Copies them to their places in the base, each compared with its checksum. Raises Corrupt, DeviceError."""
        size, done = self.volume.geometry.block_size, 0
        total = self.count() * size
        tree = self._checksum_blocks()
        progress(0, total)
        for start, count in self.runs():
            for first in range(start, start + count, COPY_BYTES // size):
                number = min(COPY_BYTES // size, start + count - first)
                offset = self.volume.geometry.block_offset(first)
                data = self.top.read(offset, number * size)
                self._verify(first, data, tree)
                base.write(offset, [data])
                done += number
                progress(done * size, total)

    def _checksum_blocks(self) -> dict[int, int]:
        """The crc32c of those that belong to the checksum tree, which has no entries for itself: one in a thousand."""
        tree, older = self.volume.checksums, self.below.checksums
        return dict(tree.entry(key) for key in tree.changed(older) if tree.block_at(key) is not None)

    def _verify(self, first: int, data: bytes, tree: dict[int, int]) -> None:
        size = self.volume.geometry.block_size
        view = memoryview(data)
        sums = [crc32c(view[at : at + size]) for at in range(0, len(data), size)]
        wanted = self.volume.checksums.get_run(first, len(sums))
        if sums == wanted:
            return
        for block, (value, recorded) in enumerate(zip(sums, wanted, strict=True), first):
            expected = tree.get(block, recorded)
            if value != expected:
                found = f"{value:#010x}; 'cowfs check' tells whose it is, and nothing was merged"
                raise Corrupt(f"{self.top.name}: checksum", block=block, wanted=f"{expected:#010x}", found=found)


def _require_room(file: FileDevice, own: _Own, size: int) -> None:
    """Raises NoSpace where the base's file has holes that its filesystem cannot fill; `size` is what the blocks take."""
    room = file.room()
    if room is None or room >= size:
        return
    geometry = own.volume.geometry
    for first, count in own.runs():
        start, end = geometry.block_offset(first), geometry.block_offset(first + count)
        for at, length in file.data_runs(start):
            if at >= end:
                break
            size -= min(at + length, end) - at
    if size > room:
        raise NoSpace(f"{file.name} needs {size} bytes more of its filesystem, which has {room}")


# --- the slots of the base ---


def _make_alike(base: Device) -> SlotSet:
    """Both slots of the base name the state that the newest one names: a torn or rotten one is written anew. Flushes."""
    slots = read_slots(base)
    newest = slots.newest
    mend_slot_pointer(base, slots, newest)
    number = 3 - newest.number
    other = slots.slots.get(number)
    if other is None or other.manifest or other.checks != newest.checks:
        superblock, extension = _copies(newest)
        superblock.serial = max(newest.serial - 1, 0)  # so that the newest one stays it
        record, area = build_slot(superblock, extension, ())
        base.write(newest.geometry.slot_offsets[number - 1], [record, area])
    base.flush()
    return read_slots(base)


def _announce(base: Device) -> None:
    """From now on the boot block may lead elsewhere: both slots of the base say so, one after the other. Flushes."""
    for slot in sorted(read_slots(base).slots.values(), key=lambda slot: slot.serial):
        if slot.extension is not None and not slot.extension.resizing:
            offset = slot.geometry.slot_offsets[slot.number - 1]
            base.write(offset, [with_resizing(base.read(offset, f.SLOT_AREA_SIZE))])
            base.flush()


def _copies(slot: Slot) -> tuple[f.Superblock, f.Extension]:
    assert slot.extension is not None
    return f.Superblock.unpack(slot.superblock.pack()), f.Extension.unpack(slot.extension.pack())


class _Successor:
    """The base's next state: the overlay's trees and counters, and who the base is."""

    def __init__(self, own: _Own, top: SlotSet, base: SlotSet, *, now_ns: int, resizing: int) -> None:
        self.old = base.newest
        self.serial = max(top.serial_max, base.serial_max) + 1
        mine, extension = _copies(top.newest)
        before, identity = _copies(base.newest)
        merged = f.MergedState(uuid=bytes(mine.volume_id), serial=mine.serial)
        merged.checks = top.newest.checks
        mine.magic, mine.volume_id, mine.ctime = before.magic, before.volume_id, before.ctime
        mine.atime = now_ns // 1_000_000_000 & 0xFFFFFFFF
        for name in ("label", "format_time", "compatible", "read_only_compatible", "incompatible"):
            setattr(extension, name, getattr(identity, name))
        extension.commit_time = max(now_ns, 0)
        extension.merged = merged
        extension.resizing = resizing
        extension.overlay, lower = identity.overlay, extension.overlay
        extension.overlay.base_snapshot = lower.base_snapshot
        extension.overlay.spent = 1 + lower.spent
        if identity.is_overlay:
            _count_buried(own, extension.overlay)
        self._superblock, self._extension = mine, extension

    def slot(self, serial: int) -> tuple[bytes, bytes]:
        """The bytes of a slot with this serial."""
        self._superblock.serial = serial
        return build_slot(self._superblock, self._extension, ())


def _count_buried(own: _Own, overlay: f.OverlayState) -> None:
    """What the base, an overlay itself, counts of buried blocks: as before, but for what changed."""
    volume, below = own.volume, own.below
    assert below.buried is not None
    bits = volume.geometry.block_size * 8
    pages = {index for level, index in volume.bitmap.changed(below.bitmap) if not level}
    pages.update(
        range(below.geometry.num_blocks // bits, -(-min(volume.geometry.num_blocks, below.buried.extent) // bits))
    )
    for index in pages:
        buried = int.from_bytes(below.buried.page(index), "little")
        for state, sign in ((volume, 1), (below, -1)):
            inside = min(max(state.geometry.num_blocks - index * bits, 0), bits)
            overlay.buried_free += sign * (buried & (1 << inside) - 1 & ~own.used(state, index)).bit_count()
    for newer, older in zip(volume.system_trees, below.system_trees, strict=True):
        blocks = (older.block_at(key) for key in newer.changed(older))
        overlay.buried_system -= sum(block is not None and below.buried.has(block) for block in blocks)


def _switch(base: Device, successor: _Successor, geometry: Geometry) -> None:
    """Writes the new slots of the base (I45): slot 2, which alone makes the new state the newest, then slot 1."""
    record, area = successor.slot(successor.serial)
    first, first_area = successor.slot(successor.serial + 1)
    old = successor.old.geometry
    if geometry.num_blocks > old.num_blocks:
        SlotMove(geometry, old.slot_offsets[1], first, first_area).write_out(base, record, area)
        base.flush()
        return
    base.write(geometry.slot_offsets[1], [record, area])
    base.flush()
    base.write(geometry.slot_offsets[0], [first, first_area])
    base.flush()
