"""Mending what lies outside of trees: the boot block, the fields of the records, the zero blocks, tables and queues."""

from __future__ import annotations

from typing import Final

from cowfs.check import problem as p
from cowfs.check.directories import DOTS
from cowfs.check.reader import State
from cowfs.check.repair.overlay import SECTOR
from cowfs.check.repair.workspace import Workspace, root_node
from cowfs.check.slots import COUNTER_MAX, boot_records
from cowfs.check.tables import BASE_FLAGS, KNOWN_FLAGS, NEVER_AUTOMATIC, PIN_FLAGS
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c

INDEX_SLOTS_MIN: Final = 64
_FAR: Final = 1 << 62  # a counter that was lost goes on here, where none has been


def mend_fields(ws: Workspace, kinds: set[p.Kind], other: State | None) -> None:
    """Boot block, records, zero blocks. `other` is the other slot's state, where there is one."""
    if kinds & {p.BOOT_HEAD, p.SLOT_POINTER}:
        _mend_boot_block(ws)
    if p.RECORD_FIELD in kinds:
        right = f.Superblock()
        for name in ("version1", "version2", "iclaim", "iextra"):
            setattr(ws.superblock, name, getattr(right, name))
        ws.superblock.flags = f.SB_FLAGS
        ws.say("fields of the superblock record get the values that they must have")
    if p.EXTENSION_FIELD in kinds:
        _mend_extension(ws)
    if p.ZERO_BLOCK_NUMBER in kinds:
        _find_zero_blocks(ws, other)
    for level, block in enumerate(ws.zero_blocks):
        data = ws.zero_block(level)
        if ws.reader.block(block) != data:
            ws.put_in_place(ws.geometry.block_offset(block), data)
            ws.say(f"zero block Z{level}, block {block}, is written anew")


def _mend_boot_block(ws: Workspace) -> None:
    head, pointer = boot_records(ws.geometry)
    for offset, record in ((0, head), (f.SLOT_POINTER_OFFSET, pointer)):
        at = offset % SECTOR
        sector = bytearray(ws.device.read(offset - at, SECTOR))
        data = record.pack()
        if sector[at : at + len(data)] != data:
            sector[at : at + len(data)] = data
            ws.put_in_place(offset - at, bytes(sector))
            ws.say(f"the boot block's bytes from {offset:#x} on are written anew")


def _mend_extension(ws: Workspace) -> None:
    extension = ws.extension
    extension.resizing = extension.spare_0c0 = 0
    if not extension.incompatible & f.INCOMPATIBLE_OVERLAY:
        extension.overlay = f.OverlayState(base_snapshot=extension.overlay.base_snapshot, spent=extension.overlay.spent)
    extension.label = extension.label.rstrip(b"\0").decode(errors="ignore").encode()
    if extension.generation >= COUNTER_MAX:
        extension.generation = _FAR
    if extension.snapshot_id >= COUNTER_MAX:
        extension.snapshot_id = 1 + max((record.id for record in ws.records.values()), default=0)
    ws.say("fields of the extension area get values that can be")


def _find_zero_blocks(ws: Workspace, other: State | None) -> None:
    """Of the other slot, or where mkcowfs puts them; else new ones, and the old ones are ordinary blocks from now on."""
    candidates = [tuple(range(f.ZERO_BLOCK_COUNT))]
    if other is not None and other.superblock.volume_id == ws.superblock.volume_id:
        candidates.insert(0, other.zero_blocks)
    for numbers in candidates:
        ws.zero_blocks = ws.extension.zero_blocks = numbers
        fits = len(set(numbers)) == f.ZERO_BLOCK_COUNT and max(numbers) < ws.geometry.num_blocks
        if fits and all(ws.reader.block(block) == ws.zero_block(level) for level, block in enumerate(numbers)):
            ws.say(f"the zero blocks are {', '.join(map(str, numbers))}")
            return
    ws.zero_blocks = ()
    for level in range(f.ZERO_BLOCK_COUNT):
        ws.zero_blocks += (ws.space.take(),)
        ws.put_at(ws.zero_blocks[level], ws.zero_block(level))
    ws.extension.zero_blocks = ws.zero_blocks
    ws.say(f"new zero blocks: {', '.join(map(str, ws.zero_blocks))}")


# --- snapshots ---


def mend_snapshots(ws: Workspace) -> None:
    """Makes every record of the snapshot table possible and different from the others, and its count right."""
    extension = ws.extension
    ids: set[int] = set()
    names: set[bytes] = set()
    highest = max((record.id for record in ws.records.values()), default=0)
    if extension.snapshot_id <= highest:
        extension.snapshot_id = highest + 1
        ws.say(f"the next snapshot gets the id {extension.snapshot_id}")
    for record, tree in zip(ws.records.values(), ws.trees[1:], strict=True):
        if record.id in ids:
            record.id = tree.id = extension.snapshot_id
            extension.snapshot_id += 1
            ws.say("it gets an id of its own", tree=record.id)
        ids.add(record.id)
        _mend_record(ws, record, names)
    if extension.snapshot_count != len(ws.records):
        extension.snapshot_count = len(ws.records)
        ws.say(f"there are {len(ws.records)} snapshots")
    if chain_pins(ws):
        ws.say(f"the chain of pins is made anew, with {extension.pin_count} in it")
    if chain_bases(ws):
        ws.say("the chain of the bases' trees is made anew")


