"""Commands for snapshots, clones and rollback. TARGET is a mount (or a path in it) or an image that is not mounted."""

from __future__ import annotations

import os
import time
from typing import Any

import click

from cowfs import control
from cowfs.cli.output import printable, show_json, show_table, size_text
from cowfs.cli.target import carry_out, mount_of
from cowfs.errors import NotSupported, ReadOnly

_TARGET = click.argument("target", metavar="IMAGE|MNT", type=click.Path(readable=False))
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
WAIT_SECONDS = 0.2


@click.group()
def snapshot() -> None:
    """Take, list, rename, protect and delete snapshots and writable clones."""


def _run(target: str, words: tuple[str, ...], options: dict[str, Any] | None = None, *, write: bool = True) -> Any:
    return carry_out(target, control.Command(words, options or {}), write=write)


@snapshot.command()
@_TARGET
@click.argument("name")
@click.option("--description", metavar="TEXT", help="A remark of at most 500 bytes.")
@click.option("--writable", is_flag=True, help="A clone: it can be changed, and mounted with -o snapshot=NAME.")
@click.option("--from", "source", metavar="SNAPSHOT", help="Of that snapshot or clone, instead of the live tree.")
@_JSON
def create(target: str, name: str, description: str | None, writable: bool, source: str | None, as_json: bool) -> None:
    """Take a snapshot of what is there now; it is durable when the command returns."""
    options: dict[str, Any] = {}
    if description is not None:
        options["description"] = description
    if writable:
        options["writable"] = True
    if source is not None:
        options["from"] = source
    _show(_run(target, ("snapshot", "create", name), options), as_json)


@snapshot.command("list")
@_TARGET
@_JSON
def list_(target: str, as_json: bool) -> None:
    """List all snapshots and clones, the oldest first."""
    infos = _run(target, ("snapshot", "list"), write=False)["snapshots"]
    if as_json:
        show_json(infos)
        return
    width = max((len(printable(info["name"])) for info in infos), default=0)
    for info in infos:
        kind = "clone" if info["writable"] else "snapshot"
        words = [kind, *(word for word in ("automatic", "protected") if info[word]), info["description"]]
        click.echo(printable(f"{info['created']}  {printable(info['name']):<{width}}  {' '.join(words)}".rstrip()))


@snapshot.command()
@_TARGET
@click.argument("name")
@_JSON
def show(target: str, name: str, as_json: bool) -> None:
    """Show one snapshot or clone."""
    _show(_run(target, ("snapshot", "show", name), write=False), as_json)


@snapshot.command()
@_TARGET
@click.argument("name")
@click.argument("new_name")
@_JSON
def rename(target: str, name: str, new_name: str, as_json: bool) -> None:
    """Give a snapshot or clone another name."""
    _show(_run(target, ("snapshot", "rename", name, new_name)), as_json)


@snapshot.command()
@_TARGET
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--wait", is_flag=True, help="Return only when the space is free.")
@click.option("--dry-run", is_flag=True, help="Only say how many bytes deleting all of these frees.")
@_JSON
def delete(target: str, names: tuple[str, ...], wait: bool, dry_run: bool, as_json: bool) -> None:
    """Delete snapshots or clones, in any order; of a mounted volume the space becomes free in the background."""
    if dry_run:
        reply = _run(target, ("snapshot", "delete", *names), {"dry-run": True}, write=False)
        if as_json:
            show_json(reply)
        else:
            click.echo(f"would free {size_text(reply['would_free'])}")
        return
    if wait and mount_of(target) is None:
        reply = _run(target, ("snapshot", "delete", *names), {"wait": True})
    else:
        reply = _run(target, ("snapshot", "delete", *names))
        if wait:
            _wait_for_reclaim(target)
    if as_json:
        show_json(reply)


def _wait_for_reclaim(target: str) -> None:
    """Shows how the reclaim queue shrinks, where somebody looks on. Raises ReadOnly where it does not any more."""
    waiting = carry_out(target, control.INFO)["reclaim"]
    with click.progressbar(length=waiting, label="freeing space") as bar:
        done = 0
        while waiting > 0:
            time.sleep(WAIT_SECONDS)
            reply = carry_out(target, control.INFO)
            if reply["read_only"]:
                raise ReadOnly(f"deleted, but the space does not become free: {reply['read_only_reason']}")
            waiting = reply["reclaim"]
            if bar.length is not None and bar.length - waiting > done:
                bar.update(bar.length - waiting - done)
                done = bar.length - waiting


