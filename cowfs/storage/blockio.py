"""Checked block I/O: the one place where blocks are read and written.

Duty: every block read from the device is compared with its crc32c before anybody sees it; a block that is not on the
device yet (dirty: of the open generation; sealed: being written by a commit) is served from memory.

Invariants:
- I1 A block that a durable state names is never written: only `put` and `write_run` make writes, and their callers
  (transaction, pagedtree) hand in blocks that were allocated in the open generation.
- I7 Every block read is verified against the checksum tree, a block of the checksum tree against its parent.

Locking: all methods belong to the single core thread; a commit's write-out reads `sealed`, whose buffers nobody changes.
"""

from __future__ import annotations

import array
import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Protocol, TypeAlias

from cowfs.errors import Corrupt, DeviceError
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c, crc32c_each
from cowfs.ondisk.geometry import NATIVE_ORDER, Geometry, pointers_from
from cowfs.ondisk.records import Buffer
from cowfs.storage.device import Device

CACHE_BYTES = 24 << 20
DIRECT_BYTES = 64 << 10  # data runs at least this long go to the device at once
AHEAD_BYTES = 1 << 20  # of one read ahead
AHEAD_GAP = 8  # blocks: as far apart as this, reading what lies between costs less than another read
SPILL_BYTES = 2 << 20  # small dirty data kept in memory before it is written early: a slice of a few milliseconds

Words: TypeAlias = "array.array[int] | memoryview"
Run: TypeAlias = tuple[int, int]
"""(first block, how many)"""


class Checksums(Protocol):
    """Where the crc32c of every block stands."""

    def get(self, block: int) -> int:
        """The recorded crc32c of a block."""

    def get_run(self, block: int, count: int) -> list[int]:
        """Those of `count` blocks."""

    def set_run(self, block: int, values: list[int]) -> None:
        """Records those of a run of blocks of the open generation."""


