"""The command `resize`: another size for a volume, larger also while it is in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cowfs.control.sizes import parse_new_size
from cowfs.control.specification import Arguments, Specification
from cowfs.control.wire import Reply
from cowfs.errors import Busy, NotSupported
from cowfs.ondisk.geometry import Geometry
from cowfs.storage import resize as r
from cowfs.storage import shrink
from cowfs.storage.volume import Volume

if TYPE_CHECKING:
    from cowfs.control.host import Host


async def _resize(arguments: Arguments, host: Host) -> Reply:
    """Sizes in the reply are bytes, of the whole volume with its slots."""
    volume = host.filesystem.volume
    if volume.foreign:
        raise NotSupported("a foreign volume is never written")
    if volume.geometry.base:
        raise NotSupported("a part of an image keeps its size")
    old = volume.geometry
    text = arguments.words[0].decode("utf-8", "surrogateescape")
    geometry = r.geometry_of(volume, parse_new_size(text, old.end, volume.device.size()))
    preallocate, dry_run = arguments.flag("preallocate"), arguments.flag("dry-run")
    with host.scrubber.none_meanwhile("the volume is getting another size"):
        return await _resize_to(geometry, host, preallocate=preallocate, dry_run=dry_run)


async def _resize_to(geometry: Geometry, host: Host, *, preallocate: bool, dry_run: bool) -> Reply:
    volume = host.filesystem.volume
    old = volume.geometry
    if geometry.num_blocks > old.num_blocks:
        r.check_growth(volume, geometry)
        if not dry_run:
            await host.grow(geometry, preallocate=preallocate)
    elif geometry.num_blocks < old.num_blocks:
        if host.mount is not None:
            raise Busy("a mounted volume can only grow: unmount it to make it smaller")
        if dry_run:
            if volume.reclaim.count:
                raise NotSupported("what was deleted is not free yet, so nothing can be said: mount the volume once")
            plan = shrink.plan(volume, geometry)
        else:
            plan = await host.shrink(geometry)
        return _reply(volume, old, geometry, dry_run) | {"moved": plan.moved, "rewritten": plan.rewritten}
    return _reply(volume, old, geometry, dry_run)


def _reply(volume: Volume, old: Geometry, new: Geometry, dry_run: bool) -> Reply:
    return {
        **({"dry_run": True} if dry_run else {}),
        "image": volume.device.name,
        "block_size": new.block_size,
        "old_size": old.end,
        "size": new.end,
        "old_blocks": old.num_blocks,
        "blocks": new.num_blocks,
    }


COMMANDS: dict[str, Specification] = {
    "resize": Specification(_resize, 1, 1, options=frozenset({"dry-run", "preallocate"}), reads="dry-run"),
}