@click.command()
@_TARGET
@click.argument("old", metavar="SNAPSHOT")
@click.argument("new", metavar="[SNAPSHOT]", required=False)
@click.option("--path", metavar="PATH", help="Only what is at or below it.")
@click.option("-z", "zero", is_flag=True, help="Plain lines that end in a NUL byte, for programs.")
@_JSON
def diff(target: str, old: str, new: str | None, path: str | None, zero: bool, as_json: bool) -> None:
    """Show what changed between two snapshots, or from one to the live tree.

    The cost follows the size of the change: what both share is not looked at.
    """
    words = ("diff", old) if new is None else ("diff", old, new)
    changes = _run(target, words, {} if path is None else {"path": path}, write=False)["changes"]
    if as_json:
        show_json(changes)
        return
    for change in changes:
        source = f"{change['old_path']} -> " if change["kind"] == "renamed" else ""
        what = f" ({', '.join(change['fields'])})" if change.get("fields") else ""
        line = f"{change['kind']:<8}  {source}{change['path']}{what}"
        if zero:
            click.echo(line.encode("utf-8", "surrogateescape") + b"\0", nl=False)
        else:
            click.echo(printable(line))


@snapshot.command()
@_TARGET
@click.argument("name")
def protect(target: str, name: str) -> None:
    """Forbid to delete a snapshot or clone."""
    _run(target, ("snapshot", "protect", name))


@snapshot.command()
@_TARGET
@click.argument("name")
def unprotect(target: str, name: str) -> None:
    """Allow to delete a snapshot or clone again."""
    _run(target, ("snapshot", "unprotect", name))


@click.command()
@_TARGET
@click.argument("name")
@click.option("--discard", is_flag=True, help="Do not save the present before.")
@_JSON
def rollback(target: str, name: str, discard: bool, as_json: bool) -> None:
    """Go back to a snapshot, at once, mounted or not. The present is saved as a snapshot of its own."""
    reply = _run(target, ("rollback", name), {"discard": True} if discard else {})
    if as_json:
        show_json(reply)
    elif reply["saved"] is not None:
        click.echo(printable(f"the state before is snapshot {reply['saved']['name']}"))


@snapshot.command()
@click.argument("image", type=click.Path(readable=False))
@click.argument("name")
@click.argument("new", type=click.Path(readable=False))
def export(image: str, name: str, new: str) -> None:
    """Copy the volume in IMAGE to the new file NEW, and go back to a snapshot there.

    So readers that know only the live tree of a volume, as Linux's own driver, see the snapshot. IMAGE is not changed and must
    not be mounted for writing. The other snapshots are in NEW as well. Of an overlay, NEW is a whole volume.
    """
    from cowfs.check.repair import copy_device
    from cowfs.cli.target import unmounted
    from cowfs.errors import Exists
    from cowfs.fs.snapshot import Snapshots
    from cowfs.storage.device import FileDevice
    from cowfs.storage.overlay import make_whole
    from cowfs.storage.volume import Volume

    if os.path.lexists(new):
        raise Exists(f"{new} exists")
    wanted = os.fsencode(name)
    with unmounted(image) as device:
        volume = Volume.open(device, read_only=True)
        if volume.foreign:
            raise NotSupported(f"{image} is a foreign volume: it has no snapshots")
        volume.forest.table.find(wanted)
        copy = FileDevice.create(new, device.size())
        try:
            copy_device(device, copy)
            make_whole(copy)
            snapshots = Snapshots(Volume.open(copy))
            snapshots.roll_back(wanted, discard=True)
            snapshots.close()
        except BaseException:
            os.unlink(new)
            raise
        finally:
            copy.close()


def _show(info: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(info)
        return
    rows = [
        ("name", info["name"]),
        ("id", str(info["id"])),
        ("created", info["created"]),
        (
            "kind",
            ", ".join(
                ["clone, writable" if info["writable"] else "snapshot"]
                + [word for word in ("automatic", "protected") if info[word]]
            ),
        ),
        ("origin", "the live tree" if info["origin"] == 0 else f"snapshot {info['origin']}"),
        ("commit", str(info["serial"])),
    ]
    if info["description"]:
        rows.append(("description", info["description"]))
    show_table(rows)
