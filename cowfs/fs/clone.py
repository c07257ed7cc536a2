"""Copies that share their data: of a file as one operation, of a directory entry by entry.

A copy is an inode of its own (number, generation, birth, ctime) with the same blocks below it: each top pointer is one more
parent of its block, at most 16 for the data and 16 for the extended attributes, whatever the size. Either side breaks away
block by block where it is written (`Transaction.shadow`). Mode, owner, times and attributes are kept.

A tree is copied below a hidden root: a directory with link count 0 on the orphan list, so that whatever is committed
meanwhile is sound, and a copy that is broken off, by an error or a crash, is released like any other orphan (`release`).
`TreeClone` drives that.

Locking: the core thread only. What is copied from does not change meanwhile: a snapshot, a pin, or, for one file, any tree.
"""

from __future__ import annotations

from cowfs.errors import IsADirectory, TooManyLinks
from cowfs.fs.attributes import Attributes, without_privileges
from cowfs.fs.inode import Inode
from cowfs.fs.release import ReleaseOperations
from cowfs.fs.space import name_cost, orphan_cost
from cowfs.fs.xattr import CAPABILITIES
from cowfs.ondisk import codecs as c
from cowfs.ondisk import format as f
from cowfs.storage.blocktree import Root

COPY_INODES = 3  # that one entry may change: the directory, the copy, and the holder of its attributes


