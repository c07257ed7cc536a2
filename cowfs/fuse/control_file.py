"""The control directory of a mount: `.cowfs` in the root, by lookup only, and the file `control` in it.

With it lie `snapshots` (see `trees`) and `query` (see there), by which a mount is asked that is read-only for the kernel.

One write is one command; a command that fails fails its write with its errno, and reading the same descriptor gives the
JSON reply either way. What a descriptor reads is a stream of its own: positions say nothing, except that reading at
position 0 starts the reply again. `docs/CONTROL.md` has the grammar.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Sequence
from dataclasses import replace

import pyfuse3

from cowfs import control
from cowfs.control.host import Host
from cowfs.errors import CowfsError, NotADirectory, NotFound, NotPermitted
from cowfs.fs.attributes import Attributes
from cowfs.fs.snapshot import Snapshots
from cowfs.fuse import convert, late
from cowfs.fuse.handlers import DirectoryHandle
from cowfs.fuse.query import QueryDirectory, QueryHandle
from cowfs.fuse.trees import FolderPage, SnapshotFolder, Trees

DIRECTORY_NODE = convert.CONTROL_NODES | 1
FILE_NODE = convert.CONTROL_NODES | 2
FOLDER_NODE = convert.CONTROL_NODES | 3
QUERY_NODE = convert.CONTROL_NODES | 4
FIRST_QUERY_NODE = convert.CONTROL_NODES | 5
DOTS = (b".", b"..")
_BLOCK_SIZE = 4096
_NOT_LOGGED = (control.INFO.words, ("scrub", "status"))  # asked often, and changing nothing

log = logging.getLogger(__name__)


class ControlHandle:
    """One open descriptor of the control file: the reply to its last command, and how much of it was read."""

    def __init__(self, host: Host, uid: int = 0) -> None:
        self._host = host
        self._uid = uid
        self._reply: bytes | None = None
        self._position = 0

    async def write(self, data: bytes) -> int:
        """Carries out the command in `data`. Raises what the command raises."""
        from cowfs.control import commands  # which opening has loaded

        self._reply, self._position = b"", 0
        try:
            command = replace(control.parse(data), uid=self._uid)
            reply = await self._host.work(control.encode_steps(await commands.execute(command, self._host)))
            if command.words not in _NOT_LOGGED:
                log.info("command: %s", command.to_json().decode())
        except CowfsError as error:
            self._reply = control.encode_reply(control.failure(error))
            raise
        except OSError as error:
            failed = control.CommandFailed(error.errno or errno.EIO, str(error))
            self._reply = control.encode_reply(control.failure(failed))
            raise failed from error
        self._reply = reply
        return len(data)

    def read(self, offset: int, size: int) -> bytes:
        """The next piece of the reply; before the first command, of that to `info`."""
        if self._reply is None:
            from cowfs.control import commands

            self._reply = control.encode_reply(commands.run(control.INFO, self._host))
        if offset == 0:
            self._position = 0
        piece = self._reply[self._position : self._position + size]
        self._position += len(piece)
        return piece


class ControlDirectory:
    """The nodes of the control directory. They belong to the mounting user. `folder` is that of the snapshots, if any."""

    def __init__(self, host: Host, trees: Trees, snapshots: Snapshots | None) -> None:
        self._host = host
        self._uid, self._gid = os.getuid(), os.getgid()
        self._time = time.time_ns()
        self._query = QueryDirectory(QUERY_NODE, FIRST_QUERY_NODE, host, (self._uid, self._gid), self._time)
        self.folder: SnapshotFolder | None = None
        if snapshots is not None:
            self.folder = SnapshotFolder(FOLDER_NODE, trees, snapshots, (self._uid, self._gid), self._time)

    def lookup(self, node: int, name: bytes) -> pyfuse3.EntryAttributes:
        """The entry of a name in the control directory, or in one of its directories."""
        if self._query.has(node):
            return self.entry(DIRECTORY_NODE) if (node, name) == (QUERY_NODE, b"..") else self._query.lookup(node, name)
        if node not in (DIRECTORY_NODE, FOLDER_NODE):
            raise NotADirectory
        if name == b".":
            return self.entry(node)
        if node == FOLDER_NODE:
            if name == b"..":
                return self.entry(DIRECTORY_NODE)
            raise NotFound
        if name == control.SNAPSHOTS_NAME and self.folder is not None:
            return self.entry(FOLDER_NODE)
        if name == control.FILE_NAME:
            return self.entry(FILE_NODE)
        if name == control.QUERY_NAME:
            return self.entry(QUERY_NODE)
        raise NotFound

    def entry(self, node: int) -> pyfuse3.EntryAttributes:
        """Attributes of one of the nodes."""
        if self._query.has(node):
            return self._query.entry(node)
        if node == FOLDER_NODE and self.folder is not None:
            return convert.entry(self.folder.attributes(), node)
        if node == DIRECTORY_NODE:
            mode, links = stat.S_IFDIR | 0o555, 2
        elif node == FILE_NODE:
            mode, links = stat.S_IFREG | 0o600, 1
        else:
            raise NotFound
        times = (self._time,) * 4
        attributes = Attributes(node, 0, mode, links, self._uid, self._gid, 0, 0, 0, *times, _BLOCK_SIZE)
        result = convert.entry(attributes, node)
        if node == FILE_NODE:
            result.attr_timeout = 0.0  # the kernel takes what is written for its size
        return result

    async def list(self, handle: DirectoryHandle, start: int, token: pyfuse3.ReaddirToken) -> None:
        """Replies to readdir from cookie `start` on. The trees come without true attributes: who wants those asks."""
        told = 0
        for number, (name, node) in enumerate(self._names(handle.node)[start:], start + 1):
            if not pyfuse3.readdir_reply(token, name, self.entry(node), number):
                return
            told += 1
        if handle.node != FOLDER_NODE or self.folder is None:
            return
        place = max(0, start - len(DOTS))
        if told or handle.page is None or handle.page.start != place:
            handle.page = FolderPage(place)
        while await self._host.work(self.folder.fill_steps(handle.page)):
            while handle.page.infos:
                info = handle.page.infos[-1]
                node = self.folder.mention(info)
                if not pyfuse3.readdir_reply(token, info.name, _unopened(node), info.place + 1 + len(DOTS)):
                    return
                handle.page.passed()

    def _names(self, node: int) -> Sequence[tuple[bytes, int]]:
        """Those that do not change."""
        names = [*zip(DOTS, (node, DIRECTORY_NODE), strict=True)]
        if node == DIRECTORY_NODE:
            names += [(control.FILE_NAME, FILE_NODE), (control.QUERY_NAME, QUERY_NODE)]
            if self.folder is not None:
                names.append((control.SNAPSHOTS_NAME, FOLDER_NODE))
        return names

    async def open(self, node: int, uid: int) -> ControlHandle | QueryHandle:
        """A descriptor for commands, or for the reply to one. Root and the mounting user may command."""
        if uid not in (0, self._uid):
            raise NotPermitted
        if self._query.has(node):
            return await self._query.open(node)
        if node != FILE_NODE:
            raise NotFound
        await late.commands_loaded(self._host)
        return ControlHandle(self._host, uid)

    def forget(self, node: int, count: int) -> None:
        """The kernel takes lookups back."""
        self._query.forget(node, count)


def _unopened(node: int) -> pyfuse3.EntryAttributes:
    """A tree's root directory, of which the kernel asks more when it needs it: listing 100,000 trees opens none."""
    result = pyfuse3.EntryAttributes()
    result.st_ino = node
    result.st_mode = stat.S_IFDIR | 0o755
    result.st_nlink = 2
    result.attr_timeout = 0.0
    result.entry_timeout = convert.CACHE_SECONDS
    return result
