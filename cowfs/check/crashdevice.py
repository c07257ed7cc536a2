"""A device that records what is written to it, and the images that a power cut could leave behind.

Duty: `RecordingDevice` is a device in memory that keeps a log of every write (with its bytes) and every flush, and of marks
that whoever uses it sets. `cuts` walks the log, and `crash_images` makes for one place in it the contents that the medium
could have if the power failed there.

What is assumed of the medium (docs/DESIGN.md, section 2): writes that a completed flush covers are there. Of the others,
each may be there or not, whatever the order; it may be there in part, cut anywhere between sectors of 512 bytes; and each
of its sectors may hold garbage. What a process wrote that was killed stays in the page cache: the next one reads it, and
a power cut may still lose it. So a log simply goes on when another process uses the device.

`FaultyDevice` fails where it is told to.

Locking: a RecordingDevice may be used by several threads. Everything else is for one thread, when nobody writes any more.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from cowfs.errors import DeviceError, ReadOnly
from cowfs.ondisk.records import Buffer

SECTOR_SIZE: Final = 512
TORN_SECTORS_MAX: Final = 64  # places at which a long write is torn; it is torn at random ones besides


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes written at byte `offset`."""

    offset: int
    data: bytes

    def sectors(self) -> list[tuple[int, int]]:
        """(from, to) of each piece of `data` that lies in one sector of the medium."""
        cuts = [0, *range(-self.offset % SECTOR_SIZE or SECTOR_SIZE, len(self.data), SECTOR_SIZE), len(self.data)]
        return list(itertools.pairwise(cuts))


@dataclass(frozen=True, slots=True)
class Resize:
    """The device got another length. Pending until a flush, like a write: it has happened or not."""

    size: int
    offset: int = 0
    data: bytes = b""

    def sectors(self) -> list[tuple[int, int]]:
        """One, so that it is never torn."""
        return [(0, 0)]


@dataclass(frozen=True, slots=True)
class Flush:
    """A completed flush: the first `covers` entries of the log are on the medium."""

    covers: int


@dataclass(frozen=True, slots=True)
class Fate:
    """A failed flush: of the writes that no flush covers these entries reached the medium, the others never will.

    The system forgets that they have to be written, and shows them as long as it has them in memory (so does Linux).
    """

    reached: frozenset[int]


@dataclass(frozen=True, slots=True)
class Mark:
    """What a user of the device wants to find in the log again."""

    subject: object


Change = Write | Resize
Entry = Change | Flush | Fate | Mark


