"""Slots: torn ones, lost ones, where slot 2 is found, what is refused, and what a volume that cannot be written says."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

import pytest
from plainfiles import BLOCK_SIZES, MIB, PlainFiles, new_device
from walker import newest_state, problems, read_state

from cowfs.check import check_image
from cowfs.errors import Corrupt, CowfsError, DeviceError, InvalidArgument, NotAVolume, ReadOnly, Unsupported
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c, qnx_crc
from cowfs.ondisk.geometry import Geometry, geometry_for_size
from cowfs.storage.device import MemoryDevice
from cowfs.storage.superblock import build_slot, read_slots
from cowfs.storage.volume import Volume

SIZE = MIB
SECTOR = 512
OLD = b"old" * 1000
NEW = b"new" * 1000


@functools.cache
def image(block_size: int = 1024, size: int = SIZE, complete: bool = True) -> bytes:
    """A volume whose slots name different states: file 3 holds NEW in the newest, and OLD in the other."""
    device = new_device(size, block_size)
    files = PlainFiles(Volume.open(device))
    number = files.create()
    assert number == 3
    files.write(number, 0, OLD)
    files.volume.commit(complete=complete)
    files.write(number, 0, NEW)
    files.volume.commit(complete=complete)
    return device.image()


def device_of(block_size: int = 1024, size: int = SIZE, complete: bool = True) -> MemoryDevice:
    return MemoryDevice.from_image(image(block_size, size, complete))


def contents(volume: Volume) -> bytes:
    return PlainFiles(volume).read(3, 0, len(NEW))


def geometry(block_size: int = 1024, size: int = SIZE) -> Geometry:
    return geometry_for_size(size, block_size)


def newest_slot(device: MemoryDevice, shape: Geometry) -> int:
    return newest_state(device, shape).slot


def trash(device: MemoryDevice, offset: int, length: int = SECTOR) -> None:
    device.write(offset, [random.Random(offset).randbytes(length)])


def use_afterwards(device: MemoryDevice) -> None:
    """The volume works: a change, a commit, a clean end, and all is well."""
    files = PlainFiles(Volume.open(device))
    files.write(files.create(), 0, b"afterwards" * 500)
    files.volume.commit()
    files.verify()
    files.volume.settle()
    shape = files.volume.geometry
    assert problems(device, newest_state(device, shape)) == []
    assert all(read_state(device, shape, slot) is not None for slot in (1, 2))


def edit_slot(
    device: MemoryDevice, shape: Geometry, slot: int, edit: Callable[[f.Superblock, f.Extension], None]
) -> None:
    """Changes fields of a slot; the checksums are right afterwards."""
    start = shape.slot_offsets[slot - 1]
    raw = device.read(start, f.SLOT_AREA_SIZE)
    superblock, extension = f.Superblock.unpack(raw), f.Extension.unpack(raw, f.EXTENSION_OFFSET)
    edit(superblock, extension)
    serial = extension.serial
    record, area = build_slot(superblock, extension, [])
    if serial != superblock.serial:  # build_slot makes them equal
        area = bytearray(area)
        area[0x28:0x30] = serial.to_bytes(8, "little")
        superblock.anchor.checksum = crc32c(area)
        superblock.checksum = qnx_crc(superblock.pack()[f.CRC_START :])
        record = superblock.pack()
    device.write(start, [record, area])


def edit_both(device: MemoryDevice, shape: Geometry, edit: Callable[[f.Superblock, f.Extension], None]) -> None:
    for slot in (1, 2):
        edit_slot(device, shape, slot, edit)


# --- torn slots ---


@pytest.mark.parametrize("sector", range(8))
@pytest.mark.parametrize("which", ["newest", "older"])
@pytest.mark.parametrize("block_size", [512, 4096])
def test_each_sector_of_a_slot_trashed(block_size: int, which: str, sector: int) -> None:
    device, shape = device_of(block_size), geometry(block_size)
    newest = newest_slot(device, shape)
    slot = newest if which == "newest" else 3 - newest
    trash(device, shape.slot_offsets[slot - 1] + sector * SECTOR)
    volume = Volume.open(device, read_only=True)
    assert contents(volume) == (OLD if which == "newest" else NEW)
    (note,) = volume.notes
    assert f"slot {slot}" in note
    assert f"using slot {3 - slot}" in note
    with pytest.raises(Corrupt, match=f"slot {slot} is not valid"):
        Volume.open(device, read_only=True, superblock=slot)
    use_afterwards(device)


@pytest.mark.parametrize("slot", [1, 2])
def test_the_empty_first_commit_makes_a_torn_slot_whole(slot: int) -> None:
    device, shape = device_of(), geometry()
    trash(device, shape.slot_offsets[slot - 1], f.SLOT_AREA_SIZE)
    volume = Volume.open(device)
    states = {n: read_state(device, shape, n) for n in (1, 2)}
    first, second = states[1], states[2]
    assert first is not None
    assert second is not None
    assert first.needed == second.needed
    assert volume.newest_slot == slot
    assert volume.slots_agree


def test_both_slots_bad() -> None:
    device, shape = device_of(), geometry()
    trash(device, shape.slot_offsets[0] + 3 * SECTOR)
    trash(device, shape.slot_offsets[1])
    with pytest.raises(Corrupt, match="no valid superblock: slot 1: extension checksum"):
        Volume.open(device)


def test_a_torn_slot_and_a_bad_manifest() -> None:
    """Nothing can be used; the slot can be insisted on."""
    device, shape = device_of(complete=False), geometry()
    newest = newest_state(device, shape)
    assert newest.manifest
    trash(device, shape.slot_offsets[2 - newest.slot])
    trash(device, shape.block_offset(min(newest.manifest)), 1024)
    with pytest.raises(Corrupt, match="there is no other slot"):
        Volume.open(device)
    assert Volume.open(device, read_only=True, superblock=newest.slot).serial == newest.serial


# --- finding slot 2 ---


def without_boot_block(device: MemoryDevice, shape: Geometry) -> None:
    trash(device, 0, f.BOOT_SIZE)


def without_the_end(device: MemoryDevice, shape: Geometry) -> None:
    """The device is longer than the volume, so the size does not say where slot 2 is."""
    device.resize(device.size() + 77_777)


@pytest.mark.parametrize("loss", [without_boot_block, without_the_end])
@pytest.mark.parametrize("odd", [0, 1, 700, 4095])
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_slot_2_is_found_without_slot_1(
    block_size: int, odd: int, loss: Callable[[MemoryDevice, Geometry], None]
) -> None:
    """By the boot block or by the size, also where the size is no multiple of anything."""
    device, shape = device_of(block_size, SIZE + odd), geometry(block_size, SIZE + odd)
    trash(device, shape.slot_offsets[0], f.SLOT_AREA_SIZE)
    loss(device, shape)
    assert contents(Volume.open(device, read_only=True)) in (OLD, NEW)
    use_afterwards(device)


def test_slot_2_is_not_found_where_nothing_says_where() -> None:
    device, shape = device_of(), geometry()
    trash(device, shape.slot_offsets[0], f.SLOT_AREA_SIZE)
    without_boot_block(device, shape)
    without_the_end(device, shape)
    with pytest.raises(NotAVolume):
        Volume.open(device)


def test_a_boot_block_that_lies_is_harmless() -> None:
    device, shape = device_of(), geometry()
    for offset in (0, shape.slot_offsets[0], shape.slot_offsets[1] + 1, SIZE - 100, SIZE, 1 << 63):
        pointer = f.SlotPointer(slot2_offset=offset, block_size=1024)
        pointer.checksum = crc32c(pointer.pack()[:-4])
        device.write(f.SLOT_POINTER_OFFSET, [pointer.pack()])
        assert contents(Volume.open(device, read_only=True)) == NEW


def test_a_record_counts_only_where_it_says_that_it_is() -> None:
    """A copy of slot 2 in the middle of the volume, to which the boot block leads."""
    device, shape = device_of(), geometry()
    raw = device.read(shape.slot_offsets[1], f.SLOT_AREA_SIZE)
    trash(device, shape.slot_offsets[0])
    trash(device, shape.slot_offsets[1])
    device.write(shape.block_offset(500), [raw])
    pointer = f.SlotPointer(slot2_offset=shape.block_offset(500), block_size=1024)
    pointer.checksum = crc32c(pointer.pack()[:-4])
    device.write(f.SLOT_POINTER_OFFSET, [pointer.pack()])
    with pytest.raises(Corrupt, match="do not lead to where it was found"):
        Volume.open(device)


# --- cut short ---


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("missing", [1, 4095, 4096, 5000, 500_000])
def test_a_device_that_ends_before_the_volume(missing: int, read_only: bool) -> None:
    device = device_of()
    PlainFiles(Volume.open(device)).close()  # slot 1 is the newest
    short = MemoryDevice.from_image(device.image()[:-missing])
    before = short.image()
    with pytest.raises(CowfsError, match="cut short: its superblock says 1048576 bytes, it has") as caught:
        Volume.open(short, read_only=read_only)
    assert "\n" not in str(caught.value)
    assert short.image() == before


@pytest.mark.parametrize("size", [0, 1, 511, 0x2000, 0x2200, 0x2FFF, 0x3000])
def test_hardly_anything_is_there(size: int) -> None:
    with pytest.raises(CowfsError):
        Volume.open(MemoryDevice.from_image(image()[:size]))


@pytest.mark.parametrize("content", [b"\0", b"\xff", b"text\n"])
def test_what_is_no_volume(content: bytes) -> None:
    with pytest.raises(NotAVolume, match="memory is not a cowfs or qnx6 volume"):
        Volume.open(MemoryDevice.from_image((content * SIZE)[:SIZE]))


# --- features ---


def test_unknown_compatible_features_are_ignored_and_kept() -> None:
    device, shape = device_of(), geometry()

    def edit(superblock: f.Superblock, extension: f.Extension) -> None:
        extension.compatible = 1 << 40

    edit_both(device, shape, edit)
    use_afterwards(device)
    assert newest_state(device, shape).extension.compatible == 1 << 40


def test_unknown_read_only_compatible_features_forbid_writing() -> None:
    device, shape = device_of(), geometry()

    def edit(superblock: f.Superblock, extension: f.Extension) -> None:
        extension.read_only_compatible = 1 << 40

    edit_both(device, shape, edit)
    before = device.image()
    volume = Volume.open(device)
    assert volume.notes == ["read-only: read-only compatible feature bits 0x10000000000 are unknown to this version"]
    assert contents(volume) == NEW
    with pytest.raises(ReadOnly, match="feature bits"):
        volume.check_writable()
    volume.close()
    assert device.image() == before


def test_unknown_incompatible_features_forbid_everything() -> None:
    device, shape = device_of(), geometry()

    def edit(superblock: f.Superblock, extension: f.Extension) -> None:
        extension.incompatible = 1 << 40

    edit_both(device, shape, edit)
    for read_only in (False, True):
        with pytest.raises(Unsupported, match="incompatible bits 0x10000000000"):
            Volume.open(device, read_only=read_only)


def test_another_version_of_the_format() -> None:
    device, shape = device_of(), geometry()
    for slot in (1, 2):
        start = shape.slot_offsets[slot - 1]
        superblock = f.Superblock.unpack(device.read(start, f.RECORD_SIZE))
        superblock.anchor.version = 2
        superblock.checksum = qnx_crc(superblock.pack()[f.CRC_START :])
        device.write(start, [superblock.pack()])
    with pytest.raises(Unsupported, match="format version 2"):
        Volume.open(device)


def test_a_foreign_volume_is_read_and_never_written() -> None:
    """The same trees without the anchor: what another system would have made."""
    device, shape = device_of(), geometry()
    for slot in (1, 2):
        start = shape.slot_offsets[slot - 1]
        superblock = f.Superblock.unpack(device.read(start, f.RECORD_SIZE))
        superblock.anchor.magic = b"\0" * 8
        superblock.flags &= ~f.SB_FLAG_INCOMPATIBLE
        superblock.checksum = qnx_crc(superblock.pack()[f.CRC_START :])
        device.write(start, [superblock.pack()])
    before = device.image()
    volume = Volume.open(device)
    assert volume.foreign
    assert volume.notes == ["read-only: a foreign volume, without the cowfs extension area: never written"]
    assert contents(volume) == NEW
    with pytest.raises(ReadOnly):
        volume.check_writable()
    assert not (volume.dirty or volume.wants_commit or volume.must_wait)
    assert volume.reclaim_slice() is False
    assert volume.free_blocks_for_statfs() == (volume.superblock.free_blocks, 0)
    volume.close()
    assert device.image() == before


def test_our_flag_without_an_anchor_is_no_foreign_volume() -> None:
    device, shape = device_of(), geometry()
    for slot in (1, 2):
        trash(device, shape.slot_offsets[slot - 1] + f.ANCHOR_OFFSET, 8)
        start = shape.slot_offsets[slot - 1]
        superblock = f.Superblock.unpack(device.read(start, f.RECORD_SIZE))
        superblock.checksum = qnx_crc(superblock.pack()[f.CRC_START :])
        device.write(start, [superblock.pack()])
    with pytest.raises(Corrupt, match="without an anchor"):
        Volume.open(device)


# --- choosing ---


@pytest.mark.parametrize("number", [0, 3, -1])
def test_there_are_two_slots(number: int) -> None:
    with pytest.raises(InvalidArgument, match="only 1 and 2"):
        Volume.open(device_of(), superblock=number)


def test_the_older_state_can_be_insisted_on() -> None:
    device, shape = device_of(), geometry()
    older = 3 - newest_slot(device, shape)
    assert contents(Volume.open(device, read_only=True, superblock=older)) == OLD
    volume = Volume.open(device, superblock=older)
    assert contents(volume) == OLD
    volume.close()
    assert contents(Volume.open(device, read_only=True)) == OLD
    check_image(device)


def test_slots_of_two_volumes() -> None:
    """A part of an image copied over another: only a person can say which one it is to be."""
    device, shape = device_of(), geometry()

    def edit(superblock: f.Superblock, extension: f.Extension) -> None:
        superblock.volume_id = b"another volume's"

    edit_slot(device, shape, 2, edit)
    before = device.image()
    with pytest.raises(Corrupt, match="belong to different volumes"):
        Volume.open(device)
    assert device.image() == before
    assert Volume.open(device, read_only=True, superblock=2).superblock.volume_id == b"another volume's"


def test_at_equal_serials_slot_1_counts() -> None:
    device, shape = device_of(), geometry()

    def edit(superblock: f.Superblock, extension: f.Extension) -> None:
        superblock.serial = extension.serial = 77

    edit_both(device, shape, edit)
    assert read_slots(device).newest.number == 1


# --- a device that cannot read ---


class Unreadable(MemoryDevice):
    """Reads that touch a range fail."""

    def __init__(self, image: bytes, start: int, length: int) -> None:
        super().__init__(len(image))
        super().write(0, [image])
        self.bad = range(start, start + length)

    def read(self, offset: int, length: int) -> bytes:
        if offset < self.bad.stop and self.bad.start < offset + length:
            raise DeviceError("memory: cannot read: bad sector")
        return super().read(offset, length)


@pytest.mark.parametrize("slot", [1, 2])
def test_a_slot_that_cannot_be_read_may_be_the_newest(slot: int) -> None:
    """It is not overwritten: the error may be gone tomorrow. Who insists on the other slot may write."""
    shape = geometry()
    device = Unreadable(image(), shape.slot_offsets[slot - 1], SECTOR)
    before = device.image
    volume = Volume.open(device)
    assert volume.newest_slot == 3 - slot
    assert any("newer state may be there that cannot be read" in note for note in volume.notes)
    with pytest.raises(ReadOnly, match="newer state"):
        volume.check_writable()
    volume.close()
    assert device.image is before or device.writes == 1
    assert device.writes == 1  # the test's own
    assert not Volume.open(device, superblock=3 - slot).read_only


def test_neither_slot_can_be_read() -> None:
    with pytest.raises(DeviceError, match="bad sector"):
        Volume.open(Unreadable(image(), 0, SIZE))


def test_a_block_of_the_manifest_that_cannot_be_read_costs_no_commit() -> None:
    shape = geometry()
    newest = newest_state(device_of(complete=False), shape)
    device = Unreadable(image(complete=False), shape.block_offset(max(newest.manifest)), SECTOR)
    volume = Volume.open(device)
    assert contents(volume) == OLD
    with pytest.raises(ReadOnly, match="newer state that cannot be read"):
        volume.check_writable()
    assert device.writes == 1
    device.bad = range(0)
    assert contents(Volume.open(device)) == NEW


def test_the_boot_block_need_not_be_readable() -> None:
    volume = Volume.open(Unreadable(image(), 0, SECTOR * 3))
    assert not volume.read_only
    assert contents(volume) == NEW


# --- impossible values with right checksums ---


def set_field(name: str, value: object) -> Callable[[f.Superblock, f.Extension], None]:
    def edit(superblock: f.Superblock, extension: f.Extension) -> None:
        in_record = name != "magic" and hasattr(superblock, name.partition(".")[0])
        target: object = superblock if in_record else extension
        *path, last = name.split(".")
        for step in path:
            target = getattr(target, step)
        setattr(target, last, value)

    edit.__name__ = f"{name}={value}"
    return edit


ROOTS = ("inode", "bitmap", "longfile", *f.EXTENSION_ROOTS)
IMPOSSIBLE = [
    set_field("num_blocks", 0),
    set_field("num_blocks", f.BLOCK_COUNT_MAX + 1),
    set_field("block_size", 1000),
    set_field("block_size", 8192),
    set_field("serial", (1 << 64) - 1),
    set_field("free_blocks", 0xFFFFFFFF),
    set_field("zero_blocks", (0, 1, 2, 2)),
    set_field("zero_blocks", (0, 1, 2, 1 << 31)),
    set_field("generation", (1 << 64) - 1),
    set_field("snapshot_id", (1 << 64) - 1),
    set_field("system_blocks", 0xFFFFFFFF),
    set_field("reclaim_count", 0xFFFFFFFF),
    set_field("snapshot_count", 0xFFFFFFFF),
    set_field("magic", b"cowfsXxx"),
    set_field("version", 9),
    *(set_field(f"{root}.levels", 255) for root in ROOTS),
    *(set_field(f"{root}.size", 1 << 63) for root in ROOTS),
]


@pytest.mark.parametrize("edit", IMPOSSIBLE, ids=lambda edit: edit.__name__)
@pytest.mark.parametrize("read_only", [False, True])
def test_impossible_values_are_refused(edit: Callable[[f.Superblock, f.Extension], None], read_only: bool) -> None:
    device = device_of()
    edit_both(device, geometry(), edit)
    before = device.image()
    with pytest.raises((Corrupt, NotAVolume, Unsupported)):
        Volume.open(device, read_only=read_only)
    assert device.image() == before


def test_a_serial_that_does_not_match_its_area() -> None:
    device, shape = device_of(), geometry()

    def edit(superblock: f.Superblock, extension: f.Extension) -> None:
        extension.serial = superblock.serial + 1

    edit_slot(device, shape, newest_slot(device, shape), edit)
    assert contents(Volume.open(device, read_only=True)) == OLD
