"""How the process behind a mount begins: the starter forks, and waits until the mount answers.

A second start of Python would cost more than the mount. The copy makes itself a daemon in a new session, without the
starter's descriptors, and the starter waits on a pipe that is the copy's standard error. The daemon says `READY` there once
the mount answers, and lets go of it; every other line is for the user. Its command line and its environment are those of
the starter. It forks before anything but this is imported: what the starter had loaded would be copied, page by page, as
both go on; and before there is any thread, so nothing of one is shared.

Only what Python has loaded by itself is imported here.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READY = "cowfs is ready"


def start(report: Callable[[str], None]) -> int | None:
    """Starts a daemon: a copy of this process. It returns None there, and in the starter what the command's status is.

    The starter gets that once the copy serves (0) or has failed (its status). `report` gets what the copy says before
    that on standard error, line by line. Only for a process without other threads, of which a copy would have half.
    """
    assert len(os.listdir("/proc/self/task")) == 1
    reading, writing = os.pipe()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()  # or it would be written twice
    gc.freeze()  # a collection would touch, and so copy, every page that the two share
    daemon = os.fork()
    if daemon == 0:
        _leave_the_starter(writing)
        return None
    os.close(writing)
    try:
        with open(reading, encoding="utf-8", errors="replace") as said:
            for line in said:
                if line.rstrip("\n") == READY:
                    return 0
                report(line.rstrip("\n"))
        status = os.waitstatus_to_exitcode(os.waitpid(daemon, 0)[1])
    except BaseException:
        os.kill(daemon, signal.SIGTERM)
        raise
    return status if status > 0 else 1


def _leave_the_starter(stderr: int) -> None:
    """Makes a copy of the starter a process of its own: a new session, and none of its descriptors."""
    os.setsid()
    # Where the starter has none of the first three, these may be among them.
    null, stderr = (fcntl.fcntl(one, fcntl.F_DUPFD, 3) for one in (os.open(os.devnull, os.O_RDWR), stderr))
    for number, descriptor in enumerate((null, null, stderr)):
        os.dup2(descriptor, number)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:  # noqa: SIM105 - contextlib is not loaded yet
                os.close(int(name))
            except OSError:  # that of the listing itself
                pass
