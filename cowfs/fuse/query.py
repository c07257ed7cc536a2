"""Asking a mount by opening a file: `.cowfs/query/COMMAND`, for commands that change nothing.

Where the kernel takes a mount for read-only it lets nobody open a file for writing, so the control file cannot be told a
command there. What lies in this directory is opened for reading: the name is the command, the contents are the reply.
The files exist by lookup only. A name that ends in a bare `%` goes on with the name below it, since a name has its limit.

A command that fails cannot fail `open(2)` and still say why; so its descriptor reads the failure as JSON, and then, where
a reply would end, gives the errno.

Locking: the trio thread only.
"""

from __future__ import annotations

import errno
import stat
from dataclasses import dataclass

import pyfuse3

from cowfs import control
from cowfs.control.host import Host
from cowfs.errors import CowfsError, InvalidArgument, NotADirectory, NotFound
from cowfs.fs.attributes import Attributes
from cowfs.fuse import convert, late

_BLOCK_SIZE = 4096


class QueryHandle:
    """An open descriptor: the whole reply, and the errno that stands at its end, or 0."""

    def __init__(self, reply: bytes, error: int) -> None:
        self._reply = reply
        self._error = error

    def read(self, offset: int, size: int) -> bytes:
        """A piece of the reply. Raises the failure of the command behind its end."""
        piece = self._reply[offset : offset + size]
        if not piece and self._error:
            raise pyfuse3.FUSEError(self._error)
        return piece


@dataclass(slots=True)
class _Name:
    """What the kernel knows: the encoded command so far, and how often it looked it up."""

    text: bytes
    lookups: int = 0

    @property
    def is_directory(self) -> bool:
        return control.query_goes_on(self.text)


class QueryDirectory:
    """The directory with node `node`; the names in it get the nodes from `first` on."""

    def __init__(self, node: int, first: int, host: Host, owner: tuple[int, int], now: int) -> None:
        self.node = node
        self._next = first
        self._host = host
        self._owner = owner
        self._time = now
        self._names: dict[int, _Name] = {}
        self._nodes: dict[bytes, int] = {}

    def has(self, node: int) -> bool:
        """Whether this is the directory, or a name below it that the kernel knows."""
        return node == self.node or node in self._names

    def lookup(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        """Every name exists below a directory."""
        before = b""
        if parent != self.node:
            above = self._names[parent]
            if not above.is_directory:
                raise NotADirectory
            before = above.text
        if name in (b".", b".."):
            return self.entry(parent if name == b"." else self.node)
        text = control.query_joined(before, name)
        if len(text) > control.QUERY_SIZE_MAX:
            raise InvalidArgument("too long for a command")
        node = self._nodes.get(text)
        if node is None:
            node = self._nodes[text] = self._next
            self._next += 1
            self._names[node] = _Name(text)
        self._names[node].lookups += 1
        return self.entry(node)

    def forget(self, node: int, count: int) -> None:
        """The kernel takes lookups back."""
        known = self._names.get(node)
        if known is not None:
            known.lookups -= count
            if known.lookups <= 0:
                del self._names[node], self._nodes[known.text]

    def entry(self, node: int) -> pyfuse3.EntryAttributes:
        """Attributes; the kernel keeps neither them nor the name."""
        directory = node == self.node or self._names[node].is_directory
        mode = stat.S_IFDIR | 0o500 if directory else stat.S_IFREG | 0o400
        times = (self._time,) * 4
        attributes = Attributes(node, 0, mode, 2 if directory else 1, *self._owner, 0, 0, 0, *times, _BLOCK_SIZE)
        result = convert.entry(attributes, node)
        if node != self.node:
            result.entry_timeout = result.attr_timeout = 0.0
        return result

    async def open(self, node: int) -> QueryHandle:
        """Carries out the command that is the file's name; its failure is the descriptor's."""
        known = self._names.get(node)
        if known is None or known.is_directory:
            raise NotFound
        await late.commands_loaded(self._host)
        from cowfs.control import commands

        try:
            command = control.parse(control.query_decoded(known.text))
            found = await commands.execute(command, self._host, reading=True)
            reply = await self._host.work(control.encode_steps(found))
        except CowfsError as error:
            return QueryHandle(control.encode_reply(control.failure(error)), error.errno)
        except OSError as error:
            failed = control.CommandFailed(error.errno or errno.EIO, str(error))
            return QueryHandle(control.encode_reply(control.failure(failed)), failed.errno)
        return QueryHandle(reply, 0)
