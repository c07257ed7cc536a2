"""The command `scrub`, for a mounted volume and for an image."""

from __future__ import annotations

import os
import time
from typing import Any

import click

from cowfs import control
from cowfs.cli.output import printable, progress_bar, require_mount, show_json, size_text
from cowfs.cli.target import unmounted
from cowfs.errors import InvalidArgument
from cowfs.fuse import mounts

EXIT_BAD = 4
POLL_SECONDS = 0.5


@click.command()
@click.argument("target", metavar="MNT|IMAGE", type=click.Path(readable=False))
@click.option("--rate", metavar="MIB/S", type=float, help="Read at most so many MiB per second.")
@click.option("--restart", is_flag=True, help="Begin anew instead of where the last scrub was stopped.")
@click.option("--background", is_flag=True, help="Start it, and do not wait for its end.")
@click.option("--status", is_flag=True, help="Only show how far it is.")
@click.option("--stop", is_flag=True, help="Stop it; the next one goes on from there.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def scrub(
    target: str, rate: float | None, restart: bool, background: bool, status: bool, stop: bool, as_json: bool
) -> int:
    """Read and verify every block in use, of a mounted volume in its background, or of an image.

    Behind a mount it takes a quarter of the time, or what --rate says. It goes on when this command is interrupted; one that
    was stopped, or ended by unmounting, goes on with the next "cowfs scrub". An image is read from its beginning.

    Exit codes: 0 all is well (or nothing is known yet), 4 bad blocks or superblocks were found, 1 failure.
    """
    if status + stop + background > 1:
        raise click.UsageError("--background, --status and --stop exclude one another")
    if rate is not None and rate <= 0:
        raise click.UsageError("--rate needs a number above 0")
    mountpoint = _mountpoint(target)
    if mountpoint is None:
        if status or stop or background:
            raise InvalidArgument(f"{target} is not mounted, so there is no scrub in its background")
        reply = _scrub_image(target, rate, as_json)
    elif status or stop:
        reply = _send(mountpoint, "status" if status else "stop")
    else:
        reply = _send(mountpoint, "start", {"restart": restart, **({} if rate is None else {"rate": rate})})
        if not background:
            reply = _follow(mountpoint, reply, as_json)
    if as_json:
        show_json(reply)
    else:
        _show(reply)
    return EXIT_BAD if reply["bad_count"] or reply["slots"] or reply["unverified"] else 0


def _mountpoint(target: str) -> str | None:
    """Where the volume is mounted; None if it is an image that is not."""
    if os.path.isdir(target) or mounts.at(target) is not None:
        return require_mount(target).mountpoint
    found = [mount for mount in mounts.of_image(target) if not mounts.is_dead(mount)]
    return found[0].mountpoint if found else None


def _send(mountpoint: str, word: str, options: dict[str, Any] | None = None) -> control.Reply:
    return control.send(mountpoint, control.Command(("scrub", word), options or {}))


def _follow(mountpoint: str, reply: control.Reply, quiet: bool) -> control.Reply:
    with progress_bar("scrubbing", reply["total"], quiet) as show:
        while reply["state"] == "running":
            show(reply["done"], reply["total"])
            time.sleep(POLL_SECONDS)
            reply = _send(mountpoint, "status")
        show(reply["done"], reply["total"])
    return reply


def _scrub_image(image: str, rate: float | None, quiet: bool) -> control.Reply:
    from cowfs.check.scrub import answered
    from cowfs.control.scrub import MEBIBYTE, Scrubber
    from cowfs.storage.volume import Volume

    with unmounted(image) as device:
        scrubber = Scrubber(Volume.open(device, read_only=True), duty=1.0)
        work = scrubber.start(rate=None if rate is None else rate * MEBIBYTE, restart=True)
        assert work is not None
        with progress_bar("scrubbing", scrubber.status()["total"], quiet) as show:
            shown = 0.0
            for _ in answered(device, work, time.sleep):
                if time.monotonic() - shown >= POLL_SECONDS:
                    shown = time.monotonic()
                    reply = scrubber.status()
                    show(reply["done"], reply["total"])
            reply = scrubber.status()
            show(reply["done"], reply["total"])
        return reply


def _show(reply: control.Reply) -> None:
    for bad in reply["bad"]:
        click.echo(printable(f"block {bad['block']} (byte {bad['offset']}): {bad['problem']}"))
        for owner in bad["owners"]:
            where = "" if owner["snapshot"] is None else f"snapshot {owner['snapshot']}, "
            name = f"inode {owner['inode']}: " if owner["inode"] is not None else ""
            for path in owner["paths"] or [where + name]:
                click.echo(
                    printable(f"    {path}: {owner['what']}" if owner["paths"] else f"    {path}{owner['what']}")
                )
    if reply["bad_count"] > len(reply["bad"]):
        click.echo(f"{reply['bad_count'] - len(reply['bad'])} more bad blocks")
    for line in reply["slots"]:
        click.echo(printable(line))
    if reply["unverified"]:
        click.echo(f"{size_text(reply['unverified'])} could not be verified: what says their checksums is damaged")
    click.echo(_summary(reply))


def _summary(reply: control.Reply) -> str:
    if reply["state"] == "never":
        return "never scrubbed"
    done, total = size_text(reply["done"]).partition(" (")[0], size_text(reply["total"]).partition(" (")[0]
    found = f"{reply['bad_count']} bad block" + "s" * (reply["bad_count"] != 1)
    if reply["state"] == "finished":
        return f"{done} verified, {found}"
    text = f"{reply['state']}: {done} of {total}"
    if reply["state"] == "running" and reply["rate"]:
        left = reply["seconds_left"]
        text += f", {reply['rate'] / (1 << 20):.1f} MiB/s" + (f", {left} s left" if left is not None else "")
    return text + (f", {reply['suspects']} suspect blocks" if reply["suspects"] else "")
