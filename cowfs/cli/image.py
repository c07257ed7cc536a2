"""Commands for a volume in an image or behind a mount: `info`, `dump`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from cowfs import control
from cowfs.cli.output import printable, require_mount, show_json, show_table, size_text, time_text
from cowfs.errors import Busy
from cowfs.fuse import mounts

if TYPE_CHECKING:
    from cowfs.storage.device import FileDevice

EXIT_OPERATIONAL = 8
"""fsck(8)'s code for a check that could not be made."""


@contextlib.contextmanager
def unmounted(image: str, *, writable: bool = False) -> Iterator[FileDevice]:
    """The device of an image that nobody is writing to, or, to be `writable`, using. Raises Busy, DeviceError."""
    from cowfs.storage.device import FileDevice

    found = [mount for mount in mounts.of_image(image) if not mounts.is_dead(mount)]
    if found:
        raise Busy(f"{image} is mounted on {found[0].mountpoint}")
    device = FileDevice.open(image, read_only=not writable)
    try:
        device.lock(exclusive=writable)
        if writable:
            device.drop_cache()  # a killed daemon may have left there what is not on the medium
        yield device
    finally:
        device.close()


@click.command()
@click.argument("target", metavar="IMAGE|MNT", type=click.Path(readable=False))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(target: str, as_json: bool) -> None:
    """Show what a volume is, how full it is, and where it is mounted."""
    reply = _describe(target)
    if as_json:
        show_json(reply)
    else:
        show_table(_info_rows(reply))


def _describe(target: str) -> control.Reply:
    if os.path.isdir(target) or mounts.at(target) is not None:
        return control.send(require_mount(target).mountpoint, control.INFO)
    for mount in mounts.of_image(target):
        if not mounts.is_dead(mount):
            return control.send(mount.mountpoint, control.INFO)
    from cowfs.fs import Filesystem
    from cowfs.storage.volume import Volume

    with unmounted(target) as device:
        return control.run(control.INFO, control.Offline(Filesystem(Volume.open(device, read_only=True))))


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
