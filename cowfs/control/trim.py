"""The command `trim`: free space goes back to the medium, as fstrim(8) does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cowfs.control.specification import Arguments, Specification
from cowfs.control.wire import Reply
from cowfs.errors import InvalidArgument, NotSupported
from cowfs.storage.discard import Trim, punch

if TYPE_CHECKING:
    from cowfs.control.host import Host


async def _trim(arguments: Arguments, host: Host) -> Reply:
    """All free blocks, or those in a range of bytes of the data area; what was just deleted is among them."""
    volume = host.filesystem.volume
    if volume.foreign:
        raise NotSupported("a foreign volume is never written")
    volume.check_writable()
    size = volume.geometry.block_size
    start, length, least = (_bytes(arguments.options, name) for name in ("start", "length", "minimum"))
    first = -(-(start or 0) // size)
    end = volume.geometry.num_blocks if length is None else ((start or 0) + length) // size
    if not first:
        await host.reclaimed()
        await host.bring_forward()
    trim = Trim(volume, first, end, least=-(-(least or 0) // size) or 1)
    trimmed = 0
    while trim.more:
        runs = trim.take()
        try:
            await host.aside(lambda runs=runs: punch(volume.device, volume.geometry, runs))  # type: ignore[misc]
        finally:
            trim.give_back(runs)
        trimmed += sum(count for _, count in runs)
    following = trim.position * size if trim.position < volume.geometry.num_blocks else None
    return {"trimmed": trimmed * size, "next": following, "size": volume.geometry.num_blocks * size}


def _bytes(options: Any, name: str) -> int | None:
    """An option that is a number of bytes. Raises InvalidArgument."""
    value = options.get(name)
    text = str(value)
    if value is None:
        return None
    if isinstance(value, bool) or not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise InvalidArgument(f"--{name} wants a number of bytes, not '{text}'")
    return int(text)


COMMANDS: dict[str, Specification] = {
    "trim": Specification(_trim, options=frozenset({"start", "length", "minimum"})),
}
