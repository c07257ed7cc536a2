"""Slots: reading, checking, choosing and building the two superblock slots of a volume.

A slot is valid only if the record's CRC holds, the record's own block count leads to the place where it was found and,
where an anchor is present, the extension area's crc32c holds as well: a torn slot is an invalid slot. Slot 2 lies where a
valid slot 1 says; else it is looked for where the boot block's pointer and the device's size say, so that the loss of slot 1
does not hide it. Nothing here writes but
`write_slot_pointer` and `mend_slot_pointer`; `volume` writes what `build_slot` makes.

A slot that the device cannot read may hold the newest state. It is not used, as if it were torn, but whoever opens the
volume must not write then: the error may be gone tomorrow, and the state with it if its slot were overwritten today.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from cowfs.errors import Corrupt, DeviceError, NotAVolume, Unsupported
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c, qnx_crc
from cowfs.ondisk.codecs import pack_manifest, put_superblock_checksum
from cowfs.ondisk.geometry import Geometry
from cowfs.ondisk.records import ByteOrder
from cowfs.ondisk.slots import state_checks
from cowfs.storage.device import Device

COUNTER_MAX = 1 << 63  # no counter of 64 bits ever gets here by counting


@dataclass(slots=True)
class Slot:
    """One valid slot: where it is, and the state that it names."""

    number: int
    geometry: Geometry
    superblock: f.Superblock
    extension: f.Extension | None
    manifest: list[f.ManifestEntry] = field(default_factory=list)
    checks: tuple[int, int] = (0, 0)  # of the state: `ondisk.slots.state_checks`

    @property
    def serial(self) -> int:
        """Sequence number of the commit."""
        return self.superblock.serial


@dataclass(slots=True)
class SlotSet:
    """What was found: the valid slots (at least one), and a line for everything that was not as it should be.

    `unreadable` is the device's error for a slot that could not be read, or an empty string. `pointer` is the boot block's
    pointer to slot 2, where there is a sound one.
    """

    slots: dict[int, Slot]
    notes: list[str]
    unreadable: str = ""
    pointer: f.SlotPointer | None = None

    @property
    def newest(self) -> Slot:
        """The valid slot with the higher serial; slot 1 where both are equal, as every reader does."""
        return max(self.slots.values(), key=lambda slot: (slot.serial, -slot.number))

    @property
    def serial_max(self) -> int:
        """The highest serial in a valid slot."""
        return max(slot.serial for slot in self.slots.values())


def read_slots(device: Device, base: int = 0) -> SlotSet:
    """Finds and checks both slots of the volume at byte `base`.

    Raises NotAVolume, Corrupt (none valid), Unsupported, and DeviceError where no slot could be read.
    """
    notes: list[str] = []
    slots: dict[int, Slot] = {}
    reasons: list[str] = []
    errors: list[DeviceError] = []
    magic_seen = False
    for slot1 in (f.SLOT1_OFFSET, 0):
        found = _try_slot(device, base, base + slot1, 1, slot1, errors)
        if isinstance(found, Slot):
            slots[1] = found
            magic_seen = True
            break
        if found:
            magic_seen = True
            reasons.append(found)
            break
    pointer = _boot_pointer(device, base)
    magic_seen = magic_seen or pointer is not None
    for offset, slot1 in _slot2_candidates(device, base, slots.get(1), pointer):
        found = _try_slot(device, base, offset, 2, slot1, errors)
        if isinstance(found, Slot):
            slots[2] = found
            break
        reasons.append(found)
    if not slots:
        if errors:
            raise errors[0]
        if not magic_seen:
            raise NotAVolume(f"{device.name} is not a cowfs or qnx6 volume: no superblock found")
        raise Corrupt(f"{device.name}: no valid superblock: " + "; ".join(dict.fromkeys(reasons)))
    for number in (1, 2):
        if number not in slots:
            why = "; ".join(dict.fromkeys(reasons)) or "not found"
            notes.append(f"superblock slot {number} is not valid ({why}); using slot {3 - number}")
    return SlotSet(slots, notes, str(errors[0]) if errors and len(slots) < 2 else "", pointer)


def check_features(extension: f.Extension) -> str:
    """Raises Unsupported for unknown incompatible bits; returns why the volume must not be written, or an empty string."""
    unknown = extension.incompatible & ~f.INCOMPATIBLE_KNOWN
    if unknown:
        raise Unsupported(f"the volume uses features that this version does not know (incompatible bits {unknown:#x})")
    unknown = extension.read_only_compatible & ~f.READ_ONLY_COMPATIBLE_KNOWN
    return f"read-only compatible feature bits {unknown:#x} are unknown to this version" if unknown else ""


def build_slot(
    superblock: f.Superblock, extension: f.Extension | None, manifest: Iterable[tuple[int, int]]
) -> tuple[bytes, bytes]:
    """The 512 bytes of the record and the 3584 of the extension area; sets both checksums in the records given."""
    area = b""
    if extension is not None:
        extension.serial = superblock.serial
        entries = list(manifest)
        assert len(entries) <= f.MANIFEST_ENTRY_MAX
        area = extension.pack() + pack_manifest(entries)
        area = area.ljust(f.EXTENSION_SIZE, b"\0")
        superblock.anchor = f.Anchor(checksum=crc32c(area))
    record = bytearray(superblock.pack())
    superblock.checksum = qnx_crc(record[f.CRC_START :])
    put_superblock_checksum(record, superblock.checksum)
    return bytes(record), area


def slot_pointer(geometry: Geometry) -> tuple[bytes, bytes]:
    """What the boot block says of the slots: its first bytes, and our pointer to slot 2 at SLOT_POINTER_OFFSET."""
    offset = geometry.slot_offsets[1] - geometry.base
    sector = min(offset // f.BOOT_SECTOR_SIZE, 0xFFFFFFFF)
    pointer = f.SlotPointer(slot2_offset=offset, block_size=geometry.block_size)
    pointer.checksum = crc32c(pointer.pack()[:-4])
    return f.BootHead(slot2_sector=sector).pack(), pointer.pack()


def write_slot_pointer(device: Device, geometry: Geometry) -> None:
    """Lets the boot block lead to slot 2, and nothing else of it change. Flushes nothing."""
    head, pointer = slot_pointer(geometry)
    device.write(geometry.base, [head])
    device.write(geometry.base + f.SLOT_POINTER_OFFSET, [pointer])


def mend_slot_pointer(device: Device, slots: SlotSet, chosen: Slot) -> None:
    """Has the boot block lead to slot 2 again, durably, after a change of the size that was interrupted (I40).

    What is right is not written: it may be all that leads to the chosen slot. Raises DeviceError.
    """
    geometry = chosen.geometry
    head, pointer = slot_pointer(geometry)
    misleads = slots.pointer is not None and slots.pointer.slot2_offset != geometry.slot_offsets[1] - geometry.base
    if chosen.extension is None or not (chosen.extension.resizing or misleads):
        return
    wrong = False
    for offset, wanted in ((geometry.base, head), (geometry.base + f.SLOT_POINTER_OFFSET, pointer)):
        if device.read(offset, len(wanted)) != wanted:
            device.write(offset, [wanted])
            wrong = True
    if wrong:
        device.flush()


def _boot_pointer(device: Device, base: int) -> f.SlotPointer | None:
    """The boot block's pointer to slot 2, where there is a sound one."""
    if device.size() < base + f.SLOT_POINTER_OFFSET + f.SlotPointer.SIZE:
        return None
    try:
        raw = device.read(base + f.SLOT_POINTER_OFFSET, f.SlotPointer.SIZE)
    except DeviceError:  # only one of three ways to slot 2
        return None
    pointer = f.SlotPointer.unpack(raw)
    return pointer if pointer.magic == f.SLOT_POINTER_MAGIC and pointer.checksum == crc32c(raw[:-4]) else None


