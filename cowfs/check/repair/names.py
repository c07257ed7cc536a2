"""Mending the names of one tree: every entry leads to an inode, every inode is named as often as it says.

All directories are read with all that can be an entry, put right in memory, and written where their bytes change. What is
in use without a name goes to `lost+found`. Memory: some 300 bytes for each entry.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from typing import Final

from cowfs.check.attributes import orphan_numbers
from cowfs.check.directories import DOTS, shown
from cowfs.check.reader import contents_of
from cowfs.check.repair import attributes
from cowfs.check.repair.fields import unused_name
from cowfs.check.repair.treeedit import HIDDEN, TreeEdit
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import long_name_checksum
from cowfs.ondisk.codecs import DOT_DOT_KEY, DOT_KEY, ENTRY_SIZE, KEY_OFFSET, NAME_OFFSET

LOST_AND_FOUND: Final = b"lost+found"
_NO_SLOT: Final = -1
_DOTS: Final = 2
_ROOT_MODE: Final = stat.S_IFDIR | 0o755
_LOST_AND_FOUND_MODE: Final = stat.S_IFDIR | 0o700


@dataclass(slots=True)
class Entry:
    """An entry; `number` 0: removed. `slot` is where its long name stands, if it does; `checksum` what it says of it."""

    number: int
    name: bytes
    slot: int = _NO_SLOT
    checksum: int = 0


@dataclass(slots=True)
class Directory:
    """A directory: `parent` is what `..` says, `blocks` its size if that is what its blocks say, else 0."""

    number: int
    parent: int = 0
    blocks: int = 0
    entries: list[Entry] = field(default_factory=list)


class NameMender:
    """Mends one tree."""

    def __init__(self, edit: TreeEdit) -> None:
        self._edit = edit
        self._reader = edit.ws.reader
        self._order = edit.ws.geometry.order
        self._directories: dict[int, Directory] = {}
        self._visited: set[int] = set()
        self._parents: dict[int, int] = {}
        self._names: dict[int, int] = {}  # how many entries name an inode
        self._listed: list[int] = []  # on the orphan list, as found
        self._orphans: list[int] = []
        self._moved: dict[int, int] = {}

    def run(self) -> None:
        """All of it; the tree has new roots then."""
        attributes.mend_hidden(self._edit)
        self._mend_orphan_inode()
        attributes.drop_bad_symlinks(self._edit)
        self._mend_root()
        for number in list(self._edit.numbers()):
            if self._edit.state(number) != HIDDEN and stat.S_ISDIR(self._edit.mode(number)):
                self._directories[number] = self._read(number)
        self._settle_inodes()
        self._settle_long_names()
        self._settle_names()
        self._settle_parents()
        self._reconnect()
        attributes.mend_xattrs(self._edit)
        self._settle_links()
        self._store_orphans()
        self._store_directories()
        self._edit.store()

    # --- inodes 1 and 2 ---

    def _new_inode(self, mode: int) -> f.DiskInode:
        extension = self._edit.ws.extension
        extension.generation += 1
        seconds, nanoseconds = divmod(self._edit.ws.now_ns, 1_000_000_000)
        seconds &= 0xFFFFFFFF
        inode = f.DiskInode(mode=mode, links=1, status=f.STATUS_IN_USE, generation=extension.generation & 0xFFFFFFFF)
        inode.birth = inode.mtime = inode.atime = inode.ctime = seconds
        inode.mtime_extra = inode.atime_extra = inode.ctime_extra = nanoseconds
        return inode

    def _mend_root(self) -> None:
        edit = self._edit
        if edit.state(f.ROOT_INODE) == 1 and stat.S_ISDIR(edit.mode(f.ROOT_INODE)):
            return
        if edit.state(f.ROOT_INODE):
            old = edit.edit(f.ROOT_INODE)
            old.flags = 0
            number = edit.new(old)
            edit.say(f"what was inode 1 is inode {number} now", f.ROOT_INODE)
        edit.put(f.ROOT_INODE, self._new_inode(_ROOT_MODE))
        edit.say("a new root directory is made", f.ROOT_INODE)

    def _mend_orphan_inode(self) -> None:
        edit = self._edit
        number = f.ORPHAN_INODE
        state = edit.state(number)
        if state and not stat.S_ISREG(edit.mode(number)):
            old = edit.edit(number)
            old.flags = 0
            self._moved[number] = edit.new(old)
            edit.say(f"what was inode 2 is inode {self._moved[number]} now", number)
            state = 0
        if not state:
            inode = self._new_inode(stat.S_IFREG)
            inode.flags = f.INODE_FLAG_HIDDEN
            edit.put(number, inode)
            edit.say("a new list of orphans is made", number)
            return
        inode = edit.inode(number)
        used = sum(1 for _ in edit.numbers())
        if inode.size % f.ORPHAN_ENTRY_SIZE == 0 and inode.size // f.ORPHAN_ENTRY_SIZE <= used:
            self._listed = orphan_numbers(self._reader, contents_of(inode))
        else:
            edit.say("the list of orphans cannot be read; it begins anew", number)
            edit.set_contents(number, b"")
        if state != HIDDEN or inode.xattr_inode:
            inode = edit.edit(number)
            inode.flags, inode.xattr_inode = f.INODE_FLAG_HIDDEN, 0
            edit.say("the list of orphans is hidden again", number)

    # --- reading ---

    def _raw(self, number: int, visited: set[int]) -> tuple[bytes, int]:
        """The blocks of a directory one after the other; their number if that is its size, and no hole between, else 0."""
        inode = self._edit.inode(number)
        leaves = list(self._reader.leaves(contents_of(inode), visited, lambda block: None))
        dense = [index for index, _ in leaves] == list(range(len(leaves)))
        whole = inode.size == len(leaves) * self._reader.block_size
        data = b"".join(self._reader.block(block) for _, block in leaves)
        if leaves and leaves[0][0]:
            data = self._reader.zeros + data  # `.` and `..` are lost
        return data, len(leaves) if dense and whole else 0

    def _read(self, number: int) -> Directory:
        data, blocks = self._raw(number, self._visited)
        directory = Directory(number, 0, blocks)
        if data[ENTRY_SIZE + KEY_OFFSET : 2 * ENTRY_SIZE] == DOT_DOT_KEY:
            directory.parent = f.ShortEntry.unpack(data, ENTRY_SIZE, self._order).inode
        gap = False
        for at in range(_DOTS * ENTRY_SIZE, len(data), ENTRY_SIZE):
            raw = data[at : at + ENTRY_SIZE]
            entry = self._parse(raw)
            if entry is None:
                gap = True
            elif not (gap and not entry.name):  # behind a gap only what is complete
                directory.entries.append(entry)
        return directory

    def _parse(self, raw: bytes) -> Entry | None:
        number = int.from_bytes(raw[:KEY_OFFSET], "little" if self._order == "<" else "big")
        if number == 0:
            return None
        number = self._moved.get(number, number)
        if raw[KEY_OFFSET] == f.LONG_NAME_MARK:
            entry = f.LongEntry.unpack(raw, 0, self._order)
            return Entry(number, self._edit.slot_name(entry.slot), entry.slot, entry.checksum)
        return Entry(number, raw[NAME_OFFSET:].rstrip(b"\0"))

    # --- entries ---

    def _settle_inodes(self) -> None:
        """Entries lead to inodes that can have a name."""
        edit = self._edit
        for directory in self._directories.values():
            for entry in directory.entries:
                state = edit.state(entry.number)
                if state != 1 or entry.number == f.ORPHAN_INODE:
                    why = "is hidden" if state else "is not in use"
                    self._remove(directory, entry, f"inode {entry.number} {why}")
                elif entry.number == f.ROOT_INODE:
                    self._remove(directory, entry, "it names the root")
                elif (entry.name == DOTS[0] and entry.number == directory.number) or entry.name == DOTS[1]:
                    self._remove(directory, entry, "it stands in the wrong place")
            directory.entries = [entry for entry in directory.entries if entry.number]

    def _remove(self, directory: Directory, entry: Entry, why: str) -> None:
        self._edit.say(f"entry {shown(entry.name)} is removed: {why}", directory.number)
        entry.number = 0

    def _settle_long_names(self) -> None:
        """Every slot in use has one entry; an entry whose name is lost finds it again by its checksum."""
        edit = self._edit
        claimed: set[int] = set()
        nameless: list[tuple[Directory, Entry]] = []
        for directory in self._directories.values():
            for entry in directory.entries:
                if entry.slot == _NO_SLOT:
                    continue
                if not entry.name:
                    nameless.append((directory, entry))
                elif entry.slot in claimed:
                    edit.say(f"entry {shown(entry.name)} gets a long-name slot of its own", directory.number)
                    entry.slot = _NO_SLOT
                else:
                    claimed.add(entry.slot)
                    if long_name_checksum(entry.name) != entry.checksum:
                        edit.say(f"entry {shown(entry.name)} gets the checksum of its name", directory.number)
        unclaimed = {long_name_checksum(edit.slot_name(slot)): slot for slot in edit.slots if slot not in claimed}
        for directory, entry in nameless:
            entry.slot = unclaimed.pop(entry.checksum, _NO_SLOT)
            if entry.slot != _NO_SLOT:
                claimed.add(entry.slot)
                entry.name = edit.slot_name(entry.slot)
                edit.say(f"the long name {shown(entry.name)} is found again", directory.number)
        for slot in [slot for slot in edit.slots if slot not in claimed]:
            edit.say(f"long-name slot {slot} has no entry and is freed")
            del edit.slots[slot]

    def _settle_names(self) -> None:
        """Every name can be one, and stands once in its directory."""
        for directory in self._directories.values():
            names: set[bytes] = set()
            first: dict[bytes, int] = {}
            for entry in directory.entries:
                name = entry.name.replace(b"\0", b"_").replace(b"/", b"_")
                if not name or name in DOTS:
                    name = b"#%d" % entry.number
                if name in names and first.get(name) == entry.number:
                    self._remove(directory, entry, "it stands there twice")
                    self._release_slot(entry)
                    continue
                if name in names:
                    name = unused_name(name, names, f.NAME_MAX)
                names.add(name)
                first[name] = entry.number
                if name != entry.name:
                    self._edit.say(f"entry {shown(entry.name)} becomes {shown(name)}", directory.number)
                    entry.name = name
                    self._release_slot(entry)
            directory.entries = [entry for entry in directory.entries if entry.number]

    def _release_slot(self, entry: Entry) -> None:
        if entry.slot != _NO_SLOT:
            self._edit.slots.pop(entry.slot, None)
            entry.slot = _NO_SLOT

    # --- parents ---

    def _settle_parents(self) -> None:
        """Every directory is named once, and hangs from the root."""
        named: dict[int, list[tuple[Directory, Entry]]] = {}
        for directory in self._directories.values():
            for entry in directory.entries:
                if entry.number in self._directories:
                    named.setdefault(entry.number, []).append((directory, entry))
                else:
                    self._names[entry.number] = self._names.get(entry.number, 0) + 1
        for number, places in named.items():
            wanted = self._directories[number].parent
            best = next((place for place in places if place[0].number == wanted), places[0])
            for place in places:
                if place is not best:
                    self._remove(*place, why=f"directory {number} has another name")
                    self._release_slot(place[1])
            self._parents[number] = best[0].number
        self._break_loops()

    def _break_loops(self) -> None:
        settled: set[int] = set()
        for start in sorted(self._parents):
            path: list[int] = []
            number = start
            while number in self._parents and number not in settled and number not in path:
                path.append(number)
                number = self._parents[number]
            if number in path:
                parent = self._directories[self._parents.pop(number)]
                for entry in parent.entries:
                    if entry.number == number:
                        self._remove(parent, entry, "the directories hold one another")
                        self._release_slot(entry)
            settled.update(path)

    def _reconnect(self) -> None:
        """What is in use and has no name goes to lost+found, but for orphans on the list."""
        edit = self._edit
        listed = set(self._listed)
        for number in list(edit.numbers()):
            if edit.state(number) == HIDDEN or number == f.ROOT_INODE:
                continue
            if self._names.get(number) or number in self._parents:
                continue
            directory = self._directories.get(number)
            if number in listed and not edit.links(number):
                continue
            place = self._lost_and_found()
            names = {entry.name for entry in place.entries}
            name = b"#%d" % number
            name = unused_name(name, names, f.SHORT_NAME_MAX) if name in names else name
            place.entries.append(Entry(number, name))
            edit.say(f"nothing names it; it is {shown(LOST_AND_FOUND + b'/' + name)} now", number)
            if directory is not None:
                self._parents[number] = place.number
            else:
                self._names[number] = 1
        self._orphans = [number for number in dict.fromkeys(self._listed) if self._is_orphan(number)]

    def _is_orphan(self, number: int) -> bool:
        nameless = not self._names.get(number) and number not in self._parents
        return self._edit.state(number) == 1 and number != f.ROOT_INODE and nameless

    def _lost_and_found(self) -> Directory:
        root = self._directories[f.ROOT_INODE]
        for entry in root.entries:
            if entry.name == LOST_AND_FOUND and entry.number in self._directories:
                return self._directories[entry.number]
        names = {entry.name for entry in root.entries}
        name = LOST_AND_FOUND if LOST_AND_FOUND not in names else unused_name(LOST_AND_FOUND, names, f.SHORT_NAME_MAX)
        for entry in root.entries:
            if entry.name == name and entry.number in self._directories:
                return self._directories[entry.number]
        owner = self._edit.inode(f.ROOT_INODE)
        inode = self._new_inode(_LOST_AND_FOUND_MODE)
        inode.uid, inode.gid = owner.uid, owner.gid
        number = self._edit.new(inode)
        directory = self._directories[number] = Directory(number, f.ROOT_INODE)
        root.entries.append(Entry(number, name))
        self._parents[number] = f.ROOT_INODE
        self._edit.say(f"directory {shown(name)} is made", number)
        return directory

    # --- the end ---

    def _settle_links(self) -> None:
        edit = self._edit
        subdirectories: dict[int, int] = {}
        for parent in self._parents.values():
            subdirectories[parent] = subdirectories.get(parent, 0) + 1
        orphans = set(self._orphans)
        for number in list(edit.numbers()):
            if edit.state(number) == HIDDEN:
                links = 1
            elif number in orphans:
                links = 0
            elif number in self._directories:
                links = 2 + subdirectories.get(number, 0)
            else:
                links = self._names.get(number, 0)
            links = min(links, f.LINK_COUNT_MAX)
            if edit.links(number) != links:
                edit.say(f"its link count becomes {links}", number)
                edit.edit(number).links = links

    def _store_orphans(self) -> None:
        if self._orphans != self._listed:
            size = f.ORPHAN_ENTRY_SIZE
            order = "little" if self._order == "<" else "big"
            data = b"".join(number.to_bytes(size, order) for number in self._orphans)  # type: ignore[arg-type]
            self._edit.set_contents(f.ORPHAN_INODE, data)
            self._edit.say(f"the list of orphans has {len(self._orphans)} inodes now", f.ORPHAN_INODE)

    def _store_directories(self) -> None:
        visited: set[int] = set()
        for number, directory in self._directories.items():
            before, blocks = self._raw(number, visited)
            parent = f.ROOT_INODE if number == f.ROOT_INODE else self._parents.get(number, directory.parent)
            data = self._encode(directory, parent or f.ROOT_INODE)
            size = self._reader.block_size
            if blocks and data.ljust(blocks * size, b"\0") == before:
                continue
            self._edit.set_contents(number, data.ljust(-(-len(data) // size) * size, b"\0"))
            self._edit.say("the directory is written anew", number)

    def _encode(self, directory: Directory, parent: int) -> bytes:
        word = f.ShortEntry(directory.number, 1, DOTS[0]).pack(self._order)
        pieces = [word, f.ShortEntry(parent, len(DOTS[1]), DOTS[1]).pack(self._order)]
        assert pieces[0][KEY_OFFSET:] == DOT_KEY
        for entry in directory.entries:
            if not entry.number:
                continue
            if len(entry.name) <= f.SHORT_NAME_MAX:
                self._release_slot(entry)
                pieces.append(f.ShortEntry(entry.number, len(entry.name), entry.name).pack(self._order))
                continue
            if entry.slot == _NO_SLOT:
                entry.slot = self._edit.new_slot(entry.name)
            checksum = long_name_checksum(entry.name)
            pieces.append(f.LongEntry(entry.number, slot=entry.slot, checksum=checksum).pack(self._order))
        return b"".join(pieces)
