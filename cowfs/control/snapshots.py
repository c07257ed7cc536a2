"""Commands for snapshots, clones and rollback. What they promise is durable when they answer."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

from cowfs.control.host import Host
from cowfs.control.pins import pinned_all
from cowfs.control.space import would_free
from cowfs.control.specification import Arguments, Specification
from cowfs.control.wire import Reply, text_of
from cowfs.errors import NoSpace
from cowfs.fs.attributes import NANOSECONDS
from cowfs.fs.diff import diff_steps
from cowfs.fs.snapshot import SnapshotInfo, Snapshots
from cowfs.fs.steps import TICKS, Steps
from cowfs.fs.usage import tree_at
from cowfs.storage.tree import Tree

TOGETHER_MAX = 32  # trees that are deleted in one go; other requests wait for that


async def _create(arguments: Arguments, host: Host) -> Reply:
    (name,) = arguments.words
    description = arguments.text("description") or b""
    writable, source = arguments.flag("writable"), arguments.text("from")
    await host.flush_dirty_pages()
    info = await host.change(
        lambda: host.snapshots.create(name, description=description, writable=writable, source=source)
    )
    await host.commit()
    return describe(info)


async def _list(arguments: Arguments, host: Host) -> Reply:
    return {"snapshots": await host.work(_list_steps(host.snapshots))}


def _list_steps(snapshots: Snapshots) -> Steps[list[Reply]]:
    """Of 100,000 snapshots nobody waits for the list."""
    infos = yield from snapshots.list_steps()
    rows = []
    for number, info in enumerate(infos):
        rows.append(describe(info))
        if number % TICKS == 0:
            yield
    return rows


async def _show(arguments: Arguments, host: Host) -> Reply:
    return describe(host.snapshots.find(arguments.words[0]))


async def _rename(arguments: Arguments, host: Host) -> Reply:
    old, new = arguments.words
    info = await host.change(lambda: host.snapshots.rename(old, new))
    await host.commit()
    return describe(info)


async def _delete(arguments: Arguments, host: Host) -> Reply:
    names: Sequence[bytes] = arguments.words
    if arguments.flag("dry-run"):
        found = [host.snapshots.find(name) for name in dict.fromkeys(names)]
        freed = await would_free(host, found)
        return {"would_delete": [text_of(info.name) for info in found], "would_free": freed}
    names = [info.name for info in host.snapshots.deletable(names)]
    for at in range(0, len(names), TOGETHER_MAX):
        await _delete_together(host, names[at : at + TOGETHER_MAX])
    await host.commit()
    if arguments.flag("wait"):
        await host.reclaimed()
    return {"deleted": [text_of(name) for name in names]}


async def _delete_together(host: Host, names: list[bytes]) -> None:
    """All in one commit; one after the other where the volume is too full for that."""
    try:
        await host.change(lambda: host.snapshots.delete(names))
    except NoSpace:
        if len(names) == 1:
            raise
        for name in names:
            await host.change(functools.partial(host.snapshots.delete, [name]))
    await host.work(_pause())


def _pause() -> Steps[None]:
    """Lets other requests in."""
    yield


async def _diff(arguments: Arguments, host: Host) -> Reply:
    """What changed between two trees; the newer one is the live tree where only one is named.

    Both are kept as they are until that is known, so they may change, or be deleted, meanwhile.
    """
    await host.flush_dirty_pages()
    volume, path = host.snapshots.volume, arguments.text("path") or b""

    def trees() -> list[Tree]:
        found = [tree_at(volume, host.snapshots.find(name).place) for name in arguments.words]
        return found if len(found) == 2 else [*found, volume.live]

    async with pinned_all(host, trees) as (old, new):
        changes = await host.work(diff_steps(volume, old, new, path))
    return {"changes": [change.to_json() for change in changes]}


async def _protect(arguments: Arguments, host: Host) -> Reply:
    return await _set_protection(arguments, host, on=True)


async def _unprotect(arguments: Arguments, host: Host) -> Reply:
    return await _set_protection(arguments, host, on=False)


async def _set_protection(arguments: Arguments, host: Host, *, on: bool) -> Reply:
    info = await host.change(lambda: host.snapshots.protect(arguments.words[0], on=on))
    await host.commit()
    return describe(info)


async def _rollback(arguments: Arguments, host: Host) -> Reply:
    (name,) = arguments.words
    discard = arguments.flag("discard")
    host.snapshots.find(name)
    await host.flush_dirty_pages()
    saved = await host.roll_back(lambda: host.snapshots.roll_back(name, discard=discard))
    await host.commit()
    return {"rolled_back_to": text_of(name), "saved": None if saved is None else describe(saved)}


async def _reset(arguments: Arguments, host: Host) -> Reply:
    keep = arguments.text("keep")
    host.snapshots.volume.forest.base_place  # noqa: B018  (no base: before anything is written back)
    await host.flush_dirty_pages()
    kept = await host.roll_back(lambda: host.snapshots.reset(keep))
    await host.commit()
    return {"reset": True, "kept": None if kept is None else describe(kept)}


COMMANDS: dict[str, Specification] = {
    "snapshot create": Specification(_create, 1, 1, frozenset({"description", "writable", "from"})),
    "snapshot list": Specification(_list, reads=True),
    "snapshot show": Specification(_show, 1, 1, reads=True),
    "snapshot rename": Specification(_rename, 2, 2),
    "snapshot delete": Specification(_delete, 1, None, frozenset({"dry-run", "wait"}), reads="dry-run"),
    "diff": Specification(_diff, 1, 2, frozenset({"path"}), reads=True),
    "snapshot protect": Specification(_protect, 1, 1),
    "snapshot unprotect": Specification(_unprotect, 1, 1),
    "reset": Specification(_reset, options=frozenset({"keep"})),
    "rollback": Specification(_rollback, 1, 1, frozenset({"discard"})),
}


def describe(info: SnapshotInfo) -> Reply:
    """A snapshot as it stands in a reply. `created` is UTC; `origin` is the id of what it was made from, 0 the live tree."""
    return {
        "id": info.id,
        "name": text_of(info.name),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(info.created // NANOSECONDS)),
        "created_ns": info.created,
        "description": text_of(info.description),
        "writable": info.writable,
        "protected": info.protected,
        "automatic": info.automatic,
        "origin": info.origin,
        "serial": info.serial,
    }
