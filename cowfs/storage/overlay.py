"""Overlays: making one on a base, opening the layers below one, and what a base has to be.

An overlay's slots say which state of the base it was made on: UUID, serial, and checksums of both slots. Its boot block
says where the base is, which may change (`rebase`): a path, relative to the directory of the overlay's image or absolute.
Bases are opened for reading only, with a lock that keeps writers out, so any number of overlays share one.

A base must be settled, as a clean unmount leaves it: both slots name the same state. So the state that an overlay is made on
is durable, a slot of the base that rots later takes no overlay with it, and nobody has to decide which state was meant.

Making an overlay is a constant amount of work: it begins with the root nodes of the base.

Locking: the core thread only.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from cowfs.errors import (
    BaseChanged,
    Corrupt,
    DeviceError,
    InvalidArgument,
    NotAVolume,
    NotSupported,
    ReadOnly,
    Unsupported,
)
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c
from cowfs.ondisk.geometry import Geometry, geometry_for_size
from cowfs.ondisk.slots import with_seal
from cowfs.storage.device import LOCK_SECONDS, Device, FileDevice, StrPath, path_beside, path_for
from cowfs.storage.layers import BaseKey, Buried, LayeredDevice, overlay_key
from cowfs.storage.mkvolume import DATA_HINT_SHARE, wipe, write_boot_block
from cowfs.storage.resize import begin_larger
from cowfs.storage.section import Section
from cowfs.storage.superblock import Slot, SlotSet, build_slot, check_features, read_slots, write_slot_pointer
from cowfs.storage.volume import TREE_COPIES_MAX, Volume

BASE_CACHE_BYTES: Final = 1 << 20
"""What is kept of each system tree of a base; the bits made of it are kept by `Buried`."""


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """A layer below an overlay. `path` is that of its image."""

    path: str
    uuid: str
    serial: int
    sealed: bool


# --- opening ---


def open_layers(
    device: Device, *, base: StrPath | None = None, superblock: int | None = None, seen: tuple[object, ...] = ()
) -> Device:
    """The device itself, or, where it holds an overlay, the device over its base, which is opened; it owns both.

    `base` is where the base is, if not where the overlay says; `superblock` the slot that will be looked at; `seen` are the
    layers above. What is no volume is given back as it is: whoever reads it says so. Raises BaseChanged, Busy, DeviceError,
    Corrupt, InvalidArgument, Unsupported; then `device` is still open.
    """
    try:
        slots = read_slots(device)
    except (NotAVolume, Corrupt, Unsupported, DeviceError):
        return device
    slot = slots.newest if superblock is None else slots.slots.get(superblock)
    if slot is None or slot.extension is None or not slot.extension.is_overlay:
        if base is not None:
            raise InvalidArgument(f"{device.name} is not an overlay: it has no base")
        return device
    path = base if base is not None else base_path(device)
    try:
        below = open_base(path, above=(*seen, _identity(device)))
    except DeviceError as error:
        moved = "" if base is not None else "; 'cowfs rebase' tells the overlay where it is now"
        raise DeviceError(f"{device.name} is an overlay, and its base is missing: {error}{moved}") from error
    try:
        return stack(device, below, slot.extension.overlay)
    except BaseException:
        below.close()
        raise


def open_base(
    path: StrPath, *, above: tuple[object, ...] = (), top: Device | None = None, writable: bool = False
) -> Device:
    """Opens a base, and the layers below it, for reading only, and keeps writers out. `top` is above it. See `open_layers`.

    `writable`: the base itself, though not what is below it, is opened for writing, and nobody else has it: for a merge.
    """
    above = above if top is None else (*above, _identity(top))
    if len(above) > f.LAYERS_MAX:
        raise Unsupported(f"more than {f.LAYERS_MAX} layers lie below the overlay")
    device = FileDevice.open(path, read_only=not writable)
    try:
        if device.identity in above:
            raise Corrupt(f"{device.name} is a layer above itself")
        device.lock(exclusive=writable, timeout=LOCK_SECONDS)
        return open_layers(device, seen=above)
    except BaseException:
        device.close()
        raise


def require_overlay(device: Device) -> SlotSet:
    """The slots of an overlay's image. Raises InvalidArgument for a whole volume, and what reading raises."""
    slots = read_slots(device)
    if slots.newest.extension is None or not slots.newest.extension.is_overlay:
        raise InvalidArgument(f"{device.name} is not an overlay: it has no base")
    return slots


