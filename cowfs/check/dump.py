"""What a volume holds, in words: `cowfs dump`. Every function yields lines of text; nothing is verified and nothing changed.

A dump is for looking at a volume that is broken as much as at a sound one, so it shows what the bytes say, wherever they
lead inside the volume, and marks what leads out of it.
"""

from __future__ import annotations

import array
import stat
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Final

from cowfs.check import problem as p
from cowfs.check.attributes import orphan_numbers
from cowfs.check.reader import BlockReader, Contents, ContentsReader, State, contents_of
from cowfs.check.slots import Invalid, choose, manifest_failure, read_slots
from cowfs.check.tables import snapshot_records
from cowfs.errors import Corrupt, InvalidArgument
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c
from cowfs.ondisk.geometry import pointers_from
from cowfs.ondisk.records import Record
from cowfs.ondisk.times import decode_time
from cowfs.storage.device import Device

_HEX_COLUMNS: Final = 16
_SNAPSHOT_FLAGS: Final = (
    (f.SNAPSHOT_WRITABLE, "clone"),
    (f.SNAPSHOT_INTERNAL, "internal"),
    (f.SNAPSHOT_PROTECTED, "protected"),
    (f.SNAPSHOT_PIN, "pin"),
    (f.SNAPSHOT_AUTOMATIC, "automatic"),
    (f.SNAPSHOT_BASE, "base"),
)
_HEX_FIELDS: Final = frozenset({"magic", "checksum", "flags", "compatible", "read_only_compatible", "incompatible"})
_OCTAL_FIELDS: Final = frozenset({"mode"})
RECORD_TREES: Final = {"inodes": "inode", "bitmap": "bitmap", "longnames": "longfile"}


class View:
    """A volume that is being looked at. The state is chosen when it is first asked for: the slots show without one."""

    def __init__(self, device: Device, superblock: int | None) -> None:
        self.device = device
        self.slots = read_slots(device)
        self._superblock = superblock
        self._report = p.Report(device.name)

    @cached_property
    def state(self) -> State:
        """The state to look at. Raises Corrupt where there is none."""
        state = choose(self.device, self.slots, self._report, self._superblock)
        if state is None:
            raise Corrupt("; ".join(problem.text for problem in self._report.problems))
        return state

    @cached_property
    def reader(self) -> BlockReader:
        """Its blocks."""
        return BlockReader(self.device, self.state, self._report)


Dumper = Callable[[View, list[str]], Iterator[str]]


def dump_lines(device: Device, words: Sequence[str] = (), *, superblock: int | None = None) -> Iterator[str]:
    """The lines for `words`: the name of a dump and its arguments (`USAGES`); no words: the superblock.

    Raises, at once or while lines are taken: InvalidArgument for words that mean nothing, NotAVolume, Unsupported,
    Corrupt (no valid slot), DeviceError.
    """
    name, *arguments = words or ("superblock",)
    if name not in DUMPS:
        raise InvalidArgument(f"there is no dump {name!r}; there are: {', '.join(USAGES)}")
    usage, dumper = DUMPS[name]
    if len(arguments) != usage.count(" "):
        raise InvalidArgument(f"wanted: {usage}")
    return dumper(View(device, superblock), list(arguments))


# --- slots and boot block ---


def _slots(view: View, _: list[str]) -> Iterator[str]:
    for number, slot in ((1, view.slots.first), (2, view.slots.second)):
        if isinstance(slot, Invalid):
            yield f"slot {number}: not valid: {slot.why}"
            continue
        offset = slot.geometry.slot_offsets[number - 1]
        kind = "foreign" if slot.extension is None else f"{len(slot.manifest)} blocks in the manifest"
        yield (
            f"slot {number}: byte {offset:#x}, commit {slot.superblock.serial} at {_seconds(slot.superblock.atime)}, "
            f"{slot.superblock.free_blocks} of {slot.superblock.num_blocks} blocks free, {kind}"
        )
        failure = manifest_failure(view.device, slot)
        if failure:
            yield f"slot {number}: {failure}"