def _slot2_candidates(
    device: Device, base: int, slot1: Slot | None, pointer: f.SlotPointer | None
) -> list[tuple[int, int]]:
    """Offsets at which slot 2 may lie, the likeliest first, each with where slot 1 is inside the volume then.

    A valid slot 1 knows. What the boot block leads to besides may be a slot for another size of the volume.
    """
    candidates: list[tuple[int, int]] = []
    size = device.size()
    if slot1 is not None:
        candidates.append((slot1.geometry.slot_offsets[1], slot1.geometry.slot1))
    else:
        if pointer is not None:
            candidates.append((base + pointer.slot2_offset, f.SLOT1_OFFSET))
        candidates.append((size - f.SLOT_AREA_SIZE, f.SLOT1_OFFSET))
        for start in (f.SLOT1_OFFSET, 0):
            for block_size in f.FOREIGN_BLOCK_SIZES:
                empty = Geometry(block_size, 0, base=base, slot1=start)
                room = (size - empty.end) // block_size * block_size
                candidates.append((empty.slot_offsets[1] + room, start))
    usable = [(at, start) for at, start in candidates if base + f.SLOT_AREA_SIZE <= at <= size - f.RECORD_SIZE]
    return list(dict.fromkeys(usable))


def _try_slot(device: Device, base: int, offset: int, number: int, slot1: int, errors: list[DeviceError]) -> Slot | str:
    """As `_read_slot`; a failing device goes into `errors` and is a reason like others."""
    try:
        return _read_slot(device, base, offset, number, slot1)
    except DeviceError as error:
        errors.append(error)
        return f"slot {number} cannot be read: {error}"


