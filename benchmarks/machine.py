"""The machine that is measured on: what it is, who else uses it, its caches, and one CPU for all."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
PROCESS_CLOCK = 2
"""What clock_getcpuclockid(3) makes of a process id: its complement, shifted, and CPUCLOCK_SCHED."""
CHECKOUT = Path(__file__).resolve().parent.parent


def description() -> list[str]:
    """In plain words, for the head of a report."""
    cpus = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    model = _cpu_model()
    return [
        f"commit {commit()}",
        f"{cpus} {'CPU' if cpus == 1 else 'CPUs'}{f' ({model})' if model else ''}, {memory:.0f} GiB of memory, "
        f"{platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}",
    ]


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def commit() -> str:
    """The commit of the checkout that the benchmarks are in, and whether anything was changed since."""
    try:
        git = ["git", "-C", str(CHECKOUT)]
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.stdout.strip() + (" with changes" if changed.stdout.strip() else "")


def load() -> str:
    """How many processes wanted to run in the last minute, on average. One's own count."""
    return f"{os.getloadavg()[0]:.1f}"


def pin(cpu: int) -> None:
    """This process and all that it starts from now on share one CPU, so nobody has to wake another one."""
    os.sched_setaffinity(0, {cpu})


def may_drop_caches() -> bool:
    """Whether the kernel's caches can be emptied: root only."""
    return os.access(DROP_CACHES, os.W_OK)


def drop_caches(image: Path) -> None:
    """Nothing of the image, names and inodes of anything else included, stays in the kernel's caches.

    Only root can have that. Others have the image's own pages forgotten, which is most of it once it is unmounted.
    """
    if image.exists():
        descriptor = os.open(image, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    if may_drop_caches():
        DROP_CACHES.write_text("3\n", encoding="ascii")


def computed(pid: int) -> float:
    """Seconds of processor time that all threads of a process have had so far; 0 where there is none."""
    if not pid:
        return 0.0
    try:
        return time.clock_gettime(~pid << 3 | PROCESS_CLOCK)
    except OSError:
        return 0.0


def computed_here() -> float:
    """Seconds of processor time of this process and of all the programs it has waited for."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def syncfs(path: Path) -> None:
    """syncfs(2), which Python has no function for. Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if library.syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))
    finally:
        os.close(descriptor)


def sync(root: Path, last: Path | None = None) -> None:
    """All of a filesystem to its medium: syncfs, then fsync of the root directory and of the last file written.

    FUSE passes no syncfs on to most daemons: the kernel only writes back what it holds. So the fsyncs are what counts.
    """
    syncfs(root)
    for path in (root,) if last is None else (root, last):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def end_like_an_interrupt() -> None:
    """SIGTERM and SIGHUP end this program the way Ctrl-C does, so that everything is unmounted and removed."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: types.FrameType | None) -> None:
    raise KeyboardInterrupt


def say(text: str) -> None:
    """Progress, for whoever waits."""
    print(text, file=sys.stderr, flush=True)
