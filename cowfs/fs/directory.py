"""Directories: dense arrays of 32-byte entries on the disk, mirrored in memory while they are in use.

Duty: find, add, remove and replace entries at a cost that does not grow with the directory once it is hot. In memory a
directory is a copy of its raw entries (32 bytes each) and, beyond a few dozen entries, a hash table of 32-bit entry
numbers over them (8 to 24 bytes an entry). A cold directory is searched with one pass over the raw bytes; the table is
built a slice at a time by the searches that follow, so that no single request waits for a whole one. The checksum in a
long entry is a weak sum (numbered names share few values), so hot long names have a hash of their own (4 bytes an entry).
The directories used longest ago are forgotten when together they pass a bound.

Invariants:
- I34 Entries are dense: removing one moves the last one into its place, zeros stand only behind the last. The size is a
  multiple of the block size and at least one block; entry 0 is '.', entry 1 is '..'.
- The mirror equals the disk: every change is made in the writable leaf first, then in the mirror.
- The table covers exactly the entries below `_built`; the hash of a long entry among them is known.

How a cold one is read, and checked: `dirload`.

Locking: the core thread only.
"""

from __future__ import annotations

import array
import itertools
from collections import OrderedDict
from typing import Final

from cowfs.errors import Corrupt, DeviceError
from cowfs.fs.dirload import DirectoryReader, Reading
from cowfs.fs.inode import Inode
from cowfs.fs.longnames import LongNames
from cowfs.ondisk import codecs as c
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import long_name_checksum
from cowfs.storage.blocktree import WritableRoot
from cowfs.storage.tree import Tree
from cowfs.storage.volume import Volume

HOT_BYTES_MAX = 64 << 20  # all mirrors and tables together
SCAN_BYTES = 24 * c.ENTRY_SIZE  # up to here a search over the raw bytes is as fast as the table
COLD_SEARCHES: Final = 3  # of a larger directory, before its table is begun
SLICE = 8192  # entries put into the table by one search
LONG_COST: Final = 8  # a long name, which must be read from its slot, counts as so many entries of a slice
CHAIN_MAX: Final = 1024  # cells passed over when an entry is put in; more only if a name is there many times
READINGS_MAX: Final = 4  # large directories being read at once; who comes too late begins anew
_OVERHEAD: Final = 400  # bytes of an empty mirror

_ENTRY: Final = c.ENTRY_SIZE
_KEY: Final = c.KEY_OFFSET
_LONG: Final = f.LONG_NAME_MARK

_UNREADABLE: Final = 1  # stands for the hash of a name that cannot be read

_versions = itertools.count(1)


def _long_hash(name: bytes) -> int:
    """A hash of a long name that is never 0."""
    return hash(name) & 0xFFFFFFFF or 1


