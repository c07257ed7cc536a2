"""How much of a volume may be read in one go (I28): a bound that a sound volume does not come near, and a hostile one meets.

In a volume of QNX's every block has one parent, so a walk through all directories and all files passes each block once. Who
keeps holes as pointers to one block of zeros passes that one more often, and a volume of ours may share blocks between files
as it likes. So the bound is only so low that a small volume cannot keep anybody busy for long.
"""

from __future__ import annotations

from typing import Final

from cowfs.errors import Corrupt
from cowfs.storage.volume import Volume

PASSES: Final = 256
BLOCKS_MIN: Final = 1024
GAPS_PER_BLOCK: Final = 16  # passing a hole that has no blocks at all costs so much less


class Budget:
    """What is left of the bound. `count_holes`: contents of holes count like data, for who makes bytes of them."""

    def __init__(self, volume: Volume, *, passes: int = PASSES) -> None:
        geometry = volume.geometry
        blocks = min(geometry.num_blocks, volume.device.size() // geometry.block_size)
        self._left = (passes * blocks + BLOCKS_MIN) * GAPS_PER_BLOCK
        # QNX counts holes against the free space: all contents together are smaller than a volume of its own.
        self.count_holes = volume.foreign

    def blocks(self, count: int) -> None:
        """So many blocks are about to be looked at. Raises Corrupt when it becomes too much."""
        self._left -= count * GAPS_PER_BLOCK
        if self._left < 0:
            self._left = 0
            raise Corrupt("the volume leads to more than it can hold: blocks are used again and again")

    def gap(self) -> None:
        """A hole was passed. Raises as `blocks`."""
        self._left -= 1
        if self._left < 0:
            self.blocks(0)