class CloneOperations(ReleaseOperations):
    """The operations on copies. `keep_privileges`: files keep setuid, setgid and capabilities."""

    def clone_file(
        self, source: CloneOperations, ino: int, parent: int, name: bytes, *, keep_privileges: bool = True
    ) -> Attributes:
        """A copy, in this tree, of anything but a directory in `source`: a constant amount of work.

        Raises IsADirectory, Exists, NotFound, NameTooLong, TooManyLinks (blocks have a limit of parents), NoSpace, Corrupt,
        each before anything changes.
        """
        inode = source._inode(ino)
        if inode.is_directory:
            raise IsADirectory
        where, directory = self._directory_for_change(parent)
        self._check_new(directory, name)
        holder, own = _attributes(source, inode, keep_privileges)
        self._trees.check_share(_roots(inode, holder))
        with self.volume.operation():
            self.inodes.prepare_allocation(2 if holder or own else 1)
            self._admit(name_cost(self.tree, COPY_INODES, where) + self._lists_cost(own))
            now = self._now()
            root = self.inodes.make_writable(where)
            number = self._copy_inode(inode, holder, own, links=1, keep_privileges=keep_privileges, now=now)
            self.directories.add(where, root, name, number)
            where.mtime = where.ctime = now
        return self.inodes.attributes(self._inode(number))

    def _copy_inode(
        self, inode: Inode, holder: Inode | None, own: bytes, *, links: int, keep_privileges: bool, now: int
    ) -> int:
        """The number of a new inode with the data of another, and its attributes or those in `own`; all was asked before."""
        roots = self._trees.share(_roots(inode, holder))
        holder_number = self.xattrs.new_holder(own, now) if own else 0
        if holder is not None:
            holder_number = self.inodes.allocate_copy(holder, roots[-1], mode=holder.mode, links=1, now=now)
        mode = without_privileges(inode.mode) if inode.is_regular and not keep_privileges else inode.mode
        root = Root(f.KIND_FILE) if inode.is_directory else roots[0]
        return self.inodes.allocate_copy(inode, root, mode=mode, links=links, xattr_inode=holder_number, now=now)

    # --- trees ---

    @property
    def is_gone(self) -> bool:
        """Whether the tree was rolled back, or deleted."""
        return self._orphans is None

    def begin_copy(self, source: CloneOperations, inode: Inode, parent: int, name: bytes) -> int:
        """The number of the hidden root of a copy of a directory of `source`, empty yet, which is to be `name` in `parent`.

        `parent` and the root are held until `finish_copy` or `abandon_copy`. Raises NotFound, Exists, NameTooLong,
        TooManyLinks, NoSpace, SpaceShort, Corrupt, each before anything changes.
        """
        _, directory = self._directory_for_change(parent)
        self._check_new(directory, name)
        orphans = self._orphans
        assert orphans is not None
        holder = source.xattrs.holder(inode)
        self._trees.check_share(_roots(inode, holder))
        with self.volume.operation():
            self.inodes.prepare_allocation(1 if holder is None else 2)
            self._admit(name_cost(self.tree, COPY_INODES) + orphan_cost(self.tree, orphans.levels) + 1)
            copy = self._copy_directory(inode, holder, parent, links=0)
            orphans.add(copy)
        self.hold(parent)
        self.hold(copy)
        return copy

    def copy_entry(
        self,
        source: CloneOperations,
        parent: int,
        index: int,
        entry: bytes,
        inode: Inode,
        known: int | None,
        *,
        keep_privileges: bool,
    ) -> int:
        """Puts a copy of what an entry of a directory of `source` names behind the last entry of the hidden `parent`.

        `known`: the copy of an inode that has been copied under another name. Returns the number of the copy. Raises
        NoSpace, SpaceShort, TooManyLinks, Corrupt, each before anything changes.
        """
        where = self._inode(parent)
        if known is None and inode.is_directory and where.links >= f.LINK_COUNT_MAX:
            raise TooManyLinks  # only damage has so many in one directory
        holder, own = _attributes(source, inode, keep_privileges) if known is None else (None, b"")
        block = self._name_block(source, entry)
        self._trees.check_share(_roots(inode, holder) if known is None else (), () if block is None else (block,))
        if block is not None:
            self._names.prepare()
        with self.volume.operation():
            if known is None:
                self.inodes.prepare_allocation(2 if holder or own else 1)
            self._admit(name_cost(self.tree, COPY_INODES, where) + 1 + self._lists_cost(own))
            root = self.inodes.make_writable(where)
            if known is not None:
                self.inodes.add_link(known)
                number = known
            elif inode.is_directory:
                number = self._copy_directory(inode, holder, parent, links=2)
                where.links += 1 if where.links else 0  # the hidden root has no links until it has a name
            else:
                now = self._now()
                number = self._copy_inode(inode, holder, own, links=1, keep_privileges=keep_privileges, now=now)
            self.directories.append_copy(where, root, index, self._entry_of(entry, number, block))
        return number

    def finish_copy(self, number: int, subdirectories: int, parent: int, name: bytes) -> Attributes:
        """Gives a hidden root, all of which is there now, its name. Raises Exists, NotFound, TooManyLinks, NoSpace."""
        where, directory = self._directory_for_change(parent)
        copy = self._inode(number)
        orphans = self._orphans
        assert orphans is not None
        self._check_new(directory, name)
        if max(where.links + 1, 2 + subdirectories) > f.LINK_COUNT_MAX:
            raise TooManyLinks
        with self.volume.operation():
            self._admit(name_cost(self.tree, 2, where) + orphan_cost(self.tree, orphans.levels))
            now = self._now()
            root = self.inodes.make_writable(where)
            self.inodes.make_writable(copy)
            orphans.remove(number)
            copy.links = 2 + subdirectories
            copy.ctime = now
            self.directories.add(where, root, name, number)
            where.links += 1
            where.mtime = where.ctime = now
        self.unhold(number)
        self.unhold(parent)
        return self.inodes.attributes(copy)

    def abandon_copy(self, number: int, parent: int) -> None:
        """The copy is not wanted any more: `release_slice` takes it apart."""
        if self._orphans is None:
            return  # the tree is no more; where it was saved, its list of orphans was
        self.unhold(number)
        self.unhold(parent)

    def _copy_directory(self, inode: Inode, holder: Inode | None, parent: int, *, links: int) -> int:
        """The number of a copy of a directory, without its entries."""
        number = self._copy_inode(inode, holder, b"", links=links, keep_privileges=True, now=self._now())
        self.directories.make_first_block(self.inodes.make_writable(self._inode(number)), number, parent)
        return number

    def _name_block(self, source: CloneOperations, entry: bytes) -> int | None:
        """The block with the name of a long entry."""
        if entry[c.KEY_OFFSET] != f.LONG_NAME_MARK:
            return None
        return source._names.block(self._entries.slot_at(entry, 0))

    def _entry_of(self, entry: bytes, number: int, block: int | None) -> bytes:
        """The same entry for another inode, with a long-name slot of its own."""
        if block is None:
            return self._entries.word(number) + entry[c.KEY_OFFSET :]
        return self._entries.long(number, self._names.share(block), self._entries.checksum_at(entry, 0))

    @property
    def _entries(self) -> c.EntryCodec:
        return self.directories.codec


def _attributes(source: CloneOperations, inode: Inode, keep_privileges: bool) -> tuple[Inode | None, bytes]:
    """The holder of attributes that a copy shares, or, where it must not keep all of them, what it has in one of its own."""
    holder = source.xattrs.holder(inode)
    if holder is None or keep_privileges or not inode.is_regular or CAPABILITIES not in source.xattrs.names(inode):
        return holder, b""
    return None, source.xattrs.without(inode, CAPABILITIES)


def _roots(inode: Inode, holder: Inode | None) -> list[Root]:
    """What the copy of an inode shares: its data, unless it is a directory, and its attributes."""
    roots = [] if inode.is_directory else [inode.root]
    return roots if holder is None else [*roots, holder.root]