class Directory:
    """A directory's entries in memory. Entries are addressed by their index on the disk, 0 and 1 being '.' and '..'."""

    __slots__ = (
        "_built",
        "_codec",
        "_frozen",
        "_has_unreadable",
        "_hashes",
        "_mask",
        "_names",
        "_searches",
        "_table",
        "_unpack",
        "raw",
        "version",
        "weight",
    )

    def __init__(self, raw: bytearray, codec: c.EntryCodec, names: LongNames) -> None:
        self.raw = raw
        self.version = next(_versions)  # changes with every change, and never repeats
        self.weight = 0  # bytes that it was last accounted with
        self._codec = codec
        self._unpack = codec.unpack_number
        self._names = names
        self._searches = 0
        self._table: array.array[int] | None = None
        self._mask = 0
        self._built = 0
        self._has_unreadable = False  # whether a long name in the table could not be read
        self._hashes: array.array[int] | None = None  # of the long names; 0: not known yet, or a short name
        self._frozen: bytes | None = None

    def __len__(self) -> int:
        return len(self.raw) // _ENTRY

    @property
    def memory(self) -> int:
        """Bytes of memory, about, once its table is there."""
        return _OVERHEAD + 2 * len(self.raw)

    def find(self, name: bytes) -> int:
        """Index of the entry with this name, -1 if there is none. Raises Corrupt, DeviceError."""
        size = len(name)
        if size > f.SHORT_NAME_MAX:
            return self._find_long(name)
        return self._find_short(c.pack_key(size, name))

    def find_entry(self, index: int, entry: bytes) -> int:
        """Index of the entry that bears the name of `entry`, which once was at `index`; -1 if it is gone."""
        key = entry[_KEY:]
        if self.raw.startswith(key, index * _ENTRY + _KEY):
            return index
        if key[0] != _LONG:
            return self._find_short(key)
        try:
            found = self._find_long(self._names.read(self._codec.slot_at(entry, 0)))
        except Corrupt:
            # A slot without a name: free since the entry went. If the entry is still there, it is damage.
            if self._scan(key, 0) >= 0:
                raise
            return -1
        return found if found >= 0 and self.raw.startswith(key, found * _ENTRY + _KEY) else -1

    def _find_short(self, key: bytes) -> int:
        raw = self.raw
        start = 0
        if len(raw) > SCAN_BYTES and (self._built * _ENTRY == len(raw) or self._ready()):
            table, mask = self._table, self._mask
            assert table is not None
            cell = hash(key) & mask
            while entry := table[cell]:
                if raw.startswith(key, (entry - 1) * _ENTRY + _KEY):
                    return entry - 1
                cell = (cell + 1) & mask
            start = self._built * _ENTRY
            if start == len(raw):
                return -1
        return self._scan(key, start)

    def _scan(self, key: bytes, start: int) -> int:
        raw = self.raw
        at = raw.find(key, start)
        while at >= 0 and at % _ENTRY != _KEY:
            at = raw.find(key, at + 1)
        return at // _ENTRY if at >= 0 else -1

    def _find_long(self, name: bytes) -> int:
        raw, names = self.raw, self._names
        start = 0
        # The checksum in its entry tells whether an unreadable name may be the one: that is for the search below.
        if len(raw) > SCAN_BYTES and not self._has_unreadable and (self._built * _ENTRY == len(raw) or self._ready()):
            table, mask = self._table, self._mask
            assert table is not None
            wanted = _long_hash(name)
            cell = wanted & mask
            while entry := table[cell]:
                index = entry - 1
                if self.is_long(index) and self._hash(index) == wanted and names.read(self.slot(index)) == name:
                    return index
                cell = (cell + 1) & mask
            start = self._built * _ENTRY
            if start == len(raw):
                return -1
        checksum = self._codec.word(long_name_checksum(name))
        at = raw.find(checksum, start)
        while at >= 0:
            if at % _ENTRY == c.CHECKSUM_OFFSET and raw[at - c.CHECKSUM_OFFSET + _KEY] == _LONG:
                index = at // _ENTRY
                if names.read(self.slot(index)) == name:
                    return index
            at = raw.find(checksum, at + 1)
        return -1

    def number(self, index: int) -> int:
        """The inode number of an entry."""
        value: int = self._unpack(self.raw, index * _ENTRY)[0]
        return value

    def slot(self, index: int) -> int:
        """The long-name slot of a long entry."""
        return self._codec.slot_at(self.raw, index * _ENTRY)

    def is_long(self, index: int) -> bool:
        """Whether the entry's name lies in a slot."""
        return self.raw[index * _ENTRY + _KEY] == _LONG

    def entry(self, index: int) -> bytes:
        """The 32 bytes of an entry."""
        return bytes(self.raw[index * _ENTRY : (index + 1) * _ENTRY])

    def freeze(self) -> bytes:
        """All entries as they are now; the same object until the next change."""
        if self._frozen is None:
            self._frozen = bytes(self.raw)
        return self._frozen

    # --- following the disk: called after the leaf was changed ---

    def appended(self, entry: bytes, name: bytes) -> None:
        """`entry`, which bears `name`, was added behind the last one."""
        index = len(self)
        self.raw += entry
        if self._hashes is not None:
            self._hashes.append(0)
        if entry[_KEY] == _LONG:
            self._all_hashes()[index] = _long_hash(name)
        if self._table is not None and self._built == index:
            if 2 * (index + 1) > len(self._table):
                self._start_table()
            else:
                self._insert(index)
                self._built = index + 1
        self._changed()

    def prepare_removal(self) -> None:
        """Reads what `removed` will need of the last entry. Raises Corrupt, DeviceError."""
        last = len(self) - 1
        if self._table is not None and self._built <= last and self.is_long(last):
            self._hash(last)

    def removed(self, index: int) -> None:
        """The entry `index` went, and the last one moved into its place."""
        raw, table, hashes = self.raw, self._table, self._hashes
        last = len(self) - 1
        if table is not None:
            if index < self._built:
                self._take_out(self._cell_of(index))
            if index < last < self._built:
                table[self._cell_of(last)] = index + 1
        raw[index * _ENTRY : (index + 1) * _ENTRY] = raw[last * _ENTRY :]
        if hashes is not None:
            hashes[index] = hashes[last]
        if table is not None and index < self._built <= last:
            self._insert(index)
        del raw[last * _ENTRY :]
        if hashes is not None:
            del hashes[last]
        self._built = min(self._built, last)
        self._changed()

    def replaced(self, index: int, number: bytes) -> None:
        """The entry `index` has another inode number."""
        self.raw[index * _ENTRY : index * _ENTRY + len(number)] = number
        self._changed()

    def _changed(self) -> None:
        self.version = next(_versions)
        self._frozen = None

    # --- the table: open addressing, entry number + 1, 0 is empty ---

    def _ready(self) -> bool:
        """Whether there is a table; searches begin one and carry it on."""
        if self._table is None:
            self._searches += 1
            if self._searches <= COLD_SEARCHES:
                return False
            self._start_table()
        if self._built * _ENTRY < len(self.raw):
            self._build()
        return True

    def _start_table(self) -> None:
        size = 1 << (3 * len(self) - 1).bit_length()
        self._table = array.array("I", [0]) * size
        self._mask = size - 1
        self._built = 0

    def _build(self) -> None:
        """Puts the next slice of entries into the table."""
        raw, table, mask = self.raw, self._table, self._mask
        assert table is not None
        count = len(self)
        budget = SLICE
        index = self._built
        try:
            while index < count and budget > 0:
                at = index * _ENTRY + _KEY
                if raw[at] == _LONG:
                    cell = self._hash_if_readable(index) & mask
                    budget -= LONG_COST
                else:
                    cell = hash(bytes(raw[at : at + c.KEY_SIZE])) & mask
                    budget -= 1
                if table[cell]:
                    cell = self._empty_cell(cell)
                index += 1
                table[cell] = index
        finally:
            # After a failure, too: what is in the table must not be put in a second time.
            self._built = index

    def _empty_cell(self, cell: int) -> int:
        """The first empty cell from `cell` on. Raises Corrupt for a chain that only repeated names can make."""
        table, mask = self._table, self._mask
        assert table is not None
        first = cell
        while table[cell]:
            cell = (cell + 1) & mask
            if (cell - first) & mask > CHAIN_MAX:
                raise Corrupt("a directory has the same name many times")
        return cell

    def _hash_if_readable(self, index: int) -> int:
        """As `_hash`. A name that cannot be read spoils no search but those that it could be the answer to."""
        try:
            return self._hash(index)
        except (Corrupt, DeviceError):
            self._all_hashes()[index] = _UNREADABLE
            self._has_unreadable = True
            return _UNREADABLE

    def _home(self, index: int) -> int:
        at = index * _ENTRY + _KEY
        raw = self.raw
        if raw[at] == _LONG:
            return self._hash(index) & self._mask
        return hash(bytes(raw[at : at + c.KEY_SIZE])) & self._mask

    def _insert(self, index: int) -> None:
        assert self._table is not None
        self._table[self._empty_cell(self._home(index))] = index + 1

    def _cell_of(self, index: int) -> int:
        table = self._table
        assert table is not None
        cell = self._home(index)
        while table[cell] != index + 1:
            assert table[cell], "an entry below `_built` is in the table"
            cell = (cell + 1) & self._mask
        return cell

    def _take_out(self, hole: int) -> None:
        """Empties a cell, and moves up those behind it that would not be found any more."""
        table, mask = self._table, self._mask
        assert table is not None
        cell = hole
        while True:
            cell = (cell + 1) & mask
            entry = table[cell]
            if not entry:
                break
            if (cell - self._home(entry - 1)) & mask >= (cell - hole) & mask:
                table[hole] = entry
                hole = cell
        table[hole] = 0

    def _all_hashes(self) -> array.array[int]:
        if self._hashes is None:
            self._hashes = array.array("I", [0]) * len(self)
        return self._hashes

    def _hash(self, index: int) -> int:
        """The hash of a long entry's name; read from its slot the first time."""
        hashes = self._all_hashes()
        value = hashes[index]
        if not value:
            value = hashes[index] = _long_hash(self._names.read(self.slot(index)))
        return value


