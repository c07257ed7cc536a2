"""The grammar of commands and replies, and the client that sends one to a daemon: text or JSON in, JSON out."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cowfs.errors import CowfsError, InvalidArgument

if TYPE_CHECKING:  # the commands that only ask a mount start without the filesystem
    from cowfs.fs.steps import Steps

DIRECTORY_NAME = b".cowfs"
FILE_NAME = b"control"
SNAPSHOTS_NAME = b"snapshots"
QUERY_NAME = b"query"
COMMAND_SIZE_MAX = 65_536
QUERY_SIZE_MAX = 3 * COMMAND_SIZE_MAX
"""Bytes of a command in the names below `query`, which may have three for one."""
QUERY_NAME_MAX = 255

Reply = dict[str, Any]


@dataclass(frozen=True)
class Command:
    """The words (name of the command, then its arguments) and the options; `uid` is whose command it is, root's if 0."""

    words: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    uid: int = 0

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


def encode_reply(reply: Reply) -> bytes:
    """A reply as it is read from the control file: one JSON object and a newline."""
    from cowfs.fs.steps import finish

    return finish(encode_steps(reply))


def encode_steps(reply: Reply) -> Steps[bytes]:
    """The same a slice at a time: a reply may have a list of very many members."""
    from cowfs.fs.steps import TICKS

    if not any(isinstance(value, list) and len(value) > TICKS for value in reply.values()):
        return f"{json.dumps(reply)}\n".encode()
    pieces = []
    for key, value in reply.items():
        pieces.append(f"{json.dumps(key)}: ")
        if isinstance(value, list) and len(value) > TICKS:
            groups = [value[at : at + TICKS] for at in range(0, len(value), TICKS)]
            for number, group in enumerate(groups):
                pieces.append(("[" if number == 0 else ", ") + json.dumps(group)[1:-1])
                yield
            pieces.append("]")
        else:
            pieces.append(json.dumps(value))
        pieces.append(", ")
    return f"{{{''.join(pieces[:-1])}}}\n".encode()


def failure(error: CowfsError) -> Reply:
    """The reply of a command that failed."""
    name = errno.errorcode.get(error.errno, str(error.errno))
    return {"error": {"errno": name, "code": error.errno, "message": str(error)}}


def text_of(name: bytes) -> str:
    """A name or path as it stands in a reply: bytes that are not UTF-8 as surrogate escapes."""
    return name.decode("utf-8", "surrogateescape")


class CommandFailed(CowfsError):
    """A command that a daemon refused, as its client sees it."""

    def __init__(self, code: int, message: str) -> None:
        self.errno = code
        super().__init__(message)


def query_names(command: bytes) -> list[bytes]:
    """The names below the query directory that stand for a command: the last one's file has the reply."""
    text = urllib.parse.quote_from_bytes(command, safe="").encode()
    names = []
    size = QUERY_NAME_MAX - 1
    while len(text) > size:
        end = size - 2
        end -= next((back for back in (1, 2) if text[end - back] == ord("%")), 0)  # no escape is torn
        names.append(text[:end] + b"%")
        text = text[end:]
    return [*names, text]


def query_goes_on(text: bytes) -> bool:
    """Whether a name, or several joined, goes on with the name below it: it ends in a `%` that begins no byte."""
    return text.endswith(b"%")


def query_joined(before: bytes, name: bytes) -> bytes:
    """A name with what the directories above it stand for."""
    return before.removesuffix(b"%") + name


def query_decoded(text: bytes) -> bytes:
    """The command that joined names stand for: `%` and two hexadecimal digits are a byte, all else is itself."""
    return urllib.parse.unquote_to_bytes(text)


def send(mountpoint: str, command: Command) -> Reply:
    """Has the daemon behind `mountpoint` carry out a command. Raises CommandFailed, or OSError where none answers.

    On a mount that the kernel takes for read-only nothing can be written, commands included; those that change nothing
    are asked for by opening a file for reading.
    """
    directory = os.path.join(os.fsencode(mountpoint), DIRECTORY_NAME)
    asks = command != INFO
    try:
        flags = os.O_RDWR if asks else os.O_RDONLY
        descriptor = os.open(os.path.join(directory, FILE_NAME), flags | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return _ask(os.path.join(directory, QUERY_NAME), command)
    failed = None
    with _closing(descriptor):
        try:
            if asks:
                os.write(descriptor, command.to_json())
        except OSError as error:
            failed = error
        return _reply(descriptor, failed, is_line=True)


def _ask(directory: bytes, command: Command) -> Reply:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in query_names(command.to_json()):
        with _closing(descriptor):
            descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=descriptor)
    with _closing(descriptor):
        return _reply(descriptor, None, is_line=False)


def _reply(descriptor: int, failed: OSError | None, *, is_line: bool) -> Reply:
    """All that there is to read, after a failure of the command its reason.

    `is_line`: its newline ends it, so nobody needs to be asked whether there is more; else an errno may stand there.
    """
    pieces = []
    try:
        while piece := os.read(descriptor, 1 << 20):
            pieces.append(piece)
            if is_line and piece.endswith(b"\n"):
                break
    except OSError as error:
        failed = error
    reply: Reply = json.loads(b"".join(pieces)) if pieces else {}
    if failed is not None:
        if "error" not in reply:
            raise failed
        raise CommandFailed(reply["error"]["code"], reply["error"]["message"])
    return reply


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(descriptor)
