"""A repair as a whole: examine, mend, count anew, examine again, until nothing is left that can be repaired; then write.

All rounds happen on an overlay in memory, all of them to blocks that neither slot's state uses and to the slot that does
not hold the state being repaired. What `apply` writes is thus one commit like any other: new blocks, flush, the extension
area, flush, the record, flush. Power loss at any point leaves the old state or the new one. Only then bytes follow that
have their fixed place and contents: the boot block and the zero blocks. Nothing is written unless fewer errors are left.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from cowfs.check import problem as p
from cowfs.check.check import Found, count_blocks, examine
from cowfs.check.layers import LayersBelow
from cowfs.check.reader import State
from cowfs.check.repair import fields
from cowfs.check.repair.blocks import BlockMender
from cowfs.check.repair.names import NameMender
from cowfs.check.repair.overlay import SECTOR, OverlayDevice
from cowfs.check.repair.system import rebuild, write_slot
from cowfs.check.repair.treeedit import TreeEdit
from cowfs.check.repair.workspace import Space, Workspace
from cowfs.check.slots import read_slots
from cowfs.errors import DeviceError, ReadOnly, Unsupported
from cowfs.ondisk import format as f
from cowfs.storage.device import Device

ROUNDS_MAX: Final = 24
_ALL: Final = 1 << 62
_COPY_BYTES: Final = 1 << 20

FIELDS: Final = frozenset(
    {p.TRUNCATED, p.BOOT_HEAD, p.SLOT_POINTER, p.RECORD_FIELD, p.EXTENSION_FIELD, p.ZERO_BLOCK_NUMBER}
    | {p.ZERO_BLOCK_CONTENTS}
)
TABLES: Final = frozenset(
    {p.SNAPSHOT_COUNT, p.SNAPSHOT_RECORD, p.SNAPSHOT_DUPLICATE, p.SNAPSHOT_INDEX, p.PINS, p.BASE_TREES}
    | {p.SETTINGS_CONTENTS}
)
BLOCKS: Final = frozenset(
    {p.ROOT_NODE, p.POINTER_RANGE, p.POINTER_BEHIND_END, p.POINTER_MISSING, p.ZERO_BLOCK_LEVEL, p.BLOCK_TWO_ROLES}
    | {p.BLOCK_SHARED, p.BLOCK_UNREADABLE, p.CHECKSUM, p.BLOCK_REPEATED, p.FILE_TAIL, p.INODE_STATUS, p.INODE_TYPE}
    | {p.INODE_FIELD, p.INODE_SIZE, p.INODE_POINTERS, p.INODE_BLOCKS, p.RECLAIM_QUEUE, p.RECLAIM_ENTRY}
    | {p.ROOT_DIRECTORY, p.NUM_INODES}
)
NAMES: Final = frozenset(
    {p.INODE_FIELD, p.SYMLINK_TARGET, p.XATTR_INODE, p.XATTR_SHARED, p.XATTR_CONTENTS, p.HIDDEN_UNUSED, p.ORPHAN_LIST}
    | {p.ORPHAN_ENTRY, p.ORPHAN_UNLISTED, p.ROOT_DIRECTORY, p.DIRECTORY_SIZE, p.DIRECTORY_DOTS, p.DIRECTORY_GAP}
    | {p.ENTRY_NAME, p.ENTRY_DUPLICATE, p.ENTRY_INODE, p.LONG_NAME_SLOT, p.LONG_NAME_CHECKSUM, p.LONG_NAME_SHARED}
    | {p.LONG_NAME_UNUSED, p.DIRECTORY_NAMED_TWICE, p.UNREACHABLE, p.DIRECTORY_LOOP, p.LINK_COUNT}
)
COUNTS: Final = frozenset(
    {p.SLOTS_DIFFER, p.MANIFEST, p.SLOT_CONTENTS, p.BLOCK_SHARED, p.CHECKSUM_TREE, p.CHECKSUM_MISSING, p.ROOT_NODE}
    | {p.BITMAP_FREE, p.BITMAP_USED, p.BITMAP_PADDING, p.REFERENCES, p.FREE_BLOCKS, p.NUM_INODES, p.FREE_INODES}
    | {p.INODE_HINT, p.LONG_NAME_HINT, p.SYSTEM_BLOCKS, p.CHECKSUM, p.BURIED_BLOCKS}
)
PHASES: Final = (FIELDS, TABLES, BLOCKS, NAMES, COUNTS)
BEYOND_REPAIR: Final = frozenset({p.ROOT_DIRECTORY, p.ROOT_NODE, p.ZERO_BLOCK_NUMBER})
"""With one of these, an older state that is clean is worth more than a newer one that is mended."""

REASONS: Final[dict[p.Kind, str]] = {
    p.NO_VALID_SLOT: "there is no state to begin with",
    p.CHECKSUM: "file data stays as it is, so that reading it is an error and not wrong data (--zero-bad-blocks: zeros)",
    p.BLOCK_UNREADABLE: "file data stays as it is; a copy (--to) is on a device that can be read",
    p.BURIED_WRITTEN: "it is never read: what the layer below has counts",
    p.NOT_CHECKED: "what cannot be looked through cannot be repaired",
}
"""Why a problem of a kind may be left."""


@dataclass(slots=True)
class Repair:
    """What was found, what was done about it (`actions`), and what is left; `apply` writes it."""

    found: p.Report
    left: p.Report
    actions: list[str] = field(default_factory=list)
    device_size: int = 0
    blocks: list[tuple[int, bytes]] = field(default_factory=list)  # (byte offset, contents)
    slots: list[tuple[int, bytes]] = field(default_factory=list)  # (byte offset, contents); none: nothing is written
    fixed: dict[int, bytes] = field(default_factory=dict)
    written: bool = False

    @property
    def exit_code(self) -> int:
        """As fsck(8)'s: 0 nothing to repair, 1 errors corrected, 4 errors left (or, where nothing was written, found)."""
        if not self.written:
            return self.found.exit_code
        return p.EXIT_CORRECTED if self.left.clean else p.EXIT_ERRORS

    def apply(self, device: Device) -> None:
        """Writes the repair to the device that was examined, or to a copy of it. Raises DeviceError, NotSupported."""
        if not self.slots:
            return
        if device.size() < self.device_size:
            device.resize(self.device_size)
        for offset, data in self.blocks:
            device.write(offset, [data])
        for offset, data in self.slots:
            device.write(offset + f.EXTENSION_OFFSET, [data[f.EXTENSION_OFFSET :]])
            device.flush()
            device.write(offset, [data[: f.EXTENSION_OFFSET]])
            device.flush()
        for place, data in self.fixed.items():
            device.write(place, [data])
        if self.fixed:
            device.flush()
        self.written = True

    def to_text(self, *, dry_run: bool) -> list[str]:
        """For people: what was found, what was (or would be) done, what is left and why."""
        if not self.slots:
            return self.found.to_text()
        did = "would be done" if dry_run else "done"
        lines = [*self.found.to_text(), *(f"{did}: {action}" for action in self.actions)]
        if not self.left.clean:
            lines += [f"left: {line}" for line in self._left_lines()]
        verdict = "clean" if self.left.clean else f"{self.left.error_count} of {self.found.error_count} problems left"
        return [*lines, f"{self.found.name}: {'would be' if dry_run else 'repaired:'} {verdict}"]

    def to_json(self, *, dry_run: bool) -> dict[str, Any]:
        """The same for programs: the report of what was found, with `repair` beside it."""
        return {
            **self.found.to_json(),
            "repair": {
                "written": self.written,
                "dry_run": dry_run,
                "actions": self.actions,
                "left": self.left.to_json(),
            },
        }

    def _left_lines(self) -> list[str]:
        lines = []
        for problem in self.left.problems:
            reason = REASONS.get(problem.kind)
            lines.append(problem.to_text() + (f"; {reason}" if reason else ""))
        return lines


