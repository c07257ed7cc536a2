"""Images that are there as a whole before anything is measured.

The first write to a block of a virtual disk can take ten times as long as the next ones, and fallocate(2) does not change
that: only writing does. So an image is filled once, and whatever a mkfs punched out of it is filled again.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from benchmarks.common import MIB, Failed, amount

SPARE_BYTES = 256 * MIB


def make(path: Path, size: int) -> None:
    """An image of `size` bytes, all of them written. Raises Failed where the disk has no room for it."""
    free = shutil.disk_usage(path.parent).free
    if free < size + SPARE_BYTES:
        raise Failed(f"{path.parent} has {amount(free)} free: too little for an image of {amount(size)}")
    chunk = random.Random(0).randbytes(MIB)  # no zeros: somebody below might keep those as holes
    with open(path, "wb", buffering=0) as file:
        for start in range(0, size, MIB):
            file.write(chunk[: min(MIB, size - start)])
        os.fsync(file.fileno())


def refill(path: Path) -> int:
    """Writes zeros into all holes; how many bytes that were."""
    filled = 0
    zeros = bytes(MIB)
    with open(path, "r+b", buffering=0) as file:
        end = os.fstat(file.fileno()).st_size
        at = 0
        while at < end:
            at = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            if at >= end:
                break
            try:
                until = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but the hole up to the end
                until = end
            while at < until:
                at += os.pwrite(file.fileno(), zeros[: min(MIB, until - at)], at)
                filled += MIB
        os.fsync(file.fileno())
    return filled