class BlockStore:
    """Blocks of one volume by number. `checksums` is None for a foreign volume: nothing can be verified there."""

    def __init__(self, device: Device, geometry: Geometry) -> None:
        self.device = device
        self.geometry = geometry
        self.block_size = geometry.block_size
        self.num_blocks = geometry.num_blocks
        self.checksums: Checksums | None = None
        self.on_write_error: Callable[[DeviceError], None] = lambda error: None  # the volume latches itself here
        self.dirty: dict[int, bytearray] = {}  # metadata of the open generation
        self.dirty_data: dict[int, Buffer] = {}  # small pieces of file data of the open generation
        self.sealed: dict[int, Buffer] = {}
        self._cache: dict[int, Buffer] = {}  # clean metadata, least recently used first
        self._cache_max = max(64, CACHE_BYTES // geometry.block_size)
        self.spill_max = max(16, SPILL_BYTES // geometry.block_size)
        self._native = geometry.order == NATIVE_ORDER

    # --- reading ---

    def read(self, block: int) -> Buffer:
        """A metadata block, for reading only. Raises Corrupt, DeviceError."""
        data: Buffer | None = self.dirty.get(block)
        if data is not None:
            return data
        data = self._cache.pop(block, None)
        if data is None:
            data = self.in_memory(block)
            if data is None:
                data = self.read_run(block, 1)
        self._cache[block] = data
        if len(self._cache) > self._cache_max:
            del self._cache[next(iter(self._cache))]
        return data

    def read_ahead(self, blocks: Iterable[int]) -> None:
        """Reads metadata blocks into the cache, a quarter of it at most: those that lie near each other with one call.

        What cannot be read or is damaged is left out: whoever asks for it meets the error.
        """
        missing = sorted(
            b for b in blocks if b not in self._cache and self.in_memory(b) is None and b < self.num_blocks
        )
        for (block, _), data in self._read_near([(b, 1) for b in missing[: self._cache_max // 4]]):
            self.keep(block, data)

    def _read_near(self, runs: Iterable[Run]) -> Iterator[tuple[Run, bytes]]:
        """The contents of these ascending runs, as far as they can be read and are sound: near ones with one call."""
        size = self.block_size
        for near in clusters(runs, AHEAD_GAP, AHEAD_BYTES // size):
            first = near[0][0]
            end = max(map(sum, near))
            with contextlib.suppress(DeviceError):
                data = self.device.read(self.geometry.block_offset(first), (end - first) * size)
                for run in near:
                    block, count = run
                    piece = data[(block - first) * size : (block - first + count) * size]
                    with contextlib.suppress(Corrupt, DeviceError):
                        self._verify(block, count, piece)
                        yield run, piece

    def in_memory(self, block: int) -> Buffer | None:
        """The block's contents where they are not on the device yet."""
        data: Buffer | None = self.dirty.get(block)
        if data is None:
            data = self.dirty_data.get(block)
            if data is None:
                data = self.sealed.get(block)
        return data

    def read_run(self, block: int, count: int) -> bytes:
        """`count` contiguous blocks of file data, verified, not cached here. Raises Corrupt, DeviceError."""
        if not 0 <= block <= self.num_blocks - count:
            raise Corrupt(
                "pointer beyond the end of the volume", block=block, wanted=f"< {self.num_blocks}", found=block
            )
        blocks = range(block, block + count)
        if self._is_held(blocks):
            return self._read_mixed(blocks)
        return self._read_device(block, count)

    def read_runs(self, runs: Sequence[Run]) -> list[bytes]:
        """Runs of file data in this order, NO_BLOCK for a hole, as `read_run`; short ones that lie close together in one call.

        So reading what was written in pieces, beside other files or all over, does not cost a call for each piece.
        """
        found: dict[Run, bytes] = {}
        if len(runs) > 1:
            most = DIRECT_BYTES // self.block_size
            short = sorted({run for run in runs if run[1] < most and self._is_on_device(run)})
            if len(short) > 1:
                found.update(self._read_near(short))
        return [self._read_any(run) if (piece := found.get(run)) is None else piece for run in runs]

    def _read_any(self, run: Run) -> bytes:
        return bytes(run[1] * self.block_size) if run[0] == f.NO_BLOCK else self.read_run(*run)

    def _is_on_device(self, run: Run) -> bool:
        """Whether a run is inside the volume, and nothing of it only in memory."""
        return 0 <= run[0] <= self.num_blocks - run[1] and not self._is_held(range(run[0], sum(run)))

    def _is_held(self, blocks: range) -> bool:
        """Whether a block is in memory because the device does not have it yet."""
        return any(held and not held.keys().isdisjoint(blocks) for held in (self.dirty_data, self.sealed, self.dirty))

    def read_data(self, block: int) -> bytes:
        """One block of file data, as `read_run`."""
        if not 0 <= block < self.num_blocks:
            return self.read_run(block, 1)
        held = self.in_memory(block)
        return self._read_device(block, 1) if held is None else bytes(held)

    def _read_mixed(self, blocks: range) -> bytes:
        pieces: list[Buffer] = []
        start = blocks.start
        for block in blocks:
            data = self.in_memory(block)
            if data is None:
                continue
            if block > start:
                pieces.append(self._read_device(start, block - start))
            pieces.append(data)
            start = block + 1
        if start < blocks.stop:
            pieces.append(self._read_device(start, blocks.stop - start))
        return b"".join(pieces)

    def _read_device(self, block: int, count: int) -> bytes:
        data = self.device.read(self.geometry.block_offset(block), count * self.block_size)
        self._verify(block, count, data)
        return data

    def _verify(self, block: int, count: int, data: bytes) -> None:
        """Raises Corrupt where these are not the contents of the blocks; Corrupt, DeviceError where that cannot be told."""
        if self.checksums is None:
            return
        if count == 1:
            found = crc32c(data)
            wanted = self.checksums.get(block)
            if found != wanted:
                raise Corrupt("checksum", block=block, wanted=f"{wanted:#010x}", found=f"{found:#010x}")
            return
        sums = crc32c_each(memoryview(data), self.block_size)
        expected = self.checksums.get_run(block, count)
        if sums != expected:
            bad = next(i for i in range(count) if sums[i] != expected[i])
            raise Corrupt("checksum", block=block + bad, wanted=f"{expected[bad]:#010x}", found=f"{sums[bad]:#010x}")

    def words(self, data: Buffer) -> Words:
        """A block as 32-bit words in the machine's order, for reading."""
        if self._native:
            return memoryview(data).cast("I")
        return pointers_from(data, self.geometry.order)

    # --- writing: blocks of the open generation only (I1) ---

    def put(self, block: int, data: bytearray) -> None:
        """Metadata of the open generation; the buffer may go on being changed until the commit seals it."""
        self._cache.pop(block, None)
        self.dirty_data.pop(block, None)
        self.dirty[block] = data

    def put_data(self, block: int, data: Buffer) -> None:
        """One block of file data of the open generation."""
        self._cache.pop(block, None)
        self.dirty.pop(block, None)
        self.dirty_data[block] = data
        if len(self.dirty_data) > self.spill_max:
            self.spill()

    def write_run(self, block: int, data: memoryview) -> None:
        """File data of the open generation: long runs go to the device now, short ones wait for the commit."""
        size = self.block_size
        count = len(data) // size
        self.forget_run(block, count)
        if len(data) < DIRECT_BYTES:
            for i in range(count):
                self.dirty_data[block + i] = bytes(data[i * size : (i + 1) * size])
            if len(self.dirty_data) > self.spill_max:
                self.spill()
            return
        assert self.checksums is not None
        self.checksums.set_run(block, crc32c_each(data, size))
        self._write_now(block, [data])

    def _write_now(self, block: int, pieces: Sequence[Buffer]) -> None:
        try:
            self.device.write(self.geometry.block_offset(block), pieces)
        except DeviceError as error:
            self.on_write_error(error)
            raise

    def spill(self) -> None:
        """Writes waiting file data to the device before the commit does, to bound memory."""
        self.write_blocks(self.dirty_data)
        self.dirty_data = {}

    def write_blocks(self, blocks: dict[int, Buffer]) -> None:
        """Blocks of file data of the open generation, anywhere: they go to the device now."""
        assert self.checksums is not None
        for start, pieces in contiguous(blocks):
            self.checksums.set_run(start, [crc32c(piece) for piece in pieces])
            self._write_now(start, pieces)

    def limit_cache(self, size: int) -> None:
        """Keeps no more than `size` bytes of clean metadata from now on."""
        self._cache_max = max(64, size // self.block_size)
        while len(self._cache) > self._cache_max:
            del self._cache[next(iter(self._cache))]

    def forget(self, block: int) -> None:
        """The block was freed: whatever memory holds of it is void."""
        self.dirty.pop(block, None)
        self.dirty_data.pop(block, None)
        self._cache.pop(block, None)

    def forget_run(self, start: int, count: int) -> None:
        """The same for a run of blocks."""
        self.forget_blocks(range(start, start + count))

    def forget_blocks(self, blocks: Collection[int]) -> None:
        """The same for blocks that lie anywhere."""
        held: dict[int, bytearray] | dict[int, Buffer]
        for held in (self.dirty, self.dirty_data, self._cache):
            if held and not held.keys().isdisjoint(blocks):
                for block in held.keys() & blocks:
                    del held[block]

    def keep(self, block: int, data: Buffer) -> None:
        """Puts a clean metadata block into the cache."""
        self._cache[block] = data
        if len(self._cache) > self._cache_max:
            del self._cache[next(iter(self._cache))]


def clusters(runs: Iterable[Run], gap: int, most: int) -> Iterator[list[Run]]:
    """Ascending runs in groups that lie close together: no more than `gap` blocks apart, `most` from first to last."""
    group: list[Run] = []
    end = 0
    for run in runs:
        if group and (run[0] - end > gap or sum(run) - group[0][0] > most):
            yield group
            group = []
        group.append(run)
        end = sum(run)
    if group:
        yield group


def contiguous(blocks: dict[int, Buffer], limit: int = 1024) -> list[tuple[int, list[Buffer]]]:
    """The blocks as runs of consecutive numbers, at most `limit` each: (first block, contents in order)."""
    runs: list[tuple[int, list[Buffer]]] = []
    expected = -1
    for block in sorted(blocks):
        if block != expected or len(runs[-1][1]) >= limit:
            runs.append((block, []))
        runs[-1][1].append(blocks[block])
        expected = block + 1
    return runs


def pointer_bytes(pointers: list[int], geometry: Geometry) -> bytes:
    """Pointers as they stand in a block."""
    words = array.array("I", pointers)
    if geometry.order != NATIVE_ORDER:
        words.byteswap()
    return words.tobytes()


def hole_pointer(zero_blocks: tuple[int, ...], level: int) -> int:
    """The pointer that stands for a hole whose root is at `level`."""
    return zero_blocks[level] if level < len(zero_blocks) else f.NO_BLOCK
