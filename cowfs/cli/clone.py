"""`cowfs clone`: a copy of a file or a tree that shares its data."""

from __future__ import annotations

import os
from typing import Any

import click

from cowfs import control
from cowfs.cli.output import printable, require_mount, show_json
from cowfs.cli.target import carry_out, mount_of
from cowfs.errors import CrossTree, InvalidArgument


@click.command()
@click.argument("words", metavar="[IMAGE|MNT] SRC DST", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def clone(words: tuple[str, ...], as_json: bool) -> None:
    """Copy a file, or a directory with all that is in it, without copying data.

    SRC and DST are paths in one mounted volume; behind IMAGE or MNT, paths from the root of that volume. Either may lie in
    .cowfs/snapshots/NAME, DST only in a clone. DST must not exist yet. A tree is copied as it is when the command begins,
    and is there as a whole or not at all. Symbolic links are copied as such.
    """
    if len(words) == 2:
        target, source, destination = _in_mount(*words)
    elif len(words) == 3:
        target, source, destination = words
    else:
        raise click.UsageError("SRC and DST are needed, and an image or a mount before them or none")
    reply: Any = carry_out(target, control.Command(("clone", source, destination)), write=True)
    if as_json:
        show_json(reply)
    elif mount_of(target) is None:
        click.echo(printable(f"{reply['target']}: {reply['copied']} copied"))


def _in_mount(source: str, destination: str) -> tuple[str, str, str]:
    """The mount that two paths lie in, and both as paths from its root."""
    places = [_place(path) for path in (source, destination)]
    found = [require_mount(os.path.dirname(place)) for place in places]
    if found[0].mountpoint != found[1].mountpoint:
        raise CrossTree(f"{source} and {destination} do not lie in the same mount")
    mountpoint = found[0].mountpoint
    return mountpoint, *(os.path.relpath(place, mountpoint) for place in places)  # type: ignore[return-value]


def _place(path: str) -> str:
    """An absolute path without symbolic links, but for what it ends in."""
    parent, name = os.path.split(path.rstrip("/") or "/")
    if name in ("", os.curdir, os.pardir):
        raise InvalidArgument(f"{path}: a path that ends in a name is needed")
    return os.path.join(os.path.realpath(parent or os.curdir), name)