def _identity(device: Device) -> object:
    while isinstance(device, Section):
        device = device.device
    return device.identity if isinstance(device, FileDevice) else id(device)


def stack(top: Device, base: Device, overlay: f.OverlayState) -> LayeredDevice:
    """The overlay on `top` over `base`, if that holds the state that `overlay` names.

    Raises BaseChanged, NotAVolume, Corrupt, DeviceError.
    """
    slots = read_slots(base)
    found = slots.newest
    if (bytes(found.superblock.volume_id), found.checks) != (bytes(overlay.base_uuid), tuple(overlay.base_checks)):
        if is_merged(read_slots(top), slots):
            raise BaseChanged(f"{top.name} was merged into its base {base.name}: 'cowfs merge' finishes that")
        raise BaseChanged(f"{top.name}: its base {base.name} is not what it was: {_difference(overlay, found)}")
    return _over(top, base, _read(base, found.number), overlay_key(overlay))


def is_merged(top: SlotSet, base: SlotSet) -> bool:
    """Whether the newest state of the overlay with these slots was merged into the volume with those."""
    extension, found = base.newest.extension, top.newest
    if extension is None or not extension.merged.serial:
        return False
    merged = extension.merged
    return (bytes(merged.uuid), tuple(merged.checks)) == (bytes(found.superblock.volume_id), found.checks)


def _read(base: Device, slot: int) -> Volume:
    volume = Volume.open(base, read_only=True, superblock=slot)
    if volume.extension is None:
        raise NotSupported(f"{base.name} is a foreign volume: only a cowfs volume can be a base")
    for tree in volume.system_trees:
        tree.limit_cache(BASE_CACHE_BYTES)
    return volume


def _over(top: Device, base: Device, volume: Volume, key: BaseKey) -> LayeredDevice:
    return LayeredDevice(top, base, Buried(volume.geometry, volume.bitmap.page, volume.buried), key)


def _difference(overlay: f.OverlayState, found: Slot) -> str:
    """How a base differs from what an overlay says."""
    wanted, uuid = UUID(bytes=bytes(overlay.base_uuid)), UUID(bytes=bytes(found.superblock.volume_id))
    if uuid != wanted:
        return f"it is another volume (UUID {uuid}, wanted {wanted})"
    if found.superblock.num_blocks != overlay.base_blocks:
        return f"it has {found.superblock.num_blocks} blocks, wanted {overlay.base_blocks}"
    if found.serial > overlay.base_serial:
        return f"it was written since (its serial moved from {overlay.base_serial} to {found.serial})"
    if found.serial < overlay.base_serial - 1:
        return f"it is an older copy (serial {found.serial}, wanted {overlay.base_serial})"
    return f"it has other contents at serial {found.serial}"


def layers_below(device: Device) -> list[LayerInfo]:
    """The layers below an overlay, the next one first; empty for a whole volume. Raises what reading them raises."""
    found = []
    while isinstance(device, LayeredDevice):
        device = device.base
        slot = read_slots(device).newest
        sealed = slot.extension is not None and slot.extension.is_sealed
        found.append(LayerInfo(device.name, str(UUID(bytes=bytes(slot.superblock.volume_id))), slot.serial, sealed))
    return found


# --- where the base is ---


def base_path(device: Device) -> str:
    """Where an overlay says that its base is. Raises Corrupt where it does not say."""
    found = _base_names(device)
    if not found:
        raise Corrupt(f"{device.name}: the name of its base is lost; 'cowfs rebase' tells it anew")
    _, path = max(found.values())
    if not path or b"\0" in path:
        raise Corrupt(f"{device.name}: the name of its base", found=path)
    return path_beside(device.name, path)


def set_base_path(device: Device, path: bytes) -> None:
    """Has an overlay say that its base is elsewhere: the older of two places is overwritten. Flushes."""
    found = _base_names(device)
    newest = max(found, key=lambda place: found[place]) if found else f.BASE_NAME_OFFSETS[1]
    sequence = found[newest][0] + 1 if found else 1
    (place,) = (place for place in f.BASE_NAME_OFFSETS if place != newest)
    device.write(place, [_base_name(path, sequence).ljust(f.BASE_NAME_SIZE, b"\0")])
    device.flush()