def plan_repair(
    device: Device,
    *,
    superblock: int | None = None,
    zero_bad_blocks: bool = False,
    clock: Callable[[], int] = time.time_ns,
) -> Repair:
    """Finds out all that can be repaired, without writing. With `superblock` (1 or 2) the volume goes back to that state.

    Raises NotAVolume, Unsupported (unknown features, a foreign volume), DeviceError, InvalidArgument, NoSpace.
    """
    report, found = examine(device, superblock=superblock, listed_max=_ALL)
    if found is None:
        return Repair(report, report)
    if found.state.extension is None:
        raise Unsupported(f"{device.name} is a foreign volume: it is never written")
    if found.state.extension.is_sealed:
        raise ReadOnly(f"{device.name} is sealed: 'cowfs unseal' allows writing again")
    actions: list[str] = []
    other = _other_state(device, found.state)
    first = report
    if superblock is None and other is not None and _is_beyond_repair(report):
        older, instead = examine(device, superblock=other.number, listed_max=_ALL)
        if instead is not None and older.clean:
            actions.append(f"back to commit {older.serial} in slot {older.slot}, which is clean")
            first, found, other = older, instead, found.state
    newest = read_slots(device).valid()[0]
    back = found.state.number != newest.number and superblock is not None
    if report.clean and not back:
        return Repair(report, report)
    if back:
        actions.append(f"back to commit {found.state.superblock.serial} in slot {found.state.number}")
    run = _Rounds(device, found, other, clock(), actions, zero_bad_blocks=zero_bad_blocks)
    left, last = run.run(first, found, must_commit=back or bool(actions) or run.overlay.grown)
    repair = Repair(report, left, actions, run.overlay.size())
    if last is not None and run.committed and (back or left.error_count < report.error_count):
        run.collect(repair, last)
    else:
        repair.left = report
    report.shorten()
    left.shorten()
    return repair


