"""Commands for what trees, files and directories take: `df`, `du`, and what a deletion would free.

Each figure is that of one moment, to the block, whatever changes while it is counted (`fs.moment`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from cowfs.control.pins import unpin
from cowfs.control.specification import Arguments, Specification
from cowfs.control.wire import DIRECTORY_NAME, SNAPSHOTS_NAME, Reply, text_of
from cowfs.errors import Busy, NotFound
from cowfs.fs.moment import Moment, hold
from cowfs.fs.paths import Paths, normalised
from cowfs.fs.snapshot import SnapshotInfo
from cowfs.fs.steps import Watch
from cowfs.fs.usage import Accounts, Usage, tree_at
from cowfs.ondisk import format as f
from cowfs.storage.tree import Tree

if TYPE_CHECKING:
    from cowfs.control.host import Host

TURNS_MAX = 8
"""How often counting begins anew, where space ran so short meanwhile that what was counted had to be freed."""

log = logging.getLogger(__name__)

R = TypeVar("R")


async def would_free(host: Host, infos: Sequence[SnapshotInfo]) -> int:
    """Bytes that deleting these snapshots and clones frees, together."""

    async def count(accounts: Accounts, kept: list[Tree]) -> int:
        fixed = _trees(host, [info for info in infos if not info.writable])
        return await host.work(accounts.freed_by([*kept, *fixed]))

    return await _at_a_moment(host, lambda: _trees(host, [info for info in infos if info.writable]), count)


async def _df(arguments: Arguments, host: Host) -> Reply:
    """What each tree takes: all of it, what only it has, and what others share with it. Bytes.

    The live tree and all snapshots are of one moment, each clone, which can change, is of one of its own.
    """
    await host.flush_dirty_pages()
    infos = await host.work(host.snapshots.list_steps())
    rows: dict[int, Usage] = {}

    async def count_fixed(accounts: Accounts, kept: list[Tree]) -> None:
        rows.clear()  # what was counted before counting began anew is of another moment
        rows[0] = await host.work(accounts.tree(kept[0]))
        for info in infos:
            if not info.writable:
                with contextlib.suppress(NotFound):  # it was deleted meanwhile
                    (tree,) = _trees(host, [info])
                    rows[info.id] = await host.work(accounts.tree(tree))

    async def count_clone(accounts: Accounts, kept: list[Tree]) -> Usage:
        return await host.work(accounts.tree(kept[0]))

    await _at_a_moment(host, lambda: [host.snapshots.volume.live], count_fixed)
    for info in infos:
        if info.writable:
            with contextlib.suppress(NotFound):
                rows[info.id] = await _at_a_moment(host, lambda info=info: _trees(host, [info]), count_clone)  # type: ignore[misc]
    names = {0: "", **{info.id: text_of(info.name) for info in infos}}
    size = host.snapshots.volume.geometry.block_size
    return {
        "trees": [{"name": names[key], "live": key == 0, **_sizes(rows[key], size)} for key in names if key in rows]
    }


async def _du(arguments: Arguments, host: Host) -> Reply:
    """What files and directories take, and of whole trees all that `df` counts."""
    await host.flush_dirty_pages()
    found = []
    for path in arguments.words:
        usage = await _path_usage(host, path)
        found.append({"path": text_of(path), **_sizes(usage, host.snapshots.volume.geometry.block_size)})
    return {"paths": found}


async def _path_usage(host: Host, path: bytes) -> Usage:
    words = normalised(path).split(b"/")
    snapshot: bytes | None = None
    if words[0] == DIRECTORY_NAME:
        if len(words) < 3 or words[1] != SNAPSHOTS_NAME:
            raise NotFound(f"{text_of(path)} takes no blocks of the volume")
        snapshot, words = words[2], words[3:]
    within = b"/".join(words)

    async def count(accounts: Accounts, kept: list[Tree]) -> Usage:
        tree = kept[0] if kept else source()[0]
        paths = Paths(host.snapshots.volume, tree, Watch(host.snapshots.volume, [tree]))
        ino = paths.lookup(within)
        if ino is None:
            raise NotFound(f"no file or directory {text_of(path)}")
        return await host.work(accounts.tree(tree) if ino == f.ROOT_INODE else accounts.path(tree, ino))

    def source() -> list[Tree]:
        return [host.filesystem.tree] if snapshot is None else _trees(host, [host.snapshots.find(snapshot)])

    def changing() -> list[Tree]:
        fixed = not host.filesystem.tree.writable if snapshot is None else not host.snapshots.find(snapshot).writable
        return [] if fixed else source()

    return await _at_a_moment(host, changing, count)


COMMANDS: dict[str, Specification] = {
    "df": Specification(_df, reads=True),
    "du": Specification(_du, 1, None, reads=True),
}


@asynccontextmanager
async def _moment(host: Host, trees: Callable[[], list[Tree]]) -> AsyncIterator[tuple[Moment, list[Tree]]]:
    """Now, and in it these trees, which can be written, to read from."""
    moment, kept = await host.change(lambda: hold(host.snapshots, trees()))
    try:
        yield moment, list(kept)
    finally:
        moment.end()
        await unpin(host, kept)


async def _at_a_moment(
    host: Host, trees: Callable[[], list[Tree]], count: Callable[[Accounts, list[Tree]], Awaitable[R]]
) -> R:
    """The result of counting. Raises Busy where space runs short each time that it is tried."""
    for _ in range(TURNS_MAX):
        try:
            async with _moment(host, trees) as (moment, kept):
                return await count(Accounts(moment), kept)
        except Busy as error:
            log.info("counting begins anew: %s", error)
    raise Busy("space is so short that nothing can be kept for counting; try again")


def _trees(host: Host, infos: Sequence[SnapshotInfo]) -> list[Tree]:
    """The trees of snapshots and clones that are still there. Raises NotFound for one that is not."""
    snapshots = host.snapshots
    return [tree_at(snapshots.volume, snapshots.at(info.place, info.id).place) for info in infos]


def _sizes(usage: Usage, block_size: int) -> dict[str, Any]:
    return {name: value * block_size for name, value in usage._asdict().items()}
