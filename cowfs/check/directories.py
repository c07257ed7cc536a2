"""What stands in the directories of one tree: entries, names, long names. Who is named by whom goes to `Links`.

A block of a directory belongs to one directory of a tree, so each is read once, whatever the pointers say; a long name
costs one read for each entry that leads to it.
"""

from __future__ import annotations

import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cowfs.check import problem as p
from cowfs.check.reader import BlockReader, Contents, ContentsReader, contents_of
from cowfs.check.trees import FileTree
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import long_name_checksum
from cowfs.ondisk.codecs import CHECKSUM_OFFSET, ENTRY_SIZE, KEY_OFFSET, NAME_OFFSET, SLOT_OFFSET
from cowfs.ondisk.geometry import pointers_from

_WORD: Final = 4
_ENTRY_WORDS: Final = ENTRY_SIZE // _WORD
_ENCRYPTED_MARK: Final = 0xFE  # of QNX
_DOT_ENTRIES: Final = 2
DOTS: Final = (b".", b"..")


class GaveUp(Exception):
    """The work that a check may take is used up: what is shared is shared so often that it would not end."""


class Work:
    """What may still be done: one unit is an entry looked at. A bound against images that are made to take for ever."""

    def __init__(self, units: int) -> None:
        self.left = units

    def spend(self, units: int) -> None:
        """Raises GaveUp when nothing is left."""
        self.left -= units
        if self.left < 0:
            raise GaveUp


@dataclass(slots=True)
class Directory:
    """What a directory holds: the number that `..` leads to, and how many entries there are but for `.` and `..`."""

    parent: int = 0
    entries: int = 0


def shown(name: bytes) -> str:
    """A name in a message."""
    return repr(name)[1:]