def recorded_path(base: StrPath, image: StrPath) -> bytes:
    """What an overlay in the file `image` records for a path to its base: absolute ones stay, others are made relative to it.

    Raises InvalidArgument for a path that is too long.
    """
    path = path_for(image, base)
    if len(path) > f.BASE_PATH_MAX:
        raise InvalidArgument(f"the path of a base has at most {f.BASE_PATH_MAX} bytes")
    return path


def _base_name(path: bytes, sequence: int) -> bytes:
    name = f.BaseName(sequence=sequence, length=len(path))
    name.checksum = crc32c(name.pack()[: -f.CHECKSUM_SIZE] + path)
    return name.pack() + path


def _base_names(device: Device) -> dict[int, tuple[int, bytes]]:
    """By place, (sequence, path) of the names of the base that hold."""
    found = {}
    for place in f.BASE_NAME_OFFSETS:
        raw = device.read(place, f.BASE_NAME_SIZE)
        name = f.BaseName.unpack(raw)
        path = raw[f.BaseName.SIZE : f.BaseName.SIZE + min(name.length, f.BASE_PATH_MAX)]
        if name.magic == f.BASE_NAME_MAGIC and name.checksum == crc32c(name.pack()[: -f.CHECKSUM_SIZE] + path):
            found[place] = name.sequence, path
    return found


def rebase(device: Device, base: Device, path: bytes) -> None:
    """The base is found at `path` from now on. Raises BaseChanged where `base`, which is there, is not the base."""
    extension = require_overlay(device).newest.extension
    assert extension is not None
    stack(device, base, extension.overlay)
    set_base_path(device, path)


# --- making ---


def require_settled(device: Device) -> SlotSet:
    """The slots of a volume of ours that was cleanly unmounted. Raises InvalidArgument, NotSupported, what reading raises."""
    slots = read_slots(device)
    if slots.newest.extension is None:
        raise NotSupported(f"{device.name} is a foreign volume, without the cowfs extension area: it cannot be a base")
    unknown = check_features(slots.newest.extension)
    if unknown:
        raise Unsupported(f"{device.name}: {unknown}")
    if not is_settled(slots):
        raise InvalidArgument(
            f"{device.name} was not cleanly unmounted: mount it once, and unmount it, before it becomes a base"
        )
    return slots


def is_settled(slots: SlotSet) -> bool:
    """Whether both slots name the same state, without a manifest, and slot 1 is the newer one."""
    if set(slots.slots) != {1, 2}:
        return False
    first, second = slots.slots[1], slots.slots[2]
    if first.manifest or second.manifest or first.serial <= second.serial:
        return False
    return first.checks == second.checks


def default_size(base: Device) -> int:
    """The size of a new overlay in bytes: the base's, and as much again."""
    geometry = read_slots(base).newest.geometry
    most = Geometry(geometry.block_size, f.BLOCK_COUNT_MAX).end
    return min(geometry.end + geometry.num_blocks * geometry.block_size, most)


def overlay_geometry(base: Device, size: int) -> Geometry:
    """The geometry of an overlay of `size` bytes. Raises InvalidArgument: it is smaller than its base, or too large."""
    geometry = read_slots(base).newest.geometry
    wanted = geometry_for_size(size, geometry.block_size)
    if wanted.num_blocks < geometry.num_blocks:
        raise InvalidArgument(f"an overlay is no smaller than its base: {geometry.end} bytes, not {size}")
    if not leaves_slot_2(geometry, wanted):
        least = Geometry(geometry.block_size, geometry.num_blocks + geometry.blocks_of(f.SLOT_AREA_SIZE)).end
        raise InvalidArgument(
            f"an overlay has the size of its base, {geometry.end} bytes, or at least {least}, not {size}: else the two"
            " could not be merged"
        )
    return wanted


def leaves_slot_2(old: Geometry, new: Geometry) -> bool:
    """Whether a volume of the old size that gets the new one can keep its slot 2 until the new one is written (I40, I45)."""
    return new.num_blocks == old.num_blocks or new.slot_offsets[1] >= old.slot_offsets[1] + f.SLOT_AREA_SIZE


