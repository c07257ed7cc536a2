"""Through a tree of files, in the order of the paths' bytes, without believing it.

An entry that cannot be used (its name, its inode, its directory) is reported and left out, and the walk goes on. A directory
on the way to itself is such an entry. The whole walk has a `Budget`, which counts the bytes of directories: in a sound volume
no two share any.

Memory: the names of one directory for each level of the path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from cowfs.errors import Corrupt, CowfsError, NotADirectory, NotFound
from cowfs.export.budget import Budget
from cowfs.export.names import shown
from cowfs.fs import Filesystem
from cowfs.fs.attributes import Attributes
from cowfs.ondisk import format as f

PATH_BYTES_MAX: Final = 16384  # four times what Linux takes in one call
_FIRST_ENTRY: Final = 2  # behind '.' and '..'

OnProblem = Callable[[bytes, CowfsError], None]
"""Is told the path and the error of everything that is left out."""


@dataclass(frozen=True, slots=True)
class Visit:
    """Something in the tree: `path` is relative to where the walk began, which itself has an empty one.

    A directory comes twice: before what is in it, and with `leaving` after that.
    """

    path: bytes
    attributes: Attributes
    leaving: bool = False

    @property
    def name(self) -> bytes:
        """The last part of the path."""
        return self.path.rpartition(b"/")[2]


@dataclass(slots=True)
class _Level:
    visit: Visit
    keys: list[bytes]  # of what is still to come, the next one last


def resolve(filesystem: Filesystem, path: bytes) -> tuple[bytes, Attributes]:
    """The path without superfluous slashes and dots, and what it leads to; symbolic links are not followed.

    Raises NotFound, NotADirectory, Corrupt, DeviceError.
    """
    parts: list[bytes] = []
    attributes = filesystem.getattr(f.ROOT_INODE)
    for name in path.split(b"/"):
        if name in (b"", b"."):
            continue
        if name == b"..":
            raise NotFound("'..' is not followed in a volume")
        if not is_directory(attributes):
            raise NotADirectory(f"/{shown(b'/'.join(parts))} is no directory")
        parts.append(name)
        try:
            attributes = filesystem.lookup(attributes.ino, name)
        except NotFound:
            raise NotFound(f"there is no /{shown(b'/'.join(parts))}") from None
    return b"/".join(parts), attributes


def is_directory(attributes: Attributes) -> bool:
    """Whether it is a directory."""
    return attributes.mode & 0o170000 == 0o040000


def walk(
    filesystem: Filesystem,
    start: Attributes,
    on_problem: OnProblem,
    budget: Budget,
    *,
    recursive: bool = True,
) -> Iterator[Visit]:
    """Visits `start` and all below it, or, unless `recursive`, what is directly in it.

    Raises Corrupt when the budget is used up.
    """
    first = Visit(b"", start)
    yield first
    if not is_directory(start):
        return
    stack = [_Level(first, _keys(filesystem, first, on_problem, budget))]
    above = {start.ino}
    while stack:
        level = stack[-1]
        if not level.keys:
            stack.pop()
            above.discard(level.visit.attributes.ino)
            yield Visit(level.visit.path, level.visit.attributes, leaving=True)
            continue
        name, number = _from_key(level.keys.pop())
        path = level.visit.path + b"/" + name if level.visit.path else name
        try:
            attributes = filesystem.entry_attributes(number)
            if is_directory(attributes) and number in above:
                raise Corrupt(f"directory {number} contains itself")
            if len(path) > PATH_BYTES_MAX:
                raise Corrupt(f"a path of more than {PATH_BYTES_MAX} bytes")
        except CowfsError as error:
            on_problem(path, error)
            continue
        visit = Visit(path, attributes)
        yield visit
        if is_directory(attributes):
            if recursive:
                above.add(number)
                stack.append(_Level(visit, _keys(filesystem, visit, on_problem, budget)))
            else:
                yield Visit(path, attributes, leaving=True)


def _keys(filesystem: Filesystem, where: Visit, on_problem: OnProblem, budget: Budget) -> list[bytes]:
    """The entries of a directory, the first one last: one bytes object for each keeps a million of them small."""
    budget.blocks(-(-where.attributes.size // where.attributes.block_size) + 1)
    directories = filesystem.directories
    keys: list[bytes] = []
    try:
        directory = directories.open(filesystem.inode(where.attributes.ino))
    except CowfsError as error:
        on_problem(where.path, error)
        return keys
    for index in range(_FIRST_ENTRY, len(directory)):
        name = b""
        try:
            name = directories.name(directory.entry(index))
            if name in (b".", b"..") or b"/" in name or b"\0" in name:
                raise Corrupt("a name that no file can have", found=repr(name))
            number = directory.number(index)
        except CowfsError as error:
            on_problem(where.path, Corrupt(f"entry {index}: {error}"))
            continue
        keys.append(_key(filesystem, name, number))
    keys.sort(reverse=True)
    return keys


def _key(filesystem: Filesystem, name: bytes, number: int) -> bytes:
    """Sorts as the path does: that of a directory goes on with a slash, and names have no zero byte."""
    try:
        directory = is_directory(filesystem.entry_attributes(number))
    except CowfsError:  # whoever visits it meets it again
        directory = False
    return name + (b"/" if directory else b"") + b"\0" + number.to_bytes(4, "big")


def _from_key(key: bytes) -> tuple[bytes, int]:
    return key[:-5].removesuffix(b"/"), int.from_bytes(key[-4:], "big")
