"""A device that watches the commit protocol: every write is judged by what both slots need at that moment.

It reads the states with `walker` only. Rules (I1, I2, I13, I14, I15 of docs/DESIGN.md):
- a write is one of whole blocks, of a slot, of its record or of its extension area; nothing else, nowhere else;
- no block is written that the state in either slot needs, be the slot's own content flushed or not yet;
- a record is written over the older state only, with a higher serial, while the other slot is valid and flushed;
- what the new state needs is flushed before its record, or named in its manifest.
"""

from __future__ import annotations

from collections.abc import Sequence

from walker import State, manifest_holds, read_state

from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c
from cowfs.ondisk.geometry import Geometry
from cowfs.ondisk.records import Buffer
from cowfs.storage.device import MemoryDevice


class ProtocolError(AssertionError):
    """A write that a power cut could turn into a loss."""


class GuardDevice(MemoryDevice):
    """A formatted volume in memory, guarded from now on."""

    def __init__(self, formatted: MemoryDevice, geometry: Geometry) -> None:
        super().__init__(formatted.size())
        self._chunks = formatted._chunks
        self.geometry = geometry
        self.records = 0
        self.states: dict[int, State] = {}
        self._needed: dict[int, set[int]] = {1: set(), 2: set()}
        self._pending: dict[int, State | None] = {}  # slots with unflushed writes, and the state written
        self._unflushed: set[int] = set()
        for slot in (1, 2):
            state = read_state(self, geometry, slot)
            if state is not None:
                self.states[slot] = state
                self._needed[slot] = state.needed
        newest = self._newest()
        if not manifest_holds(self, self.states[newest]):
            del self.states[newest]
            self._needed[newest] = set()

    def write(self, offset: int, pieces: Sequence[Buffer]) -> None:
        length = sum(len(memoryview(piece).cast("B")) for piece in pieces)
        g = self.geometry
        for slot, start in enumerate(g.slot_offsets, 1):
            if start <= offset < start + f.SLOT_AREA_SIZE:
                self._write_slot(slot, offset - start, length, pieces)
                return
        first, odd = divmod(offset - g.data_start, g.block_size)
        count, rest = divmod(length, g.block_size)
        if odd or rest or first < 0 or first + count > g.num_blocks:
            raise ProtocolError(f"{length} bytes at {offset}: neither whole blocks of the volume nor a slot")
        blocks = range(first, first + count)
        for slot, needed in self._needed.items():
            hit = needed.intersection(blocks)
            if hit:
                raise ProtocolError(f"blocks {sorted(hit)} are overwritten, which slot {slot} needs")
        super().write(offset, pieces)
        self._unflushed.update(blocks)

    def _write_slot(self, slot: int, at: int, length: int, pieces: Sequence[Buffer]) -> None:
        if (at, length) not in ((0, f.SLOT_AREA_SIZE), (0, f.RECORD_SIZE), (f.EXTENSION_OFFSET, f.EXTENSION_SIZE)):
            raise ProtocolError(f"{length} bytes at byte {at} of slot {slot}")
        other = 3 - slot
        if other in self._pending or other not in self.states:
            raise ProtocolError(f"slot {slot} is written while slot {other} is not safe")
        if slot in self.states and self._newest() == slot:
            raise ProtocolError(f"slot {slot} is overwritten, which holds the newest state")
        if (at, length) == (0, f.RECORD_SIZE) and slot in self._pending:
            raise ProtocolError(f"the record of slot {slot} before its extension area is flushed")
        super().write(self.geometry.slot_offsets[slot - 1] + at, pieces)
        if at:
            self._pending[slot] = None
            return
        self.records += 1
        state = read_state(self, self.geometry, slot)
        if state is None:
            raise ProtocolError(f"the record of slot {slot} does not make it valid")
        if state.serial <= max(known.serial for known in self.states.values()):
            raise ProtocolError(f"serial {state.serial} is not higher")
        uncovered = {block for block in state.needed & self._unflushed if not self._covers(state, block)}
        if uncovered:
            raise ProtocolError(f"the record of slot {slot} before blocks {sorted(uncovered)} are flushed")
        self._pending[slot] = state
        self._needed[slot] = self._needed[slot] | state.needed

    def flush(self) -> None:
        super().flush()
        self._unflushed.clear()
        for slot, state in self._pending.items():
            if state is None:
                self.states.pop(slot, None)
                self._needed[slot] = set()
            else:
                self.states[slot] = state
                self._needed[slot] = state.needed
        self._pending.clear()

    def discard(self, offset: int, length: int) -> None:
        raise ProtocolError("nothing is discarded here")

    def resize(self, size: int) -> None:
        raise ProtocolError("a volume keeps its size")

    def _newest(self) -> int:
        return max(self.states, key=lambda slot: (self.states[slot].serial, -slot))

    def _covers(self, state: State, block: int) -> bool:
        data = self.read(self.geometry.block_offset(block), self.geometry.block_size)
        return state.manifest.get(block) == crc32c(data)
