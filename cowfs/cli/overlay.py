"""Commands for overlays and their bases: `reset`, `seal`, `unseal`, `rebase`."""

from __future__ import annotations

import click

from cowfs import control
from cowfs.cli.output import printable, show_json
from cowfs.cli.target import carry_out, unmounted


@click.command()
@click.argument("target", type=click.Path(readable=False))
@click.option("--keep", metavar="NAME", help="First keep the present as snapshot NAME.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def reset(target: str, keep: str | None, as_json: bool) -> None:
    """Go back from an overlay to its base, at once, mounted or not.

    TARGET is a mount or an image. The files are those of the base again; snapshots and clones of the overlay stay, and
    all that is in none of them is gone.
    """
    command = control.Command(("reset",), {} if keep is None else {"keep": keep})
    reply = carry_out(target, command, write=True)
    if as_json:
        show_json(reply)
    elif reply["kept"] is not None:
        click.echo(printable(f"the state before is snapshot {reply['kept']['name']}"))


@click.command()
@click.argument("image", type=click.Path(readable=False))
def seal(image: str) -> None:
    """Seal the volume in IMAGE: it is never written any more, until it is unsealed.

    For a base: overlays on it go on, and new ones can be made. A sealed volume can be mounted with -o ro.
    """
    _set_seal(image, on=True)


@click.command()
@click.argument("image", type=click.Path(readable=False))
def unseal(image: str) -> None:
    """Allow to write to the volume in IMAGE again. Overlays on it are lost once that is done."""
    _set_seal(image, on=False)


def _set_seal(image: str, *, on: bool) -> None:
    from cowfs.storage.overlay import set_seal

    with unmounted(image, writable=True) as device:
        set_seal(device, on=on)


@click.command()
@click.argument("overlay", type=click.Path(readable=False))
@click.option("--base", metavar="PATH", required=True, type=click.Path(readable=False), help="Where the base is now.")
def rebase(overlay: str, base: str) -> None:
    """Tell an overlay where its base is now, after it was moved.

    Only if the same volume is there, in the same state. A relative path is recorded relative to the overlay's directory, so
    that both can be moved together.
    """
    from cowfs.storage.overlay import open_base, recorded_path
    from cowfs.storage.overlay import rebase as tell

    with unmounted(overlay, writable=True, layers=False) as device:
        below = open_base(base, top=device)
        try:
            tell(device, below, recorded_path(base, device.name))
        finally:
            below.close()
