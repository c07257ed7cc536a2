"""Commands for a volume in an image or behind a mount: `info`, `dump`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from cowfs import control
from cowfs.cli.output import printable, show_json, show_table, size_text, time_text
from cowfs.cli.place import Place, place_of, place_options
from cowfs.cli.policy import policy_text
from cowfs.cli.target import carry_out, unmounted
from cowfs.errors import CowfsError, NotAVolume

if TYPE_CHECKING:
    from cowfs.storage.device import Device


@click.command()
@click.argument("target", metavar="IMAGE|MNT", type=click.Path(readable=False))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@place_options
def info(target: str, as_json: bool, offset: int | None, partition: int | None, superblock: str | None) -> None:
    """Show what a volume is, how full it is, and where it is mounted.

    Of a whole disk's image, show its partitions.
    """
    place = place_of(offset, partition, superblock)
    try:
        reply = carry_out(target, control.INFO, place=place)
    except NotAVolume:
        if not place.whole or not _show_partitions(target, as_json):
            raise
        return
    if as_json:
        show_json(reply)
    else:
        show_table(_info_rows(reply))


def _show_partitions(image: str, as_json: bool) -> bool:
    """Shows the partitions of a disk's image; whether it has any."""
    from cowfs.storage.partitions import read_partitions

    with unmounted(image) as device:
        partitions = read_partitions(device)
    if as_json and partitions:
        show_json({"image": device.name, "partitions": [asdict(partition) for partition in partitions]})
    else:
        for partition in partitions:
            click.echo(partition.to_text())
    return bool(partitions)


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
        ("software", f"cowfs {reply['software']}{', compiled' if reply['compiled'] else ''}"),
    ]
    if reply["sealed"]:
        rows.append(("sealed", "yes: it is never written"))
    for layer in reply["layers"]:
        seal = ", sealed" if layer["sealed"] else ""
        rows.append(("base", f"{layer['path']} (UUID {layer['uuid']}, commit {layer['serial']}{seal})"))
    if reply["policy"] is not None:
        rows.append(("policy", policy_text(reply["policy"])))
    mount = reply["mount"]
    if mount is None:
        rows.append(("mounted", "no"))
    else:
        rows.append(("mounted", f"on {mount['mountpoint']} by process {mount['pid']} ({mount['options']})"))
        if reply["read_only"]:
            rows.append(("read-only", reply["read_only_reason"]))
    return rows + [("note", note) for note in reply["notes"]]


@contextlib.contextmanager
def _any_layers(image: str, place: Place) -> Iterator[Device]:
    """The device of an image; of an overlay whose base is not to be had, what lies in the overlay itself."""
    with contextlib.ExitStack() as stack:
        try:
            device = stack.enter_context(unmounted(image, place=place))
        except CowfsError as error:
            device = stack.enter_context(unmounted(image, place=place, layers=False))
            click.echo(f"cowfs: {printable(str(error))}; what lies in the base shows as zeros", err=True)
        yield device


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("image", type=click.Path(readable=False))
@click.argument("what", nargs=-1)
@place_options
def dump(image: str, what: tuple[str, ...], offset: int | None, partition: int | None, superblock: str | None) -> None:
    """Show in words what lies in IMAGE, sound or not; nothing is verified.

    WHAT is one of: superblock (without WHAT), slots, boot, manifest, inode N, directory N, xattrs N, orphans, tree NAME,
    block N, bitmap, references, longnames, reclaim, snapshots.
    """
    from cowfs.check.dump import dump_lines

    place = place_of(offset, partition, superblock)
    with _any_layers(image, place) as device:
        for line in dump_lines(device, what, superblock=place.superblock):
            click.echo(printable(line))
