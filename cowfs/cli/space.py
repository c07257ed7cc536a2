"""The commands `df` and `du`: what trees, files and directories take, and how much of it nothing else has."""

from __future__ import annotations

import os
from typing import Any

import click

from cowfs import control
from cowfs.cli.output import printable, show_json
from cowfs.cli.target import carry_out
from cowfs.errors import InvalidArgument
from cowfs.fuse import mounts

_COLUMNS = ("total", "exclusive", "shared")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_EXCLUSIVE = click.option(
    "--exclusive", "column", flag_value="exclusive", help="Only what nothing else has: what deleting it would free."
)
_SHARED = click.option("--shared", "column", flag_value="shared", help="Only what something else has, too.")


@click.command()
@click.argument("target", metavar="IMAGE|MNT", type=click.Path(readable=False))
@_EXCLUSIVE
@_SHARED
@_JSON
def df(target: str, column: str | None, as_json: bool) -> None:
    """Show what each tree takes, in bytes, to the block: the live one, and every snapshot and clone.

    "exclusive" is what deleting that tree alone would free. The cost follows the size of the live tree's metadata, and of
    what is different from one tree to the next.
    """
    trees = carry_out(target, control.Command(("df",)))["trees"]
    if as_json:
        show_json(trees)
        return
    _show([("(live)" if row["live"] else row["name"], row) for row in trees], column, "tree")


@click.command()
@click.argument("target", metavar="IMAGE|PATH", type=click.Path(readable=False))
@click.argument("paths", metavar="[PATH...]", nargs=-1)
@_EXCLUSIVE
@_SHARED
@_JSON
def du(target: str, paths: tuple[str, ...], column: str | None, as_json: bool) -> None:
    """Show what files and directories take, in bytes, to the block, with all that is below them.

    Of a mounted volume each PATH is one in the mount, as for du(1); one below .cowfs/snapshots/NAME is in that snapshot.
    Of an IMAGE the paths are those in the volume, with .cowfs/snapshots/NAME/ before them in a snapshot; without any it is
    the whole live tree. Blocks that several of its files or snapshots share count once. A whole tree counts as in "cowfs df".
    """
    rows = []
    for mountpoint, path, shown in _places(target, paths):
        command = control.Command(("du", path))
        (row,) = carry_out(mountpoint, command)["paths"]
        rows.append((shown, row | {"path": shown}))
    if as_json:
        show_json([row for _, row in rows])
    else:
        _show(rows, column, "path")


def _places(target: str, paths: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """(image or mount point, path in the volume, path as given)."""
    if _mount_and_path(target) is None:
        return [(target, path, path) for path in paths or (".",)]
    found = []
    for path in (target, *paths):
        place = _mount_and_path(path)
        if place is None:
            raise InvalidArgument(f"{path} does not lie in a mounted cowfs volume")
        os.lstat(path)
        found.append((*place, path))
    return found


def _mount_and_path(path: str) -> tuple[str, str] | None:
    """The mount that a path lies in, and the way from there; a symlink at its end is what is meant."""
    parent, name = os.path.split(path)
    real = mounts.real_path(path)
    if name not in ("", ".", "..") and os.path.islink(path):
        real = os.path.join(mounts.real_path(parent or "."), name)
    mount = mounts.containing(os.path.dirname(real) if os.path.islink(real) else real)
    if mount is None:
        return None
    return mount.mountpoint, os.path.relpath(real, mount.mountpoint)


def _show(rows: list[tuple[str, dict[str, Any]]], column: str | None, what: str) -> None:
    columns = [column] if column else list(_COLUMNS)
    width = max(len(printable(name)) for name, _ in rows)
    click.echo(f"{what:<{width}} " + " ".join(f"{name:>16}" for name in columns) + "  (bytes)")
    for name, row in rows:
        click.echo(f"{printable(name):<{width}} " + " ".join(f"{row[name]:>16}" for name in columns))
