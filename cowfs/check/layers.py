"""The checker's own view of an overlay's layers: which blocks are buried, what of them the overlay counts, and that none of
them was written above.

The bits are read anew from the bitmap of each layer below, with the checker's own reader. Memory: as much as these bitmaps.
"""

from __future__ import annotations

from typing import Final

from cowfs.check import problem as p
from cowfs.check.counts import bits_of
from cowfs.check.reader import BlockReader, contents_of
from cowfs.check.slots import read_slots
from cowfs.check.trees import BITMAP, ZERO_ROLE, TreeWalk, role_of
from cowfs.errors import Corrupt
from cowfs.ondisk import format as f
from cowfs.storage.device import Device, data_runs
from cowfs.storage.layers import layered

_FIRST_SYSTEM_ROLE: Final = role_of(BITMAP, 0)
_IS_SYSTEM: Final = bytes(1 if _FIRST_SYSTEM_ROLE <= role < ZERO_ROLE else 0 for role in range(256))


class LayersBelow:
    """What lies below the overlay on a device; nothing where that is a whole volume."""

    def __init__(self, device: Device) -> None:
        """Raises NotAVolume, Corrupt, DeviceError where a layer cannot be read."""
        self._layers = layered(device)
        self.pages: dict[int, int] = {}
        """Bits of the buried blocks, by pages of the bitmap that have any; bit i of a number is block i of the page."""
        below = self._layers
        while below is not None:
            self._enter(below.base)
            below = layered(below.base)

    def _enter(self, base: Device) -> None:
        """Enters what one layer uses, and the blocks under its slot 2."""
        report = p.Report(base.name, listed_max=0)
        state = read_slots(base).valid()[0]
        reader = BlockReader(base, state, report)
        blocks, size = state.geometry.num_blocks, state.geometry.block_size
        per_page = size * 8
        for index, block in reader.leaves(contents_of(state.superblock.bitmap), set()):
            inside = max(0, min(per_page, blocks - index * per_page))
            self._add(index, int.from_bytes(reader.block(block), "little") & (1 << inside) - 1)
        if reader.unreadable:
            raise Corrupt(f"{base.name}: its bitmap cannot be read", block=min(reader.unreadable))
        for block in range(blocks, blocks + -(-f.SLOT_AREA_SIZE // size)):
            self._add(block // per_page, 1 << block % per_page)

    def _add(self, index: int, bits: int) -> None:
        if bits:
            self.pages[index] = self.pages.get(index, 0) | bits

    def numbers(self, walk: TreeWalk, bitmap: dict[int, int]) -> tuple[int, int]:
        """(buried blocks that are free, of these trees' own). `bitmap` are the bits of blocks in use, by page."""
        free = system = 0
        for index, buried in self.pages.items():
            inside = max(0, min(walk.usage.page_blocks, walk.usage.num_blocks - index * walk.usage.page_blocks))
            free += (buried & (1 << inside) - 1 & ~bitmap.get(index, 0)).bit_count()
            page = walk.usage.pages.get(index)
            if page is not None:
                roles = bytearray(page.translate(_IS_SYSTEM))
                system += (buried & int.from_bytes(bits_of(roles), "little")).bit_count()
        return free, system

    def check_numbers(self, walk: TreeWalk, reader: BlockReader, report: p.Report) -> None:
        """Compares the numbers with what the extension area says."""
        extension = reader.state.extension
        assert extension is not None
        leaves = walk.leaf_blocks[BITMAP]
        bitmap = {i: int.from_bytes(reader.block(leaves[i]), "little") for i in self.pages if i in leaves}
        free, system = self.numbers(walk, bitmap)
        overlay = extension.overlay
        if (overlay.buried_free, overlay.buried_system) != (free, system):
            found = f"{overlay.buried_free} and {overlay.buried_system} found"
            report.add(p.BURIED_BLOCKS, f"{free} free ones and {system} of the system counted, {found}")

    def check_own_contents(self, reader: BlockReader, report: p.Report) -> None:
        """No buried block has contents in the overlay itself; zeros, or a copy of what lies below, do no harm."""
        if self._layers is None:
            return
        geometry, size = reader.geometry, reader.block_size
        limit = self._layers.buried.base.num_blocks
        for offset, length in data_runs(self._layers.top):
            first = max(0, offset - geometry.data_start) // size
            end = min(limit, -(-(offset + length - geometry.data_start) // size))
            for block in range(first, end):
                page, bit = divmod(block, size * 8)
                if self.pages.get(page, 0) >> bit & 1:
                    at = geometry.block_offset(block)
                    own = self._layers.top.read(at, size)
                    if own != reader.zeros and own != self._layers.base.read(at, size):
                        report.add(p.BURIED_WRITTEN, "it was given out, or written by somebody else", block=block)
