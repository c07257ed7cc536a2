"""What is different between two trees of one volume: a snapshot and the live tree, or any two snapshots or clones.

How: the inode files are compared pointer by pointer, and whatever is the same block in both is never looked at. That gives
the inodes that differ. An inode is the same object in both trees if its number and its generation are equal. Of
directories that differ, again only the blocks that differ are read; the entries that are not in both are the names that
came and went. Names that came and went of the same object are paired: it was renamed.

What is reported, sorted by path:

- `added`, `removed`: a path that is there in one tree only, of all that lies below a directory each one on its own. A new
  name for an object that keeps its old ones (a hard link) is added.
- `renamed`: an object that has lost a name and gained one. What lies below a renamed directory is not mentioned for that;
  but what left it is, even where it came to the path that it had before.
- `modified`: the contents are different: the size, a block, a device's number. Blocks are compared by their numbers, so a
  file that was rewritten with the bytes that it had is modified, too.
- `metadata`: permissions, owner, group, time of modification or extended attributes are different, the contents not.
  Times of a directory follow from what is added, removed, renamed or replaced in it; they are mentioned only where there is
  nothing of that.
  Access times, ctimes and link counts are not compared: they follow from reading and from other changes.

An object is modified once, under the first of its names; the others are in `links`. Where a new object has the name of one
of the same type that is gone, in the same directory (as when an editor saves a file, or a directory is made anew), the two
are compared as if they were one: modified if anything is different, not mentioned if nothing is. Objects without a name
(unlinked but open, or in a tree that is still being copied) are not mentioned.

Cost. Blocks read follow the number of differences, and the size of the directories on the paths that are printed; with one
exception: the names of a file that changed while the block of its directory that names it did not have to be searched for
(see `paths`). As a rule they are found near it; at worst all directories of the newer tree, and its inode file, are read
once. Memory follows the number of differences.

Between the slices of `diff_steps` other trees may change. A writable tree is compared in one slice: who cannot wait for that
pins it.

Locking: the core thread only. Changed inodes have been written back (`Volume.before_seal`).
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from cowfs.errors import Corrupt, NotFound
from cowfs.fs.attributes import type_name
from cowfs.fs.inode import Inode
from cowfs.fs.paths import NAMELESS, Name, Paths, normalised
from cowfs.fs.steps import Steps, Watch, finish, sort
from cowfs.fs.treescan import differing_leaves, split
from cowfs.fs.xattr import Xattrs
from cowfs.ondisk import format as f
from cowfs.storage.tree import Tree
from cowfs.storage.volume import Volume

_PERMISSIONS: Final = 0o7777
_CONTENTS: Final = frozenset({"content", "size", "device"})  # fields whose difference is no metadata


class ChangeKind(StrEnum):
    """What happened; those of one path are reported in this order."""

    REMOVED = "removed"
    ADDED = "added"
    RENAMED = "renamed"
    MODIFIED = "modified"
    METADATA = "metadata"


Replaced = dict[tuple[int, int], list[bytes]]
"""Paths by (inode number of what is gone, inode number of what took its place)"""

_ORDER: Final = {kind: place for place, kind in enumerate(ChangeKind)}


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. Paths are relative to the root of the tree; the root itself is `.`.

    `path` is in the newer tree, of what was removed in the older one. `old_path` is where the object was in the older tree:
    of what was renamed, and else where that is not `path`, because a directory above was renamed. `ino` is the number in
    the tree that `path` is in. `links`: other names of a modified object. `fields`: what of a modified object is
    different, in this order: content, size, device, mode, uid, gid, mtime, xattrs.
    """

    kind: ChangeKind
    path: bytes
    type: str
    ino: int
    old_path: bytes | None = None
    links: tuple[bytes, ...] = ()
    fields: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """For `json.dumps`; bytes of paths that are not UTF-8 become lone surrogates, as `os.fsdecode` has them."""
        value: dict[str, object] = {
            "kind": str(self.kind),
            "path": _text(self.path),
            "type": self.type,
            "ino": self.ino,
        }
        if self.old_path is not None:
            value["old_path"] = _text(self.old_path)
        if self.links:
            value["links"] = [_text(path) for path in self.links]
        if self.fields:
            value["fields"] = list(self.fields)
        return value