class RecordingDevice:
    """A device in memory that begins as `image` and records.

    `before_call` is called with "write" or "flush" before anything of the call has happened.
    """

    def __init__(self, image: Buffer, *, name: str = "recording") -> None:
        self.name = name
        self.read_only = False
        self.base = bytes(image)
        self.log: list[Entry] = []
        self.before_call: Callable[[str], None] | None = None
        self._content = bytearray(self.base)
        self._mutex = threading.Lock()

    def image(self) -> bytes:
        """The contents as the running system sees them, written back to the medium or not."""
        with self._mutex:
            return bytes(self._content)

    def mark(self, subject: object) -> None:
        """Puts a mark into the log."""
        with self._mutex:
            self.log.append(Mark(subject))

    def size(self) -> int:
        """Length in bytes."""
        return len(self._content)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. Raises DeviceError beyond the end."""
        self._require_inside(offset, length)
        with self._mutex:
            return bytes(self._content[offset : offset + length])

    def write(self, offset: int, pieces: Sequence[Buffer]) -> None:
        """Writes and records. Raises DeviceError beyond the end, ReadOnly."""
        if self.read_only:
            raise ReadOnly(f"{self.name} is open for reading only")
        data = b"".join(pieces)
        self._require_inside(offset, len(data))
        if self.before_call is not None:
            self.before_call("write")
        self._record(offset, data)

    def flush(self) -> None:
        """Covers what was written before it began."""
        if self.before_call is not None:
            self.before_call("flush")
        with self._mutex:
            self.log.append(Flush(len(self.log)))

    def discard(self, offset: int, length: int) -> None:
        """Zeros, recorded as a write."""
        self.write(offset, [bytes(min(length, self.size() - offset))])

    def resize(self, size: int) -> None:
        """New bytes are zero. Recorded."""
        if self.read_only:
            raise ReadOnly(f"{self.name} is open for reading only")
        if self.before_call is not None:
            self.before_call("write")
        with self._mutex:
            change = Resize(size)
            _apply(self._content, change)
            self.log.append(change)

    def lock(self, *, exclusive: bool, timeout: float = 0.0) -> None:
        """Nothing to keep out."""

    def drop_cache(self) -> None:
        """A flush; from then on the system sees what is on the medium, which after a failed flush may be something else."""
        self.flush()
        with self._mutex:
            if any(isinstance(entry, Fate) for entry in self.log):
                self._content = bytearray(medium(self.base, self.log).latest())

    def close(self) -> None:
        """Log and contents stay."""

    def _record(self, offset: int, data: bytes) -> None:
        with self._mutex:
            self._content[offset : offset + len(data)] = data
            self.log.append(Write(offset, data))

    def _require_inside(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > len(self._content):
            raise DeviceError(f"{self.name}: {length} bytes at offset {offset} lie beyond its end")


@dataclass(frozen=True, slots=True)
class Fault:
    """Call number `at` (from 0) of `kind` ("read", "write" or "flush") fails with `reason`; with `lasting` all later ones.

    Of a failing write the first `written` bytes are there nevertheless.
    """

    kind: str
    at: int
    reason: str = "Input/output error (EIO)"
    written: int = 0
    lasting: bool = False


class FaultyDevice(RecordingDevice):
    """Records, counts its calls, and fails where `fault` says. While it is `paused` it neither counts nor fails."""

    def __init__(self, image: Buffer, fault: Fault | None = None, *, name: str = "faulty") -> None:
        super().__init__(image, name=name)
        self.fault = fault
        self.paused = False
        self.calls = {"read": 0, "write": 0, "flush": 0}
        self.failures = 0

    def read(self, offset: int, length: int) -> bytes:
        """Raises DeviceError where it is told to."""
        fault = self._fault("read")
        if fault is not None:
            raise self._error(f"read {length} bytes at offset {offset}", fault)
        return super().read(offset, length)

    def write(self, offset: int, pieces: Sequence[Buffer]) -> None:
        """Raises DeviceError where it is told to; then the beginning of the data may be written."""
        fault = self._fault("write")
        if fault is None:
            super().write(offset, pieces)
            return
        data = b"".join(pieces)
        if fault.written:
            super().write(offset, [data[: fault.written]])
        raise self._error(f"write {len(data)} bytes at offset {offset}", fault)

    def flush(self) -> None:
        """Raises DeviceError where it is told to; then some writes are on the medium, and others never will be."""
        fault = self._fault("flush")
        if fault is None:
            super().flush()
            return
        rng = random.Random(fault.at)
        with self._mutex:
            reached = [place for place, _ in _pending(self.log) if rng.random() < 0.5]
            self.log.append(Fate(frozenset(reached)))
        raise self._error("flush it", fault)

    def _fault(self, kind: str) -> Fault | None:
        if self.paused:
            return None
        number = self.calls[kind]
        self.calls[kind] += 1
        fault = self.fault
        if fault is None or fault.kind != kind or number < fault.at or (number > fault.at and not fault.lasting):
            return None
        self.failures += 1
        return fault

    def _error(self, action: str, fault: Fault) -> DeviceError:
        return DeviceError(f"{self.name}: cannot {action}: {fault.reason}")


# --- what a power cut leaves ---


@dataclass(slots=True)
class Cut:
    """A place in a log: the power fails when `position` entries are done, the last of which is `entry`.

    `durable` is what the medium surely holds, not to be kept or changed; `pending` are the writes that no flush covers.
    """

    position: int
    entry: Entry | None
    durable: bytearray
    pending: list[Change]

    def latest(self) -> bytes:
        """The contents with every write applied."""
        image = bytearray(self.durable)
        for write in self.pending:
            _apply(image, write)
        return bytes(image)


def cuts(base: Buffer, log: Sequence[Entry]) -> Iterator[Cut]:
    """The place before the first entry of a log, and the one behind each."""
    durable = bytearray(base)
    pending: list[tuple[int, Change]] = []
    yield Cut(0, None, durable, [])
    for number, entry in enumerate(log):
        pending, arrived = _follow(pending, number, entry)
        for write in arrived:
            _apply(durable, write)
        yield Cut(number + 1, entry, durable, [write for _, write in pending])


def medium(base: Buffer, log: Sequence[Entry]) -> Cut:
    """The place behind the whole log."""
    *_, last = cuts(base, log)
    return last


def _pending(log: Sequence[Entry]) -> list[tuple[int, Change]]:
    """The writes of a log, with their places, that may reach the medium or not."""
    pending: list[tuple[int, Change]] = []
    for number, entry in enumerate(log):
        pending, _ = _follow(pending, number, entry)
    return pending


def _follow(
    pending: list[tuple[int, Change]], number: int, entry: Entry
) -> tuple[list[tuple[int, Change]], list[Change]]:
    """What an entry makes of the pending writes: those that are pending then, and those that are on the medium for sure."""
    match entry:
        case Write() | Resize():
            return [*pending, (number, entry)], []
        case Flush(covers):
            arrived = [write for place, write in pending if place < covers]
            return [(place, write) for place, write in pending if place >= covers], arrived
        case Fate(reached):
            return [], [write for place, write in pending if place in reached]
    return pending, []


@dataclass(frozen=True, slots=True)
class Thoroughness:
    """How many of the possible images are made at one cut.

    `exhaustive_max`: with up to so many pending writes every subset; with more, `samples` random ones and the plain ones
    (all, all but one, one). `near_misses`: images in which one place is wrong, behind each write; random ones if there are
    more. `tears`: images with some writes there and some torn, at random. `trash`: whether sectors may hold garbage.
    `second_chances`: the share of places where the loss of the newest slot is tried as well.
    """

    exhaustive_max: int = 10
    samples: int = 64
    near_misses: int = 200
    tears: int = 8
    trash: bool = True
    second_chances: float = 1.0


@dataclass(frozen=True, slots=True)
class CrashImage:
    """What the medium may hold after a power cut: the bytes, and in words what of the pending writes reached it."""

    text: str
    data: bytes


def crash_images(cut: Cut, thoroughness: Thoroughness, rng: random.Random) -> Iterator[CrashImage]:
    """Images that a power cut at `cut` could leave.

    Right behind a write only those that it has a part in: the others were made one entry before.
    """
    count = len(cut.pending)
    newest = count - 1 if isinstance(cut.entry, Change) else None
    for chosen in _subsets(count, newest, thoroughness, rng):
        yield _image(cut, _Damage(chosen))
    if newest is not None:
        for damage in _near_misses(cut.pending, thoroughness, rng):
            yield _image(cut, damage)
    if count:
        for _ in range(thoroughness.tears):
            yield _image(cut, _random_damage(cut.pending, thoroughness, rng))


@dataclass(slots=True)
class _Damage:
    """Which of the pending writes are there; of some only these sectors; and garbage in these sectors of others."""

    chosen: int
    torn: dict[int, list[int]] = field(default_factory=dict)
    trashed: dict[int, dict[int, bytes]] = field(default_factory=dict)


def _subsets(count: int, newest: int | None, thoroughness: Thoroughness, rng: random.Random) -> Iterator[int]:
    """Bit masks of the writes that are there."""
    full = (1 << count) - 1
    must = 0 if newest is None else 1 << newest
    if count <= thoroughness.exhaustive_max:
        yield from (mask for mask in range(full + 1) if mask & must == must)
        return
    plain = [full, must, *(full & ~(1 << i) for i in range(count)), *(1 << i for i in range(count))]
    seen = set()
    for mask in plain:
        if mask & must == must and mask not in seen:
            seen.add(mask)
            yield mask
    for _ in range(thoroughness.samples):
        mask = _random_mask(count, rng) | must
        if mask not in seen:
            seen.add(mask)
            yield mask


def _random_mask(count: int, rng: random.Random) -> int:
    share = rng.choice((0.1, 0.5, 0.9))
    return sum(1 << i for i in range(count) if rng.random() < share)


def _near_misses(pending: list[Change], thoroughness: Thoroughness, rng: random.Random) -> list[_Damage]:
    """Everything is there but for one place: the newest write is torn once, or one sector of any write is old or garbage."""
    newest = len(pending) - 1
    full = (1 << newest + 1) - 1
    found = []
    sectors = len(pending[newest].sectors())
    for place in range(1, min(sectors, TORN_SECTORS_MAX)):
        found.append(_Damage(full, {newest: list(range(place))}))
        found.append(_Damage(full, {newest: list(range(place, sectors))}))
    places = [(number, sector) for number, write in enumerate(pending) for sector in range(len(write.sectors()))]
    if len(places) > thoroughness.near_misses:
        places = rng.sample(places, thoroughness.near_misses)
    for number, sector in places:
        others = [other for other in range(len(pending[number].sectors())) if other != sector]
        found.append(_Damage(full, {number: others}))
        if thoroughness.trash:
            found.append(_Damage(full, trashed={number: {sector: _garbage(pending[number], sector, rng)}}))
    if len(found) > thoroughness.near_misses:
        found = rng.sample(found, thoroughness.near_misses)
    return found


def _random_damage(pending: list[Change], thoroughness: Thoroughness, rng: random.Random) -> _Damage:
    damage = _Damage(_random_mask(len(pending), rng))
    for _ in range(rng.randint(1, 2)):
        number = rng.randrange(len(pending))
        sectors = len(pending[number].sectors())
        if thoroughness.trash and (sectors == 1 or rng.random() < 0.5):
            some = rng.sample(range(sectors), rng.randint(1, min(3, sectors)))
            damage.trashed[number] = {sector: _garbage(pending[number], sector, rng) for sector in some}
        elif sectors > 1:
            damage.chosen |= 1 << number
            damage.torn[number] = sorted(rng.sample(range(sectors), rng.randint(1, sectors - 1)))
    return damage


def _garbage(write: Change, sector: int, rng: random.Random) -> bytes:
    """What an interrupted write may leave in a sector: noise, one value, or only a part of the new bytes."""
    start, end = write.sectors()[sector]
    length = end - start
    kind = rng.randrange(4)
    if kind == 0:
        return bytes(length)
    if kind == 1:
        return b"\xff" * length
    if kind == 2:
        cut = rng.randrange(1, length) if length > 1 else 0
        return write.data[start : start + cut] + rng.randbytes(length - cut)
    return rng.randbytes(length)


def _image(cut: Cut, damage: _Damage) -> CrashImage:
    image = bytearray(cut.durable)
    for number, write in enumerate(cut.pending):
        if damage.chosen >> number & 1:
            torn = damage.torn.get(number)
            if torn is None:
                _apply(image, write)
            else:
                sectors = write.sectors()
                for sector in torn:
                    start, end = sectors[sector]
                    _put(image, write.offset + start, write.data[start:end])
        for sector, garbage in damage.trashed.get(number, {}).items():
            _put(image, write.offset + write.sectors()[sector][0], garbage)
    return CrashImage(_describe(cut, damage), bytes(image))


def _describe(cut: Cut, damage: _Damage) -> str:
    count = len(cut.pending)
    if not count:
        return "everything is on the medium"
    there = [str(number) for number in range(count) if damage.chosen >> number & 1]
    parts = [
        f"of {count} pending writes " + (" ".join(there) or "none") + (" are there" if len(there) != 1 else " is there")
    ]
    parts += [f"of write {number} only sectors {_list(torn)}" for number, torn in sorted(damage.torn.items())]
    parts += [f"garbage in write {number} sectors {_list(bad)}" for number, bad in sorted(damage.trashed.items())]
    return ", ".join(parts)


def _list(numbers: Sequence[int] | dict[int, bytes]) -> str:
    return " ".join(str(number) for number in sorted(numbers))


def _apply(image: bytearray, change: Change) -> None:
    if isinstance(change, Resize):
        del image[change.size :]
        image.extend(bytes(change.size - len(image)))
        return
    _put(image, change.offset, change.data)


def _put(image: bytearray, offset: int, data: bytes) -> None:
    """Bytes for which the device is too short have no place."""
    end = min(offset + len(data), len(image))
    if end > offset:
        image[offset:end] = data[: end - offset]
