"""The grammar of commands and replies, and the client that sends one to a daemon: text or JSON in, JSON out."""

from __future__ import annotations

import errno
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cowfs.errors import CowfsError, InvalidArgument

DIRECTORY_NAME = b".cowfs"
FILE_NAME = b"control"
SNAPSHOTS_NAME = b"snapshots"
COMMAND_SIZE_MAX = 65_536

Reply = dict[str, Any]


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
