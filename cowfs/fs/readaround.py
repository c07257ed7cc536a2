"""Reading around: a file that is read in small pieces all over is read from the device in windows.

A small read from a cold device waits for the device and finds the processor's caches cold, which costs several times what the
read costs otherwise. Programs that read so, databases and archives, mostly come back to the neighbourhood. So the first
small read in a window of a file has the system fetch all of that window into its cache; nothing is kept here, and each
block is verified when it is read, as ever.

Where nobody comes back it would be waste. So each file has a credit: a window costs `WINDOW_COST`, a read in a window that was
fetched earns one. A huge file without locality is read as if this module were not there once 64 MiB were for nothing.

Invariants: reads that follow one another fetch nothing, since for these the kernel reads ahead; and memory is bounded, by the
windows remembered of a file and by the number of files.

Locking: the core thread only.
"""

from __future__ import annotations

import contextlib
from typing import Final

from cowfs.errors import Corrupt, DeviceError
from cowfs.ondisk import format as f
from cowfs.storage.blocktree import Root
from cowfs.storage.device import expect
from cowfs.storage.volume import Volume

PIECE_MAX: Final = 64 << 10
"""Bytes of a read that is small."""
WINDOW_BYTES: Final = 1 << 20
WINDOW_COST: Final = 2
CREDIT = 64 * WINDOW_COST
WINDOWS_MAX = 4096  # remembered of a file
FILES_MAX = 32  # remembered


class _Pattern:
    """How a file has been read: `behind` is where its last small read ended."""

    __slots__ = ("behind", "credit", "windows")

    def __init__(self) -> None:
        self.behind = 0
        self.credit = CREDIT
        self.windows: set[int] = set()


class ReadAround:
    """The files of one tree that are read in small pieces, those met last."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._patterns: dict[int, _Pattern] = {}

    def before(self, ino: int, root: Root, offset: int, size: int) -> None:
        """A small read is about to be carried out. Damage and failures are left to the read itself."""
        pattern = self._patterns.get(ino)
        if pattern is None:
            if len(self._patterns) >= FILES_MAX:
                del self._patterns[next(iter(self._patterns))]
            pattern = self._patterns[ino] = _Pattern()
        follows = offset == pattern.behind
        pattern.behind = offset + size
        if follows:
            return
        window = offset // WINDOW_BYTES
        if window in pattern.windows:
            if pattern.credit < CREDIT:
                pattern.credit += 1
        elif pattern.credit >= WINDOW_COST and offset < root.size:
            pattern.credit -= WINDOW_COST
            if len(pattern.windows) >= WINDOWS_MAX:
                pattern.windows.clear()
            pattern.windows.add(window)
            self._fetch(root, window)

    def _fetch(self, root: Root, window: int) -> None:
        volume = self._volume
        block_size = volume.geometry.block_size
        first = window * WINDOW_BYTES // block_size
        end = min(first + WINDOW_BYTES // block_size, -(-root.size // block_size))
        with contextlib.suppress(Corrupt, DeviceError):
            for block, count in volume.trees.runs(root, first, end - first):
                if block != f.NO_BLOCK and block + count <= volume.geometry.num_blocks:
                    expect(volume.device, volume.geometry.block_offset(block), count * block_size)
