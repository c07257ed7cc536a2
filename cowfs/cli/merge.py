"""The command `merge`: what an overlay holds becomes the state of its base."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from cowfs.cli.output import printable, progress_bar, show_json, size_text
from cowfs.cli.target import unmounted
from cowfs.errors import Busy, InvalidArgument
from cowfs.fuse import mounts

if TYPE_CHECKING:
    from cowfs.storage.device import Device
    from cowfs.storage.merge import Plan

MEBIBYTE = 1 << 20


@click.command()
@click.argument("overlay", type=click.Path(readable=False))
@click.option("--base", metavar="PATH", type=click.Path(readable=False), help="Where the base is, if it was moved.")
@click.option("--delete", is_flag=True, help="Remove the overlay afterwards, instead of keeping it, empty.")
@click.option("--also", metavar="FILE", multiple=True, type=click.Path(), help="Look whether FILE needs the base, too.")
@click.option("--force", is_flag=True, help="Merge even if other overlays are lost by it.")
@click.option("--dry-run", is_flag=True, help="Only say what would happen.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def merge(
    overlay: str, base: str | None, delete: bool, also: tuple[str, ...], force: bool, dry_run: bool, as_json: bool
) -> None:
    """Write what an overlay holds into its base, snapshots and clones included.

    The base has its old state until all is copied, and then the new one, whatever happens meanwhile; after an interruption
    run the command again. A larger overlay makes the base as large. The overlay is empty afterwards.

    Other overlays on the same base can never be mounted again. Those in the directories of the overlay and of its base, and
    those given with --also, are looked for first.
    """
    from cowfs.storage.merge import empty_overlay, examine, settle_base
    from cowfs.storage.merge import merge as run

    with _opened(overlay, base, writable=not dry_run) as (top, below):
        plan = examine(top, below)
        if delete:
            _require_file(top)
        if not plan.done and not force:
            _require_alone(top, below, also)
        reply = _reply(top, below, plan, dry_run=dry_run, deleted=delete and not dry_run)
        notes: list[str] = []
        if not dry_run:
            with progress_bar("merging (MiB)", _mebibytes(plan.size), as_json, numbers=True) as show:
                run(top, below, now_ns=time.time_ns(), progress=lambda a, b: show(_mebibytes(a), _mebibytes(b)))
            notes = settle_base(below)
            if delete:
                _remove(top)
            else:
                empty_overlay(top, below, now_ns=time.time_ns())
    if as_json:
        show_json(reply | {"notes": notes})
        return
    for line in [*_lines(reply), *(f"note: {note}" for note in notes)]:
        click.echo(printable(line))


@contextlib.contextmanager
def _opened(overlay: str, path: str | None, *, writable: bool) -> Iterator[tuple[Device, Device]]:
    """An overlay's own image, and its base with the layers below that, which nobody else uses. Raises Busy, DeviceError."""
    from cowfs.storage.overlay import base_path, open_base, require_overlay

    with unmounted(overlay, writable=writable, layers=False) as top:
        require_overlay(top)
        found = path if path is not None else base_path(top)
        used = [mount for mount in mounts.of_image(found) if not mounts.is_dead(mount)]
        if used:
            raise Busy(f"{found} is mounted on {used[0].mountpoint}")
        below = open_base(found, top=top, writable=writable)
        try:
            yield top, below
        finally:
            below.close()


def _require_alone(top: Device, below: Device, also: tuple[str, ...]) -> None:
    """Raises Busy where another overlay was made on what changes. That which is merged changes, too: it is emptied."""
    from cowfs.storage.siblings import overlays_on
    from cowfs.storage.superblock import read_slots

    directories = {os.path.dirname(os.path.realpath(device.name)): None for device in (top, below)}
    around = [path for directory in directories for path in _files_in(directory)]
    states = [read_slots(below), read_slots(top)]
    own = os.path.realpath(top.name)
    others = [path for path in overlays_on(states, also, around) if os.path.realpath(path) != own]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise Busy(f"{others[0]}{more} would be lost: made on what changes by merging; --force merges all the same")


def _files_in(directory: str) -> list[str]:
    """The regular files in a directory; none where it cannot be read."""
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.path for entry in entries if entry.is_file())
    except OSError:
        return []


def _require_file(top: Device) -> None:
    from cowfs.storage.device import FileDevice

    if isinstance(top, FileDevice) and top.is_block_device:
        raise InvalidArgument(f"{top.name} is a block device, and cannot be removed")


def _remove(top: Device) -> None:
    from cowfs.storage.device import FileDevice

    assert isinstance(top, FileDevice)
    top.unlink()


def _reply(top: Device, below: Device, plan: Plan, *, dry_run: bool, deleted: bool) -> dict[str, Any]:
    return {
        "overlay": top.name,
        "base": below.name,
        "blocks": plan.blocks,
        "bytes": plan.size,
        "old_size": plan.old_size,
        "size": plan.new_size,
        "finished_only": plan.done,
        "deleted": deleted,
        "dry_run": dry_run,
    }


def _lines(reply: dict[str, Any]) -> Iterator[str]:
    dry, overlay, base = reply["dry_run"], reply["overlay"], reply["base"]
    if reply["finished_only"]:
        yield f"{overlay} was merged into {base} before" + (
            "; the rest would be done" if dry else "; that is finished now"
        )
    else:
        copied = f"{reply['blocks']} blocks, {size_text(reply['bytes'])}"
        yield (
            f"{copied} would be copied from {overlay} to {base}" if dry else f"{base} has what {overlay} had: {copied}"
        )
    if reply["size"] != reply["old_size"]:
        yield f"{base} {'would grow' if dry else 'grew'} from {size_text(reply['old_size'])} to {size_text(reply['size'])}"
    if not dry:
        yield f"{overlay} {'is removed' if reply['deleted'] else 'is empty'}"


def _mebibytes(size: int) -> int:
    return -(-size // MEBIBYTE)
