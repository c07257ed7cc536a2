"""Changing single inodes and long names of one tree of files: collected, and written as new leaves at the end."""

from __future__ import annotations

from collections.abc import Iterator

from cowfs.check.reader import Contents, contents_of
from cowfs.check.repair.workspace import Workspace, root_node
from cowfs.check.trees import FileTree, InodePage
from cowfs.ondisk import format as f

HIDDEN = 2
NOTHING = Contents(0, f.NO_BLOCK_POINTERS, 0)


class TreeEdit:
    """The inodes and long-name slots of one tree, whose blocks are sound."""

    def __init__(self, ws: Workspace, tree: FileTree) -> None:
        self.ws = ws
        self.tree = tree
        self.id = tree.id
        self._per_page = ws.geometry.inodes_per_block
        self._order = ws.geometry.order
        self._pages: dict[int, InodePage] = {}
        self._blocks: dict[int, int] = {}
        self._edited: dict[int, f.DiskInode | None] = {}
        self._count = tree.inode.size // f.INODE_SIZE
        self._next_free: int = f.FIRST_FREE_INODE
        self.slots: dict[int, int] = dict(ws.reader.leaves(contents_of(tree.longfile), set(), leaves_repeat=True))
        self._slots_before = dict(self.slots)
        self._lowest_slot = 0
        for index, block in ws.reader.leaves(contents_of(tree.inode), set()):
            page = ws.found.walk.inode_pages.get(block)
            if page is not None:
                self._pages[index], self._blocks[index] = page, block

    def say(self, text: str, inode: int | None = None) -> None:
        """Notes down what is done."""
        self.ws.say(text, tree=self.id, inode=inode)

    # --- inodes ---

    def state(self, number: int) -> int:
        """0: free, or there is none; 1: in use; 2: hidden."""
        if number in self._edited:
            inode = self._edited[number]
            return 0 if inode is None else 1 + (inode.flags & f.INODE_FLAG_HIDDEN)
        page, place = self._place(number)
        return page.used[place] if page is not None else 0

    def mode(self, number: int) -> int:
        """The mode of an inode in use."""
        inode = self._edited.get(number)
        if inode is not None:
            return inode.mode
        page, place = self._place(number)
        assert page is not None
        return page.modes[place]

    def links(self, number: int) -> int:
        """The link count of an inode in use."""
        inode = self._edited.get(number)
        if inode is not None:
            return inode.links
        page, place = self._place(number)
        assert page is not None
        return page.links[place]

    def xattr_inode(self, number: int) -> int:
        """The holder that an inode in use names."""
        inode = self._edited.get(number)
        if inode is not None:
            return inode.xattr_inode
        page, place = self._place(number)
        assert page is not None
        return page.xattr.get(place, 0)

    def inode(self, number: int) -> f.DiskInode:
        """An inode in use, to look at."""
        inode = self._edited.get(number)
        if inode is not None:
            return inode
        index, place = divmod(number - 1, self._per_page)
        data = self.ws.reader.block(self._blocks[index])
        return f.DiskInode.unpack(data, place * f.INODE_SIZE, self._order)

    def edit(self, number: int) -> f.DiskInode:
        """An inode in use, to be changed."""
        inode = self._edited[number] = self.inode(number)
        return inode

    def set_contents(self, number: int, data: bytes) -> None:
        """Gives an inode new contents."""
        inode = self.edit(number)
        tree = self.ws.build(data) if data else NOTHING
        inode.size, inode.ptr, inode.levels = tree.size, tree.ptr, tree.levels
        inode.blocks = self.ws.geometry.blocks_of(tree.size)

    def free(self, number: int) -> None:
        """Makes an inode free."""
        self._edited[number] = None

    def put(self, number: int, inode: f.DiskInode) -> None:
        """Stores an inode at a number that may be free."""
        self._edited[number] = inode
        self._count = max(self._count, -(-number // self._per_page) * self._per_page)

    def new(self, inode: f.DiskInode) -> int:
        """Stores an inode at a free number."""
        number: int = self._next_free
        while number <= self._count and (self.state(number) or number in self._edited):
            number += 1
        self._next_free = number + 1
        self.put(number, inode)
        return number

    def numbers(self) -> Iterator[int]:
        """All inodes in use, in order."""
        edited = sorted(number for number in self._edited if not self._in_page(number))
        for index in sorted(self._pages):
            base = index * self._per_page + 1
            for place in range(self._per_page):
                if self.state(base + place):
                    yield base + place
        yield from (number for number in edited if self.state(number))

    def _in_page(self, number: int) -> bool:
        return (number - 1) // self._per_page in self._pages

    def _place(self, number: int) -> tuple[InodePage | None, int]:
        index, place = divmod(number - 1, self._per_page)
        return self._pages.get(index) if number > 0 else None, place

    # --- long names ---

    def slot_name(self, slot: int) -> bytes:
        """The name in a slot; empty where there is none."""
        if slot not in self.slots:
            return b""
        block = self.ws.reader.block(self.slots[slot])
        length = f.LongNameHeader.unpack(block, 0, self._order).length
        if not 0 < length <= f.NAME_MAX:
            return b""
        return block[f.LONG_NAME_HEADER_SIZE : f.LONG_NAME_HEADER_SIZE + length]

    def new_slot(self, name: bytes) -> int:
        """A slot that holds `name`."""
        slot = self._lowest_slot
        while slot in self.slots:
            slot += 1
        self._lowest_slot = slot + 1
        self.slots[slot] = self.ws.put(f.LongNameHeader(len(name)).pack(self._order) + name)
        return slot

    # --- the end ---

    def store(self) -> None:
        """Writes what was changed, and gives the tree its new roots."""
        pages: dict[int, bytearray] = {}
        for number, inode in sorted(self._edited.items()):
            index, place = divmod(number - 1, self._per_page)
            if index not in pages:
                block = self._blocks.get(index)
                pages[index] = bytearray(self.ws.reader.block(block) if block is not None else self.ws.block_size)
            raw = f.FREE_INODE_BYTES if inode is None else inode.pack(self._order)
            pages[index][place * f.INODE_SIZE : (place + 1) * f.INODE_SIZE] = raw
        if pages:
            leaves = {index: self.ws.put(page) for index, page in pages.items()}
            contents = self.ws.with_leaves(contents_of(self.tree.inode), leaves, self._count * f.INODE_SIZE)
            self.tree.inode = root_node(contents, min(self.tree.inode.hint, *self._edited))
        changed = {slot: block for slot, block in self.slots.items() if self._slots_before.get(slot) != block}
        changed |= {slot: self.ws.hole(0) for slot in self._slots_before if slot not in self.slots}
        if changed:
            root = self.tree.longfile
            end = max((slot + 1 for slot in self.slots), default=0)
            size = max(root.size, end * self.ws.block_size)
            self.tree.longfile = root_node(
                self.ws.with_leaves(contents_of(root), changed, size), min(root.hint, *changed)
            )
