"""Names that the kernel may remember not to be there, since a lookup was answered so.

Who makes a name by a command asks this before the kernel is told to forget it: that takes another thread, as the kernel may
hold the directory locked for a request that waits here, and nearly always it remembers nothing of the kind.

Locking: the trio thread only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from cowfs.fuse.convert import CACHE_SECONDS

NAMES_MAX: Final = 8192
"""Names of which it is known; once there were more, every name may be one for as long as the kernel keeps them."""


class MissingNames:
    """Names by directory. Of each only a hash is kept, so a name that was never asked for may count as one that was."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: set[int] = set()
        self._any_until = 0.0

    def tell(self, node: int, name: bytes) -> None:
        """The kernel hears now that a directory has no such name."""
        self._told.add(hash((node, name)))
        if len(self._told) > NAMES_MAX:
            self._told.clear()
            self._any_until = self._clock() + CACHE_SECONDS

    def may_be_remembered(self, node: int, name: bytes) -> bool:
        """Whether the kernel may take a name for missing."""
        return hash((node, name)) in self._told or self._clock() < self._any_until
