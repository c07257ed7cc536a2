"""Reading a directory while it changes.

Positions are no cookies in a dense directory, since removing an entry moves another. So a listing walks its own copy of the
entries, taken when it begins at the start (opendir, rewinddir): a cookie is an index into the copy, unique, and found
again at once. Entries that went meanwhile are left out, none comes twice, none that stayed is missed.

A page of entries is prepared at once, with all attributes; what the next pages need is read ahead, in runs. Within a page
nothing changes.

Locking: the core thread only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from cowfs.errors import Corrupt, DeviceError, NotADirectory
from cowfs.fs.attributes import Attributes, Listed
from cowfs.fs.directory import Directory
from cowfs.ondisk import format as f
from cowfs.ondisk.codecs import ENTRY_SIZE

if TYPE_CHECKING:
    from cowfs.fs.filesystem import Filesystem

READ_AHEAD: Final = 512
"""Entries whose inodes and long names are read together: 16 leaves of inodes that were made one after the other."""

ListedEntry = tuple[int, bytes, int, Callable[[], Attributes]]
"""(cookie to go on behind it, name, inode number, a function that gets its attributes)"""

PagedEntry = tuple[int, bytes, int, Listed | Corrupt]
"""(cookie to go on behind it, name, inode number, its attributes or what is wrong with them)"""


class Listing:
    """One directory being listed; belongs to one open handle."""

    def __init__(self, filesystem: Filesystem, ino: int) -> None:
        self._filesystem = filesystem
        self._ino = ino
        self._copy = b""
        self._version = 0
        self._ahead = 0  # the first entry for which nothing was read ahead yet
        self._begin()

    def entries(self, start: int = 0) -> Iterator[ListedEntry]:
        """The entries from cookie `start` on, '.' and '..' first. 0 begins anew, with what is there now.

        The directory may change between two entries. Raises Stale, Corrupt, DeviceError.
        """
        if start <= 0:
            self._begin()
            start = 0
        filesystem = self._filesystem
        for index in range(start, len(self)):
            directory = self._directory()
            if directory is None:
                return
            for cookie, name, number in self._names(directory, index, 1):
                yield cookie, name, number, partial(filesystem.entry_attributes, number)

    def page(self, start: int, count: int) -> list[PagedEntry]:
        """At most `count` entries from cookie `start` on, as `entries`, with their attributes; none at the end only.

        Where the name or the device fails, the page ends before; the next one meets it. Raises Stale, Corrupt,
        DeviceError.
        """
        if start <= 0:
            self._begin()
            start = 0
        directory = self._directory()
        while directory is not None and start < len(self):
            self._read_ahead(start, count)
            page: list[PagedEntry] = []
            try:
                cookies, names, numbers = self._columns(directory, start, count)
                found = self._filesystem.bulk.attributes(numbers, "a directory entry")
                page = list(zip(cookies, names, numbers, found, strict=True))
            except (Corrupt, DeviceError):
                if count == 1:
                    raise
                count = max(1, count // 2)
                continue
            if page:
                return page
            start += count
        return []

    def __len__(self) -> int:
        return len(self._copy) // ENTRY_SIZE

    def _directory(self) -> Directory | None:
        """The directory as it is now; None if it was removed."""
        inode = self._filesystem.inode(self._ino)
        return self._filesystem.directories.open(inode) if inode.links else None

    def _columns(
        self, directory: Directory, start: int, count: int
    ) -> tuple[Sequence[int], Sequence[bytes], Sequence[int]]:
        """Cookies, names and inode numbers, each in a row, as `_names` has them."""
        codec = self._filesystem.directories.codec
        entries = self._copy[start * ENTRY_SIZE : (start + count) * ENTRY_SIZE]
        if directory.version == self._version and codec.all_short(entries):  # as most are
            names = [padded[:length] for _, length, padded in codec.listed(entries)]
            return range(start + 1, start + 1 + len(names)), names, codec.numbers(entries)
        found = list(self._names(directory, start, count))
        return [cookie for cookie, _, _ in found], [name for _, name, _ in found], [number for _, _, number in found]

    def _names(self, directory: Directory, start: int, count: int) -> Iterator[tuple[int, bytes, int]]:
        """(cookie, name, inode number) of the entries from `start` on that are still there."""
        directories = self._filesystem.directories
        entries = self._copy[start * ENTRY_SIZE : (start + count) * ENTRY_SIZE]
        same = directory.version == self._version
        cookie = start
        for number, length, padded in directories.codec.listed(entries):
            cookie += 1
            if same and 0 < length <= f.SHORT_NAME_MAX:
                yield cookie, padded[:length], number
                continue
            entry = self._copy[(cookie - 1) * ENTRY_SIZE : cookie * ENTRY_SIZE]
            place = cookie - 1 if same else directory.find_entry(cookie - 1, entry)
            if place >= 0:
                yield cookie, directories.name(entry), directory.number(place)

    def _read_ahead(self, start: int, count: int) -> None:
        """Has what these entries and those behind them need read in a few runs, unless that was done before."""
        if start + count <= self._ahead or self._ahead >= len(self):
            return
        start = max(start, self._ahead)
        self._ahead = start + max(count, READ_AHEAD)
        codec = self._filesystem.directories.codec
        entries = self._copy[start * ENTRY_SIZE : self._ahead * ENTRY_SIZE]
        self._filesystem.bulk.read_ahead(codec.numbers(entries), codec.slots(entries))

    def _begin(self) -> None:
        inode = self._filesystem.inode(self._ino)
        if not inode.is_directory:
            raise NotADirectory
        directory = self._filesystem.directories.open(inode)
        self._copy = directory.freeze()
        self._version = directory.version
        self._ahead = 0
