"""Writes a plain qnx6 volume, without our extension area, from a tree of files: for those who hand it to QNX.

It keeps to what is publicly known of QNX's own volumes (docs/FORMAT.md, section 11): a fixed number of inodes, a system area
of two equal halves at the start, of which each slot has one, `/.boot` as inode 2, a bitmap that says what is in use, nothing
that belongs to two owners. Holes become blocks of zeros, the only form that every reader knows. What qnx6 has no place for is
left out, and counted: device numbers, extended attributes, parts of seconds. Sockets are left out because older QNX does not
mount a volume that has one.

Two walks over the tree: the first counts, so that everything has its place before the second writes it there, each file in
one piece. Memory: one directory at a time, and a number for each inode with several names.
"""

from __future__ import annotations

import array
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from cowfs.errors import CowfsError, InvalidArgument, NoSpace
from cowfs.fs import Attributes, Filesystem
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import long_name_checksum
from cowfs.ondisk.codecs import EntryCodec
from cowfs.ondisk.geometry import Geometry, pointers_to
from cowfs.ondisk.records import ByteOrder
from cowfs.storage.device import Device
from cowfs.storage.superblock import plain_boot_head, plain_record
from mkcowfs.author import Filled
from mkcowfs.source import SourceError

BOOT_NAME: Final = b".boot"
BOOT_MODE: Final = stat.S_IFDIR | 0o700
BOOT_INODE: Final = 2
PLAIN_SYMLINK_MAX: Final = 512  # bytes of a target that QNX takes
FREE_SHARE: Final = 32  # one block of so many stays free in a volume that fits: QNX keeps 3 % back
INODE_SHARE: Final = 8  # one inode for so many free blocks, unless a number is given
CHUNK: Final = 1 << 20
NANOSECONDS: Final = 1_000_000_000
TIME_MAX: Final = 0xFFFFFFFF
_KEPT: Final = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO)


@dataclass
class Plain:
    """What to write: `num_blocks` 0 for as many as are needed, `inodes` 0 for a number that fits them."""

    block_size: int
    order: ByteOrder
    num_blocks: int
    inodes: int
    volume_id: bytes
    made_ns: int
    zeroed: bool  # whether the device holds nothing but zeros