def copy_device(source: Device, target: Device) -> None:
    """Copies all bytes that are not zeros to a new device, which holds zeros; what cannot be read stays zeros there."""
    size = source.size()
    for offset in range(0, size, _COPY_BYTES):
        length = min(_COPY_BYTES, size - offset)
        try:
            pieces = [(offset, source.read(offset, length))]
        except DeviceError:
            pieces = list(_readable(source, offset, length))
        for place, data in pieces:
            if data.count(0) != len(data):
                target.write(place, [data])


def _readable(source: Device, offset: int, length: int) -> Iterator[tuple[int, bytes]]:
    for place in range(offset, offset + length, SECTOR):
        with contextlib.suppress(DeviceError):
            yield place, source.read(place, min(SECTOR, offset + length - place))


def _other_state(device: Device, chosen: State) -> State | None:
    states = [state for state in read_slots(device).valid() if state.number != chosen.number]
    return states[0] if states and states[0].extension is not None else None


def _is_beyond_repair(report: p.Report) -> bool:
    return any(problem.kind in BEYOND_REPAIR and problem.tree == 0 for problem in report.problems)


class _Rounds:
    """The rounds of one repair."""

    def __init__(
        self,
        device: Device,
        found: Found,
        other: State | None,
        now_ns: int,
        actions: list[str],
        *,
        zero_bad_blocks: bool,
    ) -> None:
        self.overlay = OverlayDevice(device)
        self.overlay.resize(found.state.geometry.end)
        self.committed = False
        self._geometry = found.state.geometry
        self._actions = actions
        self._now = now_ns
        self._zero_bad_blocks = zero_bad_blocks
        self._start = found.state.number
        self._zero_blocks = found.state.zero_blocks
        self._target = 3 - self._start
        serials = [state.superblock.serial for state in read_slots(device).valid()]
        self._serial = max(serials) + 1
        self._other = other if other is not None and other.geometry == found.state.geometry else None
        self._space = Space(self._geometry)
        self._space.keep(found)
        if self._other is not None:
            self._space.keep(count_blocks(device, self._other))
        self._space.keep_out(LayersBelow(device).pages)
        self._fixed: dict[int, bytes] = {}
        self._slots: list[tuple[int, bytes]] = []

    def run(self, report: p.Report, found: Found | None, *, must_commit: bool) -> tuple[p.Report, Found | None]:
        """Until nothing is left that was not tried; begins and ends with what an examination found."""
        if self.overlay.grown:
            self._actions.append(f"the image becomes as long as its volume, {self.overlay.size()} bytes")
            report, found = examine(self.overlay, superblock=self._start, listed_max=_ALL)
        tried: set[tuple[int, frozenset[str]]] = set()
        for _ in range(ROUNDS_MAX):
            number = self._next_phase(report, tried)
            if found is None or (number is None and (self.committed or not must_commit)):
                break
            self._round(report, found, number)
            report, found = examine(self.overlay, superblock=self._target, listed_max=_ALL)
        if self.committed:
            self._finish()
            if len(self._slots) > 1:
                report, found = examine(self.overlay, listed_max=_ALL)
        return report, found

    def _finish(self) -> None:
        """A state with other zero blocks goes into both slots, one after the other: they must not differ in that."""
        offsets = self._geometry.slot_offsets
        place = offsets[self._target - 1]
        data = self.overlay.read(place, f.SLOT_AREA_SIZE)
        self._slots.append((place, data))
        mended = f.Extension.unpack(data, f.EXTENSION_OFFSET)
        if mended.zero_blocks != self._zero_blocks:
            superblock = f.Superblock.unpack(data)
            superblock.serial = mended.serial = superblock.serial + 1
            write_slot(self.overlay, offsets[self._start - 1], superblock, mended)
            place = offsets[self._start - 1]
            self._slots.append((place, self.overlay.read(place, f.SLOT_AREA_SIZE)))

    def _next_phase(self, report: p.Report, tried: set[tuple[int, frozenset[str]]]) -> int | None:
        for number, kinds in enumerate(PHASES):
            texts = frozenset(problem.to_text() for problem in report.problems if problem.kind in kinds)
            if texts and (number, texts) not in tried:
                tried.add((number, texts))
                return number
        return None

    def _round(self, report: p.Report, found: Found, phase: int | None) -> None:
        before = len(self._actions)
        ws = Workspace(self.overlay, found, self._space, self._now, self._actions)
        kinds = {problem.kind for problem in report.problems}
        ws.system_suspect = p.BLOCK_SHARED in kinds
        fields.mend_fields(ws, kinds, self._other)
        if phase is not None and PHASES[phase] is TABLES:
            fields.mend_snapshots(ws)
            fields.rebuild_index(ws)
            if p.SETTINGS_CONTENTS in kinds:
                ws.extension.settings = f.RootNode()
                ws.say("the settings are lost")
            if p.SNAPSHOT_INDEX in kinds:
                ws.say("the index of the snapshot table is written anew")
        elif phase is not None and PHASES[phase] is BLOCKS:
            mender = BlockMender(ws, report.problems, zero_bad_blocks=self._zero_bad_blocks)
            mender.mend_tables()
            mender.run()
            fields.drop_reclaim_queue(ws)
            ws.extension.snapshot_count = len(ws.records)
            fields.chain_pins(ws)
            fields.chain_bases(ws)
            fields.rebuild_index(ws)
        elif phase is not None and PHASES[phase] is NAMES:
            damaged = {problem.tree for problem in report.problems if problem.kind in NAMES}
            for tree in ws.trees:
                if tree.id in damaged:
                    NameMender(TreeEdit(ws, tree)).run()
        rebuild(ws, self._target, self._serial)
        if len(self._actions) == before:
            ws.say("what counts blocks and inodes is counted anew")
        self._fixed |= ws.fixed
        self.committed = True

    def collect(self, repair: Repair, last: Found) -> None:
        """What is to be written: blocks that the last round's state uses, its slot, and what has a fixed place."""
        geometry = self._geometry
        size = geometry.block_size
        for offset in self.overlay.pieces(geometry.data_start, geometry.slot_offsets[1], size):
            if offset not in self._fixed and last.walk.usage.role((offset - geometry.data_start) // size):
                repair.blocks.append((offset, self.overlay.read(offset, size)))
        repair.slots = list(self._slots)
        repair.fixed = dict(self._fixed)
