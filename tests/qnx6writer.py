"""Writes plain qnx6 volumes as QNX lays them out, from the facts about the format alone: nothing here is cowfs's own code.

A second opinion for the readers: both byte orders, blocks of 512 bytes to 32 KiB, with and without a boot block, a system
area in two halves at the front, files allocated from the end, two superblocks with two states, deleted entries that keep
their names, long names, holes as `~0` or as QNX 7.1 marks them, trees deeper than they need be.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

MAGIC = 0x68191122
NOTHING = 0xFFFFFFFF
SPARSE = 0xFFFFFFFE
AREA = 0x1000
BOOT = 0x2000
TIME = 1_660_881_056
BLOCK_SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768)
INODE = 128


@dataclass
class Node:
    """A file of any type. Several names of one object are hard links. `holes` are leaf numbers, `hole` their pointer."""

    mode: int
    data: bytes = b""
    children: dict[bytes, Node] = field(default_factory=dict)
    uid: int = 0
    gid: int = 0
    mtime: int = TIME
    levels: int = 0
    holes: frozenset[int] = frozenset()
    hole: int = NOTHING


def file(data: bytes, mode: int = 0o644, **more: object) -> Node:
    """A regular file."""
    return Node(stat.S_IFREG | mode, data, **more)  # type: ignore[arg-type]


def directory(children: dict[bytes, Node], mode: int = 0o755, **more: object) -> Node:
    """A directory."""
    return Node(stat.S_IFDIR | mode, children=children, **more)  # type: ignore[arg-type]


def symlink(target: bytes) -> Node:
    """A symbolic link."""
    return Node(stat.S_IFLNK | 0o777, target)


def crc(data: bytes) -> int:
    """CRC-32 with the polynomial 0x04C11DB7, most significant bit first, from 0, without inversion."""
    value = 0
    for byte in data:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ 0x04C11DB7) & 0xFFFFFFFF if value & 0x80000000 else value << 1
    return value


def name_sum(name: bytes) -> int:
    """The checksum of a long name."""
    value = 0
    for byte in name:
        value = ((value >> 1 | value << 31) + byte) & 0xFFFFFFFF
    return value


class State:
    """One committed state: a tree of files put into blocks, which `take` gives out."""

    def __init__(self, volume: Volume, root: Node) -> None:
        self.volume = volume
        self.order, self.size = volume.order, volume.block_size
        self.numbers: dict[int, int] = {}
        self.nodes: list[Node] = []
        self.links: dict[int, int] = {}
        self.names: list[bytes] = []
        self.records: list[bytes] = []
        self._number(root)
        self.boot = Node(stat.S_IFDIR | 0o700)
        root.children = {b".boot": self.boot, **root.children}
        self._number_children(root)
        self.inode_root, self.name_root = self._store(root)

    def _number(self, node: Node) -> int:
        number = self.numbers.get(id(node))
        if number is None:
            self.nodes.append(node)
            number = self.numbers[id(node)] = len(self.nodes)
        return number

    def _number_children(self, node: Node) -> None:
        for child in node.children.values():
            known = id(child) in self.numbers
            number = self._number(child)
            if stat.S_ISDIR(child.mode):
                self.links[self.numbers[id(node)]] = self.links.get(self.numbers[id(node)], 2) + 1
                if not known:
                    self._number_children(child)
            else:
                self.links[number] = self.links.get(number, 0) + 1

    def _store(self, root: Node) -> tuple[bytes, bytes]:
        parents = {
            self.numbers[id(child)]: self.numbers[id(node)]
            for node in self.nodes
            for child in node.children.values()
            if stat.S_ISDIR(child.mode)
        }
        for number, node in reversed(list(enumerate(self.nodes, 1))):  # the root is farthest from the end
            data = node.data
            if stat.S_ISDIR(node.mode):
                data = self._entries(number, parents.get(number, 1), node)
            pointers, levels = self.tree(data, node)
            links = self.links.get(number, 2 if stat.S_ISDIR(node.mode) else 1)
            times = (TIME - 1, node.mtime, TIME + 1, TIME + 2)
            head = struct.pack(self.order + "Q6I2H", len(data), node.uid, node.gid, *times, node.mode, links)
            body = struct.pack(self.order + "16I2BH", *pointers, levels, 1 if number < 3 else 3, 0)
            self.records.insert(0, (head + body).ljust(INODE, b"\0"))
        names = b"".join(
            (struct.pack(self.order + "H", len(name)) + name).ljust(self.size, b"\xa5") for name in self.names
        )
        per_block = self.size // INODE
        table = b"".join(self.records).ljust(-(-len(self.records) // per_block) * self.size, b"\0")
        return self._root(table, system=True), self._root(names)

    def _entries(self, number: int, parent: int, node: Node) -> bytes:
        entries = [self._short(number, b"."), self._short(parent, b"..")]
        for name, child in node.children.items():
            target = self.numbers[id(child)]
            if len(name) <= 27:
                entries.append(self._short(target, name))
            else:
                self.names.append(name)
                slot = len(self.names) - 1
                entries.append(struct.pack(self.order + "IB3xII16x", target, 0xFF, slot, name_sum(name)))
            entries.append(self._short(0, b"deleted"))
        data = b"".join(entries)
        return data.ljust(-(-len(data) // self.size) * self.size, b"\0")

    def _short(self, number: int, name: bytes) -> bytes:
        return struct.pack(self.order + "IB27s", number, len(name), name)

    def tree(self, data: bytes, node: Node | None = None, *, system: bool = False) -> tuple[list[int], int]:
        """Stores contents; the 16 top pointers and the levels."""
        size = self.size
        holes, hole = (node.holes, node.hole) if node else (frozenset(), NOTHING)
        metadata = node is None or not stat.S_ISREG(node.mode)
        row = [
            hole if index in holes else self.volume.put(data[at : at + size], system=system, metadata=metadata)
            for index, at in enumerate(range(0, len(data), size))
        ]
        levels = 0
        while len(row) > 16 or levels < (node.levels if node else 0):
            fanout = size // 4
            groups = [row[at : at + fanout] for at in range(0, len(row), fanout)]
            row = [self._indirect(group, hole, system=system) for group in groups]
            levels += 1
        return (row + [NOTHING] * 16)[:16], levels

    def _indirect(self, group: list[int], hole: int, *, system: bool) -> int:
        if set(group) == {hole}:
            return hole
        words = group + [NOTHING] * (self.size // 4 - len(group))
        return self.volume.put(struct.pack(f"{self.order}{len(words)}I", *words), system=system)

    def _root(self, data: bytes, *, system: bool = False) -> bytes:
        pointers, levels = self.tree(data, system=system)
        return struct.pack(self.order + "Q16I2B6x", len(data), *pointers, levels, 1)


class Volume:
    """The whole volume. Blocks for files come from the end downwards, those of the system from the front."""

    def __init__(self, order: str, block_size: int, *, boot_block: bool = True, blocks: int = 0) -> None:
        self.order, self.block_size, self.boot_block = order, block_size, boot_block
        self.slot1 = BOOT if boot_block else 0
        start = self.slot1 + AREA
        self.start = -(-start // block_size) * block_size if block_size > AREA else start
        self.blocks = blocks
        self.contents: dict[int, bytes] = {}
        self.metadata: set[int] = set()  # blocks of anything but file contents
        self._low, self._high = 0, blocks
        self._state_blocks: set[int] = set()

    def put(self, data: bytes, *, system: bool = False, metadata: bool = True) -> int:
        """Stores one block; its number."""
        if system:
            number = self._low
            self._low += 1
        else:
            self._high -= 1
            number = self._high
        self.contents[number] = data.ljust(self.block_size, b"\0")
        self._state_blocks.add(number)
        if metadata:
            self.metadata.add(number)
        return number

    def record(self, serial: int, root: Node, reserved: int) -> bytes:
        """Stores a state; its superblock record. `reserved`: blocks of the system area, marked whatever is in them."""
        self._state_blocks = set()
        state = State(self, root)
        size = -(-self.blocks // 8)
        pages = [self.put(b"", system=True) for _ in range(-(-size // self.block_size))]
        assert len(pages) <= 16
        used = self._state_blocks | set(range(reserved))
        bits = bytearray(len(pages) * self.block_size)
        for block in [*used, *range(self.blocks, len(bits) * 8)]:
            bits[block >> 3] |= 1 << (block & 7)
        for i, page in enumerate(pages):
            self.contents[page] = bytes(bits[i * self.block_size : (i + 1) * self.block_size])
        bitmap = struct.pack(self.order + "Q16I2B6x", size, *(pages + [NOTHING] * 16)[:16], 0, 1)
        inodes = -(-len(state.records) * INODE // self.block_size) * self.block_size // INODE
        fields = struct.pack(
            self.order + "Q3I2H16s6I",
            serial, TIME, TIME + serial, 0x100, 4, 3, b"plain qnx6 image", self.block_size, inodes,
            inodes - len(state.records), self.blocks, self.blocks - len(used), 1,
        )  # fmt: skip
        unused = struct.pack(self.order + "Q16I2B6x", 0, *[NOTHING] * 16, 0, 1)
        body = (fields + state.inode_root + bitmap + state.name_root + unused).ljust(504, b"\0")
        return struct.pack(self.order + "2I", MAGIC, crc(body)) + body

    def image(self, older: Node, newer: Node, *, newest: int = 2) -> bytes:
        """The bytes of the volume; slot `newest` holds the state `newer`."""
        # What the system area needs is known when all is stored; the area is marked in use as a whole.
        scratch = Volume(self.order, self.block_size, blocks=1 << 14)
        for root in (older, newer):
            scratch.record(1, _copy(root), 0)
        reserved = scratch._low
        self.blocks = self.blocks or reserved + (1 << 14) - scratch._high + 9
        self._high = self.blocks
        assert self._high >= reserved
        records = [self.record(serial, _copy(root), reserved) for serial, root in enumerate((older, newer), 1)]
        if newest == 1:
            records.reverse()
        image = bytearray(self.start + self.blocks * self.block_size + max(AREA, self.block_size))
        if self.boot_block:
            second = (self.start + self.blocks * self.block_size) // 512
            image[:16] = b"\xeb\x10\x90\x00" + struct.pack("<3I", 0, BOOT // 512, second)
        for at, record in zip((self.slot1, self.start + self.blocks * self.block_size), records, strict=True):
            image[at : at + len(record)] = record
        for number, data in self.contents.items():
            at = self.start + number * self.block_size
            image[at : at + self.block_size] = data
        return bytes(image)


def _copy(root: Node) -> Node:
    """The root once more, to be given a `.boot`; everything below is shared."""
    return Node(root.mode, root.data, dict(root.children), root.uid, root.gid, root.mtime)


LONG = "ein sehr langer Name mit Ümläuten, jenseits von 27 Byte".encode()


def sample_tree(block_size: int, *, hole: int = NOTHING) -> Node:
    """Every kind of object, trees of 0 to 3 levels, names of all lengths, hard links, holes."""
    twice = file(b"two names", 0o640, uid=1000, gid=100)
    pattern = bytes(range(251)) * (40 * block_size // 251 + 1)
    hollow = pattern[:block_size] + bytes(2 * block_size) + pattern[: block_size // 2]
    deep = directory({b"x" * 27: file(b"bottom"), b"n" * 510: file(b"longest"), LONG: twice})
    return directory(
        {
            b"empty": file(b""),
            b"small": file(b"sixteen bytes..\n", 0o4755, uid=99, mtime=0xF0000000),
            **{f"level{levels}".encode(): file(pattern[:5000], levels=levels) for levels in range(4)},
            b"large": file(pattern[: 30 * block_size + 77]),
            b"hollow": file(hollow, holes=frozenset({1, 2}), hole=hole),
            b"hollow2": file(bytes(20 * block_size) + b"end", holes=frozenset(range(20)), levels=2, hole=hole),
            b"link": symlink(b"directory/" + b"x" * 27),
            b"fifo": Node(stat.S_IFIFO | 0o664),
            b"directory": directory({b"deep": deep, b"again": twice}, 0o2770),
            b"many": directory({f"entry {i}".encode(): file(b"%d" % i) for i in range(60)}),
            b"odd \xff\n\\name|": file(b"odd"),
        }
    )


def older_tree() -> Node:
    """What there was before."""
    return directory({b"before": file(b"the state before"), b"small": file(b"old")})


def files_of(root: Node, prefix: bytes = b"") -> Iterator[tuple[bytes, Node]]:
    """(path, node) of everything below a directory."""
    for name, node in root.children.items():
        path = prefix + name
        yield path, node
        yield from files_of(node, path + b"/")
