"""The checker's own reading of the slots: which are there, which are valid, which one is looked at.

It follows the rules of `docs/FORMAT.md`, section 4, and shares no code with `storage.superblock`, so that a mistake there
is seen here. A torn slot is ordinary after a power cut: a note, as long as the other slot can be used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cowfs.check import problem as p
from cowfs.check.reader import State
from cowfs.errors import DeviceError, InvalidArgument, NotAVolume, Unsupported
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c, qnx_crc
from cowfs.ondisk.geometry import Geometry
from cowfs.ondisk.records import ByteOrder
from cowfs.storage.device import Device

COUNTER_MAX: Final = 1 << 63
"""Serials, generations and snapshot ids stay below this: counting does not get there."""
ORDERS: tuple[ByteOrder, ByteOrder] = ("<", ">")


@dataclass(slots=True)
class Invalid:
    """A slot that cannot be used, and why. `superblock` and `geometry` are what it says of itself, if it has a magic."""

    why: str
    superblock: f.Superblock | None = None
    geometry: Geometry | None = None
    odd: bool = False  # its checksums are right: no power cut does that


@dataclass(slots=True)
class Slots:
    """Both slots as they were found. `boot_block` tells whether slot 1 is at its usual place, behind a boot block."""

    first: State | Invalid
    second: State | Invalid
    boot_block: bool

    def valid(self) -> list[State]:
        """The valid ones, the newest first; slot 1 where the serials are equal."""
        states = [slot for slot in (self.first, self.second) if isinstance(slot, State)]
        return sorted(states, key=lambda state: (-state.superblock.serial, state.number))


def read_slots(device: Device) -> Slots:
    """Reads both slots. Raises NotAVolume where there is no magic number of a slot or of the pointer to one, Unsupported."""
    boot_block = True
    first = _read_slot(device, f.SLOT1_OFFSET, 1, f.SLOT1_OFFSET)
    if _without_magic(first):
        at_start = _read_slot(device, 0, 1, 0)
        if not _without_magic(at_start):
            first, boot_block = at_start, False
    slot1_offset = f.SLOT1_OFFSET if boot_block else 0
    second: State | Invalid = Invalid("not found")
    for offset in _slot2_places(device, first):
        found = _read_slot(device, offset, 2, slot1_offset)
        if isinstance(found, State):
            second = found
            break
        if _without_magic(second):
            second = found
    if _without_magic(first) and _without_magic(second) and _slot_pointer(device) is None:
        raise NotAVolume(f"{device.name} is not a cowfs or qnx6 volume: no superblock found")
    return Slots(first, second, boot_block)


def choose(device: Device, slots: Slots, report: p.Report, superblock: int | None) -> State | None:
    """The state to look at; None where there is none. With `superblock` that slot or none, whatever its manifest says."""
    if superblock not in (None, 1, 2):
        raise InvalidArgument(f"there is no superblock slot {superblock}, only 1 and 2")
    _report_slots(slots, report)
    valid = slots.valid()
    for state in valid:
        refuse_unknown(state)
    wanted = valid if superblock is None else [state for state in valid if state.number == superblock]
    if not wanted:
        which = "neither slot is valid" if superblock is None else f"slot {superblock} is not valid"
        report.add(p.NO_VALID_SLOT, f"{which} ({_reasons(slots)})")
        return None
    chosen = wanted[0]
    bad = manifest_failure(device, chosen)
    if bad and len(wanted) > 1:
        report.add(p.SLOT_REFUSED, f"slot {chosen.number} (commit {chosen.superblock.serial}): {bad}")
        chosen = wanted[1]
    elif bad:
        report.add(p.MANIFEST, f"slot {chosen.number}: {bad}")
    report.slot = chosen.number
    report.serial = chosen.superblock.serial
    report.foreign = chosen.extension is None
    _check_identity(device, slots, chosen, report)
    return chosen


def refuse_unknown(state: State) -> None:
    """Raises Unsupported for feature bits that this version does not know: it could not tell right from wrong."""
    extension = state.extension
    if extension is None:
        return
    for name, bits, known in (
        ("incompatible", extension.incompatible, f.INCOMPATIBLE_KNOWN),
        ("read-only compatible", extension.read_only_compatible, f.READ_ONLY_COMPATIBLE_KNOWN),
    ):
        if bits & ~known:
            raise Unsupported(
                f"the volume uses features that this version does not know ({name} bits {bits & ~known:#x})"
            )


def manifest_failure(device: Device, state: State) -> str:
    """Why the state's commit is not on the device as a whole; an empty string if it is."""
    geometry = state.geometry
    for entry in state.manifest:
        if entry.block >= geometry.num_blocks:
            return f"the manifest names block {entry.block} of {geometry.num_blocks}"
        try:
            found = crc32c(device.read(geometry.block_offset(entry.block), geometry.block_size))
        except DeviceError as error:
            return f"block {entry.block} of the manifest: {error}"
        if found != entry.checksum:
            return f"block {entry.block} of the manifest: checksum {entry.checksum:#010x} wanted, {found:#010x} found"
    return ""