def make_overlay(
    top: Device, base: Device, geometry: Geometry, *, path: bytes, uuid: bytes, now_ns: int, label: bytes = b""
) -> LayeredDevice:
    """Makes an overlay on the volume that `base` holds, which is found at `path` later; both belong to the device returned.

    Without a label it has that of its base. Flushed at the end. Raises what `require_settled` does, InvalidArgument (no room,
    too many layers), DeviceError.
    """
    volume, device = _first_state(top, base, geometry, now_ns=now_ns)
    assert volume.extension is not None
    volume.superblock.volume_id = uuid
    volume.superblock.ctime = now_ns // 1_000_000_000 & 0xFFFFFFFF
    volume.extension.format_time = max(now_ns, 0)
    volume.extension.label = label or volume.extension.label
    wipe(top, geometry)
    _begin(volume, geometry)
    volume.settle()
    write_boot_block(top, geometry, _base_name(path, 1))
    return device


def renew_overlay(top: Device, base: Device, *, now_ns: int) -> LayeredDevice:
    """Makes the overlay on `top`, whose contents nobody needs any more, an empty one on what `base` holds now.

    Name, label and size stay; where that leaves no room, it becomes as large as mkcowfs would make it. What it held is
    discarded first; until the first new slot is written it is the old overlay by its slots. Raises what `make_overlay` does.
    """
    slots = read_slots(top)
    old = slots.newest
    assert old.extension is not None
    block_size, least = old.geometry.block_size, read_slots(base).newest.geometry.num_blocks
    usual = Geometry(block_size, min(max(2 * least, old.geometry.num_blocks), f.BLOCK_COUNT_MAX))
    fixed = isinstance(top, FileDevice) and top.is_block_device
    sizes = [
        size for size in (old.geometry, usual) if size.num_blocks >= least and (size.end <= top.size() or not fixed)
    ]
    if not sizes:
        raise InvalidArgument(f"{top.name} is smaller than {base.name}, which it cannot be an overlay on")
    with contextlib.suppress(NotSupported):  # then it is what lies below as well, and harmless
        top.discard(old.geometry.data_start, old.geometry.slot_offsets[1] - old.geometry.data_start)
    top.flush()
    while True:
        geometry = sizes.pop(0)
        try:
            volume, device = _first_state(top, base, geometry, now_ns=now_ns)
            assert volume.extension is not None
            volume.superblock.volume_id, volume.superblock.ctime = old.superblock.volume_id, old.superblock.ctime
            volume.extension.format_time, volume.extension.label = old.extension.format_time, old.extension.label
            volume.newest_slot, volume.serial = old.number, slots.serial_max
            if top.size() < geometry.end:
                top.resize(geometry.end)
                top.flush()
            _begin(volume, geometry)
            break
        except InvalidArgument:
            if not sizes:
                raise
    if geometry != old.geometry:  # slot 2 moves, where slot 1 does not lead yet (I40)
        assert volume.tx is not None
        volume.extension.resizing = 1
        volume.commit(complete=True)
        write_slot_pointer(top, geometry)
        top.flush()
        volume.extension.resizing = 0
        volume.tx.changes += 1
    volume.settle()
    return device


def _first_state(top: Device, base: Device, geometry: Geometry, *, now_ns: int) -> tuple[Volume, LayeredDevice]:
    """The volume that an overlay begins with, nothing of which is written: that of the base, as large as that one."""
    slots = require_settled(base)
    first = slots.slots[1]
    below = _read(base, first.number)
    assert below.extension is not None
    extension = f.Extension.unpack(below.extension.pack())
    superblock = f.Superblock.unpack(below.superblock.pack())
    lower = extension.overlay
    if lower.depth >= f.LAYERS_MAX:
        raise InvalidArgument(f"{base.name} has {lower.depth} layers below it: no more are possible")
    overlay = f.OverlayState(
        base_uuid=bytes(superblock.volume_id),
        base_serial=first.serial,
        base_checks=first.checks,
        base_blocks=below.geometry.num_blocks,
        buried_free=lower.buried_free,
        buried_system=extension.system_blocks,
        base_snapshot=lower.base_snapshot,
        depth=lower.depth + 1,
        spent=lower.spent,
    )
    extension.overlay = overlay
    extension.merged = f.MergedState()
    extension.resizing = 0
    extension.incompatible |= f.INCOMPATIBLE_OVERLAY
    extension.read_only_compatible &= ~f.READ_ONLY_COMPATIBLE_SEALED
    superblock.magic = f.OVERLAY_MAGIC
    device = _over(top, base, below, overlay_key(overlay))
    volume = Volume(device, Slot(1, below.geometry, superblock, extension), read_only_reason="")
    volume.clock = lambda: now_ns
    return volume, device