@dataclass
class LeftOut:
    """How many objects lost something, by what it is, and the path of the first."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, bytes] = field(default_factory=dict)

    def add(self, what: str, path: bytes) -> None:
        """One more."""
        self.counts[what] = self.counts.get(what, 0) + 1
        self.first.setdefault(what, path)

    def lines(self) -> list[str]:
        """One for each kind."""
        return [
            f"qnx6 has no place for {what}: left out, {count} times (first of {os.fsdecode(self.first[what])})"
            for what, count in self.counts.items()
        ]


@dataclass
class _Needs:
    """What the tree takes: inodes, long names, and blocks behind the system area."""

    inodes: int = 0
    names: int = 0
    blocks: int = 0
    has_boot: bool = False


class PlainTree:
    """A tree of files as it will be in the plain volume: what is left out is left out here."""

    def __init__(self, filesystem: Filesystem) -> None:
        self.filesystem = filesystem
        self.left_out = LeftOut()

    def folders(self) -> Iterator[tuple[bytes, int, list[tuple[bytes, Attributes]]]]:
        """(path, inode, entries) of each directory, parents first. Raises SourceError for what QNX could not have."""
        self.left_out = LeftOut()
        waiting = [(b"", int(f.ROOT_INODE))]
        while waiting:
            path, ino = waiting.pop()
            entries = []
            for _, name, number, _ in self.filesystem.listing(ino).entries():
                if name in (b".", b".."):
                    continue
                where = path + b"/" + name if path else name
                attributes = self.filesystem.getattr(number)
                if self._kept(where, name, attributes):
                    entries.append((name, attributes))
            yield path, ino, entries
            for name, attributes in reversed(entries):
                if stat.S_ISDIR(attributes.mode):
                    waiting.append((path + b"/" + name if path else name, attributes.ino))

    def _kept(self, path: bytes, name: bytes, attributes: Attributes) -> bool:
        _check_name(path, name)
        kind = stat.S_IFMT(attributes.mode)
        if kind not in _KEPT:
            self.left_out.add("sockets" if kind == stat.S_IFSOCK else "device nodes", path)
            return False
        if kind == stat.S_IFLNK and attributes.size > PLAIN_SYMLINK_MAX:
            raise SourceError(path, f"a symbolic link of {attributes.size} bytes; QNX takes {PLAIN_SYMLINK_MAX}")
        if path == BOOT_NAME and kind != stat.S_IFDIR:
            raise SourceError(path, "QNX has a directory of this name")
        if self.filesystem.listxattr(attributes.ino):
            self.left_out.add("extended attributes", path)
        return True


def _check_name(path: bytes, name: bytes) -> None:
    """QNX takes UTF-8 without control characters."""
    try:
        bad = any(ord(character) < 0x20 or ord(character) == 0x7F for character in name.decode())
    except UnicodeDecodeError:
        bad = True
    if bad:
        raise SourceError(path, "QNX takes only names in UTF-8 without control characters")


def write_plain(
    device: Device, filesystem: Filesystem, plain: Plain, resize: bool, tell: Callable[[Filled], object]
) -> tuple[Geometry, LeftOut]:
    """Writes the volume; with `resize` the device first gets its size. Raises SourceError, NoSpace, InvalidArgument."""
    tree = PlainTree(filesystem)
    needs = _needs(tree, plain)
    geometry, num_inodes = _place(plain, needs)
    if resize:
        device.resize(geometry.end)
    writer = _Writer(device, tree, plain, geometry, num_inodes, needs, tell)
    writer.write()
    return geometry, tree.left_out


def _blocks(geometry: Geometry, leaves: int) -> int:
    """Blocks of a tree with so many leaves, indirect ones included."""
    total, level_count = leaves, leaves
    for _ in range(geometry.levels_of(leaves)):
        level_count = -(-level_count // geometry.fanout)
        total += level_count
    return total


def _needs(tree: PlainTree, plain: Plain) -> _Needs:
    geometry = Geometry(plain.block_size, 1, plain.order)
    needs = _Needs(inodes=1)
    seen: set[int] = set()
    for path, _, entries in tree.folders():
        size = 2 + len(entries)
        if not path:
            needs.has_boot = any(name == BOOT_NAME for name, _ in entries)
            size += not needs.has_boot
        needs.blocks += _blocks(geometry, geometry.blocks_of(size * f.DIRECTORY_ENTRY_SIZE))
        for name, attributes in entries:
            needs.names += len(name) > f.SHORT_NAME_MAX
            if attributes.links > 1 and not stat.S_ISDIR(attributes.mode):
                if attributes.ino in seen:
                    continue
                seen.add(attributes.ino)
            needs.inodes += 1
            if stat.S_ISREG(attributes.mode) or stat.S_ISLNK(attributes.mode):
                if attributes.size > geometry.file_size_max:
                    where = path + b"/" + name if path else name
                    raise SourceError(where, f"{attributes.size} bytes are too many for blocks of {plain.block_size}")
                needs.blocks += _blocks(geometry, geometry.blocks_of(attributes.size))
    if not needs.has_boot:
        needs.inodes += 1
        needs.blocks += 1
    needs.blocks += _blocks(geometry, needs.names)
    return needs


def _half(geometry: Geometry, num_inodes: int) -> int:
    """Blocks of one half of the system area."""
    bitmap = geometry.blocks_of(-(-geometry.num_blocks // 8))
    return _blocks(geometry, bitmap) + _blocks(geometry, geometry.blocks_of(num_inodes * f.INODE_SIZE))


def _place(plain: Plain, needs: _Needs) -> tuple[Geometry, int]:
    """The geometry, and the number of inodes. Raises NoSpace, InvalidArgument."""
    if 0 < plain.inodes < needs.inodes:
        raise NoSpace(f"{needs.inodes} inodes are needed, and --inodes says {plain.inodes}")
    blocks = plain.num_blocks or 16
    while True:
        geometry = Geometry(plain.block_size, blocks, plain.order)
        free = max(0, blocks - needs.blocks) if plain.num_blocks else 0
        num_inodes = plain.inodes or needs.inodes + free // INODE_SHARE
        num_inodes = -(-num_inodes // geometry.inodes_per_block) * geometry.inodes_per_block
        wanted = needs.blocks + 2 * _half(geometry, num_inodes)
        if plain.num_blocks:
            if wanted > blocks:
                raise NoSpace(f"the volume has {blocks} blocks of {plain.block_size} bytes, {wanted} are needed")
            return geometry, num_inodes
        wanted += -(-wanted // (FREE_SHARE - 1)) + 1
        if wanted <= blocks:
            return geometry, num_inodes
        if wanted > f.BLOCK_COUNT_MAX:
            raise InvalidArgument(f"{wanted} blocks of {plain.block_size} bytes are too many; larger blocks may do")
        blocks = wanted


class _Writer:
    def __init__(
        self,
        device: Device,
        tree: PlainTree,
        plain: Plain,
        geometry: Geometry,
        num_inodes: int,
        needs: _Needs,
        tell: Callable[[Filled], object],
    ) -> None:
        self._device = device
        self._tree = tree
        self._plain = plain
        self._geometry = geometry
        self._num_inodes = num_inodes
        self._needs = needs
        self._tell = tell
        self._filled = Filled()
        self._codec = EntryCodec(plain.order)
        self._half = _half(geometry, num_inodes)
        self._inode_leaves = geometry.blocks_of(num_inodes * f.INODE_SIZE)
        self._bitmap_leaves = geometry.blocks_of(-(-geometry.num_blocks // 8))
        self._inode_start = _blocks(geometry, self._bitmap_leaves)
        self._next_block = 2 * self._half
        self._names_start = self._next_block
        self._next_name = 0
        self._next_inode = BOOT_INODE + 1
        self._numbers: dict[int, int] = {f.ROOT_INODE: f.ROOT_INODE}  # of directories to come, and of several names

    def write(self) -> None:
        """Everything, the slots last."""
        device, geometry = self._device, self._geometry
        device.write(geometry.base, [bytes(f.BOOT_SIZE)])
        for offset in geometry.slot_offsets:
            device.write(offset, [bytes(f.SLOT_AREA_SIZE)])
        self._zero(self._inode_start, self._inode_leaves)
        self._next_block += self._needs.names
        names = self._indirect(self._names_start, self._needs.names)
        parents = {int(f.ROOT_INODE): int(f.ROOT_INODE)}
        for path, ino, entries in self._tree.folders():
            self._folder(path, ino, entries, parents)
        if self._next_block - 2 * self._half != self._needs.blocks:
            raise SourceError(b"", "the tree changed while it was read")
        roots = [self._finish_half(half) for half in (0, self._half)]
        device.flush()
        longfile = self._root(self._needs.names * geometry.block_size, names)
        for (bitmap, inodes), offset, serial in zip(roots, geometry.slot_offsets, (2, 1), strict=True):
            device.write(offset, [self._record(serial, bitmap, inodes, longfile).ljust(f.SLOT_AREA_SIZE, b"\0")])
            device.flush()
        device.write(geometry.base, [plain_boot_head(geometry)])
        device.flush()

    # --- files ---

    def _folder(self, path: bytes, ino: int, entries: list[tuple[bytes, Attributes]], parents: dict[int, int]) -> None:
        number = self._numbers.pop(ino)
        parent = parents.pop(number)
        codec = self._codec
        raw = [codec.short(number, b"."), codec.short(parent, b"..")]
        added = 0
        if not path and not self._needs.has_boot:
            raw.append(codec.short(BOOT_INODE, BOOT_NAME))
            self._make_boot()
            added = 1
        files: list[tuple[int, bytes, Attributes]] = []
        for name, attributes in entries:
            child, is_new = self._number(path, name, attributes)
            raw.append(self._entry(child, name))
            if stat.S_ISDIR(attributes.mode):
                parents[child] = number
            elif is_new:
                files.append((child, path + b"/" + name if path else name, attributes))
        data = b"".join(raw)
        size = self._geometry.blocks_of(len(data)) * self._geometry.block_size
        first = self._take(size)
        self._device.write(self._geometry.block_offset(first), [data.ljust(size, b"\0")])
        attributes = self._tree.filesystem.getattr(ino)
        status = f.STATUS_USED if number <= BOOT_INODE else f.STATUS_IN_USE
        self._put_inode(number, attributes, size, attributes.links + added, self._indirect_of(first, size), status)
        for child, where, found in files:
            try:
                self._file(child, found)
            except CowfsError as error:
                raise SourceError(where, str(error), error.errno) from error
        self._filled.objects += 1
        self._tell(self._filled)

    def _number(self, path: bytes, name: bytes, attributes: Attributes) -> tuple[int, bool]:
        """The number of an entry's inode, and whether it is new."""
        is_directory = stat.S_ISDIR(attributes.mode)
        if attributes.ino in self._numbers:
            return self._numbers[attributes.ino], False
        if not path and name == BOOT_NAME:
            number = BOOT_INODE
        else:
            number = self._next_inode
            self._next_inode += 1
        if is_directory or attributes.links > 1:
            self._numbers[attributes.ino] = number
        return number, True

    def _entry(self, number: int, name: bytes) -> bytes:
        if len(name) <= f.SHORT_NAME_MAX:
            return self._codec.short(number, name)
        slot = self._next_name
        self._next_name += 1
        block = f.LongNameHeader(len(name)).pack(self._plain.order) + name
        offset = self._geometry.block_offset(self._names_start + slot)
        self._device.write(offset, [block.ljust(self._geometry.block_size, b"\0")])
        return self._codec.long(number, slot, long_name_checksum(name))

    def _make_boot(self) -> None:
        size, made = self._geometry.block_size, self._plain.made_ns
        first = self._take(size)
        data = self._codec.short(BOOT_INODE, b".") + self._codec.short(f.ROOT_INODE, b"..")
        self._device.write(self._geometry.block_offset(first), [data.ljust(size, b"\0")])
        attributes = Attributes(BOOT_INODE, 0, BOOT_MODE, 2, 0, 0, 0, size, 0, made, made, made, made, size)
        self._put_inode(BOOT_INODE, attributes, size, 2, self._indirect_of(first, size), f.STATUS_USED)

    def _file(self, number: int, attributes: Attributes) -> None:
        size = attributes.size if stat.S_IFMT(attributes.mode) in (stat.S_IFREG, stat.S_IFLNK) else 0
        first = self._take(size)
        if stat.S_ISLNK(attributes.mode):
            target = self._tree.filesystem.readlink(attributes.ino)
            self._device.write(self._geometry.block_offset(first), [self._padded(target)])
        else:
            self._copy(attributes.ino, size, self._geometry.block_offset(first))
        links, tree = attributes.links, self._indirect_of(first, size)
        self._put_inode(number, attributes, size, links, tree, f.STATUS_IN_USE)
        self._filled.objects += 1
        self._tell(self._filled)

    def _copy(self, ino: int, size: int, to: int) -> None:
        for offset in range(0, size, CHUNK):
            data = self._tree.filesystem.read(ino, offset, min(CHUNK, size - offset))
            if not self._plain.zeroed or data.count(0) != len(data):
                self._device.write(to + offset, [self._padded(data)])
            self._filled.data += len(data)
            self._tell(self._filled)

    def _padded(self, data: bytes) -> bytes:
        return data.ljust(self._geometry.blocks_of(len(data)) * self._geometry.block_size, b"\0")

    def _put_inode(
        self,
        number: int,
        attributes: Attributes,
        size: int,
        links: int,
        tree: tuple[tuple[int, ...], int],
        status: int,
    ) -> None:
        inode = f.DiskInode(
            size=size,
            uid=attributes.uid,
            gid=attributes.gid,
            birth=_seconds(self._plain.made_ns),
            mtime=_seconds(attributes.mtime_ns),
            atime=_seconds(attributes.atime_ns),
            ctime=_seconds(attributes.ctime_ns),
            mode=attributes.mode,
            links=links,
            ptr=tree[0],
            levels=tree[1],
            status=status,
        )
        offset = self._geometry.block_offset(self._inode_start) + (number - 1) * f.INODE_SIZE
        self._device.write(offset, [inode.pack(self._plain.order)])

    # --- blocks ---

    def _take(self, size: int) -> int:
        """The first of the next blocks, for `size` bytes."""
        first = self._next_block
        self._next_block += self._geometry.blocks_of(size)
        return first

    def _indirect_of(self, first: int, size: int) -> tuple[tuple[int, ...], int]:
        return self._indirect(first, self._geometry.blocks_of(size))

    def _indirect(self, first: int, leaves: int) -> tuple[tuple[int, ...], int]:
        """Top pointers and levels of a tree over consecutive leaves; its indirect blocks are the next ones."""
        start, count = first, leaves
        levels = self._geometry.levels_of(leaves)
        for _ in range(levels):
            above = self._next_block
            self._next_block += self._write_pointers(start, count, above)
            start, count = above, -(-count // self._geometry.fanout)
        return tuple(range(start, start + count)) + f.NO_BLOCK_POINTERS[count:], levels

    def _write_pointers(self, start: int, count: int, to: int) -> int:
        """Writes the indirect blocks above blocks `start`..; their number."""
        fanout, geometry = self._geometry.fanout, self._geometry
        blocks = -(-count // fanout)
        for number in range(blocks):
            words = array.array("I", range(start + number * fanout, start + min(count, (number + 1) * fanout)))
            words.extend([f.NO_BLOCK] * (fanout - len(words)))
            self._device.write(geometry.block_offset(to + number), [pointers_to(words, geometry.order)])
        return blocks

    def _zero(self, first: int, count: int) -> None:
        if self._plain.zeroed:
            return
        offset, left = self._geometry.block_offset(first), count * self._geometry.block_size
        while left:
            length = min(left, CHUNK)
            self._device.write(offset, [bytes(length)])
            offset, left = offset + length, left - length

    # --- the system area ---

    def _finish_half(self, half: int) -> tuple[f.RootNode, f.RootNode]:
        """Writes one half of the system area, whose inodes are in the first; root nodes of bitmap and inode file."""
        geometry, after = self._geometry, self._next_block
        self._write_bitmap(half, after)
        self._next_block = half + self._bitmap_leaves
        bitmap = self._indirect(half, self._bitmap_leaves)
        start = half + self._inode_start
        if half:
            self._copy_inodes(start)
        self._next_block = start + self._inode_leaves
        inodes = self._indirect(start, self._inode_leaves)
        assert self._next_block == half + self._half
        self._next_block = after
        return (
            self._root(-(-geometry.num_blocks // 8), bitmap),
            self._root(self._num_inodes * f.INODE_SIZE, inodes),
        )

    def _write_bitmap(self, first: int, used: int) -> None:
        """Blocks below `used` are in use, and so are the bits behind the volume."""
        size = self._bitmap_leaves * self._geometry.block_size
        for start in range(0, size, CHUNK):
            length = min(CHUNK, size - start)
            bits = (1 << min(max(used - start * 8, 0), length * 8)) - 1
            beyond = min(max(self._geometry.num_blocks - start * 8, 0), length * 8)
            bits |= (1 << length * 8) - (1 << beyond)
            self._device.write(self._geometry.block_offset(first) + start, [bits.to_bytes(length, "little")])

    def _copy_inodes(self, to: int) -> None:
        source, target = self._geometry.block_offset(self._inode_start), self._geometry.block_offset(to)
        size = self._inode_leaves * self._geometry.block_size
        for start in range(0, size, CHUNK):
            self._device.write(target + start, [self._device.read(source + start, min(CHUNK, size - start))])

    def _root(self, size: int, tree: tuple[tuple[int, ...], int]) -> f.RootNode:
        return f.RootNode(size, tree[0], tree[1])

    def _record(self, serial: int, bitmap: f.RootNode, inodes: f.RootNode, longfile: f.RootNode) -> bytes:
        plain, geometry = self._plain, self._geometry
        superblock = f.Superblock(
            serial=serial,
            ctime=_seconds(plain.made_ns),
            atime=_seconds(plain.made_ns),
            flags=f.SB_FLAG_LONG_NAME_CHECKSUMS,
            volume_id=plain.volume_id,
            block_size=geometry.block_size,
            num_inodes=self._num_inodes,
            free_inodes=self._num_inodes - self._needs.inodes,
            num_blocks=geometry.num_blocks,
            free_blocks=geometry.num_blocks - self._next_block,
            inode=inodes,
            bitmap=bitmap,
            longfile=longfile,
            anchor=f.no_anchor(),
        )
        return plain_record(superblock, plain.order)


def _seconds(time_ns: int) -> int:
    """Whole seconds as 32 unsigned bits: the nearest time that qnx6 has."""
    return min(max(time_ns // NANOSECONDS, 0), TIME_MAX)
