"""One tree of files as its users see it: every inode named as often as its link count says, every directory once.

The directories are read in the order of their inodes, not by descending: so a directory that hangs from nothing is read
as well, and only the inodes at which something was cut off are reported. Memory: four bytes for each inode, about 200
for each directory.
"""

from __future__ import annotations

import array
import stat
from collections.abc import Iterator
from functools import partial

from cowfs.check import problem as p
from cowfs.check.attributes import orphan_numbers, target_failure, xattr_failure
from cowfs.check.directories import DirectoryReader, Work, shown
from cowfs.check.reader import BlockReader, Contents, contents_of
from cowfs.check.trees import TYPES, FileTree, InodePage, TreeWalk
from cowfs.ondisk import format as f

_HIDDEN = 2  # in InodePage.used


class NamespaceCheck:
    """Checks one tree. `walk` has entered the tree's blocks before."""

    def __init__(self, walk: TreeWalk, reader: BlockReader, report: p.Report, tree: FileTree, work: Work) -> None:
        self._walk = walk
        self._reader = reader
        self._report = report
        self._tree = tree
        self._work = work
        self._foreign = reader.state.extension is None
        self._per_page = reader.geometry.inodes_per_block
        self._blocks: dict[int, int] = {}  # by page of inodes, its block
        self._pages: dict[int, InodePage] = {}
        self._names: dict[int, array.array[int]] = {}  # by page, how many entries name each inode
        self._parents: dict[int, int] = {}  # of directories
        self._named_again: list[tuple[int, int]] = []  # directories with more than one name: (directory, where)
        self._dot_dots: dict[int, int] = {}
        self._subdirectories: dict[int, int] = {}
        self._holders: dict[int, int] = {}  # of extended attributes: whose
        self._orphans: set[int] = set()
        self._contents_seen: set[tuple[int, tuple[int, ...], int]] = set()
        self._directories = DirectoryReader(reader, report, tree, work)

    def run(self, counts: p.Counts | None = None) -> None:
        """All checks of the tree; with `counts` the objects found are added there. Raises GaveUp."""
        self._load_inodes()
        self._check_inode_counts()
        root = self._inode(f.ROOT_INODE)
        if root is None or not stat.S_ISDIR(root.mode):
            self._report.add(p.ROOT_DIRECTORY, "inode 1 is not a directory", inode=f.ROOT_INODE, tree=self._tree.id)
        if not self._foreign:
            self._read_orphan_list()
        self._read_contents()
        self._directories.check_slots()
        self._settle_parents()
        self._check_links()
        self._check_parents()
        if counts is not None:
            self._count(counts)

    # --- inodes ---

    def _load_inodes(self) -> None:
        def repeated(block: int) -> None:
            self._report.add(p.BLOCK_REPEATED, "in the inode file", block=block, tree=self._tree.id)

        for index, block in self._reader.leaves(contents_of(self._tree.inode), set(), repeated):
            page = self._walk.inode_pages.get(block)
            if page is not None:
                self._work.spend(1)
                self._blocks[index] = block
                self._pages[index] = page
                self._names[index] = array.array("I", bytes(4 * self._per_page))

    def _check_inode_counts(self) -> None:
        tree = self._tree
        per_block = self._reader.block_size
        if tree.num_inodes * f.INODE_SIZE != tree.inode.size or (not self._foreign and tree.inode.size % per_block):
            text = f"{tree.num_inodes} inodes in an inode file of {tree.inode.size} bytes"
            self._report.add(p.NUM_INODES, text, tree=tree.id)
        used = sum(len(page.used) - page.used.count(0) for page in self._pages.values())
        if tree.num_inodes - used != tree.free_inodes:
            text = f"{tree.num_inodes - used} counted, {tree.free_inodes} found"
            self._report.add(p.FREE_INODES, text, tree=tree.id)
        lowest = self._lowest_free()
        if not self._foreign and lowest < tree.inode.hint and lowest <= tree.num_inodes:
            text = f"inode {lowest} is free, the hint is {tree.inode.hint}"
            self._report.add(p.INODE_HINT, text, tree=tree.id)

    def _lowest_free(self) -> int:
        index = 0
        while index in self._pages:
            place = self._pages[index].used.find(0)
            if place >= 0:
                return index * self._per_page + place + 1
            index += 1
        return index * self._per_page + 1

    def _state(self, number: int) -> int:
        """0: there is no such inode in use; 1: there is; 2: it is hidden."""
        index, place = divmod(number - 1, self._per_page)
        page = self._pages.get(index)
        return page.used[place] if page is not None and number > 0 else 0

    def _links(self, number: int) -> int:
        index, place = divmod(number - 1, self._per_page)
        return self._pages[index].links[place]

    def _inode(self, number: int) -> f.DiskInode | None:
        if not self._state(number):
            return None
        index, place = divmod(number - 1, self._per_page)
        data = self._reader.block(self._blocks[index])
        return f.DiskInode.unpack(data, place * f.INODE_SIZE, self._reader.geometry.order)

    # --- contents ---

    def _read_contents(self) -> None:
        """Directories, symbolic links, extended attributes."""
        for index in sorted(self._pages):
            page = self._pages[index]
            wanted = [
                i for i, mode in enumerate(page.modes) if page.used[i] and self._has_known_contents(mode, page, i)
            ]
            if wanted:
                data = self._reader.block(self._blocks[index])
                for i in wanted:
                    inode = f.DiskInode.unpack(data, i * f.INODE_SIZE, self._reader.geometry.order)
                    self._read_inode(index * self._per_page + i + 1, inode, page.used[i] == _HIDDEN)

    def _has_known_contents(self, mode: int, page: InodePage, i: int) -> bool:
        if stat.S_ISDIR(mode):
            return True
        return not self._foreign and (stat.S_ISLNK(mode) or page.used[i] == _HIDDEN or i in page.xattr)

    def _read_inode(self, number: int, inode: f.DiskInode, hidden: bool) -> None:
        contents = contents_of(inode)
        if hidden:
            if not stat.S_ISREG(inode.mode) or inode.xattr_inode:
                self._add(p.INODE_FIELD, "a hidden inode that is no plain regular file", number)
            elif number != f.ORPHAN_INODE and self._is_new(contents):
                failure = xattr_failure(self._reader, contents, self._work)
                if failure:
                    self._add(p.XATTR_CONTENTS, failure, number)
            return
        if not self._foreign and inode.xattr_inode:
            self._enter_holder(number, inode.xattr_inode)
        if stat.S_ISDIR(inode.mode):
            self._read_directory(number, contents)
        elif stat.S_ISLNK(inode.mode):
            failure = target_failure(self._reader, contents, self._work)
            if failure:
                self._add(p.SYMLINK_TARGET, failure, number)

    def _is_new(self, contents: Contents) -> bool:
        """Whether contents with these very pointers have not been looked at before."""
        key = (contents.size, contents.ptr, contents.levels)
        if key in self._contents_seen:
            return False
        self._contents_seen.add(key)
        return True

    def _enter_holder(self, number: int, holder: int) -> None:
        if self._state(holder) != _HIDDEN or holder == f.ORPHAN_INODE:
            self._add(p.XATTR_INODE, f"inode {holder} is no holder of extended attributes", number)
        elif holder in self._holders:
            self._add(p.XATTR_SHARED, f"inode {holder} belongs to inode {self._holders[holder]}", number)
        else:
            self._holders[holder] = number

    def _read_directory(self, number: int, contents: Contents) -> None:
        directory = self._directories.read(number, contents, partial(self._enter_name, number))
        self._dot_dots[number] = directory.parent
        if not self._foreign and directory.entries and self._links(number) == 0:
            self._add(p.ORPHAN_NOT_EMPTY, f"{directory.entries} entries", number)

    def _enter_name(self, parent: int, number: int, name: bytes) -> None:
        state = self._state(number)
        if state != 1:
            why = "is hidden" if state else "is not in use"
            self._add(p.ENTRY_INODE, f"entry {shown(name)}: inode {number} {why}", parent)
            return
        index, place = divmod(number - 1, self._per_page)
        self._names[index][place] += 1
        if stat.S_ISDIR(self._pages[index].modes[place]):
            if number == f.ROOT_INODE or number in self._parents:
                self._add(p.DIRECTORY_NAMED_TWICE, f"also as {shown(name)} in inode {parent}", number)
                self._named_again.append((number, parent))
            else:
                self._set_parent(number, parent)

    def _set_parent(self, number: int, parent: int) -> None:
        old = self._parents.get(number)
        if old is not None:
            self._subdirectories[old] -= 1
        self._parents[number] = parent
        self._subdirectories[parent] = self._subdirectories.get(parent, 0) + 1

    def _settle_parents(self) -> None:
        """Of several directories that name one, that which its `..` leads to counts as its parent."""
        for number, parent in self._named_again:
            if number != f.ROOT_INODE and self._dot_dots.get(number) == parent:
                self._set_parent(number, parent)

    def _read_orphan_list(self) -> None:
        inode = self._inode(f.ORPHAN_INODE)
        if inode is None or not stat.S_ISREG(inode.mode) or not inode.flags & f.INODE_FLAG_HIDDEN:
            self._add(p.ORPHAN_LIST, "it is not a hidden regular file", f.ORPHAN_INODE)
            return
        used = sum(len(page.used) - page.used.count(0) for page in self._pages.values())
        if inode.size % f.ORPHAN_ENTRY_SIZE or inode.size // f.ORPHAN_ENTRY_SIZE > used:
            self._add(p.ORPHAN_LIST, f"{inode.size} bytes with {used} inodes in use", f.ORPHAN_INODE)
            return
        for number in orphan_numbers(self._reader, contents_of(inode)):
            if self._state(number) != 1 or self._links(number):
                self._add(p.ORPHAN_ENTRY, f"inode {number} is not an orphan", f.ORPHAN_INODE)
            elif number in self._orphans:
                self._add(p.ORPHAN_ENTRY, f"inode {number} is listed twice", f.ORPHAN_INODE)
            else:
                self._orphans.add(number)
        if self._orphans and self._tree.id == 0:
            self._add(p.ORPHANS, f"{len(self._orphans)} unlinked but not yet released", f.ORPHAN_INODE)

    # --- the whole ---

    def _in_use(self) -> Iterator[tuple[int, InodePage, int, int]]:
        """(number, page, place in the page, names) of every inode in use."""
        for index in sorted(self._pages):
            page = self._pages[index]
            names = self._names[index]
            base = index * self._per_page + 1
            for place, used in enumerate(page.used):
                if used:
                    yield base + place, page, place, names[place]

    def _check_links(self) -> None:
        for number, page, place, names in self._in_use():
            links = page.links[place]
            if page.used[place] == _HIDDEN:
                if number != f.ORPHAN_INODE and number not in self._holders:
                    self._add(p.HIDDEN_UNUSED, "hidden, and nobody's extended attributes", number)
                wanted = 1
            elif names == 0 and number != f.ROOT_INODE:
                self._check_nameless(number, links)
                continue
            elif stat.S_ISDIR(page.modes[place]):
                wanted = 2 + self._subdirectories.get(number, 0)
            else:
                wanted = names
            if links != wanted and not (self._foreign and links == 0):
                self._add(p.LINK_COUNT, f"{wanted} counted, {links} found", number)

    def _check_nameless(self, number: int, links: int) -> None:
        if links:
            self._add(p.UNREACHABLE, f"link count {links}, and no entry names it", number)
        elif not self._foreign and number not in self._orphans:
            self._add(p.ORPHAN_UNLISTED, "link count 0, and not on the orphan list", number)

    def _check_parents(self) -> None:
        """`..` of every directory, and directories that only hang from one another."""
        for number, found in self._dot_dots.items():
            wanted = f.ROOT_INODE if number == f.ROOT_INODE else self._parents.get(number)
            if wanted is not None and found != wanted:
                self._add(p.DIRECTORY_DOTS, f".. leads to inode {found}, not to {wanted}", number)
        settled: set[int] = set()
        for start in self._parents:
            path: list[int] = []
            on_path: set[int] = set()
            number = start
            while number in self._parents and number not in settled and number not in on_path:
                path.append(number)
                on_path.add(number)
                number = self._parents[number]
            if number in on_path:
                loop = path[path.index(number) :]
                self._add(p.DIRECTORY_LOOP, "inodes " + ", ".join(map(str, loop[:20])), min(loop))
            settled.update(path)

    def _count(self, counts: p.Counts) -> None:
        counts.inodes = self._tree.num_inodes
        counts.orphans = len(self._orphans)
        for _, page, place, _ in self._in_use():
            mode = page.modes[place]
            if page.used[place] == _HIDDEN or stat.S_IFMT(mode) not in TYPES:
                continue
            if stat.S_ISREG(mode):
                counts.files += 1
            elif stat.S_ISDIR(mode):
                counts.directories += 1
            elif stat.S_ISLNK(mode):
                counts.symlinks += 1
            else:
                counts.others += 1

    def _add(self, kind: p.Kind, text: str, number: int) -> None:
        self._report.add(kind, text, inode=number, tree=self._tree.id)
