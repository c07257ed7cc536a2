"""Trees kept as they are for one long computation: pinned before, and let go of whatever becomes of it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from cowfs.errors import NoSpace
from cowfs.storage.tree import Tree

if TYPE_CHECKING:
    from cowfs.control.host import Host

log = logging.getLogger(__name__)


@asynccontextmanager
async def pinned(host: Host, tree: Tree) -> AsyncIterator[Tree]:
    """A tree as it is now, to read from over a long time. Raises NoSpace, SpaceShort, TooManyLinks."""
    async with pinned_all(host, lambda: [tree]) as (kept,):
        yield kept


@asynccontextmanager
async def pinned_all(host: Host, trees: Callable[[], list[Tree]]) -> AsyncIterator[list[Tree]]:
    """Several trees of the same moment, found at that moment; of a read-only volume, which does not change, as they are."""

    def pin() -> list[Tree]:
        return trees() if host.filesystem.volume.read_only else host.snapshots.pin_all(trees())

    kept = await host.change(pin)
    try:
        yield list(kept)
    finally:
        await unpin(host, kept)


async def unpin(host: Host, trees: list[Tree]) -> None:
    """Lets go of trees that were pinned; where there is no space even for that, they stay until the volume is closed."""

    def let_go() -> None:
        while trees and not host.filesystem.volume.read_only:
            host.snapshots.unpin(trees[-1])
            trees.pop()

    try:
        await host.change(let_go)
    except NoSpace as error:
        log.warning("a tree that was kept for a computation stays until the volume is closed: %s", error)
