"""What every request handler has in common: exceptions become errnos, and changes wait for space.

Any exception other than FUSEError in a handler ends pyfuse3, and with it the mount. Each handler therefore stands under
one of three decorators: `answers`, if it only reads; `changes`, if it changes the volume, since it is then repeated
after commits when space is short; `waits`, if it awaits by itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import trio

from cowfs.errors import NoSpace, SpaceShort
from cowfs.fs import Filesystem, Listing
from cowfs.fuse import convert
from cowfs.fuse.commits import CommitScheduler
from cowfs.fuse.trees import FolderPage


class Door(Protocol):
    """What the decorators need of the object whose methods they wrap."""

    commits: CommitScheduler
    commits_each: bool
    """Whether each change is durable before it is answered."""


class Cold(Exception):
    """A large directory is not in memory, and others shall be served while it is read."""

    def __init__(self, tree: Filesystem, ino: int) -> None:
        super().__init__()
        self._tree = tree
        self._ino = ino

    async def warm(self) -> None:
        """Reads it. Raises Stale, Corrupt, DeviceError."""
        while self._tree.is_cold(self._ino):
            self._tree.load_slice(self._ino)
            await trio.lowlevel.checkpoint()


DoorT = TypeVar("DoorT", bound=Door)
P = ParamSpec("P")
R = TypeVar("R")


def answers(
    function: Callable[Concatenate[DoorT, P], R],
) -> Callable[Concatenate[DoorT, P], Coroutine[Any, Any, R]]:
    """A handler that changes nothing; it is repeated when what it raised `Cold` for is warm."""
    name = function.__name__

    @functools.wraps(function)
    async def handler(self: DoorT, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            while True:
                try:
                    return function(self, *args, **kwargs)
                except Cold as cold:
                    await cold.warm()
        except Exception as error:
            raise convert.answer(error, name) from None

    return handler


def changes(
    function: Callable[Concatenate[DoorT, P], R],
) -> Callable[Concatenate[DoorT, P], Coroutine[Any, Any, R]]:
    """A handler that changes the volume: all of it, or it raises SpaceShort before anything, and is then repeated."""
    name = function.__name__

    @functools.wraps(function)
    async def handler(self: DoorT, /, *args: P.args, **kwargs: P.kwargs) -> R:
        commits = self.commits
        try:
            if commits.crowded:
                await commits.make_room()
            try:
                result = function(self, *args, **kwargs)
            except SpaceShort:
                result = await commits.retry(functools.partial(function, self, *args, **kwargs))
            except NoSpace as error:
                if not await commits.make_space(error):
                    raise
                result = await commits.retry(functools.partial(function, self, *args, **kwargs))
            if self.commits_each:
                await commits.commit()
            return result
        except Exception as error:
            raise convert.answer(error, name) from None

    return handler


def waits(
    function: Callable[Concatenate[DoorT, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[DoorT, P], Coroutine[Any, Any, R]]:
    """A handler that awaits by itself."""
    name = function.__name__

    @functools.wraps(function)
    async def handler(self: DoorT, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await function(self, *args, **kwargs)
        except Exception as error:
            raise convert.answer(error, name) from None

    return handler


class FileHandle:
    """An open file.

    `kills_privileges`: a write takes away setuid and setgid bits, as for everybody but root. `privileged`: the file had
    such bits when it was opened, so the kernel has to be told when they go. `cached_writer`: the thread that opened it for
    writing through the kernel's write cache, or 0.
    """

    __slots__ = ("cached_writer", "ino", "kills_privileges", "node", "privileged", "tree")

    def __init__(
        self,
        tree: Filesystem,
        node: int,
        *,
        kills_privileges: bool,
        privileged: bool = False,
        cached_writer: int = 0,
    ) -> None:
        self.tree = tree
        self.node = node
        self.ino = node & convert.INODE_MASK
        self.kills_privileges = kills_privileges
        self.privileged = privileged
        self.cached_writer = cached_writer


class DirectoryHandle:
    """An open directory, with the listing in progress. The control directory has no tree.

    `page_size`: entries to prepare for the next reply, as many as the last one had.
    """

    __slots__ = ("ino", "listing", "node", "page", "page_size", "tree")

    def __init__(self, tree: Filesystem | None, node: int) -> None:
        self.tree = tree
        self.node = node
        self.page: FolderPage | None = None  # of the listing of the folder of snapshots
        self.ino = node & convert.INODE_MASK
        self.listing: Listing | None = None
        self.page_size = 0
