"""The command set: text or JSON in, JSON out. The control file of a mount and the command line both use it.

A command is an ``async def`` that waits only for what its `Host` offers. Behind a mount the host is the daemon, where
waiting lets other requests go on; for an image that is not mounted nothing ever waits, and `run` carries the command
through without an event loop. The grammar, the replies and the errnos are in `docs/CONTROL.md`.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from cowfs import __version__
from cowfs.errors import CowfsError, InvalidArgument

if TYPE_CHECKING:  # a client of a daemon needs neither
    from cowfs.fs.filesystem import Filesystem

DIRECTORY_NAME = b".cowfs"
FILE_NAME = b"control"
COMMAND_SIZE_MAX = 65_536

Reply = dict[str, Any]


class Host(Protocol):
    """What carries commands out."""

    @property
    def filesystem(self) -> Filesystem:
        """The live tree."""
        ...

    @property
    def mount(self) -> Reply | None:
        """Where and how the volume is mounted; None for an image that is not."""
        ...

    async def flush_dirty_pages(self) -> None:
        """Brings what write(2) has returned, and the kernel still keeps, into the volume."""
        ...

    async def commit(self) -> None:
        """Returns when everything done so far is durable."""
        ...


@dataclass(frozen=True)
class Command:
    """The words (name of the command, then its arguments) and the options."""

    words: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """The JSON form, which keeps every name whatever characters it holds."""
        return json.dumps({"command": self.words, **self.options}).encode()


INFO = Command(("info",))
"""What a fresh descriptor of the control file answers without being asked."""


def parse(data: bytes) -> Command:
    """One command, in text or in JSON, without or with a newline at its end. Raises InvalidArgument."""
    if len(data) > COMMAND_SIZE_MAX:
        raise InvalidArgument(f"a command has at most {COMMAND_SIZE_MAX} bytes")
    text = data.removesuffix(b"\n").decode("utf-8", "surrogateescape")
    command = _parse_json(text) if text.lstrip().startswith("{") else _parse_text(text)
    if not command.words:
        raise InvalidArgument("an empty command")
    return command


def _parse_text(text: str) -> Command:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InvalidArgument(f"not a command: {error}") from error
    plain: list[str] = []
    options: dict[str, Any] = {}
    while words:
        word = words.pop(0)
        if word == "--":
            plain += words
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            options[name] = value if equals else True
        else:
            plain.append(word)
    return Command(tuple(plain), options)


def _parse_json(text: str) -> Command:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"not a command: {error}") from error
    words = value.pop("command", None)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InvalidArgument('a JSON command is an object with "command": a list of strings')
    return Command(tuple(words), value)


async def execute(command: Command, host: Host) -> Reply:
    """Carries a command out. Raises the CowfsError of its failure."""
    handler = COMMANDS.get(command.words[0])
    if handler is None:
        raise InvalidArgument(f"unknown command '{command.words[0]}'; there are {', '.join(sorted(COMMANDS))}")
    if len(command.words) > 1:
        raise InvalidArgument(f"{command.words[0]} takes no arguments")
    if command.options:
        raise InvalidArgument(f"{command.words[0]} has no option '{next(iter(command.options))}'")
    return await handler(command, host)


def run(command: Command, host: Host) -> Reply:
    """Carries a command out on a host that never waits."""
    return finish(execute(command, host))


def finish(coroutine: Coroutine[Any, Any, Reply]) -> Reply:
    """The result of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    coroutine.close()
    raise AssertionError("a command waited where nothing can be waited for")


def encode_reply(reply: Reply) -> bytes:
    """A reply as it is read from the control file: one JSON object and a newline."""
    return json.dumps(reply).encode() + b"\n"


def failure(error: CowfsError) -> Reply:
    """The reply of a command that failed."""
    name = errno.errorcode.get(error.errno, str(error.errno))
    return {"error": {"errno": name, "code": error.errno, "message": str(error)}}


class CommandFailed(CowfsError):
    """A command that a daemon refused, as its client sees it."""

    def __init__(self, code: int, message: str) -> None:
        self.errno = code
        super().__init__(message)


def send(mountpoint: str, command: Command) -> Reply:
    """Has the daemon behind `mountpoint` carry out a command. Raises CommandFailed, or OSError where none answers."""
    path = os.path.join(os.fsencode(mountpoint), DIRECTORY_NAME, FILE_NAME)
    # On a mount that the kernel knows to be read-only nothing can be written, commands included.
    asks = command != INFO
    descriptor = os.open(path, (os.O_RDWR if asks else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        failed = None
        try:
            if asks:
                os.write(descriptor, command.to_json())
        except OSError as error:
            failed = error
        pieces = []
        while piece := os.read(descriptor, 1 << 20):
            pieces.append(piece)
    finally:
        os.close(descriptor)
    reply: Reply = json.loads(b"".join(pieces)) if pieces else {}
    if failed is not None:
        if "error" not in reply:
            raise failed
        raise CommandFailed(reply["error"]["code"], reply["error"]["message"])
    return reply


class Offline:
    """The host of commands on an image that is not mounted."""

    def __init__(self, filesystem: Filesystem) -> None:
        self.filesystem = filesystem
        self.mount: Reply | None = None

    async def flush_dirty_pages(self) -> None:
        """There is no kernel in between."""

    async def commit(self) -> None:
        """Commits at once."""
        self.filesystem.sync()


# --- the commands ----------------------------------------------------------------------------------------------------


async def _info(command: Command, host: Host) -> Reply:
    return describe(host.filesystem) | {"mount": host.mount}


async def _sync(command: Command, host: Host) -> Reply:
    await host.flush_dirty_pages()
    await host.commit()
    return {"serial": host.filesystem.volume.serial}


COMMANDS: dict[str, Callable[[Command, Host], Awaitable[Reply]]] = {"info": _info, "sync": _sync}


def describe(filesystem: Filesystem) -> Reply:
    """What a volume is and how full it is. Sizes are in bytes."""
    volume = filesystem.volume
    record, extension, geometry = volume.superblock, volume.extension, volume.geometry
    space = filesystem.statfs()
    return {
        "image": volume.device.name,
        "uuid": str(uuid.UUID(bytes=bytes(record.volume_id))),
        "label": extension.label.rstrip(b"\0").decode("utf-8", "replace") if extension is not None else "",
        "kind": "qnx6" if volume.foreign else "cowfs",
        "format_version": None if extension is None else extension.version,
        "software": __version__,
        "byte_order": "little" if geometry.order == "<" else "big",
        "block_size": geometry.block_size,
        "size": geometry.num_blocks * geometry.block_size,
        "free": space.free * space.block_size,
        "available": space.available * space.block_size,
        "inodes": space.files,
        "inodes_free": space.files_free,
        "serial": volume.serial,
        "formatted": record.ctime,
        "read_only": volume.read_only,
        "read_only_reason": volume.read_only_reason,
        "notes": list(volume.notes),
    }