def _superblock(view: View, _: list[str]) -> Iterator[str]:
    state = view.state
    yield f"slot {state.number}, byte {state.geometry.slot_offsets[state.number - 1]:#x}"
    yield from fields(state.superblock)
    if state.extension is not None:
        yield f"extension area, byte {f.EXTENSION_OFFSET:#x} of the slot"
        yield from fields(state.extension)


def _boot(view: View, _: list[str]) -> Iterator[str]:
    raw = view.device.read(0, f.BOOT_SIZE)
    yield from fields(f.BootHead.unpack(raw))
    pointer = f.SlotPointer.unpack(raw, f.SLOT_POINTER_OFFSET)
    if pointer.magic == f.SLOT_POINTER_MAGIC:
        yield f"pointer to slot 2, byte {f.SLOT_POINTER_OFFSET:#x}"
        yield from fields(pointer)
    for offset in f.BASE_NAME_OFFSETS:
        name = f.BaseName.unpack(raw, offset)
        if name.magic == f.BASE_NAME_MAGIC:
            path = raw[offset + name.SIZE : offset + name.SIZE + min(name.length, f.BASE_PATH_MAX)]
            yield f"name of the base, byte {offset:#x}: {_shown(path)}"
            yield from fields(name)


def _manifest(view: View, _: list[str]) -> Iterator[str]:
    reader = view.reader
    yield f"{len(view.state.manifest)} blocks"
    for entry in view.state.manifest:
        if entry.block < reader.num_blocks:
            right = crc32c(reader.block(entry.block)) == entry.checksum
            yield f"block {entry.block} checksum {entry.checksum:#010x} {'right' if right else 'wrong'}"
        else:
            yield f"block {entry.block} outside the volume"


# --- inodes ---


def _inode(view: View, arguments: list[str]) -> Iterator[str]:
    number = _number(arguments[0])
    inode = _find_inode(view, number)
    yield f"inode {number}: {stat.filemode(inode.mode)}"
    yield from fields(inode)
    if view.state.extension is not None:
        for name in ("mtime", "atime", "ctime"):
            time_ns = decode_time(getattr(inode, name), getattr(inode, f"{name}_extra"))
            yield f"  {name} is {_nanoseconds(time_ns)}"


def _directory(view: View, arguments: list[str]) -> Iterator[str]:
    reader = view.reader
    order = reader.geometry.order
    long_names = ContentsReader(reader, contents_of(view.state.superblock.longfile))
    inode = _find_inode(view, _number(arguments[0]))
    if not stat.S_ISDIR(inode.mode):
        raise InvalidArgument(f"inode {arguments[0]} is not a directory")
    for _, block in reader.leaves(contents_of(inode), set()):
        data = reader.block(block)
        for offset in range(0, len(data), f.DIRECTORY_ENTRY_SIZE):
            short = f.ShortEntry.unpack(data, offset, order)
            if not short.inode:
                continue
            if short.length == f.LONG_NAME_MARK:
                long = f.LongEntry.unpack(data, offset, order)
                leaf = long_names.leaf(long.slot)
                length = f.LongNameHeader.unpack(leaf, 0, order).length
                name = leaf[f.LONG_NAME_HEADER_SIZE : f.LONG_NAME_HEADER_SIZE + min(length, f.NAME_MAX)]
                yield f"{short.inode:10} {_shown(name)} (slot {long.slot})"
            else:
                yield f"{short.inode:10} {_shown(short.name[: short.length])}"


def _orphans(view: View, _: list[str]) -> Iterator[str]:
    inode = _find_inode(view, f.ORPHAN_INODE)
    if view.state.extension is None or not inode.flags & f.INODE_FLAG_HIDDEN:
        raise InvalidArgument("the volume has no orphan list")
    if inode.size > view.state.superblock.num_inodes * f.ORPHAN_ENTRY_SIZE:
        raise Corrupt(f"the orphan list has {inode.size} bytes")
    yield from (f"inode {number}" for number in orphan_numbers(view.reader, contents_of(inode)))


