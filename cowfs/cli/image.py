"""Commands for a volume in an image or behind a mount: `info`, `dump`."""

from __future__ import annotations

import click

from cowfs import control
from cowfs.cli.output import printable, show_json, show_table, size_text, time_text
from cowfs.cli.target import carry_out, unmounted


@click.command()
@click.argument("target", metavar="IMAGE|MNT", type=click.Path(readable=False))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(target: str, as_json: bool) -> None:
    """Show what a volume is, how full it is, and where it is mounted."""
    reply = carry_out(target, control.INFO)
    if as_json:
        show_json(reply)
    else:
        show_table(_info_rows(reply))


def _info_rows(reply: control.Reply) -> list[tuple[str, str]]:
    label = [("label", reply["label"])] if reply["label"] else []
    version = f", format {reply['format_version']}" if reply["format_version"] is not None else ""
    order = f", {reply['byte_order']}-endian"
    rows = [
        ("image", reply["image"]),
        *label,
        ("UUID", reply["uuid"]),
        ("kind", reply["kind"] + version + order),
        ("formatted", time_text(reply["formatted"])),
        ("size", f"{size_text(reply['size'])} in blocks of {reply['block_size']} bytes"),
        ("free", size_text(reply["free"])),
        ("available", size_text(reply["available"])),
        ("inodes", f"{reply['inodes'] - reply['inodes_free']} used, {reply['inodes_free']} free"),
        ("commit", str(reply["serial"])),
    ]
    mount = reply["mount"]
    if mount is None:
        rows.append(("mounted", "no"))
    else:
        rows.append(("mounted", f"on {mount['mountpoint']} by process {mount['pid']} ({mount['options']})"))
        if reply["read_only"]:
            rows.append(("read-only", reply["read_only_reason"]))
    return rows + [("note", note) for note in reply["notes"]]


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("image", type=click.Path(readable=False))
@click.argument("what", nargs=-1)
@click.option(
    "--superblock", type=click.Choice(["1", "2"]), help="Look at the state of superblock slot N.", metavar="N"
)
def dump(image: str, what: tuple[str, ...], superblock: str | None) -> None:
    """Show in words what lies in IMAGE, sound or not; nothing is verified.

    WHAT is one of: superblock (without WHAT), slots, boot, manifest, inode N, directory N, xattrs N, orphans, tree NAME,
    block N, bitmap, references, longnames, reclaim, snapshots.
    """
    from cowfs.check.dump import dump_lines

    with unmounted(image) as device:
        for line in dump_lines(device, what, superblock=int(superblock) if superblock else None):
            click.echo(printable(line))