def boot_records(geometry: Geometry) -> tuple[f.BootHead, f.SlotPointer]:
    """What the boot block of a volume of ours holds: its first bytes, and the pointer to slot 2."""
    offset = geometry.slot_offsets[1]
    pointer = f.SlotPointer(slot2_offset=offset, block_size=geometry.block_size)
    pointer.checksum = crc32c(pointer.pack()[:-4])
    return f.BootHead(slot2_sector=min(offset // f.BOOT_SECTOR_SIZE, 0xFFFFFFFF)), pointer


def check_boot_block(device: Device, state: State, report: p.Report) -> None:
    """The boot block of a volume of ours."""
    raw = device.read(0, f.SLOT_POINTER_OFFSET + f.SlotPointer.SIZE)
    head = f.BootHead.unpack(raw)
    wanted, right = boot_records(state.geometry)
    pointer = f.SlotPointer.unpack(raw, f.SLOT_POINTER_OFFSET)
    if state.extension is not None and state.extension.resizing == 1:
        if (head, pointer) != (wanted, right):
            report.add(p.RESIZING, f"{right.to_text()} wanted, {pointer.to_text()} found")
        return
    if head != wanted:
        report.add(p.BOOT_HEAD, f"{wanted.to_text()} wanted, {head.to_text()} found")
    if pointer != right:
        report.add(p.SLOT_POINTER, f"{right.to_text()} wanted, {pointer.to_text()} found")


def _without_magic(slot: State | Invalid) -> bool:
    return isinstance(slot, Invalid) and slot.superblock is None


def _reasons(slots: Slots) -> str:
    return "; ".join(
        f"slot {number}: {slot.why}"
        for number, slot in ((1, slots.first), (2, slots.second))
        if isinstance(slot, Invalid)
    )


def _report_slots(slots: Slots, report: p.Report) -> None:
    for number, slot in ((1, slots.first), (2, slots.second)):
        if isinstance(slot, Invalid):
            kind = p.SLOT_CONTENTS if slot.odd else p.SLOT_INVALID
            report.add(kind, f"slot {number}: {slot.why}")


def _check_identity(device: Device, slots: Slots, chosen: State, report: p.Report) -> None:
    if device.size() < chosen.geometry.end:
        report.add(p.TRUNCATED, f"{chosen.geometry.end} bytes wanted, {device.size()} found")
    first, second = slots.first, slots.second
    if not (isinstance(first, State) and isinstance(second, State)):
        return
    for name in ("volume_id", "block_size", "num_blocks", "ctime"):
        a, b = getattr(first.superblock, name), getattr(second.superblock, name)
        if a != b:
            report.add(p.SLOTS_DIFFER, f"{name} is {a!r} in slot 1 and {b!r} in slot 2")
    if (first.extension is None) != (second.extension is None):
        report.add(p.SLOTS_DIFFER, "one slot has an extension area and the other has none")
    if first.extension is not None and second.extension is not None:
        if first.extension.zero_blocks != second.extension.zero_blocks:
            report.add(p.SLOTS_DIFFER, "the slots name different zero blocks")
        if not _same_state(first, second) or first.superblock.serial < second.superblock.serial:
            report.add(
                p.NOT_SETTLED, f"slot {chosen.number} holds commit {chosen.superblock.serial}, the other an older one"
            )


def _same_state(first: State, second: State) -> bool:
    assert first.extension is not None and second.extension is not None
    names = ("inode", "bitmap", "longfile")
    same = all(getattr(first.superblock, name) == getattr(second.superblock, name) for name in names)
    return same and all(getattr(first.extension, n) == getattr(second.extension, n) for n in f.EXTENSION_ROOTS)


def _slot_pointer(device: Device) -> f.SlotPointer | None:
    """The boot block's pointer to slot 2, if it is one."""
    try:
        raw = device.read(f.SLOT_POINTER_OFFSET, f.SlotPointer.SIZE)
    except DeviceError:
        return None
    pointer = f.SlotPointer.unpack(raw)
    return pointer if pointer.magic == f.SLOT_POINTER_MAGIC and pointer.checksum == crc32c(raw[:-4]) else None


def _slot2_places(device: Device, first: State | Invalid) -> Iterator[int]:
    """Where slot 2 may be: as a valid slot 1 says; else as the boot block or a torn slot 1 says, or at the device's end."""
    size = device.size()
    places: list[int] = []
    if isinstance(first, State):
        place = first.geometry.slot_offsets[1]
        if place <= size - f.RECORD_SIZE:
            yield place
        return
    pointer = _slot_pointer(device)
    if pointer is not None:
        places.append(pointer.slot2_offset)
    if first.geometry is not None:
        places.append(first.geometry.slot_offsets[1])
    for block_size in f.FOREIGN_BLOCK_SIZES:
        for slot1_offset in (f.SLOT1_OFFSET, 0):
            start = Geometry(block_size, 0, slot1=slot1_offset).data_start
            room = max(f.SLOT_AREA_SIZE, block_size if block_size > f.SLOT_AREA_SIZE else 0)
            if size > start + room:
                places.append(start + (size - start - room) // block_size * block_size)
    seen = set()
    for place in places:
        if place not in seen and 0 < place <= size - f.RECORD_SIZE:
            seen.add(place)
            yield place


def _read_slot(device: Device, offset: int, number: int, slot1_offset: int) -> State | Invalid:
    size = device.size()
    if offset + f.RECORD_SIZE > size:
        return Invalid("behind the end of the device")
    try:
        raw = device.read(offset, min(f.SLOT_AREA_SIZE, size - offset))
    except DeviceError as error:
        return Invalid(str(error))
    for order in ORDERS:
        superblock = f.Superblock.unpack(raw, 0, order)
        if superblock.magic in (f.QNX_MAGIC, f.OVERLAY_MAGIC):
            break
    else:
        return Invalid("no magic number")
    geometry = None
    if superblock.block_size in f.FOREIGN_BLOCK_SIZES and 0 < superblock.num_blocks <= f.BLOCK_COUNT_MAX:
        geometry = Geometry(superblock.block_size, superblock.num_blocks, order, 0, slot1_offset)
    computed = qnx_crc(raw[f.CRC_START : f.RECORD_SIZE])
    if superblock.checksum != computed:
        why = f"record checksum {superblock.checksum:#010x} does not match its bytes ({computed:#010x})"
        return Invalid(why, superblock, geometry)
    if geometry is None:
        why = f"{superblock.num_blocks} blocks of {superblock.block_size} bytes cannot be"
        return Invalid(why, superblock, odd=True)
    if geometry.slot_offsets[number - 1] != offset:
        return Invalid(f"its {superblock.num_blocks} blocks lead elsewhere", superblock, geometry, odd=True)
    return _read_extension(raw, number, geometry, superblock)


def _read_extension(raw: bytes, number: int, geometry: Geometry, superblock: f.Superblock) -> State | Invalid:
    anchor = superblock.anchor
    if anchor.magic != f.ANCHOR_MAGIC:
        if superblock.flags & f.SB_FLAG_INCOMPATIBLE or superblock.magic == f.OVERLAY_MAGIC:
            return Invalid("it has the flag of a cowfs volume and no anchor", superblock, geometry, odd=True)
        return State(number, geometry, superblock, None, [])
    if geometry.order != "<" or geometry.block_size not in f.BLOCK_SIZES or geometry.slot1 != f.SLOT1_OFFSET:
        return Invalid("an anchor in a volume that cowfs cannot have made", superblock, geometry, odd=True)
    if anchor.version != f.FORMAT_VERSION or anchor.length != f.EXTENSION_SIZE:
        raise Unsupported(f"version {anchor.version} of the format; this version of cowfs knows {f.FORMAT_VERSION}")
    area = raw[f.EXTENSION_OFFSET :]
    if len(area) != f.EXTENSION_SIZE:
        return Invalid("the device ends within it", superblock, geometry)
    computed = crc32c(area)
    if anchor.checksum != computed:
        why = f"extension checksum {anchor.checksum:#010x} does not match its bytes ({computed:#010x})"
        return Invalid(why, superblock, geometry)
    extension = f.Extension.unpack(area)
    header = f.ManifestHeader.unpack(area, f.MANIFEST_OFFSET)
    if extension.magic != f.EXTENSION_MAGIC or extension.version != f.FORMAT_VERSION:
        return Invalid("its extension area is not one", superblock, geometry, odd=True)
    if extension.serial != superblock.serial:
        return Invalid(
            f"commit {superblock.serial} with the extension of {extension.serial}", superblock, geometry, odd=True
        )
    if superblock.serial >= COUNTER_MAX:
        return Invalid(f"commit {superblock.serial} cannot be", superblock, geometry, odd=True)
    if bool(extension.incompatible & f.INCOMPATIBLE_OVERLAY) != (superblock.magic == f.OVERLAY_MAGIC):
        return Invalid("a volume by its magic number, an overlay by its features, or the reverse", superblock, odd=True)
    if header.count > f.MANIFEST_ENTRY_MAX:
        return Invalid(f"a manifest of {header.count} entries", superblock, geometry, odd=True)
    start = f.MANIFEST_OFFSET + f.ManifestHeader.SIZE
    manifest = [f.ManifestEntry.unpack(area, start + i * f.MANIFEST_ENTRY_SIZE) for i in range(header.count)]
    return State(number, geometry, superblock, extension, manifest)