def chain_pins(ws: Workspace) -> bool:
    """Chains all pins that there are, so that opening the volume for writing drops them; whether that changed something."""
    before = ws.extension.first_pin, ws.extension.pin_count
    changed = False
    following = count = 0
    for place, record in sorted(ws.records.items(), reverse=True):
        wanted = 0
        if record.flags & f.SNAPSHOT_PIN:
            wanted, following, count = following, place + 1, count + 1
        elif record.flags & f.SNAPSHOT_BASE:
            continue
        changed |= record.next_pin != wanted
        record.next_pin = wanted
    ws.extension.first_pin, ws.extension.pin_count = following, count
    return changed or before != (following, count)


def chain_bases(ws: Workspace) -> bool:
    """Chains the bases' trees, the next layer's, which is the newest, first; whether that changed something.

    Those that are too many are of no use, and opening the volume for writing drops them.
    """
    overlay = ws.extension.overlay
    before = overlay.base_snapshot, overlay.spent
    changed = False
    following = count = 0
    for place, record in sorted(ws.records.items(), key=lambda item: item[1].id):
        if record.flags & f.SNAPSHOT_BASE:
            changed |= record.next_pin != following
            record.next_pin, following, count = following, place + 1, count + 1
    overlay.base_snapshot, overlay.spent = following, max(0, count - overlay.depth)
    return changed or before != (following, overlay.spent)


def _mend_record(ws: Workspace, record: f.SnapshotRecord, names: set[bytes]) -> None:
    if record.flags & ~KNOWN_FLAGS:
        record.flags &= KNOWN_FLAGS
        ws.say("unknown flags are taken away", tree=record.id)
    if record.flags & f.SNAPSHOT_PIN and record.flags != PIN_FLAGS:
        record.flags = PIN_FLAGS
        ws.say("it is a pin and nothing else", tree=record.id)
    if record.flags & f.SNAPSHOT_BASE and record.flags != BASE_FLAGS:
        record.flags = BASE_FLAGS
        ws.say("it is a base's tree and nothing else", tree=record.id)
    if record.flags & f.SNAPSHOT_AUTOMATIC and record.flags & NEVER_AUTOMATIC:
        record.flags &= ~f.SNAPSHOT_AUTOMATIC
        ws.say("it is automatic no more", tree=record.id)
    if record.origin >= ws.extension.snapshot_id:
        record.origin = 0
        ws.say("what it was made from is forgotten", tree=record.id)
    if record.description_length > f.SNAPSHOT_DESCRIPTION_MAX:
        record.description_length, record.description = 0, b""
        ws.say("its description is lost", tree=record.id)
    internal = bool(record.flags & f.SNAPSHOT_INTERNAL)
    name = record.name[: min(record.name_length, f.SNAPSHOT_NAME_MAX)].rstrip(b"\0")
    for byte in (b"\0", b"/", b"\n"):
        name = name.replace(byte, b"_")
    if name in DOTS or not (name or internal):
        name = b"snapshot-%d" % record.id
    name = unused_name(name, names, f.SNAPSHOT_NAME_MAX) if name in names else name
    if name != record.name.rstrip(b"\0") or len(name) != record.name_length:
        record.name, record.name_length = name, len(name)
        ws.say(f"its name becomes {name!r}", tree=record.id)
    if not internal:
        names.add(name)


def unused_name(name: bytes, names: set[bytes], longest: int) -> bytes:
    """`name` with a number behind it, so that it is not among `names`."""
    number = 1
    while True:
        suffix = b"~%d" % number
        candidate = name[: longest - len(suffix)] + suffix
        if candidate not in names:
            return candidate
        number += 1


def rebuild_index(ws: Workspace) -> None:
    """The index of the snapshot table, from the names in it."""
    names = {
        place: record.name[: record.name_length]
        for place, record in ws.records.items()
        if not record.flags & f.SNAPSHOT_INTERNAL
    }
    size = f.SnapshotIndexEntry.SIZE
    slots = INDEX_SLOTS_MIN
    while slots < 2 * len(names):
        slots *= 2
    table = bytearray(slots * size)
    empty = bytes(size)
    for place, name in sorted(names.items()):
        slot = crc32c(name) % slots
        while table[slot * size : (slot + 1) * size] != empty:
            slot = (slot + 1) % slots
        table[slot * size : (slot + 1) * size] = f.SnapshotIndexEntry(crc32c(name), place + 1).pack()
    ws.extension.snapshot_index = root_node(ws.build(bytes(table), own=True)) if names else f.RootNode()


def drop_reclaim_queue(ws: Workspace) -> None:
    """Since everything is counted anew, what only the queue leads to is free at once."""
    if ws.extension.reclaim_count or ws.extension.reclaim.size:
        ws.say(f"the reclaim queue is emptied: its {ws.extension.reclaim_count} subtrees are free at once")
    ws.extension.reclaim = f.RootNode()
    ws.extension.reclaim_count = 0