class DirectoryReader:
    """Reads the directories of one tree and checks them one by one."""

    def __init__(self, reader: BlockReader, report: p.Report, tree: FileTree, work: Work) -> None:
        self._reader = reader
        self._report = report
        self._tree = tree
        self._work = work
        self._foreign = reader.state.extension is None
        self._visited: set[int] = set()
        self._long_names = ContentsReader(reader, contents_of(tree.longfile))
        self._slots = tree.longfile.size // reader.block_size
        self._slots_seen: set[int] = set()
        self._sums = bool(reader.state.superblock.flags & f.SB_FLAG_LONG_NAME_CHECKSUMS)

    def read(self, number: int, contents: Contents, enter: Callable[[int, bytes], None]) -> Directory:
        """Directory inode `number`; `enter` gets the inode number and the name (empty: unreadable) of every entry."""
        block_size = self._reader.block_size
        if not self._foreign and (contents.size % block_size or not contents.size):
            self._add(p.DIRECTORY_SIZE, f"{contents.size} bytes", number)

        def repeated(block: int) -> None:
            self._report.add(
                p.BLOCK_REPEATED, "a directory's block is used twice", block=block, inode=number, tree=self._tree.id
            )

        directory = Directory()
        names: set[bytes] = set()
        dots = ended = False
        for index, block in self._reader.leaves(contents, self._visited, repeated):
            data = self._reader.block(block)
            self._work.spend(len(data) // ENTRY_SIZE)
            if index == 0:
                dots = self._read_dots(data, number, directory)
            start = _DOT_ENTRIES if index == 0 else 0
            if ended and data != self._reader.zeros:
                self._add(p.DIRECTORY_GAP, f"in its block {index}", number)
            ended = self._read_entries(data, start, number, directory, names, enter) or ended
        if not dots:
            self._add(p.DIRECTORY_DOTS, "it does not begin with . and ..", number)
        return directory

    def _read_dots(self, data: bytes, number: int, directory: Directory) -> bool:
        order = self._reader.geometry.order
        dot, dot_dot = (f.ShortEntry.unpack(data, i * ENTRY_SIZE, order) for i in range(_DOT_ENTRIES))
        directory.parent = dot_dot.inode
        for entry, name in zip((dot, dot_dot), DOTS, strict=True):
            found = entry.name[: entry.length] if self._foreign else entry.name.rstrip(b"\0")
            if found != name or entry.length != len(name):
                return False
        return dot.inode == number and dot_dot.inode != 0

    def _read_entries(
        self,
        data: bytes,
        start: int,
        owner: int,
        directory: Directory,
        names: set[bytes],
        enter: Callable[[int, bytes], None],
    ) -> bool:
        """Takes the entries of one block; whether the end of the entries was reached in it."""
        words = pointers_from(data, self._reader.geometry.order)
        for i in range(start, len(data) // ENTRY_SIZE):
            number = words[i * _ENTRY_WORDS]
            offset = i * ENTRY_SIZE
            length = data[offset + KEY_OFFSET]
            if number == 0 or (self._foreign and length == 0):
                if self._foreign:
                    continue
                if data[offset:] != self._reader.zeros[offset:]:
                    self._add(p.DIRECTORY_GAP, f"behind entry {i} of a block", owner)
                return True
            if length == f.LONG_NAME_MARK:
                name = self._long_name(words, i * _ENTRY_WORDS, owner)
            elif self._foreign and length == _ENCRYPTED_MARK:
                name = b""
            else:
                name = self._short_name(data, offset, length, owner)
            if name:
                if name in names:
                    self._add(p.ENTRY_DUPLICATE, f"name {shown(name)}", owner)
                names.add(name)
            directory.entries += 1
            enter(number, name)
        return False

    def _short_name(self, data: bytes, offset: int, length: int, owner: int) -> bytes:
        name = data[offset + NAME_OFFSET : offset + ENTRY_SIZE]
        if self._foreign:
            name = name[:length].split(b"\0")[0]
            if length > f.SHORT_NAME_MAX:
                self._add(p.ENTRY_NAME, f"length {length} of the short name {shown(name)}", owner)
        else:
            name = name.rstrip(b"\0")
            if len(name) != length:
                self._add(p.ENTRY_NAME, f"length {length} of the short name {shown(name)}", owner)
        self._check_name(name, owner)
        return name

    def _long_name(self, words: array.array[int], at: int, owner: int) -> bytes:
        slot = words[at + SLOT_OFFSET // _WORD]
        checksum = words[at + CHECKSUM_OFFSET // _WORD]
        self._work.spend(1)
        if slot >= self._slots:
            self._add(p.LONG_NAME_SLOT, f"slot {slot} of {self._slots}", owner)
            return b""
        block = self._long_names.leaf(slot)
        header = f.LONG_NAME_HEADER_SIZE
        length = f.LongNameHeader.unpack(block, 0, self._reader.geometry.order).length
        least = 1 if self._foreign else f.SHORT_NAME_MAX + 1
        if not least <= length <= f.NAME_MAX:
            self._add(p.LONG_NAME_SLOT, f"slot {slot} holds a name of {length} bytes", owner)
            return b""
        name = block[header : header + length]
        if slot in self._slots_seen:
            self._add(p.LONG_NAME_SHARED, f"slot {slot}", owner)
        self._slots_seen.add(slot)
        if self._sums and long_name_checksum(name) != checksum:
            wanted = long_name_checksum(name)
            self._add(p.LONG_NAME_CHECKSUM, f"slot {slot}: {wanted:#010x} wanted, {checksum:#010x} found", owner)
        self._check_name(name, owner)
        return name

    def _check_name(self, name: bytes, owner: int) -> None:
        if not name or b"\0" in name or b"/" in name or name in DOTS:
            self._add(p.ENTRY_NAME, f"name {shown(name)}", owner)

    def check_slots(self) -> None:
        """When all directories are read: long-name slots that no entry leads to, and the hint."""
        if self._foreign:
            return
        tree = self._tree
        if tree.longfile.size % self._reader.block_size:
            text = f"long-name file: {tree.longfile.size} bytes are no whole blocks"
            self._report.add(p.ROOT_NODE, text, tree=tree.id)

        def repeated(block: int) -> None:
            self._report.add(p.BLOCK_REPEATED, "in the long-name file", block=block, tree=tree.id)

        lowest_free = 0
        for slot, block in self._reader.leaves(contents_of(tree.longfile), set(), repeated, leaves_repeat=True):
            self._work.spend(1)
            if slot == lowest_free:
                lowest_free += 1
            if slot not in self._slots_seen:
                self._report.add(p.LONG_NAME_UNUSED, f"slot {slot}", block=block, tree=tree.id)
        if lowest_free < min(self._slots, tree.longfile.hint):
            text = f"slot {lowest_free} is free, the hint is {tree.longfile.hint}"
            self._report.add(p.LONG_NAME_HINT, text, tree=tree.id)

    def _add(self, kind: p.Kind, text: str, owner: int) -> None:
        self._report.add(kind, text, inode=owner, tree=self._tree.id)
