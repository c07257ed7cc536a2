"""The command `resize`: another size for a volume, in an image or behind a mount."""

from __future__ import annotations

from typing import Any

import click

from cowfs import control
from cowfs.cli.output import printable, show_json, size_text
from cowfs.cli.place import place_of
from cowfs.cli.target import carry_out
from cowfs.errors import InvalidArgument


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("target", metavar="IMAGE|MNT", type=click.Path(readable=False))
@click.argument("size", metavar="SIZE")
@click.option("--dry-run", is_flag=True, help="Only say what would happen.")
@click.option("--preallocate", is_flag=True, help="Set space aside for what a file grows by.")
@click.option("--offset", type=click.IntRange(min=0), hidden=True)
@click.option("--partition", type=click.IntRange(min=1), hidden=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def resize(
    target: str,
    size: str,
    dry_run: bool,
    preallocate: bool,
    offset: int | None,
    partition: int | None,
    as_json: bool,
) -> None:
    """Give a volume another size, also while it is mounted and in use.

    SIZE is that of the whole volume, as for "mkcowfs --size": 4G, 512M, 1T; +1G or -1G from the present one; or max: all of
    the image file or block device as it is. A file grows as needed, sparse; a block device must be large enough.

    To become smaller it must not be mounted. What lies behind the new end moves, snapshots and all, and stays as shared as it
    is.
    """
    if not place_of(offset, partition, None).whole:
        raise InvalidArgument(f"{target}: a part of an image keeps its size: its place in the image is given")
    options: dict[str, Any] = {
        name: True for name, given in (("dry-run", dry_run), ("preallocate", preallocate)) if given
    }
    reply = carry_out(target, control.Command(("resize", size), options), write=not dry_run)
    if as_json:
        show_json(reply)
        return
    old, new = reply["old_size"], reply["size"]
    if old == new:
        click.echo(printable(f"{reply['image']}: {size_text(new)} already"))
        return
    says = "would become" if dry_run else "is now"
    if reply.get("moved"):
        click.echo(
            f"{reply['moved']} blocks {'would move' if dry_run else 'moved'}, {reply['rewritten']} with all that lead there"
        )
    click.echo(
        printable(
            f"{reply['image']} {says} {size_text(new)}, {reply['blocks']} blocks, "
            f"{'from' if dry_run else 'was'} {size_text(old)}"
        )
    )