def _read_slot(device: Device, base: int, offset: int, number: int, slot1: int) -> Slot | str:
    """The slot at `offset`, or why there is none: an empty string where there is not even a magic number."""
    size = device.size()
    if offset + f.RECORD_SIZE > size:
        return f"slot {number} lies beyond the end of the image" if number == 2 else ""
    raw = device.read(offset, min(f.SLOT_AREA_SIZE, size - offset))
    order: ByteOrder = "<"
    superblock = f.Superblock.unpack(raw, 0, order)
    if superblock.magic not in (f.QNX_MAGIC, f.OVERLAY_MAGIC):
        order = ">"
        superblock = f.Superblock.unpack(raw, 0, order)
        if superblock.magic != f.QNX_MAGIC:
            return "" if number == 1 else "slot 2 has no magic number"
    wanted = qnx_crc(raw[f.CRC_START : f.RECORD_SIZE])
    if superblock.checksum != wanted:
        return f"slot {number}: record checksum wanted {wanted:#010x}, found {superblock.checksum:#010x}"
    if superblock.block_size not in f.FOREIGN_BLOCK_SIZES or not 0 < superblock.num_blocks <= f.BLOCK_COUNT_MAX:
        return f"slot {number}: impossible geometry ({superblock.num_blocks} blocks of {superblock.block_size} bytes)"
    geometry = Geometry(superblock.block_size, superblock.num_blocks, order, base, slot1)
    if geometry.slot_offsets[number - 1] != offset:
        return f"slot {number}: its {superblock.num_blocks} blocks do not lead to where it was found"
    return _read_extension(raw, number, geometry, superblock)


def _read_extension(raw: bytes, number: int, geometry: Geometry, superblock: f.Superblock) -> Slot | str:
    if superblock.anchor.magic != f.ANCHOR_MAGIC:
        if superblock.flags & f.SB_FLAG_INCOMPATIBLE or superblock.magic != f.QNX_MAGIC:
            return f"slot {number}: marked as a cowfs volume, but without an anchor"
        return Slot(number, geometry, superblock, None)
    if geometry.order != "<" or geometry.block_size not in f.BLOCK_SIZES or geometry.slot1 != f.SLOT1_OFFSET:
        return f"slot {number}: an anchor in a volume of another kind"
    if superblock.anchor.version != f.FORMAT_VERSION or superblock.anchor.length != f.EXTENSION_SIZE:
        raise Unsupported(
            f"format version {superblock.anchor.version} with {superblock.anchor.length} extension bytes: "
            f"this version of cowfs knows {f.FORMAT_VERSION} with {f.EXTENSION_SIZE}"
        )
    area = raw[f.EXTENSION_OFFSET :]
    wanted = crc32c(area)
    if len(area) != f.EXTENSION_SIZE or wanted != superblock.anchor.checksum:
        return f"slot {number}: extension checksum wanted {superblock.anchor.checksum:#010x}, found {wanted:#010x}"
    extension = f.Extension.unpack(area)
    header = f.ManifestHeader.unpack(area, f.MANIFEST_OFFSET)
    if extension.magic != f.EXTENSION_MAGIC or extension.version != f.FORMAT_VERSION:
        return f"slot {number}: the extension area is not one"
    if extension.serial != superblock.serial or superblock.serial >= COUNTER_MAX:
        return f"slot {number}: serial {superblock.serial} with the extension area of {extension.serial}"
    if header.count > f.MANIFEST_ENTRY_MAX:
        return f"slot {number}: a manifest of {header.count} entries"
    start = f.MANIFEST_OFFSET + f.ManifestHeader.SIZE
    manifest = [f.ManifestEntry.unpack(area, start + i * f.MANIFEST_ENTRY_SIZE) for i in range(header.count)]
    if extension.is_overlay != (superblock.magic == f.OVERLAY_MAGIC):
        return f"slot {number}: the magic number and the feature bits of an overlay do not agree"
    return Slot(number, geometry, superblock, extension, manifest, state_checks(raw))


def plain_record(superblock: f.Superblock, order: ByteOrder) -> bytes:
    """The 512 bytes of a record without an extension area, in either byte order; sets its checksum."""
    superblock.checksum = qnx_crc(superblock.pack(order)[f.CRC_START :])
    return superblock.pack(order)


def plain_boot_head(geometry: Geometry) -> bytes:
    """What a boot block of the family begins with, without our pointer."""
    return slot_pointer(geometry)[0]
