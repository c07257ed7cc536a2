"""The snapshot table: a record for each snapshot and clone, found by place or by name in constant time.

"A snapshot is simply a committed superblock": of that record the table keeps what belongs to a tree (the root nodes of the
inode file and of the long-name file, and the inode counters). The table is an array of records in a system tree; the
index by name is an open hash table of (hash, place + 1) in another, with linear probing and at most half full, which
doubles when it has to. Neither is ever turned back by a rollback.

Invariants:
- I17 A name of a record that is not internal is in the index exactly once, and the index holds nothing else.
- I18 Ids grow and are never reused; places are.

Locking: the core thread only. Space is the caller's business (`Volume.admit`).
"""

from __future__ import annotations

import array
import heapq
from collections.abc import Iterator
from typing import Final

from cowfs.errors import Corrupt, Exists, InvalidArgument, NameTooLong, NotFound
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c
from cowfs.ondisk.geometry import pointers_from, pointers_to
from cowfs.storage.pagedtree import PagedTree

INDEX_PLACES_MIN: Final = 64
_NO_ID: Final = bytes(4)  # how the record at an empty place begins
_PROBE_MAX: Final = 64  # places that one insertion looks at for an empty one before the table grows


class SnapshotTable:
    """The records of one volume. `count` is the number of records in use."""

    def __init__(self, records: PagedTree, index: PagedTree, count: int) -> None:
        self.count = count
        self._records = records
        self._index = index
        self._places = records.size // f.SnapshotRecord.SIZE
        self._slots = index.size // f.SnapshotIndexEntry.SIZE
        self._free: list[int] = []  # empty places that are known, the lowest first
        self._frontier = 0  # below it every empty place is known
        if count > self._places or self._slots & (self._slots - 1):
            found = f"{count} in {self._places} places and {self._slots} slots"
            raise Corrupt("snapshot table", wanted="as many places, and a power of two of slots", found=found)

    # --- reading ---

    def get(self, place: int) -> f.SnapshotRecord:
        """The record at a place in use. Raises NotFound, Corrupt."""
        if not 0 <= place < self._places:
            raise NotFound
        record = self._read(place)
        if record.id == 0:
            raise NotFound
        if not record.name_length <= f.SNAPSHOT_NAME_MAX or record.description_length > f.SNAPSHOT_DESCRIPTION_MAX:
            raise Corrupt(f"snapshot record {place}: length of the name or the description", found=record.name_length)
        return record

    def find(self, name: bytes) -> int:
        """The place of the record with this name. Raises NotFound, Corrupt."""
        for _, entry in self._chain(crc32c(name)):
            if entry.hash == crc32c(name) and name_of(self._used(entry.place - 1)) == name:
                return entry.place - 1
        raise NotFound(f"no snapshot {printable(name)}")

    def __iter__(self) -> Iterator[tuple[int, f.SnapshotRecord]]:
        """(place, record) of all records, in the order of their places."""
        for place in range(self._places):
            if not self.is_empty(place):
                yield place, self._read(place)

    def is_empty(self, place: int) -> bool:
        """Whether no record is at a place of the table."""
        return self._records.read(place * f.SnapshotRecord.SIZE, len(_NO_ID)) == _NO_ID

    @property
    def places(self) -> int:
        """All records lie at lower places than this one."""
        return self._places

    # --- changing ---

    def prepare_insert(self, name: bytes | None) -> None:
        """Does all that can fail of inserting a record: one with a new name, or, for None, an internal one.

        Raises Exists, InvalidArgument, NameTooLong, Corrupt, DeviceError.
        """
        if name is not None:
            self.check_new_name(name)
            if self._must_grow:
                self._index.load(0, self._slots * f.SnapshotIndexEntry.SIZE)
        place = self._empty_place()
        if place < self._places:
            heapq.heappush(self._free, place)
        self._records.load(place * f.SnapshotRecord.SIZE, f.SnapshotRecord.SIZE)

    def prepare_remove(self, place: int) -> None:
        """Does all that can fail of removing a record. Raises NotFound, Corrupt, DeviceError."""
        record = self.get(place)
        if not record.flags & f.SNAPSHOT_INTERNAL:
            self._find_in_index(name_of(record), place)

    def insert(self, record: f.SnapshotRecord) -> int:
        """Stores a new record; its place. Raises Exists, InvalidArgument, NameTooLong before anything changes."""
        name = name_of(record)
        if not record.flags & f.SNAPSHOT_INTERNAL:
            self.check_new_name(name)
        place = self._empty_place()
        self._records.write(place * f.SnapshotRecord.SIZE, record.pack())
        self._places = max(self._places, place + 1)
        self.count += 1
        if not record.flags & f.SNAPSHOT_INTERNAL:
            self._add_to_index(name, place)
        return place

    def replace(self, place: int, record: f.SnapshotRecord) -> None:
        """Stores a record, with the same name, at a place in use."""
        self._records.write(place * f.SnapshotRecord.SIZE, record.pack())

    def rename(self, place: int, name: bytes) -> None:
        """Gives a record another name. Raises Exists, InvalidArgument, NameTooLong before anything changes."""
        record = self.get(place)
        self.check_new_name(name)
        self._remove_from_index(name_of(record), place)
        record.name, record.name_length = name, len(name)
        self.replace(place, record)
        self._add_to_index(name, place)

    def remove(self, place: int) -> f.SnapshotRecord:
        """Takes a record out of the table and returns it; what it refers to is the caller's business."""
        record = self.get(place)
        if not record.flags & f.SNAPSHOT_INTERNAL:
            self._remove_from_index(name_of(record), place)
        self._records.write(place * f.SnapshotRecord.SIZE, bytes(f.SnapshotRecord.SIZE))
        self.count -= 1
        heapq.heappush(self._free, place)
        return record

    def check_new_name(self, name: bytes) -> None:
        """Raises Exists, InvalidArgument or NameTooLong for a name that a new record cannot have."""
        if len(name) > f.SNAPSHOT_NAME_MAX:
            raise NameTooLong(f"the name of a snapshot has at most {f.SNAPSHOT_NAME_MAX} bytes")
        if not name or name in (b".", b"..") or b"/" in name or b"\0" in name or b"\n" in name:
            raise InvalidArgument(f"{printable(name)} cannot be the name of a snapshot")
        try:
            self.find(name)
        except NotFound:
            return
        raise Exists(f"there is a snapshot {printable(name)} already")

    # --- places ---

    def _read(self, place: int) -> f.SnapshotRecord:
        return f.SnapshotRecord.unpack(self._records.read(place * f.SnapshotRecord.SIZE, f.SnapshotRecord.SIZE))

    def _used(self, place: int) -> f.SnapshotRecord:
        try:
            return self.get(place)
        except NotFound:
            raise Corrupt("snapshot index names an empty place", found=place) from None

    def _empty_place(self) -> int:
        if self._free:
            return heapq.heappop(self._free)
        if self.count < self._places:
            stop = min(self._places, self._frontier + _PROBE_MAX)
            while self._frontier < stop:
                place = self._frontier
                self._frontier += 1
                if self._read(place).id == 0:
                    return place
        if self._frontier >= self._places:
            self._frontier = self._places + 1
        return self._places

    # --- index ---

    def _entry(self, slot: int) -> f.SnapshotIndexEntry:
        return f.SnapshotIndexEntry.unpack(
            self._index.read(slot * f.SnapshotIndexEntry.SIZE, f.SnapshotIndexEntry.SIZE)
        )

    def _set_entry(self, slot: int, entry: f.SnapshotIndexEntry) -> None:
        self._index.write(slot * f.SnapshotIndexEntry.SIZE, entry.pack())

    def _chain(self, value: int) -> Iterator[tuple[int, f.SnapshotIndexEntry]]:
        """The slots from the home of a hash to the next empty one. Raises Corrupt where there is none."""
        for step in range(self._slots):
            slot = (value + step) & (self._slots - 1)
            entry = self._entry(slot)
            if entry.place == 0:
                return
            yield slot, entry
        if self._slots:
            raise Corrupt("snapshot index: no empty slot", found=self._slots)

    def _add_to_index(self, name: bytes, place: int) -> None:
        if 2 * self.count > self._slots:
            self._grow()
        self._put(f.SnapshotIndexEntry(crc32c(name), place + 1))

    @property
    def _must_grow(self) -> bool:
        """Whether the next new name makes the index more than half full."""
        return 2 * (self.count + 1) > self._slots

    @property
    def growth_cost(self) -> int:
        """Blocks that the next new name may take for an index of twice the size; 0 while the present one has room."""
        if not self._must_grow:
            return 0
        size = max(INDEX_PLACES_MIN, 2 * self._slots) * f.SnapshotIndexEntry.SIZE
        pages = -(-size // self._index.page_size)
        return pages + pages // (self._index.fanout - 1) + f.SYSTEM_LEVEL_MAX

    def _put(self, entry: f.SnapshotIndexEntry) -> None:
        slot = entry.hash & (self._slots - 1)
        for last, _ in self._chain(entry.hash):
            slot = (last + 1) & (self._slots - 1)
        self._set_entry(slot, entry)

    def _grow(self) -> None:
        """Doubles the index. The only step here that takes longer the more there is: 50 ms for 65,536 names."""
        order = self._index.store.geometry.order
        old = pointers_from(self._index.read(0, self._slots * f.SnapshotIndexEntry.SIZE), order)
        self._slots = max(INDEX_PLACES_MIN, 2 * self._slots)
        mask = self._slots - 1
        new = array.array("I", bytes(self._slots * f.SnapshotIndexEntry.SIZE))
        for value, place in zip(old[::2], old[1::2], strict=True):
            if place:
                slot = value & mask
                while new[2 * slot + 1]:
                    slot = slot + 1 & mask
                new[2 * slot], new[2 * slot + 1] = value, place
        self._index.write(0, pointers_to(new, order))

    def _find_in_index(self, name: bytes, place: int) -> int:
        """The slot that leads to a record; reads all slots up to the next empty one. Raises Corrupt."""
        slots = [slot for slot, entry in list(self._chain(crc32c(name))) if entry.place == place + 1]
        if not slots:
            raise Corrupt(f"snapshot {printable(name)} is not in the index")
        return slots[0]

    def _remove_from_index(self, name: bytes, place: int) -> None:
        """Empties the slot, and moves up those behind it that would not be found any more."""
        hole = self._find_in_index(name, place)
        mask = self._slots - 1
        slot = hole
        while True:
            slot = (slot + 1) & mask
            entry = self._entry(slot)
            if entry.place == 0:
                break
            if (slot - entry.hash) & mask >= (slot - hole) & mask:
                self._set_entry(hole, entry)
                hole = slot
        self._set_entry(hole, f.SnapshotIndexEntry())


def name_of(record: f.SnapshotRecord) -> bytes:
    """The name in a record."""
    return record.name[: record.name_length]


def description_of(record: f.SnapshotRecord) -> bytes:
    """The description in a record."""
    return record.description[: record.description_length]


def printable(name: bytes) -> str:
    """A name for a message."""
    return "'" + name.decode("utf-8", "backslashreplace") + "'"
