"""The command `trim`: free space goes back to whoever keeps the image."""

from __future__ import annotations

import click

from cowfs import control
from cowfs.cli.output import show_json, size_text
from cowfs.cli.target import carry_out, mount_of

_STEPS = 64
_STEP_MIN = 1 << 30


@click.command()
@click.argument("target", metavar="IMAGE|MNT", type=click.Path(readable=False))
@click.option(
    "--minimum",
    metavar="BYTES",
    type=click.IntRange(min=0),
    help="Leave out free pieces that are shorter; at most 1 GiB counts.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def trim(target: str, minimum: int | None, as_json: bool) -> None:
    """Give all free space of a volume back: as holes in an image file, as discarded sectors on a block device.

    A mounted volume goes on being used meanwhile. While little space is left, what is set aside for commits is not given back.
    """
    options = {} if minimum is None else {"minimum": minimum}
    if mount_of(target) is None:
        reply = carry_out(target, control.Command(("trim",), options), write=True)
        trimmed = reply["trimmed"]
    else:
        trimmed = _in_steps(target, options, quiet=as_json)
    if as_json:
        show_json({"trimmed": trimmed})
    else:
        click.echo(f"{target}: {size_text(trimmed)} trimmed")


def _in_steps(target: str, options: dict[str, int], *, quiet: bool) -> int:
    """A range after the other, so that it can be watched and interrupted; the bytes given back."""
    size = int(carry_out(target, control.INFO)["size"])
    step = max(_STEP_MIN, size // _STEPS)
    start: int | None = 0
    trimmed = 0
    with click.progressbar(length=size, label="trim", hidden=quiet) as bar:
        while start is not None and start < size:
            length = min(step, size - start)
            command = control.Command(("trim",), {"start": start, "length": length, **options})
            reply = carry_out(target, command, write=True)
            trimmed += reply["trimmed"]
            bar.update((reply["next"] or size) - start)
            start = reply["next"]
    return trimmed