class Directories:
    """The directories of one tree: the hot ones in memory, and all changes to entries.

    Changes take a directory inode that is writable in this epoch; space for them has been admitted.
    """

    def __init__(self, volume: Volume, tree: Tree, names: LongNames) -> None:
        self._trees = volume.trees
        self._block_size = volume.geometry.block_size
        self._names = names
        self._codec = c.EntryCodec(volume.geometry.order)
        self._reader = DirectoryReader(volume, names, self._codec)
        self._readings: dict[int, Reading] = {}  # large ones that are being read in slices
        self._hot: OrderedDict[int, Directory] = OrderedDict()
        self._hot_bytes = 0

    @property
    def codec(self) -> c.EntryCodec:
        """The form of entries."""
        return self._codec

    def open(self, inode: Inode) -> Directory:
        """The directory's entries. Raises Corrupt, DeviceError."""
        directory = self._hot.get(inode.number)
        if directory is None:
            reading = self._readings.pop(inode.number, None) or self._reader.begin(inode)
            directory = Directory(self._reader.finish(reading, inode), self._codec, self._names)
            self._hot[inode.number] = directory
            self._account(directory)
            while self._hot_bytes > HOT_BYTES_MAX and len(self._hot) > 1:
                self._hot_bytes -= self._hot.popitem(last=False)[1].weight
        else:
            self._hot.move_to_end(inode.number)
        return directory

    def is_hot(self, number: int) -> bool:
        """Whether a directory is in memory."""
        return number in self._hot

    def is_cold(self, inode: Inode) -> bool:
        """Whether it is worth to read a directory in slices before it is opened."""
        if inode.number in self._hot or not self._reader.is_large(inode):
            return False
        reading = self._readings.get(inode.number)
        return reading is None or not reading.whole

    def read_slice(self, inode: Inode) -> None:
        """Reads on in a cold directory; `open` will take what was read. Raises Corrupt, DeviceError.

        It stays right, since whoever changes the directory opens it first, and with that ends the reading.
        """
        reading = self._readings.pop(inode.number, None) or self._reader.begin(inode)
        self._reader.read_slice(reading, inode)
        while len(self._readings) >= READINGS_MAX:
            del self._readings[next(iter(self._readings))]
        self._readings[inode.number] = reading

    def forget(self, number: int) -> None:
        """Inode `number` is no directory any more."""
        self._readings.pop(number, None)
        directory = self._hot.pop(number, None)
        if directory is not None:
            self._hot_bytes -= directory.weight

    def name(self, entry: bytes) -> bytes:
        """The name of an entry, given its 32 bytes. Raises Corrupt, DeviceError."""
        length = entry[c.KEY_OFFSET]
        if length <= f.SHORT_NAME_MAX:
            if length == 0:
                raise Corrupt("directory entry without a name", found=entry.hex())
            return entry[c.NAME_OFFSET : c.NAME_OFFSET + length]
        if length != _LONG:
            raise Corrupt(
                "length of a name in a directory entry", wanted=f"1..{f.SHORT_NAME_MAX} or {_LONG}", found=length
            )
        return self._names.read(self._codec.slot_at(entry, 0))

    # --- changing ---

    def make_first_block(self, root: WritableRoot, number: int, parent: int) -> None:
        """Gives a new directory its '.' and '..'."""
        self._trees.resize(root, self._block_size)
        leaf = self._trees.writable_leaf(root, 0)
        leaf[:_ENTRY] = self._codec.short(number, b".")
        leaf[_ENTRY : 2 * _ENTRY] = self._codec.short(parent, b"..")

    def add(self, inode: Inode, root: WritableRoot, name: bytes, number: int) -> None:
        """Adds an entry; the name is not there yet."""
        directory = self.open(inode)
        offset = len(directory.raw)
        index, place = divmod(offset, self._block_size)
        if place == 0:
            self._trees.resize(root, offset + self._block_size)
        leaf = self._trees.writable_leaf(root, index)
        if len(name) <= f.SHORT_NAME_MAX:
            entry = self._codec.short(number, name)
        else:
            slot = self._names.add(name)
            entry = self._codec.long(number, slot, long_name_checksum(name))
        leaf[place : place + _ENTRY] = entry
        directory.appended(entry, name)
        if directory.memory > 2 * directory.weight:
            self._account(directory)

    def append_copy(self, inode: Inode, root: WritableRoot, index: int, entry: bytes) -> None:
        """Puts an entry behind the last one, at `index`, of a directory that nobody knows yet."""
        assert inode.number not in self._hot
        leaf, place = divmod(index * _ENTRY, self._block_size)
        if place == 0:
            self._trees.resize(root, (leaf + 1) * self._block_size)
        self._trees.writable_leaf(root, leaf)[place : place + _ENTRY] = entry

    def remove(self, inode: Inode, root: WritableRoot, index: int) -> None:
        """Removes an entry, and its long name; the last entry takes its place."""
        directory = self.open(inode)
        directory.prepare_removal()
        last = len(directory) - 1
        if directory.is_long(index):
            self._names.remove(directory.slot(index))
        last_leaf, last_place = divmod(last * _ENTRY, self._block_size)
        if index != last:
            leaf, place = divmod(index * _ENTRY, self._block_size)
            self._trees.writable_leaf(root, leaf)[place : place + _ENTRY] = directory.entry(last)
        if last_place == 0:
            self._trees.resize(root, last_leaf * self._block_size)
        else:
            self._trees.writable_leaf(root, last_leaf)[last_place : last_place + _ENTRY] = bytes(_ENTRY)
        directory.removed(index)

    def replace(self, inode: Inode, root: WritableRoot, index: int, number: int) -> None:
        """Lets an entry name another inode."""
        directory = self.open(inode)
        leaf, place = divmod(index * _ENTRY, self._block_size)
        word = self._codec.word(number)
        self._trees.writable_leaf(root, leaf)[place : place + len(word)] = word
        directory.replaced(index, word)

    # --- reading ---

    def _account(self, directory: Directory) -> None:
        self._hot_bytes += directory.memory - directory.weight
        directory.weight = directory.memory