def _begin(volume: Volume, geometry: Geometry) -> None:
    """What the first commit of an overlay has: the base's tree is kept, and the volume has as many blocks as it should."""
    extension, spacemap, old = volume.extension, volume.spacemap, volume.geometry
    assert extension is not None and spacemap is not None
    if geometry.num_blocks > old.num_blocks:
        under_slot = min(geometry.num_blocks - old.num_blocks, -(-f.SLOT_AREA_SIZE // old.block_size))
        begin_larger(volume, geometry)
        # Behind all that is buried: a search never passes through the pages of a full base.
        start = old.num_blocks + under_slot
        spacemap.metadata_hint = start
        spacemap.data_hint = start + (geometry.num_blocks - start) // DATA_HINT_SHARE
    _, room = volume.free_blocks_for_statfs()
    if room <= TREE_COPIES_MAX * volume.margin:
        size = geometry.num_blocks * geometry.block_size
        raise InvalidArgument(
            f"an overlay of {size} bytes has no room beside what its base uses: give it a larger --size"
        )
    with volume.operation():
        while extension.overlay.spent:  # of the base, which was not opened for writing since it is a copy of layers
            volume.forest.drop_spent_base()
        volume.forest.keep_base(max(volume.clock(), 0))


# --- copies of all layers ---


def make_whole(device: Device) -> None:
    """Both slots of a copy of all layers of an overlay say that it is a whole volume. Flushes.

    What kept the trees of the layers is dropped when the volume is next opened for writing.
    """
    for number, slot in read_slots(device).slots.items():
        superblock, extension = slot.superblock, slot.extension
        if extension is None or not extension.is_overlay:
            continue
        lower = extension.overlay
        extension.overlay = f.OverlayState(base_snapshot=lower.base_snapshot, spent=lower.depth + lower.spent)
        extension.incompatible &= ~f.INCOMPATIBLE_OVERLAY
        superblock.magic = f.QNX_MAGIC
        record, area = build_slot(superblock, extension, [(entry.block, entry.checksum) for entry in slot.manifest])
        device.write(slot.geometry.slot_offsets[number - 1], [record, area])
        device.flush()


# --- the seal ---


def require_unsealed(device: Device) -> None:
    """Raises ReadOnly for a device with a sealed volume, which is not to be written. Other trouble is others' business."""
    try:
        extension = read_slots(device).newest.extension
    except (NotAVolume, Corrupt, Unsupported, DeviceError):
        return
    if extension is not None and extension.is_sealed:
        raise ReadOnly(
            f"{device.name} is sealed: mount it with -o ro, or an overlay on it; 'cowfs unseal' allows writing again"
        )


def set_seal(device: Device, *, on: bool) -> bool:
    """Seals or unseals the volume on a device that is locked for writing; whether that changed anything. Flushes.

    The state stays the same, serial included, so overlays go on knowing it. A volume that was not cleanly unmounted is opened
    and settled first. Raises NotSupported for a foreign volume, ReadOnly, and what opening does.
    """
    slots = read_slots(device)
    if slots.newest.extension is None:
        raise NotSupported(f"{device.name} is a foreign volume: it is never written anyway")
    if not is_settled(slots):
        volume = Volume.open(device, unseal=True)
        volume.check_writable()
        volume.settle()
        slots = read_slots(device)
    changed = False
    for slot in sorted(slots.slots.values(), key=lambda slot: slot.serial):
        assert slot.extension is not None
        if slot.extension.is_sealed != on:
            offset = slot.geometry.slot_offsets[slot.number - 1]
            device.write(offset, [with_seal(device.read(offset, f.SLOT_AREA_SIZE), on=on)])
            device.flush()
            changed = True
    return changed