def diff(volume: Volume, a: Tree, b: Tree, path: bytes = b"") -> Iterator[Change]:
    """The changes that lead from tree `a` to tree `b`, at and below `path` (the whole: empty, `.` or `/`).

    A rename of a directory above `path` is not a change below it. Raises NotFound where neither tree has the path, Corrupt,
    DeviceError.
    """
    return iter(finish(diff_steps(volume, a, b, path)))


def diff_steps(volume: Volume, a: Tree, b: Tree, path: bytes = b"") -> Steps[list[Change]]:
    """`diff` in slices. Raises Busy as well, where a snapshot was deleted between two of them."""
    return (yield from _Diff(volume, a, b, path).run())


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


class _Diff:
    """One comparison. Numbers and names of the older tree are called old, those of the newer one new."""

    def __init__(self, volume: Volume, a: Tree, b: Tree, path: bytes) -> None:
        self._trees = volume.trees
        watch = Watch(volume, [a, b])
        self._watch = watch
        self._old, self._new = Paths(volume, a, watch), Paths(volume, b, watch)
        self._xattrs = Xattrs(volume, self._old.inodes), Xattrs(volume, self._new.inodes)
        self._per_leaf = volume.geometry.inodes_per_block
        self._within = normalised(path)
        self._fields: dict[int, tuple[str, ...]] = {}  # of objects that are in both trees and differ
        self._links: dict[int, int] = {}  # link counts of those of them that are no directories
        self._names: dict[int, set[Name]] = {}  # their names in the newer tree
        self._slots: set[int] = set()  # of long names, that differ
        self._gone: dict[int, int] = {}  # modes of what is in the older tree only, by inode number
        self._fresh: dict[int, int] = {}  # modes of what is in the newer tree only
        self._pairs: list[tuple[int | None, int | None]] = []  # directories to compare
        self._removed: list[tuple[Name, int]] = []  # names of objects that are gone
        self._added: list[tuple[Name, int]] = []  # names of new objects
        self._lost: dict[int, list[Name]] = {}  # old names, gone now, of objects that are still there
        self._gained: dict[int, list[Name]] = {}  # new names of objects that were there before
        self._touched: tuple[set[bytes], set[bytes]] = set(), set()  # old and new paths below which a name changed

    def run(self) -> Steps[list[Change]]:
        """All changes, sorted."""
        if self._within and self._old.lookup(self._within) is None and self._new.lookup(self._within) is None:
            raise NotFound("neither tree has that path")
        steps = self._run()
        if self._watch.writable:
            return finish(steps)
        return (yield from steps)

    def _run(self) -> Steps[list[Change]]:
        yield from self._compare_inodes()
        yield from self._compare_slots()
        likely = sorted({new for old, new in self._pairs if new is not None})
        while self._pairs:
            old, new = self._pairs.pop()
            if old is not None and new is not None:
                yield from self._compare_directory(new)
            else:
                yield from self._list_directory(old, new)
        yield from self._find_names(likely)
        yield from self._resolve()
        replaced = yield from self._find_replaced()
        changes = []
        for found in self._changes(replaced):
            unnamed = found.old_path is not None and found.old_path.startswith(NAMELESS)
            change = replace(found, kind=ChangeKind.ADDED, old_path=None) if unnamed else found
            if not change.path.startswith(NAMELESS) and self._concerns(change):
                changes.append(change)
            yield from self._watch.tick()
        return (yield from sort(changes, _order, self._watch))

    # --- inodes ---

    def _compare_inodes(self) -> Steps[None]:
        old, new = self._old.tree.inodes, self._new.tree.inodes
        size = f.INODE_SIZE
        for index in differing_leaves(self._trees, old, new):
            one, other = self._trees.leaf(old, index), self._trees.leaf(new, index)
            for place in range(self._per_leaf):
                at = place * size
                if one[at : at + size] != other[at : at + size]:
                    self._compare_inode(index * self._per_leaf + place + 1)
            yield from self._watch.pause()

    def _compare_inode(self, number: int) -> None:
        old, new = self._old.inodes.find(number), self._new.inodes.find(number)
        if (old is None or old.is_hidden) and (new is None or new.is_hidden):
            return
        if old is None or new is None or old.generation != new.generation:
            if old is not None:
                self._gone[number] = old.mode
            if new is not None:
                self._fresh[number] = new.mode
            return
        if new.is_directory and self._contents_differ(old, new):
            self._pairs.append((number, number))
        fields = self._differing_fields(old, new)
        if fields and old.links and new.links:
            self._fields[number] = fields
            if not new.is_directory:
                self._links[number] = new.links

    def _differing_fields(self, old: Inode, new: Inode) -> tuple[str, ...]:
        fields = []
        if not new.is_directory:
            if self._contents_differ(old, new):
                fields.append("content")
            if old.root.size != new.root.size:
                fields.append("size")
            if old.rdev != new.rdev:
                fields.append("device")
        if (old.mode ^ new.mode) & _PERMISSIONS:
            fields.append("mode")
        fields += [name for name in ("uid", "gid", "mtime") if getattr(old, name) != getattr(new, name)]
        if self._xattrs_differ(old, new):
            fields.append("xattrs")
        return tuple(fields)

    def _contents_differ(self, old: Inode, new: Inode) -> bool:
        one, other = old.root, new.root
        return one.size != other.size or any(True for _ in differing_leaves(self._trees, one, other))

    def _xattrs_differ(self, old: Inode, new: Inode) -> bool:
        holders = []
        for inode, inodes in ((old, self._old.inodes), (new, self._new.inodes)):
            number = inode.xattr_inode
            holders.append(inodes.get_hidden(number, f"inode {inode.number}") if number else None)
        one, other = holders
        if one is None or other is None:
            return one is not other
        return self._contents_differ(one, other) and self._values(0, old) != self._values(1, new)

    def _values(self, which: int, inode: Inode) -> dict[bytes, bytes]:
        xattrs = self._xattrs[which]
        return {name: xattrs.get(inode, name) for name in xattrs.names(inode)}

    # --- names ---

    def _compare_slots(self) -> Steps[None]:
        """Finds the long-name slots that differ: an entry that is the same in both trees may have another name for that."""
        for slot in differing_leaves(self._trees, self._old.tree.longnames, self._new.tree.longnames):
            self._slots.add(slot)
            yield from self._watch.tick()

    def _list_directory(self, old: int | None, new: int | None) -> Steps[None]:
        """Enters all names in a directory that is in one of the trees only."""
        side, number, enter = (self._old, old, self._lose) if new is None else (self._new, new, self._gain)
        assert number is not None
        for entries in side.scan.chunks(side.inodes.get(number, "a directory entry").root):
            for entry in split(entries):
                enter((number, side.scan.name(entry)), side.scan.number(entry))
                yield from self._watch.tick()

    def _compare_directory(self, number: int) -> Steps[None]:
        """Finds the names that came and went in a directory that is in both trees."""
        old_root = self._old.inodes.get(number, "a directory entry").root
        new_root = self._new.inodes.get(number, "a directory entry").root
        before: set[bytes] = set()
        after: set[bytes] = set()
        for index in differing_leaves(self._trees, old_root, new_root):
            before.update(split(self._old.scan.leaf(old_root, index)))
            after.update(split(self._new.scan.leaf(new_root, index)))
            yield from self._watch.pause()
        was: dict[bytes, int] = {}
        for entry in before:
            if entry not in after or not self._same_object_and_name(entry):
                was[self._old.scan.name(entry)] = self._old.scan.number(entry)
            yield from self._watch.tick()
        now: dict[bytes, int] = {}
        for entry in after:
            if entry not in before or not self._same_object_and_name(entry):
                now[self._new.scan.name(entry)] = self._new.scan.number(entry)
            elif self._new.scan.number(entry) in self._links:
                self._note_name((number, self._new.scan.name(entry)), self._new.scan.number(entry))
            yield from self._watch.tick()
        yield from self._compare_names(number, was, now)

    def _same_object_and_name(self, entry: bytes) -> bool:
        number = self._new.scan.number(entry)
        if number in self._gone or number in self._fresh:
            return False
        slot = self._new.scan.slot(entry)
        return slot is None or slot not in self._slots

    def _compare_names(self, number: int, was: dict[bytes, int], now: dict[bytes, int]) -> Steps[None]:
        """The inode numbers of a directory's names before and after, entries that did not change left out."""
        for name in was.keys() | now.keys():
            one, other = was.get(name), now.get(name)
            if one is not None and one == other and one not in self._gone:
                self._note_name((number, name), one)
                continue
            if one is not None:
                self._lose((number, name), one)
            if other is not None:
                self._gain((number, name), other)
            yield from self._watch.tick()

    def _note_name(self, name: Name, number: int) -> None:
        """Notes a name that an object has in the newer tree, if the object is a file that changed."""
        if number in self._links:
            self._names.setdefault(number, set()).add(name)

    def _lose(self, name: Name, number: int) -> None:
        """A name of the older tree is gone."""
        if number not in self._gone:
            self._lost.setdefault(number, []).append(name)
            return
        self._removed.append((name, number))
        if stat.S_ISDIR(self._gone[number]):
            self._pairs.append((number, None))

    def _gain(self, name: Name, number: int) -> None:
        """A name of the newer tree is new."""
        if number not in self._fresh:
            self._gained.setdefault(number, []).append(name)
            self._note_name(name, number)
            return
        self._added.append((name, number))
        if stat.S_ISDIR(self._fresh[number]):
            self._pairs.append((None, number))

    # --- paths ---

    def _find_names(self, likely: Iterable[int]) -> Steps[None]:
        """Completes the names of files that changed."""
        counts = ((number, links - len(self._names.get(number, ()))) for number, links in self._links.items())
        missing = {number: count for number, count in counts if count > 0}
        if missing:
            yield from self._new.find_names(missing, likely, self._names)
        for number in missing:
            if not self._names.get(number):
                raise Corrupt(f"inode {number} has no name, but a link count")

    def _resolve(self) -> Steps[None]:
        """Makes the paths of all directories known that are needed."""
        directories = self._fields.keys() - self._links.keys()
        new = {name[0] for name, _ in self._added}.union(directories)
        old = {name[0] for name, _ in self._removed}.union(directories)
        for names in self._gained.values():
            new.update(directory for directory, _ in names)
        for names in self._lost.values():
            old.update(directory for directory, _ in names)
        for number in self._names:
            new.update(directory for directory, _ in self._names[number])
            old.update(directory for directory, _ in self._kept(number))
        yield from self._new.resolve(new)
        yield from self._old.resolve(old)

    def _kept(self, number: int) -> set[Name]:
        """The names that a changed file has in both trees."""
        return self._names.get(number, set()).difference(self._gained.get(number, ()))

    # --- changes ---

    def _find_replaced(self) -> Steps[Replaced]:
        """Objects that are gone, new ones of their type that have their names, and the paths of these."""
        removed: dict[bytes, tuple[Name, int]] = {}
        for name, number in self._removed:
            removed[self._old.path(name)] = name, number
            yield from self._watch.tick()
        both = []
        for name, number in self._added:
            path = self._new.path(name)
            if path in removed:
                both.append((path, *removed[path], name, number))
            yield from self._watch.tick()
        replaced: Replaced = {}
        # From the top down: what is in a directory that was replaced may be replaced itself.
        both = yield from sort(both, lambda one: one[0].count(b"/"), self._watch)
        for path, old_name, old, new_name, new in both:
            same_type = stat.S_IFMT(self._gone[old]) == stat.S_IFMT(self._fresh[new])
            if same_type and self._same_directory(old_name, new_name, replaced):
                replaced.setdefault((old, new), []).append(path)
            yield from self._watch.tick()
        return replaced

    def _same_directory(self, old: Name, new: Name, replaced: Replaced) -> bool:
        """Whether two names are in the same directory, or in one that was made anew and counts as the same."""
        return (old[0], new[0]) in replaced if old[0] in self._gone else old[0] == new[0]

    def _changes(self, replaced: Replaced) -> Iterator[Change]:
        """All changes, unsorted."""
        partners: dict[int, dict[bytes, bytes]] = {}
        yield from self._came_and_went(replaced)
        for number in self._lost.keys() | self._gained.keys():
            yield from self._moved(number, partners, replaced)
        yield from self._replacements(replaced)
        for number, fields in self._fields.items():
            yield from self._modified(number, fields, partners.get(number, {}))

    def _concerns(self, change: Change) -> bool:
        """Whether a change is at or below the path that is asked for."""
        paths = (change.path, *change.links, change.path if change.old_path is None else change.old_path)
        return any(map(self._is_within, paths))

    def _is_within(self, path: bytes) -> bool:
        return not self._within or path == self._within or path.startswith(self._within + b"/")

    def _first_within(self, paths: Iterable[bytes]) -> list[bytes]:
        """Sorted, those first that are asked for."""
        return sorted(paths, key=lambda path: (not self._is_within(path), _words(path)))

    def _moved(self, number: int, partners: dict[int, dict[bytes, bytes]], replaced: Replaced) -> Iterator[Change]:
        """The names that an object has lost and gained. `partners`: old paths by new ones, of what was renamed."""
        lost = {self._old.path(name): name for name in self._lost.get(number, ())}
        gained = {self._new.path(name): name for name in self._gained.get(number, ())}
        for path in lost.keys() & gained.keys():
            if self._same_directory(lost[path], gained[path], replaced):
                del lost[path], gained[path]
        old, new = sorted(lost, key=_words), sorted(gained, key=_words)
        kind = type_name(self._new.inodes.get(number, "a directory entry").mode)
        partners[number] = dict(zip(new, old, strict=False))
        for path, old_path in partners[number].items():
            self._touch(old_path, path)
            yield Change(ChangeKind.RENAMED, path, kind, number, old_path)
        for old_path in old[len(new) :]:
            self._touch(old_path, None)
            yield Change(ChangeKind.REMOVED, old_path, kind, number)
        for path in new[len(old) :]:
            self._touch(None, path)
            yield Change(ChangeKind.ADDED, path, kind, number)

    def _came_and_went(self, replaced: Replaced) -> Iterator[Change]:
        """What belongs to objects that are in one of the trees only, and was not replaced."""
        same = {path for paths in replaced.values() for path in paths}
        for name, number in self._removed:
            path = self._old.path(name)
            if path not in same:
                self._touch(path, None)
                yield Change(ChangeKind.REMOVED, path, type_name(self._gone[number]), number)
        for name, number in self._added:
            path = self._new.path(name)
            if path not in same:
                self._touch(None, path)
                yield Change(ChangeKind.ADDED, path, type_name(self._fresh[number]), number)

    def _replacements(self, replaced: Replaced) -> Iterator[Change]:
        """The differences between what is gone and what took its place."""
        directories = []
        for (old, new), names in replaced.items():
            inode = self._new.inodes.get(new, "a directory entry")
            fields = self._differing_fields(self._old.inodes.get(old, "a directory entry"), inode)
            if fields:
                paths = self._first_within(names)
                for path in paths:
                    self._touch(None, path)
                if inode.is_directory:
                    directories.append((inode, fields, paths))
                else:
                    yield from self._difference(inode, fields, paths, paths[0])
        for inode, fields, paths in directories:
            yield from self._difference(inode, fields, paths, paths[0])

    def _modified(self, number: int, fields: tuple[str, ...], partners: dict[bytes, bytes]) -> Iterator[Change]:
        """The differences of an object that is in both trees."""
        inode = self._new.inodes.get(number, "a changed inode")
        if inode.is_directory:
            path, old_path = self._new.directories[number], self._old.directories[number]
            return self._difference(inode, fields, [path], old_path)
        paths = self._first_within(map(self._new.path, self._names[number]))
        old = self._first_within(map(self._old.path, (*self._kept(number), *self._lost.get(number, ()))))
        if not old:
            raise Corrupt(f"inode {number} had no name, but a link count")
        if self._is_within(paths[0]) or not self._is_within(old[0]):
            old_path = paths[0] if paths[0] in old else partners.get(paths[0], old[0])
        else:
            old_path = old[0]
        return self._difference(inode, fields, paths, old_path)

    def _difference(
        self, inode: Inode, fields: tuple[str, ...], paths: Sequence[bytes], old_path: bytes
    ) -> Iterator[Change]:
        path = paths[0]
        if inode.is_directory and (old_path in self._touched[0] or path in self._touched[1]):
            fields = tuple(field for field in fields if field != "mtime")
        if fields:
            kind = ChangeKind.MODIFIED if _CONTENTS & set(fields) else ChangeKind.METADATA
            where = None if old_path == path else old_path
            yield Change(kind, path or b".", type_name(inode.mode), inode.number, where, tuple(paths[1:]), fields)

    def _touch(self, old_path: bytes | None, path: bytes | None) -> None:
        """Names came or went: the times of the directories above them follow."""
        for one, paths in zip((old_path, path), self._touched, strict=True):
            if one is not None:
                paths.add(one.rpartition(b"/")[0])


def _words(path: bytes) -> list[bytes]:
    return [] if path in (b"", b".") else path.split(b"/")


def _order(change: Change) -> tuple[list[bytes], int, bytes]:
    return _words(change.path), _ORDER[change.kind], change.old_path or b""
