"""What a command is made of: its name of one or two words, its arguments and options, and the function behind it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from cowfs.control.wire import Command, Reply
from cowfs.errors import InvalidArgument

if TYPE_CHECKING:
    from cowfs.control.host import Host


@dataclass(frozen=True, slots=True)
class Arguments:
    """The words behind the name of a command, as bytes, and its options."""

    words: tuple[bytes, ...]
    options: dict[str, Any]
    uid: int = 0  # of whoever asks

    def flag(self, name: str) -> bool:
        """An option without a value. Raises InvalidArgument where it has one."""
        value = self.options.get(name, False)
        if not isinstance(value, bool):
            raise InvalidArgument(f"option '{name}' takes no value")
        return value

    def text(self, name: str) -> bytes | None:
        """An option with a text as its value, None where it is not given. Raises InvalidArgument for another type."""
        value = self.options.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise InvalidArgument(f"option '{name}' needs a value")
        return value.encode("utf-8", "surrogateescape")


Handler: TypeAlias = "Callable[[Arguments, Host], Awaitable[Reply]]"


@dataclass(frozen=True, slots=True)
class Specification:
    """A command: how many arguments it takes (`most` None: any number) and which options.

    `reads`: it changes nothing that anybody sees; an option's name: with that one it does not.
    """

    handler: Handler
    least: int = 0
    most: int | None = 0
    options: frozenset[str] = frozenset()
    reads: bool | str = False

    def arguments(self, name: str, words: tuple[str, ...], command: Command) -> Arguments:
        """The arguments in a command. Raises InvalidArgument where their number or an option does not fit."""
        if len(words) < self.least or (self.most is not None and len(words) > self.most):
            wanted = str(self.least) if self.most == self.least else f"at least {self.least}"
            wanted = "no arguments" if self.most == 0 else f"{wanted} argument{'' if wanted == '1' else 's'}"
            raise InvalidArgument(f"{name} takes {wanted}")
        for option in command.options:
            if option not in self.options:
                raise InvalidArgument(f"{name} has no option '{option}'")
        return Arguments(tuple(w.encode("utf-8", "surrogateescape") for w in words), dict(command.options), command.uid)
