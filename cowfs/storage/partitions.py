"""Partition tables: which parts a whole disk's image has, and which of them hold volumes of the family.

A master boot record with its chain of logical partitions, or a GUID partition table. Numbers are those that Linux gives:
1 to 4 for what the master boot record names, from 5 on for logical ones, the place in the table for GPT. The tables are
looked at and not believed: entries outside the device are left out, chains and counts have an end.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from cowfs.errors import CowfsError, DeviceError, InvalidArgument, NotAVolume
from cowfs.ondisk import partitions as t
from cowfs.storage.device import Device
from cowfs.storage.section import Section
from cowfs.storage.superblock import read_slots

_LOGICAL_FIRST = 5
_LOGICAL_MAX = 128  # links of a chain that are followed


@dataclass(frozen=True, slots=True)
class Partition:
    """`offset` and `length` are bytes, `kind` says the type in words, `holds` what was found there, if anything."""

    number: int
    offset: int
    length: int
    kind: str
    qnx: bool
    holds: str = ""

    def to_text(self) -> str:
        """One line for people."""
        holds = f": {self.holds}" if self.holds else ""
        return f"partition {self.number} at byte {self.offset}, {self.length} bytes, {self.kind}{holds}"


def read_partitions(device: Device) -> list[Partition]:
    """The partitions of the device, in the order of their numbers; none where there is no table. Raises DeviceError."""
    found = list(_gpt(device)) or list(_mbr(device))
    size = device.size()
    inside = [p for p in found if 0 < p.offset < size and p.length > 0]
    return [
        Partition(p.number, p.offset, p.length, p.kind, p.qnx, _contents(device, p))
        for p in sorted(inside, key=lambda p: p.number)
    ]


def open_part(device: Device, *, offset: int | None = None, partition: int | None = None) -> Device:
    """The part of the device that is meant: all of it, what begins at byte `offset`, or a partition.

    Raises InvalidArgument for what is not there, DeviceError.
    """
    if partition is None:
        return device if offset is None else Section(device, offset)
    if offset is not None:
        raise InvalidArgument("an offset and a partition say the same thing twice")
    partitions = read_partitions(device)
    for found in partitions:
        if found.number == partition:
            return Section(device, found.offset, found.length)
    what = ", ".join(str(p.number) for p in partitions)
    raise InvalidArgument(
        f"{device.name} has no partition {partition}" + (f", only {what}" if what else ": there is no partition table")
    )


def not_a_volume(device: Device, error: NotAVolume) -> NotAVolume:
    """The same error; of a whole disk's image it says which partitions there are."""
    try:
        partitions = read_partitions(device)
    except DeviceError:
        return error
    if not partitions:
        return error
    return NotAVolume(f"{error}; choose a partition: " + "; ".join(p.to_text() for p in partitions))


def _contents(device: Device, partition: Partition) -> str:
    try:
        slot = read_slots(Section(device, partition.offset, partition.length)).newest
    except NotAVolume:
        return ""
    except CowfsError as error:
        return f"a volume that cannot be used ({error})"
    return "a cowfs volume" if slot.extension is not None else "a qnx6 volume"


def _mbr(device: Device) -> Iterator[Partition]:
    entries = _mbr_entries(device, 0)
    for number, entry in enumerate(entries, 1):
        if entry.kind and entry.kind not in t.MBR_EXTENDED:
            yield _mbr_partition(number, entry, 0)
    number = _LOGICAL_FIRST
    for extended in entries:
        if extended.kind in t.MBR_EXTENDED:
            for logical in _logical(device, extended.start):
                yield Partition(number, logical.offset, logical.length, logical.kind, logical.qnx)
                number += 1


def _logical(device: Device, start: int) -> Iterator[Partition]:
    """The chain of an extended partition that begins at sector `start`; each link names one partition and the next."""
    sector = start
    seen: set[int] = set()
    while sector not in seen and len(seen) < _LOGICAL_MAX:
        seen.add(sector)
        entries = _mbr_entries(device, sector)
        links = [entry for entry in entries if entry.kind in t.MBR_EXTENDED]
        for entry in entries:
            if entry.kind and entry.kind not in t.MBR_EXTENDED:
                yield _mbr_partition(0, entry, sector)
        if not links:
            return
        sector = start + links[0].start


def _mbr_entries(device: Device, sector: int) -> list[t.MbrEntry]:
    offset = sector * t.MBR_SIZE
    if offset + t.MBR_SIZE > device.size():
        return []
    raw = device.read(offset, t.MBR_SIZE)
    if raw[t.MBR_SIGNATURE_OFFSET :] != t.MBR_SIGNATURE:
        return []
    starts = range(t.MBR_ENTRIES_OFFSET, t.MBR_SIGNATURE_OFFSET, t.MbrEntry.SIZE)
    entries = [t.MbrEntry.unpack(raw, start) for start in starts]
    # Boot code, and what a FAT volume has there, does not look like a table.
    return entries if all(entry.status in (0, 0x80) for entry in entries) else []


def _mbr_partition(number: int, entry: t.MbrEntry, base: int) -> Partition:
    offset, length = (base + entry.start) * t.MBR_SIZE, entry.sectors * t.MBR_SIZE
    return Partition(number, offset, length, f"type {entry.kind:#04x}", entry.kind in t.MBR_QNX)


def _gpt(device: Device) -> Iterator[Partition]:
    for sector_size in t.SECTOR_SIZES:
        if device.size() < sector_size + t.GptHeader.SIZE:
            return
        header = t.GptHeader.unpack(device.read(sector_size, t.GptHeader.SIZE))
        if header.signature != t.GPT_SIGNATURE or header.entry_size < t.GptEntry.SIZE:
            continue
        start = header.entries_sector * sector_size
        for index in range(min(header.entry_count, t.GPT_ENTRY_COUNT_MAX)):
            offset = start + index * header.entry_size
            if offset + t.GptEntry.SIZE > device.size():
                return
            entry = t.GptEntry.unpack(device.read(offset, t.GptEntry.SIZE))
            if any(entry.kind):
                kind = str(uuid.UUID(bytes_le=bytes(entry.kind)))
                length = (entry.last - entry.first + 1) * sector_size
                yield Partition(index + 1, entry.first * sector_size, length, f"type {kind}", kind == t.GPT_QNX)
        return