def _xattrs(view: View, arguments: list[str]) -> Iterator[str]:
    inode = _find_inode(view, _number(arguments[0]))
    order = view.reader.geometry.order
    if view.state.extension is None or not inode.xattr_inode:
        return
    contents = contents_of(_find_inode(view, inode.xattr_inode))
    holder = ContentsReader(view.reader, contents)
    header = f.XattrHeader.unpack(holder.read(0, f.XattrHeader.SIZE).ljust(f.XattrHeader.SIZE, b"\0"), 0, order)
    yield f"inode {inode.xattr_inode}: {header.to_text()}"
    offset = f.XattrHeader.SIZE
    for _ in range(header.count):
        raw = holder.read(offset, f.XattrEntry.SIZE)
        if len(raw) < f.XattrEntry.SIZE:
            yield f"byte {offset}: behind the end"
            return
        entry = f.XattrEntry.unpack(raw, 0, order)
        if not entry.name_length:
            yield f"byte {offset}: an attribute without a name"
            return
        offset += f.XattrEntry.SIZE
        name = holder.read(offset, entry.name_length)
        value = holder.read(offset + entry.name_length, min(entry.value_length, 64))
        yield f"{_shown(name)} = {entry.value_length} bytes {_shown(value)}"
        offset = -(-(offset + entry.name_length + entry.value_length) // 4) * 4


# --- trees and blocks ---


def _tree(view: View, arguments: list[str]) -> Iterator[str]:
    name = arguments[0]
    contents = _tree_named(view, name)
    yield f"{name}: {contents.size} bytes, {contents.levels} levels"
    step = 2 if name == "checksums" else 1
    yield from _subtree(view.reader, contents.ptr, min(contents.levels, f.FOREIGN_LEVEL_MAX), 0, 1, step, set())


def _subtree(
    reader: BlockReader,
    pointers: tuple[int, ...] | array.array[int],
    level: int,
    first: int,
    depth: int,
    step: int,
    visited: set[int],
) -> Iterator[str]:
    """Blocks below `pointers`, those at one level that lie one behind the other on one line; holes are left out."""
    fanout = reader.geometry.fanout // step
    runs: list[list[int]] = []  # index, block, count
    for i, block in enumerate(pointers):
        if block in reader.nowhere:
            continue
        index = first + i * fanout**level
        if level == 0 and runs and block == runs[-1][1] + runs[-1][2] and index == runs[-1][0] + runs[-1][2]:
            runs[-1][2] += 1
        else:
            runs.append([index, block, 1])
    for index, block, count in runs:
        last = f"..{block + count - 1}" if count > 1 else ""
        where = f"leaf {index}" + (f"..{index + count - 1}" if count > 1 else "")
        seen = level > 0 and block in visited
        remark = " outside the volume" if block >= reader.num_blocks else " seen above" if seen else ""
        what = f"level {level}, from {where}" if level else where
        yield f"{'  ' * depth}{what}: block {block}{last}{remark}"
        if level and not remark:
            visited.add(block)
            words = reader.pointers(block)[::step]
            yield from _subtree(reader, words, level - 1, index, depth + 1, step, visited)


def _tree_named(view: View, name: str) -> Contents:
    state = view.state
    if name in RECORD_TREES:
        return contents_of(getattr(state.superblock, RECORD_TREES[name]))
    if name in f.EXTENSION_ROOTS and state.extension is not None:
        return contents_of(getattr(state.extension, name))
    if name.isdigit():
        return contents_of(_find_inode(view, int(name)))
    names = (*RECORD_TREES, *(f.EXTENSION_ROOTS if state.extension is not None else ()))
    raise InvalidArgument(f"there is no tree {name!r}; there are: {', '.join(names)}, and every inode's number")


def _block(view: View, arguments: list[str]) -> Iterator[str]:
    number = _number(arguments[0])
    reader, state = view.reader, view.state
    if number >= reader.num_blocks:
        raise InvalidArgument(f"the volume has blocks 0..{reader.num_blocks - 1}")
    data = reader.block(number)
    bit = ContentsReader(reader, contents_of(state.superblock.bitmap)).read(number >> 3, 1)
    used = "in use" if bit and bit[0] >> (number & 7) & 1 else "free"
    yield f"block {number}, byte {reader.geometry.block_offset(number):#x}: {used}"
    if state.extension is not None:
        if number in state.zero_blocks:
            yield f"zero block Z{state.zero_blocks.index(number)}"
        recorded = _recorded_checksum(reader, state.extension, number)
        yield f"checksum {crc32c(data):#010x}, recorded {recorded}"
        counts = ContentsReader(reader, contents_of(state.extension.references))
        raw = counts.read(number * f.REFERENCE_SIZE, f.REFERENCE_SIZE)
        yield f"extra parents: {pointers_from(raw, reader.geometry.order)[0] if len(raw) == f.REFERENCE_SIZE else 0}"
    yield from hex_lines(data)


def _recorded_checksum(reader: BlockReader, extension: f.Extension, number: int) -> str:
    """The word that the checksum tree has for a block; its indirect blocks are pairs, so it is walked here."""
    per_leaf = reader.block_size // f.CHECKSUM_SIZE
    fanout = reader.block_size // f.CHECKED_POINTER_SIZE
    levels = min(extension.checksums.levels, f.SYSTEM_LEVEL_MAX)
    index, at = divmod(number, per_leaf)
    slot = index // fanout**levels
    if slot >= f.POINTER_COUNT:
        return "nowhere"
    pointer = extension.checksums.ptr[slot]
    for level in range(levels, 0, -1):
        if pointer >= reader.num_blocks:
            return "nowhere"
        pointer = reader.pointers(pointer)[2 * (index // fanout ** (level - 1) % fanout)]
    return f"{reader.pointers(pointer)[at]:#010x}" if pointer < reader.num_blocks else "nowhere"


def _bitmap(view: View, _: list[str]) -> Iterator[str]:
    """Runs of blocks in use; the rest is free."""
    reader = view.reader
    start = end = 0
    for index, block in reader.leaves(contents_of(view.state.superblock.bitmap), set()):
        base = index * reader.block_size * 8
        for first, count in _bit_runs(reader.block(block)):
            if base + first != end:
                if end > start:
                    yield _run(start, end)
                start = base + first
            end = base + first + count
    end = min(end, reader.num_blocks)
    if end > start:
        yield _run(start, end)


def _bit_runs(data: bytes) -> Iterator[tuple[int, int]]:
    digits = f"{int.from_bytes(data, 'little'):0{len(data) * 8}b}"[::-1]
    start = digits.find("1")
    while start >= 0:
        end = digits.find("0", start)
        end = len(digits) if end < 0 else end
        yield start, end - start
        start = digits.find("1", end)


def _run(start: int, end: int) -> str:
    return f"{start}..{end - 1} in use ({end - start} blocks)" if end - start > 1 else f"{start} in use"


def _references(view: View, _: list[str]) -> Iterator[str]:
    reader = view.reader
    if view.state.extension is None:
        return
    for index, block in reader.leaves(contents_of(view.state.extension.references), set()):
        words = reader.pointers(block)
        for at, count in enumerate(words):
            if count:
                yield f"block {index * len(words) + at}: {count} extra parents"


# --- tables ---


def _longnames(view: View, _: list[str]) -> Iterator[str]:
    reader = view.reader
    for slot, block in reader.leaves(contents_of(view.state.superblock.longfile), set(), leaves_repeat=True):
        data = reader.block(block)
        length = f.LongNameHeader.unpack(data, 0, reader.geometry.order).length
        name = data[f.LONG_NAME_HEADER_SIZE : f.LONG_NAME_HEADER_SIZE + min(length, f.NAME_MAX)]
        yield f"slot {slot}, block {block}: {length} bytes {_shown(name)}"


def _reclaim(view: View, _: list[str]) -> Iterator[str]:
    extension, size = view.state.extension, f.ReclaimEntry.SIZE
    if extension is None:
        return
    yield f"{extension.reclaim_count} entries"
    per_leaf = view.reader.block_size // size
    for index, block in view.reader.leaves(contents_of(extension.reclaim), set()):
        data = view.reader.block(block)
        for number in range(index * per_leaf, min((index + 1) * per_leaf, extension.reclaim_count)):
            yield f"{number}: {f.ReclaimEntry.unpack(data, number % per_leaf * size).to_text()}"


def _snapshots(view: View, _: list[str]) -> Iterator[str]:
    if view.state.extension is not None:
        for place, record in snapshot_records(view.reader, view.state.extension.snapshots):
            words = [word for flag, word in _SNAPSHOT_FLAGS if record.flags & flag]
            name = _shown(record.name[: record.name_length])
            yield ", ".join([f"snapshot {record.id} {name} at place {place}", *words])
            yield from fields(record)


# --- helpers ---


def fields(record: Record) -> Iterator[str]:
    """One line for each field of a record."""
    for item in record.LAYOUT:
        value = getattr(record, item.name)
        text = value.to_text() if isinstance(value, Record) else _value(item.name, value)
        yield f"  {item.offset:#05x} {item.name:20} {text}"


def hex_lines(data: bytes) -> Iterator[str]:
    """Bytes as `hexdump -C` shows them: equal lines are left out, with a ``*`` in their place."""
    before = b""
    skipping = False
    for offset in range(0, len(data), _HEX_COLUMNS):
        row = data[offset : offset + _HEX_COLUMNS]
        if row == before:
            if not skipping:
                yield "*"
            skipping = True
            continue
        before, skipping = row, False
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        yield f"{offset:08x}  {row.hex(' '):{_HEX_COLUMNS * 3}} |{text}|"
    yield f"{len(data):08x}"


def _find_inode(view: View, number: int) -> f.DiskInode:
    inodes = contents_of(view.state.superblock.inode)
    if not 0 < number <= inodes.size // f.INODE_SIZE:
        raise InvalidArgument(f"there are inodes 1..{inodes.size // f.INODE_SIZE}")
    raw = ContentsReader(view.reader, inodes).read((number - 1) * f.INODE_SIZE, f.INODE_SIZE)
    return f.DiskInode.unpack(raw, 0, view.state.geometry.order)


def _number(word: str) -> int:
    try:
        number = int(word, 0)
    except ValueError:
        number = -1
    if number < 0:
        raise InvalidArgument(f"{word!r} is not a number")
    return number


def _shown(name: bytes) -> str:
    return repr(name)[1:]


def _value(name: str, value: object) -> str:
    if isinstance(value, bytes):
        stripped = value.rstrip(b"\0")
        printable = stripped and all(32 <= byte < 127 for byte in stripped)
        return repr(stripped)[1:] if printable else value.hex() if stripped else "-"
    if isinstance(value, tuple):
        return " ".join("~" if word == f.NO_BLOCK else str(word) for word in value)
    if isinstance(value, int) and name in _HEX_FIELDS:
        return f"{value:#x}"
    return f"{value:#o}" if isinstance(value, int) and name in _OCTAL_FIELDS else str(value)


def _seconds(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ").removesuffix("+00:00") + " UTC"


def _nanoseconds(time_ns: int) -> str:
    seconds, rest = divmod(time_ns, 1_000_000_000)
    days, second = divmod(seconds, 86400)
    day = datetime.fromordinal(datetime(1970, 1, 1).toordinal() + days)
    return f"{day:%Y-%m-%d} {second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}.{rest:09} UTC"


DUMPS: Final[dict[str, tuple[str, Dumper]]] = {
    usage.split()[0]: (usage, dumper)
    for usage, dumper in (
        ("superblock", _superblock),
        ("slots", _slots),
        ("boot", _boot),
        ("manifest", _manifest),
        ("inode N", _inode),
        ("directory N", _directory),
        ("xattrs N", _xattrs),
        ("orphans", _orphans),
        ("tree NAME", _tree),
        ("block N", _block),
        ("bitmap", _bitmap),
        ("references", _references),
        ("longnames", _longnames),
        ("reclaim", _reclaim),
        ("snapshots", _snapshots),
    )
}
"""By name: how it is called, and what makes its lines."""
USAGES: Final = tuple(usage for usage, _ in DUMPS.values())
