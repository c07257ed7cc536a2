"""Reading a directory while it changes.

Positions are no cookies in a dense directory, since removing an entry moves another. So a listing walks its own copy of the
entries, taken when it begins at the start (opendir, rewinddir): a cookie is an index into the copy, unique, and found
again at once. Entries that went meanwhile are left out, none comes twice, none that stayed is missed.

Locking: the core thread only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from cowfs.errors import NotADirectory
from cowfs.fs.attributes import Attributes
from cowfs.ondisk.codecs import ENTRY_SIZE

if TYPE_CHECKING:
    from cowfs.fs.filesystem import Filesystem

ListedEntry = tuple[int, bytes, int, Callable[[], Attributes]]
"""(cookie to go on behind it, name, inode number, a function that gets its attributes)"""


class Listing:
    """One directory being listed; belongs to one open handle."""

    def __init__(self, filesystem: Filesystem, ino: int) -> None:
        self._filesystem = filesystem
        self._ino = ino
        self._copy = b""
        self._version = 0
        self._begin()

    def entries(self, start: int = 0) -> Iterator[ListedEntry]:
        """The entries from cookie `start` on, '.' and '..' first. 0 begins anew, with what is there now.

        The directory may change between two entries. Raises Stale, Corrupt, DeviceError.
        """
        if start <= 0:
            self._begin()
            start = 0
        filesystem = self._filesystem
        directories = filesystem.directories
        copy = self._copy
        for index in range(start, len(copy) // ENTRY_SIZE):
            entry = copy[index * ENTRY_SIZE : (index + 1) * ENTRY_SIZE]
            inode = filesystem.inode(self._ino)
            if inode.links == 0:
                return
            directory = directories.open(inode)
            place = index
            if directory.version != self._version:
                place = directory.find_entry(index, entry)
                if place < 0:
                    continue
            number = directory.number(place)
            yield index + 1, directories.name(entry), number, partial(filesystem.entry_attributes, number)

    def _begin(self) -> None:
        inode = self._filesystem.inode(self._ino)
        if not inode.is_directory:
            raise NotADirectory
        directory = self._filesystem.directories.open(inode)
        self._copy = directory.freeze()
        self._version = directory.version
