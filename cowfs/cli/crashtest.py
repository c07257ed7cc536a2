"""The command `crashtest`: a workload in words, and every image that a power cut could leave of it."""

from __future__ import annotations

import time
from typing import TextIO

import click

from cowfs.cli.output import show_json

SIZE_DEFAULT_KIB = 1024
MEMORY_KIB_MAX = 64 << 10


@click.command()
@click.argument("script", type=click.File("r"), default="-")
@click.option("--block-size", type=click.Choice(["512", "1024", "2048", "4096"]), default="512", show_default=True)
@click.option(
    "--size",
    "kibibytes",
    type=click.IntRange(SIZE_DEFAULT_KIB, MEMORY_KIB_MAX),
    default=SIZE_DEFAULT_KIB,
    show_default=True,
    metavar="KIB",
    help="Size of the volume, which lies in memory.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Chooses among images that are too many to try all."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def crashtest(script: TextIO, block_size: str, kibibytes: int, seed: int, as_json: bool) -> int:
    """Run a SCRIPT of operations on a volume in memory, and try every image that a power cut could leave of it.

    After every write and flush: each subset of the writes that were not flushed (all, if they are few), writes torn at
    sectors, sectors trashed; and again during the opening after the cut. Each image must be sound, mount without repair,
    and hold the state of the last sync or of a commit after it.

    A script has one step a line, or several with ';' between them: create PATH, mkdir PATH, write PATH OFFSET SIZE,
    append PATH SIZE, truncate PATH SIZE, link OLD NEW, unlink PATH, rename OLD NEW, rmdir PATH, symlink PATH TARGET,
    setxattr PATH NAME SIZE, snapshot NAME, delete NAME, rollback NAME, hold PATH, sync, kill, remount, and those that
    pydoc cowfs.check.crashscript lists. Exit codes: 0 all images were as they should be, 4 one was not.
    """
    from cowfs.check.crashdevice import RecordingDevice
    from cowfs.check.crashscript import START, ScriptRun
    from cowfs.check.crashtest import CrashFailure, Judge, verify
    from cowfs.ondisk.geometry import geometry_for_size
    from cowfs.storage.device import MemoryDevice
    from cowfs.storage.mkvolume import make_volume

    geometry = geometry_for_size(kibibytes << 10, int(block_size))
    made = MemoryDevice(geometry.end)
    make_volume(made, geometry, label=b"", uuid=bytes(16), now_ns=START)
    device = RecordingDevice(made.image())
    run = ScriptRun(device)
    run.run(script.read())
    run.stop()
    judge = Judge()
    begin = time.monotonic()
    failure = ""
    try:
        verify(device, judge, seed=seed)
    except CrashFailure as error:
        failure = str(error)
    counts = judge.counts
    if as_json:
        show_json(
            {
                "sound": not failure,
                "failure": failure,
                "steps": len(run.steps),
                "refused": sum(run.refused.values()),
                "places": counts.cuts,
                "images": counts.images,
                "tried": counts.tried,
                "seconds": round(time.monotonic() - begin, 2),
            }
        )
    else:
        click.echo(f"{len(run.steps)} steps ({sum(run.refused.values())} refused): {counts}")
        click.echo(f"NOT SOUND: {failure}" if failure else "every image was sound and held an allowed state")
    return 4 if failure else 0
