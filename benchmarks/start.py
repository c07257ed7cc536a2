"""What starting costs: processor time of mounts until they answer, and of other commands, beside the least that Python can.

    python -m benchmarks.start [--rounds N] [COWFS...]

Each COWFS is a `cowfs` program, by default the one beside this Python; several are measured in turn, so that two versions
see the same machine. The floor is a Python that imports pyfuse3 and trio and mounts a root directory with nothing in it.
For true figures the packages are installed and compiled, as pip leaves them: a program that compiles its modules at each
start (`PYTHONDONTWRITEBYTECODE` in a working copy that was never run) takes twice as long.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.peers import daemon_of

ROUNDS: Final = 9
FLOOR: Final = """
import gc, os, sys
import pyfuse3, trio

class Floor(pyfuse3.Operations):
    async def getattr(self, inode, ctx):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_mode, entry.st_nlink = inode, 0o40755, 2
        return entry

async def serve():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answers)
        await pyfuse3.main()

async def answers():
    await trio.to_thread.run_sync(os.stat, sys.argv[1])
    print("ready", flush=True)

pyfuse3.init(Floor(), sys.argv[1], {"fsname=floor"})
gc.freeze()
trio.run(serve)
pyfuse3.close()
"""


def used_by(pid: int) -> float:
    """Seconds of processor time that a process has used so far, all its threads together."""
    return time.clock_gettime((~pid << 3) | 2)  # as clock_getcpuclockid(3) makes the number


def run(*command: object) -> float:
    """Runs a command; its processor time in seconds. Raises CalledProcessError."""
    words = [os.fspath(word) if isinstance(word, Path) else str(word) for word in command]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words)
    return usage.ru_utime + usage.ru_stime


def floor(mountpoint: Path) -> dict[str, float]:
    """The floor's mount."""
    command = [sys.executable, "-c", FLOOR, str(mountpoint)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        used = used_by(process.pid)
        subprocess.run(["fusermount3", "-u", str(mountpoint)], check=True)
    return {"mount": used}


def measured(cowfs: str, image: Path, mountpoint: Path, number: int) -> dict[str, float]:
    """One round of a program."""
    found = {"--help": run(cowfs, "--help"), "info IMAGE": run(cowfs, "info", image)}
    starter = run(cowfs, "mount", image, mountpoint)
    daemon = daemon_of(mountpoint)
    found["mount"] = starter + used_by(daemon)
    try:
        before = used_by(daemon)
        found["snapshot create"] = run(cowfs, "snapshot", "create", mountpoint, f"s{number}")
        found["daemon, for that"] = used_by(daemon) - before
        found["snapshot list"] = run(cowfs, "snapshot", "list", mountpoint)
    finally:
        found["umount"] = run(cowfs, "umount", mountpoint)
    return found


def main() -> None:
    """Measures, and prints medians."""
    parser = argparse.ArgumentParser(description="Processor time of starting.")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("cowfs", nargs="*", default=[str(Path(sys.executable).parent / "cowfs")])
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    directory = Path(tempfile.mkdtemp())
    image, mountpoint = directory / "image", directory / "mnt"
    mountpoint.mkdir()
    columns: dict[str, list[dict[str, float]]] = {}
    try:
        run(Path(arguments.cowfs[0]).parent / "python", "-m", "mkcowfs", "--size", "64M", image)
        number = 0
        for turn in range(-1, arguments.rounds):  # the first one fills the caches
            for name in ["floor", *arguments.cowfs]:
                number += 1
                measure: Callable[[], dict[str, float]] = (
                    (lambda: floor(mountpoint))
                    if name == "floor"
                    else (lambda name=name, number=number: measured(name, image, mountpoint, number))  # type: ignore[misc]
                )
                found = measure()
                if turn >= 0:
                    columns.setdefault(name, []).append(found)
    finally:
        with contextlib.suppress(OSError):
            mountpoint.rmdir()
        shutil.rmtree(directory, ignore_errors=mountpoint.exists() and os.path.ismount(mountpoint))
    for name, rounds in columns.items():
        print(name)
        for what in rounds[0]:
            values = sorted(one[what] * 1000 for one in rounds)
            print(f"  {what:<18} {statistics.median(values):6.0f} ms  ({values[0]:.0f}-{values[-1]:.0f})")


if __name__ == "__main__":
    main()
