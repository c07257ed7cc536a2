"""Partition tables: what is found in them, and what is made of damaged ones."""

from __future__ import annotations

import random
import struct
import uuid

import pytest
from qnx6writer import Volume, older_tree
from support import MIB, new_device

from cowfs.errors import CowfsError, DeviceError, InvalidArgument, NotAVolume, ReadOnly
from cowfs.storage import volume as storage
from cowfs.storage.device import MemoryDevice
from cowfs.storage.partitions import not_a_volume, open_part, read_partitions
from cowfs.storage.section import Section
from cowfs.storage.superblock import read_slots

SECTOR = 512
QNX_TYPE = uuid.UUID("cef5a9ad-73bc-4601-89f3-cdeeeee321a1")


def entry(kind: int, start: int, sectors: int) -> bytes:
    return struct.pack("<B3sB3sII", 0, b"", kind, b"", start, sectors)


def boot_record(*entries: bytes) -> bytes:
    return bytes(446) + b"".join(entries).ljust(64, b"\0") + b"\x55\xaa"


def disk(size: int, pieces: dict[int, bytes]) -> MemoryDevice:
    """A device with bytes at some sectors."""
    device = MemoryDevice(size)
    for sector, data in pieces.items():
        device.write(sector * SECTOR, [data])
    return device


@pytest.fixture(scope="module")
def qnx() -> bytes:
    return Volume("<", 1024).image(older_tree(), older_tree())


@pytest.fixture(scope="module")
def ours() -> bytes:
    return new_device(MIB).image()


def test_primary_and_logical_partitions(qnx: bytes, ours: bytes) -> None:
    """An extended partition is a chain of records: partitions relative to their record, records to the first one."""
    device = disk(
        8 * MIB,
        {
            0: boot_record(entry(0xB1, 64, 500), entry(0x05, 4096, 8000), entry(0x83, 600, 100)),
            64: qnx,
            4096: boot_record(entry(0x83, 8, 2048), entry(0x05, 3000, 4000)),
            4104: ours,
            7096: boot_record(entry(0xB3, 8, 1000)),
            7104: qnx,
        },
    )
    found = [(p.number, p.offset // SECTOR, p.length // SECTOR, p.qnx, p.holds) for p in read_partitions(device)]
    assert found == [
        (1, 64, 500, True, "a qnx6 volume"),
        (3, 600, 100, False, ""),
        (5, 4104, 2048, False, "a cowfs volume"),
        (6, 7104, 1000, True, "a qnx6 volume"),
    ]
    for number in (1, 5, 6):
        volume = storage.Volume.open(open_part(device, partition=number), read_only=True)
        assert volume.foreign == (number != 5)
        assert volume.notes == []


@pytest.mark.parametrize("sector", [512, 4096])
def test_a_guid_partition_table(qnx: bytes, sector: int) -> None:
    guid = struct.pack("<16s16sQQQ72s", QNX_TYPE.bytes_le, bytes(16), 64, 64 + len(qnx) // sector, 0, b"")
    header = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, 1, 0, 0, 0, bytes(16), 2, 8, 128, 0)
    device = MemoryDevice(4 * MIB)
    device.write(0, [boot_record(entry(0xEE, 1, 0xFFFFFFFF))])
    device.write(sector, [header])
    device.write(2 * sector + 2 * 128, [guid])
    device.write(64 * sector, [qnx])
    found = read_partitions(device)
    assert [(p.number, p.offset, p.qnx, p.holds) for p in found] == [(3, 64 * sector, True, "a qnx6 volume")]
    assert str(QNX_TYPE) in found[0].to_text()


def test_what_is_asked_for_must_be_there(qnx: bytes) -> None:
    device = disk(2 * MIB, {0: boot_record(entry(0xB1, 64, 1000)), 64: qnx})
    assert open_part(device) is device
    for options, text in (
        ({"partition": 2}, "no partition 2, only 1"),
        ({"offset": 2 * MIB}, "does not lie in"),
        ({"offset": 1, "partition": 1}, "twice"),
    ):
        with pytest.raises(InvalidArgument, match=text):
            open_part(device, **options)
    with pytest.raises(InvalidArgument, match="no partition table"):
        open_part(MemoryDevice(MIB), partition=1)
    with pytest.raises(NotAVolume) as caught:
        read_slots(device)
    hint = str(not_a_volume(device, caught.value))
    assert "partition 1 at byte 32768, 512000 bytes, type 0xb1: a qnx6 volume" in hint
    blank = NotAVolume("blank")
    assert not_a_volume(MemoryDevice(MIB), blank) is blank


def test_a_section_is_the_device_between_two_places() -> None:
    device = disk(8 * SECTOR, {2: b"a" * SECTOR, 3: b"b" * SECTOR, 4: b"c" * SECTOR})
    section = Section(device, 2 * SECTOR, 2 * SECTOR)
    assert section.size() == 2 * SECTOR
    assert section.read(SECTOR - 1, 2) == b"ab"
    for offset, length in ((2 * SECTOR - 1, 2), (-1, 1), (0, 2 * SECTOR + 1)):
        with pytest.raises(DeviceError, match="it ends at 1024"):
            section.read(offset, length)
    assert Section(device, 7 * SECTOR, 5 * SECTOR).size() == SECTOR
    for change in (lambda: section.write(0, [b"x"]), lambda: section.discard(0, 1), lambda: section.resize(1)):
        with pytest.raises(ReadOnly):
            change()
    assert device.writes == 3


def test_damaged_tables_end(qnx: bytes) -> None:
    """A chain that leads back, entries that lead out of the device, counts without end: few reads, no exception."""
    round_trip = disk(
        2 * MIB,
        {
            0: boot_record(entry(0x05, 100, 1000)),
            100: boot_record(entry(0xB1, 8, 500), entry(0x05, 50, 1)),
            150: boot_record(entry(0xB1, 8, 500), entry(0x05, 0, 1)),
        },
    )
    assert [p.number for p in read_partitions(round_trip)] == [5, 6]
    rng = random.Random(1)
    header = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 1, 92, 0, 0, 1, 0, 0, 0, bytes(16), 2, 0xFFFFFFFF, 128, 0)
    for seed in range(300):
        device = disk(MIB, {0: boot_record(entry(0x05, 4, 100)), 1: header, 2: rng.randbytes(SECTOR), 8: qnx[:4096]})
        for _ in range(3):
            device.write(rng.randrange(440, 2 * SECTOR), [rng.randbytes(4)])
        device.reset_counters()
        try:
            for partition in read_partitions(device):
                assert 0 < partition.offset < MIB
        except CowfsError:
            pass
        assert device.reads < 20_000, seed
