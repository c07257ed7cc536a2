"""The long-name file: names of 28..510 bytes, one block ("slot") each.

Invariant: within one tree a used slot has exactly one directory entry; a free slot is a hole. So a slot in use is found by
its pointer alone, and freeing one is punching a hole.

Locking: the core thread only.
"""

from __future__ import annotations

from cowfs.errors import Corrupt, NoSpace
from cowfs.fs.freelist import FreeList
from cowfs.ondisk import format as f
from cowfs.storage.blocktree import WritableRoot
from cowfs.storage.tree import Tree
from cowfs.storage.volume import Volume


class LongNames:
    """The long names of one tree."""

    def __init__(self, volume: Volume, tree: Tree) -> None:
        self._tree = tree
        self._trees = volume.trees
        self._order = volume.geometry.order
        self._block_size = volume.geometry.block_size
        self._size_max = volume.geometry.file_size_max
        # A foreign volume may keep a name of any length in a slot.
        self._length_min = 1 if volume.foreign else f.SHORT_NAME_MAX + 1
        self._free = FreeList(min(tree.longname_hint, self.slots), self._is_free)

    @property
    def slots(self) -> int:
        """Slots that the file has, free ones included."""
        return self._tree.longnames.size // self._block_size

    def read(self, slot: int) -> bytes:
        """The name in a slot. Raises Corrupt for a slot that does not exist or holds no name."""
        slots = self.slots
        if slot >= slots:
            raise Corrupt("long-name slot", wanted=f"< {slots}", found=slot)
        block = self._trees.leaf(self._tree.longnames, slot)
        header = f.LONG_NAME_HEADER_SIZE
        length = f.LongNameHeader.unpack(block, 0, self._order).length
        if not self._length_min <= length <= f.NAME_MAX:
            wanted = f"{self._length_min}..{f.NAME_MAX}"
            raise Corrupt(f"length of the name in slot {slot}", wanted=wanted, found=length)
        return bytes(block[header : header + length])

    def prepare(self) -> None:
        """Does the reading that `add` needs before anything changes. Raises NoSpace, Corrupt, DeviceError."""
        slots = self.slots
        if self._free.find(slots) is None and (slots + 1) * self._block_size > self._size_max:
            raise NoSpace("no free long-name slot")

    def block(self, slot: int) -> int:
        """The block that holds the name in a slot. Raises Corrupt for a slot without one."""
        block = self._trees.pointer(self._tree.longnames, slot) if slot < self.slots else f.NO_BLOCK
        if block == f.NO_BLOCK:
            raise Corrupt("a directory entry names a long-name slot that holds no name", found=slot)
        return block

    def share(self, block: int) -> int:
        """Gives a block with a name a free slot, too; as `add`."""
        root, slot = self._free_slot()
        self._trees.share_leaf(root, slot, block)
        return slot

    def _free_slot(self) -> tuple[WritableRoot, int]:
        root = self._tree.writable_longnames()
        slots = self.slots
        slot = self._free.find(slots)
        if slot is None:
            slot = slots
            self._trees.resize(root, (slots + 1) * self._block_size)
            self._free.add(slot)
        return root, slot

    def add(self, name: bytes) -> int:
        """Stores a name in a free slot; space for it has been admitted. Returns the slot."""
        root, slot = self._free_slot()
        block = self._trees.writable_leaf(root, slot)
        header = f.LONG_NAME_HEADER_SIZE
        block[:] = bytes(self._block_size)
        block[:header] = f.LongNameHeader(len(name)).pack(self._order)
        block[header : header + len(name)] = name
        return slot

    def remove(self, slot: int) -> None:
        """Makes a slot free."""
        self._trees.punch(self._tree.writable_longnames(), slot)
        self._free.add(slot)

    def write_back(self) -> None:
        """Puts the hint for the next mount into the tree."""
        self._tree.longname_hint = self._free.hint

    def _is_free(self, slot: int) -> bool:
        return self._trees.pointer(self._tree.longnames, slot) == f.NO_BLOCK
