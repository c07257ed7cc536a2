"""Commands for mounts: `mount`, `umount`, `sync`."""

from __future__ import annotations

import os
import sys

import click

from cowfs import control
from cowfs.cli.output import require_mount
from cowfs.fuse import daemon, fork


@click.command()
@click.argument("image", type=click.Path(readable=False))
@click.argument("mountpoint", metavar="MNT", type=click.Path(readable=False))
@click.option(
    "-o",
    "words",
    metavar="OPTIONS",
    multiple=True,
    help="ro, rw, commit=SECONDS, cache=MIB, noxattr, nowriteback, allow_other, noatime, relatime, strictatime, sync, "
    "discard, superblock=1|2, snapshot=NAME, offset=BYTES, partition=N, base=PATH, ephemeral, ephemeral_dir=DIR, log=FILE, "
    "and mount(8)'s generic ones.",
)
@click.option("--foreground", is_flag=True, help="Serve until it is unmounted; log to standard error.")
@click.option("--log", metavar="FILE", type=click.Path(readable=False), help="Log to FILE instead of syslog.")
@click.option(
    "--superblock",
    metavar="N",
    type=click.Choice(["1", "2"]),
    help="Look at the state of superblock slot N; with -o ro.",
)
@click.option(
    "--base", metavar="PATH", type=click.Path(readable=False), help="The base of an overlay, if it was moved."
)
@click.option(
    "--ephemeral", is_flag=True, help="Mount an overlay on IMAGE that vanishes with the mount; IMAGE is not changed."
)
@click.option(
    "--ephemeral-dir",
    metavar="DIR",
    type=click.Path(readable=False),
    help="Where that overlay lies; by default beside IMAGE, or in $TMPDIR.",
)
def mount(
    image: str,
    mountpoint: str,
    words: tuple[str, ...],
    foreground: bool,
    log: str | None,
    superblock: str | None,
    base: str | None,
    ephemeral: bool,
    ephemeral_dir: str | None,
) -> int:
    """Mount the volume in IMAGE on the directory MNT.

    Returns once the mount answers. The daemon behind it logs to syslog. A foreign qnx6 volume is mounted read-only.

    snapshot=NAME mounts that snapshot (read-only) or clone as the root. In a value "\\," is a comma, "\\\\" a backslash, and
    "\\054" the byte with that octal number.
    """
    from cowfs.fuse import options

    parsed = options.parse(
        words, log=log, superblock=superblock, base=base, ephemeral=ephemeral, ephemeral_dir=ephemeral_dir
    )
    image, mountpoint = os.path.realpath(image), os.path.abspath(mountpoint)
    if not foreground:
        status = fork.start(report=lambda line: click.echo(line, err=True))
        if status is not None:
            return status
    return daemon.run(image, mountpoint, parsed, detach=not foreground, report=_say)


def _say(line: str) -> None:
    print(f"cowfs: {line}", file=sys.stderr, flush=True)


@click.command()
@click.argument("mountpoint", metavar="MNT", type=click.Path(readable=False))
def umount(mountpoint: str) -> None:
    """Unmount MNT; returns when everything is committed and the daemon has gone.

    A dead mount, whose daemon was killed, is cleared away.
    """
    daemon.unmount(mountpoint)


@click.command()
@click.argument("path", metavar="MNT", type=click.Path(readable=False))
def sync(path: str) -> None:
    """Commit everything written to the mount MNT so far.

    sync(2) and "sync -f" do not reach a FUSE daemon; this does.
    """
    control.send(require_mount(path).mountpoint, control.Command(("sync",)))
