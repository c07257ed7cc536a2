"""How names are shown. Names are bytes; a terminal would take some of them for commands."""

from __future__ import annotations


def shown(name: bytes, also: str = "") -> str:
    """A name for a terminal: printable UTF-8 stays, the rest, backslashes and the characters `also` become escapes."""
    text = name.decode("utf-8", "surrogateescape")
    return "".join(c if c.isprintable() and c != "\\" and c not in also else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    if character == "\\":
        return "\\\\"
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
