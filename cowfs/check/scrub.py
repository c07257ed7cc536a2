"""Reading and verifying every block in use while the volume is used: what rots is found while another copy may still exist.

Duty: `Scrub.steps` reads the device, past all caches, and compares each block with its recorded checksum: first the slots
and the boot block, then the checksum tree (each block against its parent), then all blocks that the bitmap says are in
use, in ascending order. For bad blocks it finds out which files, in which trees, hold them (`owners`).

It is a generator that does no I/O but what it asks for: `Read` is answered with the bytes or the DeviceError, `Pause` with
nothing. Whoever runs it may serve others meanwhile, and commit. So what was read may be stale when it arrives: a block
that differs is read once more, at once, and only what is in use, on the device and still different then is bad. Blocks of
the open generation, and of a commit that is being written, are left out: they are about to be written.

The position is a block number: what lies below it has been verified, and a later scrub may go on from there.

Locking: the core thread, between two answers.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from cowfs.check.owners import Owner, OwnerSearch
from cowfs.check.problem import Report
from cowfs.check.reader import State
from cowfs.check.slots import Invalid, check_boot_block, read_slots
from cowfs.errors import Corrupt, CowfsError, DeviceError, NotSupported
from cowfs.ondisk.checksums import crc32c
from cowfs.storage.device import Device, read_medium
from cowfs.storage.pagedtree import Key
from cowfs.storage.volume import Volume

SLICE_BYTES: Final = 256 << 10
"""Read at once: some milliseconds of a disk, and less than one of the core thread to verify."""
DUTY: Final = 0.25
"""The part of the time in which a scrub behind a mount works, where no rate is given."""
BAD_MAX: Final = 1000
"""Bad blocks that are listed; more are counted."""
_EMPTY_PAGES: Final = 64  # pages of the bitmap without a block in use that are passed in one slice
_SET_BITS: Final = re.compile(b"[^\0]")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Read:
    """Asks for bytes of the device."""

    offset: int
    length: int

    def answer(self, device: Device) -> bytes | DeviceError:
        """The bytes, or why they cannot be read. For any thread."""
        try:
            return read_medium(device, self.offset, self.length)
        except DeviceError as error:
            return error


@dataclass(frozen=True, slots=True)
class Pause:
    """Asks to be called again after so many seconds; 0: after others had their turn."""

    seconds: float


Work: TypeAlias = "Generator[Read | Pause, bytes | DeviceError | None, None]"


@dataclass(slots=True)
class Bad:
    """A block that is not what was written, or cannot be read, and who holds it."""

    block: int
    problem: str
    owners: list[Owner] = field(default_factory=list)

    def to_json(self, block_offset: Callable[[int], int]) -> dict[str, Any]:
        """For programs."""
        owners = [owner.to_json() for owner in self.owners]
        return {"block": self.block, "offset": block_offset(self.block), "problem": self.problem, "owners": owners}


class Scrub:
    """One scrub of a volume. `position` and `done` (blocks) may be those of an earlier one that did not come to its end."""

    def __init__(
        self,
        volume: Volume,
        *,
        position: int = 0,
        done: int = 0,
        bad: dict[int, str] | None = None,
        rate: float | None = None,
        duty: float = DUTY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`rate` is bytes per second at most; `duty` the part of the time that it may take, 1 for all of it."""
        require_checksums(volume)
        self.volume = volume
        self.position = position
        self.done = done
        self.read = 0  # bytes in this run
        self.unverified = 0  # blocks whose checksum cannot be read
        self.slots: list[str] = []  # what is wrong with the slots and the boot block
        self.bad: dict[int, Bad] = {}
        self.bad_count = 0
        self.finished = False
        self._suspects: dict[int, str] = dict(bad or {})
        self._own: set[int] = set()  # blocks of the checksum tree
        self._keys: dict[int, Key] = {}  # where in it the suspects among them are
        self._duty = duty
        self._clock = clock
        self._begun = clock()
        self._slice = self._begun
        self.rate = rate

    @property
    def total(self) -> int:
        """Blocks in use now."""
        assert self.volume.spacemap is not None
        return self.volume.geometry.num_blocks - self.volume.spacemap.free

    @property
    def suspects(self) -> dict[int, str]:
        """Blocks that were found to differ, whether or not it is known already who holds them."""
        return self._suspects

    @property
    def rate(self) -> float | None:
        """Bytes per second at most."""
        return self._rate

    @rate.setter
    def rate(self, rate: float | None) -> None:
        self._rate = rate
        self._paced_since, self._paced_read = self._clock(), self.read

    @property
    def bytes_per_second(self) -> float:
        """In this run, pauses included."""
        elapsed = self._clock() - self._begun
        return self.read / elapsed if elapsed > 0 else 0.0

    def steps(self) -> Work:
        """All of it. Raises nothing that is the volume's fault."""
        yield from self._check_slots()
        yield from self._walk_checksums(verify=True)
        yield from self._sweep()
        yield from self._confirm()
        yield from self._check_slots()
        if self.bad:
            yield from self._find_owners()
        self.finished = True

    def _pause(self) -> Work:
        """Keeps to the rate and to the part of the time that is allowed."""
        now = self._clock()
        worked = now - self._slice
        wait = worked * (1 / self._duty - 1)
        if self._rate:
            wait = max(wait, self._paced_since + (self.read - self._paced_read) / self._rate - now)
        yield Pause(wait)
        self._slice = self._clock()

    # --- slots and boot block ---

    def _check_slots(self) -> Work:
        """Unless a commit is being written, which is about to make one of them whole."""
        for _ in range(100):
            if not self.volume.committing:
                self.slots = slot_problems(self.volume.device)
                return
            yield Pause(0.01)

    # --- the checksum tree ---

    def _walk_checksums(self, *, verify: bool) -> Work:
        """Collects the blocks of the checksum tree; with `verify` reads each and compares it with what its parent says."""
        tree = self.volume.checksums
        own: set[int] = set()
        self._keys = {}
        pending = tree.tops()
        steps = 0
        while pending:
            key = pending.pop()
            try:
                block, wanted = tree.entry(key)
                if block >= self.volume.geometry.num_blocks:
                    continue
                own.add(block)
                if block in self._suspects:
                    self._keys[block] = key
                if verify and self._on_device(block):
                    data = yield self._read(block, 1)
                    self._verify_node(key, block, wanted, data)
                    yield from self._pause()
                if key[0]:
                    pending += tree.below(key)
            except (Corrupt, DeviceError) as error:
                # What lies below cannot be found; the blocks that it speaks of count as unverified when they are met.
                if isinstance(error, Corrupt) and error.block is not None:
                    self._enter(error.block, str(error))
            steps += 1
            if not verify and steps % 64 == 0:
                yield Pause(0)
        self._own = own

    def _verify_node(self, key: Key, block: int, wanted: int, data: bytes | DeviceError | None) -> None:
        if self._differs(data, wanted):
            block, wanted = self.volume.checksums.entry(key)
            data = self._read_again(block) if self._on_device(block) else None
            if data is not None and self._differs(data, wanted):
                self._enter(block, _difference(data, wanted))

    # --- all blocks ---

    def _sweep(self) -> Work:
        geometry = self.volume.geometry
        page_bits = geometry.block_size * 8
        limit = max(1, SLICE_BYTES // geometry.block_size)
        empty = 0
        while self.position < geometry.num_blocks:
            index = self.position // page_bits
            end = min(geometry.num_blocks, (index + 1) * page_bits)
            try:
                bitmap = self.volume.bitmap
                bit = self.position - index * page_bits
                run = None if bitmap.is_hole(index) else next_run(bitmap.page(index), bit, limit)
            except (Corrupt, DeviceError) as error:
                if isinstance(error, Corrupt) and error.block is not None:
                    self._enter(error.block, str(error))
                self.unverified += end - self.position
                self.position = end
                continue
            if run is None or index * page_bits + run[0] >= end:
                self.position = end
                empty += 1
                if empty % _EMPTY_PAGES == 0:
                    yield Pause(0)
                continue
            first = index * page_bits + run[0]
            count = min(run[1], end - first)
            data = yield self._read(first, count)
            self._verify_run(first, count, data)
            self.position = first + count
            self.done += count
            yield from self._pause()

    def _read(self, block: int, count: int) -> Read:
        size = self.volume.geometry.block_size
        self.read += count * size
        return Read(self.volume.geometry.block_offset(block), count * size)

    def _verify_run(self, first: int, count: int, data: bytes | DeviceError | None) -> None:
        size = self.volume.geometry.block_size
        try:
            wanted = self.volume.checksums.get_run(first, count)
        except (Corrupt, DeviceError):
            self.unverified += count
            return
        if isinstance(data, bytes):
            view = memoryview(data)
            found = [crc32c(view[at : at + size]) for at in range(0, count * size, size)]
            if found == wanted:
                return
            differing = [first + i for i in range(count) if found[i] != wanted[i]]
        else:
            differing = list(range(first, first + count))
        for block in differing:
            if block not in self._own:
                problem = self._problem(block)
                if problem:
                    self._enter(block, problem)

    def _problem(self, block: int) -> str:
        """What is wrong with a block now, an empty string if nothing is: it may have changed, or be free again."""
        spacemap = self.volume.spacemap
        assert spacemap is not None
        try:
            if not spacemap.in_use(block) or not self._on_device(block):
                return ""
            wanted = self.volume.checksums.get(block)
        except (Corrupt, DeviceError) as error:
            return f"its checksum cannot be read: {error}"
        data = self._read_again(block)
        return _difference(data, wanted) if self._differs(data, wanted) else ""

    def _problem_of_node(self, block: int) -> str:
        """The same for a block of the checksum tree."""
        try:
            found, wanted = self.volume.checksums.entry(self._keys[block])
        except (Corrupt, DeviceError) as error:
            return f"its checksum cannot be read: {error}"
        if found != block or not self._on_device(block):
            return ""  # there is a newer one in its place
        data = self._read_again(block)
        return _difference(data, wanted) if self._differs(data, wanted) else ""

    def _on_device(self, block: int) -> bool:
        return self.volume.store.in_memory(block) is None

    def _read_again(self, block: int) -> bytes | DeviceError:
        geometry = self.volume.geometry
        return Read(geometry.block_offset(block), geometry.block_size).answer(self.volume.device)

    def _differs(self, data: bytes | DeviceError | None, wanted: int) -> bool:
        return not isinstance(data, bytes) or crc32c(data) != wanted

    def _enter(self, block: int, problem: str) -> None:
        if len(self._suspects) < BAD_MAX or block in self._suspects:
            self._suspects[block] = problem
        else:
            self.bad_count += 1

    # --- the end ---

    def _confirm(self) -> Work:
        """What is bad still: a block may have been freed, or given to the checksum tree, since it was found."""
        if not self._suspects:
            return
        yield from self._walk_checksums(verify=False)
        for block in sorted(self._suspects):
            problem = self._problem_of_node(block) if block in self._keys else self._problem(block)
            if problem:
                self.bad[block] = Bad(block, problem)
        self.bad_count += len(self.bad)
        self._suspects = {block: bad.problem for block, bad in self.bad.items()}

    def _find_owners(self) -> Work:
        search = OwnerSearch(self.volume, set(self.bad))
        try:
            for _ in search.steps():
                yield from self._pause()
        except CowfsError as error:
            _log.error("not all owners of bad blocks could be found: %s", error)
        for block, owners in search.owners.items():
            self.bad[block].owners = owners


def require_checksums(volume: Volume) -> None:
    """Raises NotSupported for a volume that cannot be scrubbed."""
    if volume.foreign:
        raise NotSupported("a foreign volume has no checksums, so there is nothing to verify")


def _difference(data: bytes | DeviceError, wanted: int) -> str:
    return f"checksum {wanted:#010x} wanted, {crc32c(data):#010x} found" if isinstance(data, bytes) else str(data)


def next_run(page: bytes | bytearray, bit: int, limit: int) -> tuple[int, int] | None:
    """The next run of set bits of a bitmap page from `bit` on: (first, number, at most `limit`); None: there is none."""
    at = bit >> 3
    first = -1
    if page[at] >> (bit & 7):
        rest = page[at] >> (bit & 7)
        first = bit + (rest & -rest).bit_length() - 1
    else:
        match = _SET_BITS.search(page, at + 1)
        if match is None:
            return None
        byte = page[match.start()]
        first = match.start() * 8 + (byte & -byte).bit_length() - 1
    end = min(len(page) * 8, first + limit)
    window = int.from_bytes(page[first >> 3 : end + 7 >> 3], "little") >> (first & 7)
    ones = (~window & window + 1).bit_length() - 1
    return first, min(ones, end - first)


def slot_problems(device: Device) -> list[str]:
    """What is wrong with the slots and the boot block, a line each."""
    try:
        slots = read_slots(device)
    except CowfsError as error:
        return [str(error)]
    found = [
        f"slot {number}: {slot.why}"
        for number, slot in ((1, slots.first), (2, slots.second))
        if isinstance(slot, Invalid)
    ]
    for slot in (slots.first, slots.second):
        if isinstance(slot, State):
            report = Report(device.name)
            try:
                check_boot_block(device, slot, report)
            except DeviceError as error:
                return [*found, f"boot block: {error}"]
            return found + [problem.to_text() for problem in report.problems]
    return found


def answered(device: Device, steps: Work, sleep: Callable[[float], None] | None) -> Iterator[None]:
    """Runs the steps with nobody else on the thread; yields after each slice. `sleep` None: pauses are left out."""
    answer: bytes | DeviceError | None = None
    while True:
        try:
            request = steps.send(answer)
        except StopIteration:
            return
        answer = None
        if isinstance(request, Read):
            answer = request.answer(device)
        else:
            if sleep is not None and request.seconds > 0:
                sleep(request.seconds)
            yield
