"""The clock that time stamps of files are taken from."""

from __future__ import annotations

import time
from typing import Final

CLOCK_REALTIME_COARSE: Final = 5
"""Linux's number of it (clock_gettime(2)); the module `time` has no name for it."""


def file_time() -> int:
    """Now, in nanoseconds since 1970, as the kernel stamps files: the time of its last tick.

    Under the write cache it is the kernel that stamps what is written. A finer clock here would be up to a tick ahead of
    it, and a file that is created and then written or touched would seem to be modified before it was created.
    """
    return time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
