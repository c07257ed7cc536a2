"""System trees: the bitmap, the checksums, the reference counts, the snapshot table, the reclaim queue, the settings.

They belong to the volume and are never shared, so they need no reference counts; and since they describe the allocation
itself, their changes stay in memory until the commit is sealed, and only then get blocks ("late placement"): each page
at most once per generation, whatever happens in between.

A page is a leaf block, a node an indirect block. `ChecksumTree` is the Merkle tree: its nodes hold (block, crc32c) pairs,
so each of its blocks is checked by its parent and the top ones by the extension area; every other tree's blocks are
checked by it.

Invariants:
- I5 A page or node is placed at most once per generation; placing one makes its parent dirty. One that holds nothing but
  zeros, or holes, becomes a hole instead; it can be placed later in the same generation, then for good.
- I7 Reading verifies: against the checksum tree, or for the checksum tree itself against the parent's entry.

Locking: the core thread only.
"""

from __future__ import annotations

import array
from collections.abc import Callable, Iterator

from cowfs.errors import Corrupt
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c
from cowfs.ondisk.geometry import Geometry, pointers_from, pointers_to
from cowfs.ondisk.records import Buffer
from cowfs.storage.blockio import BlockStore, hole_pointer

PAGE_CACHE_BYTES = 16 << 20
NODE_CACHE_BYTES = 8 << 20
CHECKSUM_ENTRY_WORDS = 2  # of an entry in a node of the tree of checksums
Key = tuple[int, int]
"""(level, index): (0, i) is page i; (k, i) the node above pages i * fanout^k and following."""


class PagedTree:
    """An array of bytes in pages of one block, sparse, grown at will. Absent pages read as zeros.

    `entry_words`: of each entry in a node, of which the first is the pointer.
    """

    def __init__(
        self, name: str, store: BlockStore, zero_blocks: tuple[int, ...], root: f.RootNode, entry_words: int = 1
    ) -> None:
        self.name = name
        self.store = store
        self.zero_blocks = zero_blocks
        self.page_size = store.block_size
        self.entry_words = entry_words
        self.fanout = store.geometry.fanout // entry_words
        self.size = root.size
        self.levels = root.levels
        self.ptr = list(root.ptr)
        self._root = f.RootNode(root.size, root.ptr, root.levels)
        self.block_delta = 0  # change of the number of blocks in use since opening
        self._pages: dict[int, bytearray] = {}
        self._nodes: dict[Key, array.array[int]] = {}
        self._dirty: set[Key] = set()
        self._unplaced: set[Key] = set()
        self._page_max = max(16, PAGE_CACHE_BYTES // self.page_size)
        self._node_max = max(16, NODE_CACHE_BYTES // self.page_size)
        self._zeros = bytes(self.page_size)
        self.evictable: Callable[[int], bool] | None = None  # asked before a clean page leaves memory
        self.on_write: Callable[[], None] = lambda: None  # told of each change by `write`
        if self.levels > f.SYSTEM_LEVEL_MAX:
            raise Corrupt(f"{name} tree: levels", wanted=f"<= {f.SYSTEM_LEVEL_MAX}", found=self.levels)
        if self.size > f.POINTER_COUNT * self.fanout**self.levels * self.page_size:
            raise Corrupt(f"{name} tree: {self.size} bytes do not fit into {self.levels} levels")
        self.occupied = self._has_blocks()

    # --- access ---

    def page(self, index: int) -> bytearray:
        """Page `index`, for reading only. Raises Corrupt, DeviceError."""
        page = self._pages.get(index)
        if page is None:
            page = self._load(index)
        return page

    def is_hole(self, index: int) -> bool:
        """Whether page `index` is known to be zeros without a look at it. Raises Corrupt, DeviceError."""
        return index not in self._pages and self._is_hole(self._pointer((0, index)), 0)

    def page_for_write(self, index: int) -> bytearray:
        """Page `index`, to be changed in place; it goes into the next commit."""
        page = self._pages.get(index)
        if page is None:
            page = self._load(index)
        key = (0, index)
        if key not in self._dirty:
            self._dirty.add(key)
            self._unplaced.add(key)
            self.occupied = True
        return page

    def touch(self, index: int) -> None:
        """Makes page `index` part of the next commit without changing it yet."""
        if (0, index) not in self._dirty:
            self.page_for_write(index)

    def load(self, offset: int, size: int) -> None:
        """Brings what there is of so many bytes into memory, before it is needed. Raises Corrupt, DeviceError."""
        for index in range(offset // self.page_size, -(-min(offset + size, self.size) // self.page_size)):
            self.page(index)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at byte `offset`."""
        pieces = []
        while size > 0:
            index, at = divmod(offset, self.page_size)
            piece = self.page(index)[at : at + min(size, self.page_size - at)]
            pieces.append(piece)
            offset += len(piece)
            size -= len(piece)
        return b"".join(pieces)

    def write(self, offset: int, data: Buffer) -> None:
        """Stores `data` at byte `offset`, growing the tree where it ends beyond."""
        view = memoryview(data)
        if offset + len(view) > self.size:
            self.set_size(offset + len(view))
        while view:
            index, at = divmod(offset, self.page_size)
            take = min(len(view), self.page_size - at)
            page = self.page_for_write(index)
            self.on_write()
            page[at : at + take] = view[:take]
            view = view[take:]
            offset += take

    def set_size(self, size: int) -> None:
        """Grows the tree to `size` bytes (more levels where needed). Growing only; what is new are holes."""
        pages = -(-size // self.page_size)
        while pages > f.POINTER_COUNT * self.fanout**self.levels:
            self._add_level()
        self.size = max(self.size, size)
        span = self.fanout**self.levels
        for i in range(min(f.POINTER_COUNT, -(-pages // span))):
            if self.ptr[i] == f.NO_BLOCK:
                self.ptr[i] = self._hole(self.levels)

    def cut(self, size: int, free: Callable[[int], None]) -> None:
        """Shortens the tree to `size` bytes, and makes it no deeper than that needs. `free` gets each block that goes."""
        keep = -(-size // self.page_size)
        for i in range(f.POINTER_COUNT):
            self._cut((self.levels, i), keep, free)
        while self.levels and keep <= f.POINTER_COUNT * self.fanout ** (self.levels - 1):
            self._remove_level(free)
        tops = -(-keep // self.fanout**self.levels)
        for i in range(f.POINTER_COUNT):
            if i >= tops:
                self.ptr[i] = f.NO_BLOCK
            elif self.ptr[i] == f.NO_BLOCK:
                self.ptr[i] = self._hole(self.levels)
        self.size = size
        self.occupied = self._has_blocks()

    def _cut(self, key: Key, keep: int, free: Callable[[int], None]) -> None:
        """Lets go of what lies behind the first `keep` pages, at and below a key."""
        level, index = key
        span: int = self.fanout**level
        pointer = self._pointer(key)
        absent = self._is_hole(pointer, level) and key not in self._dirty
        if absent or (index + 1) * span <= keep:
            return
        for i in range(self.fanout if level else 0):
            self._cut((level - 1, index * self.fanout + i), keep, free)
        if index * span < keep:
            return
        self._forget_key(key)
        self._set_absent(key)
        if not self._is_hole(pointer, level):
            self.block_delta -= 1
            free(pointer)

    def _remove_level(self, free: Callable[[int], None]) -> None:
        """The first top pointer's node goes, and its first pointers become the top ones."""
        key, pointer = (self.levels, 0), self.ptr[0]
        node = self._node(key)
        below = [node[i * self.entry_words] for i in range(f.POINTER_COUNT)]
        self._raise_checks(node)
        self._forget_key(key)
        was_hole = self._is_hole(pointer, self.levels)
        self.levels -= 1
        self.ptr = below
        if not was_hole:
            self.block_delta -= 1
            free(pointer)

    def _forget_key(self, key: Key) -> None:
        self._dirty.discard(key)
        self._unplaced.discard(key)
        if key[0]:
            self._nodes.pop(key, None)
        else:
            self._pages.pop(key[1], None)

    def _set_absent(self, key: Key) -> None:
        self._set_pointer(key, self._hole(key[0]))

    def _raise_checks(self, node: array.array[int]) -> None:
        """Takes the checks of a node's first pointers up to the root."""

    def evacuate(self, limit: int) -> int:
        """Has the next seal place anew what lies at block `limit` or behind it; the number of such pages and nodes."""
        count = 0
        pending: list[Key] = [(self.levels, i) for i in range(f.POINTER_COUNT)]
        while pending:
            key = pending.pop()
            level, index = key
            pointer = self._pointer(key)
            if self._is_hole(pointer, level):
                continue
            if level:
                node = self._node(key)
                children = [i for i in range(self.fanout) if not self._is_hole(node[i * self.entry_words], level - 1)]
                pending += [(level - 1, index * self.fanout + i) for i in children]
            if pointer >= limit:
                count += 1
                if level == 0:
                    self.page_for_write(index)
                elif key not in self._dirty:
                    self._dirty.add(key)
                    self._unplaced.add(key)
        return count

    def _add_level(self) -> None:
        assert self.levels < f.SYSTEM_LEVEL_MAX, self.name
        node = self._empty_node((self.levels + 1, 0))
        moved = {}
        for i in range(f.POINTER_COUNT):
            node[i * self.entry_words] = self.ptr[i] if self.ptr[i] != f.NO_BLOCK else self._hole(self.levels)
            self._move_check(node, i)
        if self.occupied:
            key = (self.levels + 1, 0)
            moved[key] = node
            self._dirty.add(key)
            self._unplaced.add(key)
        self._nodes.update(moved)
        self.levels += 1
        self.ptr = [f.NO_BLOCK] * f.POINTER_COUNT

    def _move_check(self, node: array.array[int], slot: int) -> None:
        """Takes the check of top pointer `slot` down into a new node."""

    def root_node(self) -> f.RootNode:
        """The root as it goes into the record; the same object as long as it is the same."""
        node, ptr = self._root, tuple(self.ptr)
        if node.ptr != ptr or node.size != self.size or node.levels != self.levels:
            node = self._root = f.RootNode(self.size, ptr, self.levels)
        return node

    def blocks(self) -> Iterator[int]:
        """Every block in use by the tree, by walking its nodes; for small volumes and tests."""
        pending = [(self.levels, i) for i in range(f.POINTER_COUNT)]
        while pending:
            level, index = pending.pop()
            pointer = self._pointer((level, index))
            if not self._is_hole(pointer, level):
                yield pointer
                if level:
                    pending.extend((level - 1, index * self.fanout + i) for i in range(self.fanout))

    def changed(self, older: PagedTree) -> Iterator[Key]:
        """What an older committed state of the same tree has elsewhere, or one of the two not at all: nodes, then pages.

        A node before what is below it; what both share is passed over whole. Raises Corrupt, DeviceError.
        """
        pending = [(self.levels, i) for i in reversed(range(f.POINTER_COUNT))]
        while pending:
            key = pending.pop()
            level, index = key
            same = older.block_at(key) == self.block_at(key)
            if same and (level <= older.levels or index):  # else all of the older one lies below
                continue
            if not same:
                yield key
            if level:
                pending.extend((level - 1, index * self.fanout + i) for i in reversed(range(self.fanout)))

    def block_at(self, key: Key) -> int | None:
        """The block of a page or node; None for a hole, and where the tree does not reach."""
        level, index = key
        if level > self.levels or index >= f.POINTER_COUNT * self.fanout ** (self.levels - level):
            return None
        block = self._pointer(key)
        return None if self._is_hole(block, level) else block

    # --- commit ---

    def place(self, allocate: Callable[[], int], replace: Callable[[int], int], free: Callable[[int], None]) -> None:
        """Gives every dirty page and node that has no block of this generation one, from the pages upwards.

        `replace` allocates one and frees one. All three may make more pages of this tree dirty. What is empty becomes a hole.
        """
        if not self._unplaced:
            return
        while self._unplaced:
            for key in sorted(self._unplaced) if len(self._unplaced) > 1 else list(self._unplaced):
                self._unplaced.discard(key)
                level = key[0]
                old = self._pointer(key)
                was_hole = self._is_hole(old, level)
                if not self._is_empty(key):
                    self._set_pointer(key, allocate() if was_hole else replace(old))
                    self.block_delta += was_hole
                    continue
                self._dirty.discard(key)
                if not was_hole:
                    self._set_pointer(key, self._hole(level))
                    self.block_delta -= 1
                    free(old)
        self.occupied = self._has_blocks()

    @property
    def unplaced(self) -> bool:
        """Whether something waits for a block."""
        return bool(self._unplaced)

    @property
    def unplaced_max(self) -> int:
        """Blocks that placing what is dirty now may take at most."""
        count = len(self._unplaced)
        return count + min(count * self.levels, self.nodes_max) if count else 0

    @property
    def nodes_max(self) -> int:
        """Nodes of the tree when no part of it is a hole."""
        total, count = 0, -(-self.size // self.page_size)
        for _ in range(self.levels):
            count = -(-count // self.fanout)
            total += count
        return total

    @property
    def dirty_count(self) -> int:
        """Dirty pages and nodes."""
        return len(self._dirty)

    def take_contents(self) -> list[tuple[int, bytes]]:
        """(block, contents) of everything dirty, placed before; afterwards the tree is clean."""
        assert not self._unplaced, self.name
        if not self._dirty:
            return []
        contents = [(self._pointer(key), self._bytes(key)) for key in sorted(self._dirty)]
        self._dirty.clear()
        return contents

    def trim_cache(self) -> None:
        """Forgets clean pages and nodes beyond the bounds of the caches, the oldest first."""
        if len(self._nodes) > self._node_max:
            for key in [key for key in self._nodes if key not in self._dirty][: len(self._nodes) - self._node_max]:
                del self._nodes[key]
        excess = len(self._pages) - self._page_max
        if excess > 0:
            for index in list(self._pages):
                if (0, index) not in self._dirty and self._evict(index):
                    excess -= 1
                    if excess <= 0:
                        break

    def limit_cache(self, size: int) -> None:
        """Keeps no more than `size` bytes of clean pages, and of nodes, from now on."""
        self._page_max = self._node_max = max(16, size // self.page_size)

    def forget(self, index: int) -> None:
        """A clean page leaves memory; what was changed stays."""
        if (0, index) not in self._dirty:
            self._pages.pop(index, None)

    def is_hole_on_device(self, index: int) -> bool:
        """Whether the page was zeros when the last generation was sealed. Raises Corrupt, DeviceError."""
        return self._is_hole(self._pointer((0, index)), 0)

    def _evict(self, index: int) -> bool:
        if self.evictable is not None and not self.evictable(index):
            return False
        del self._pages[index]
        return True

    # --- nodes ---

    def _load(self, index: int) -> bytearray:
        pages = -(-self.size // self.page_size)
        assert 0 <= index < pages, f"{self.name}: page {index} of {pages}"
        key = (0, index)
        block = self._pointer(key)
        page = bytearray(self.page_size) if self._is_hole(block, 0) else bytearray(self._read_block(key, block))
        if len(self._pages) >= 2 * self._page_max:
            self.trim_cache()
        self._pages[index] = page
        return page

    def _node(self, key: Key) -> array.array[int]:
        node = self._nodes.get(key)
        if node is None:
            block = self._pointer(key)
            if self._is_hole(block, key[0]):
                node = self._empty_node(key)
            else:
                node = pointers_from(self._read_block(key, block), self.store.geometry.order)
            if len(self._nodes) >= 2 * self._node_max:
                self.trim_cache()
            self._nodes[key] = node
        return node

    def _read_block(self, key: Key, block: int) -> Buffer:
        return self.store.read_run(block, 1)

    def _pointer(self, key: Key) -> int:
        level, index = key
        if level == self.levels:
            return self.ptr[index]
        parent, slot = divmod(index, self.fanout)
        return self._node((level + 1, parent))[slot * self.entry_words]

    def _set_pointer(self, key: Key, block: int) -> None:
        level, index = key
        if level == self.levels:
            self.ptr[index] = block
            return
        parent, slot = divmod(index, self.fanout)
        parent_key = (level + 1, parent)
        self._node(parent_key)[slot * self.entry_words] = block
        if parent_key not in self._dirty:
            self._dirty.add(parent_key)
            self._unplaced.add(parent_key)

    def _bytes(self, key: Key) -> bytes:
        if key[0] == 0:
            return bytes(self._pages[key[1]])
        return pointers_to(self._nodes[key], self.store.geometry.order)

    def _empty_node(self, key: Key) -> array.array[int]:
        return array.array("I", [self._hole(key[0] - 1)]) * self.fanout

    def _hole(self, level: int) -> int:
        return hole_pointer(self.zero_blocks, level)

    def _is_hole(self, block: int, level: int) -> bool:
        return block == f.NO_BLOCK or block in self.zero_blocks

    def _is_empty(self, key: Key) -> bool:
        if key[0] == 0:
            return self._pages[key[1]] == self._zeros
        return self._nodes[key] == self._empty_node(key)

    def _has_blocks(self) -> bool:
        return not all(self._is_hole(pointer, self.levels) for pointer in self.ptr)


class BitmapTree(PagedTree):
    """The bitmap: it has the form that other drivers know (I9), so ~0 is behind its end, and its end lies in no hole."""

    def set_size(self, size: int) -> None:
        """As PagedTree's; what was behind the old end becomes holes up to the new one, above which there are nodes."""
        old = self._page_count()
        super().set_size(size)
        self.place_end(old)

    def place_end(self, old: int = 0) -> None:
        """The nodes in which the end lies become part of the next commit; and those in which it lay at page `old`."""
        last = self._page_count() - 1
        for level in range(self.levels, 0, -1):
            span = self.fanout**level
            for key in {(level, old // span), (level, last // span)}:
                if key[1] * span > last:
                    continue
                there = not self._is_hole(self._pointer(key), level)
                node = self._node(key)
                first = max(0, -(-(old - key[1] * span) // (span // self.fanout)))
                if first < self.fanout:
                    node[first:] = self._empty_node(key)[first:]
                    if there or self._inside(key) < span:
                        self._dirty.add(key)
                        self._unplaced.add(key)

    def _page_count(self) -> int:
        return -(-self.size // self.page_size)

    def _inside(self, key: Key) -> int:
        """Pages that begin below the end, counted from the first one below a node."""
        level, index = key
        span: int = self.fanout**level
        return self._page_count() - index * span

    def _empty_node(self, key: Key) -> array.array[int]:
        node = super()._empty_node(key)
        inside = -(-self._inside(key) // self.fanout ** (key[0] - 1))
        if inside < self.fanout:
            node[inside:] = array.array("I", [f.NO_BLOCK]) * (self.fanout - inside)
        return node

    def _is_empty(self, key: Key) -> bool:
        return (key[0] == 0 or self._inside(key) >= self.fanout ** key[0]) and super()._is_empty(key)


class ChecksumTree(PagedTree):
    """The Merkle tree over all blocks: page entries are the crc32c of a block by its number."""

    def __init__(
        self, store: BlockStore, zero_blocks: tuple[int, ...], root: f.RootNode, top_checks: tuple[int, ...]
    ) -> None:
        super().__init__("checksums", store, zero_blocks, root, CHECKSUM_ENTRY_WORDS)
        self.top_checks = list(top_checks)
        self.per_page = self.page_size // f.CHECKSUM_SIZE

    def get(self, block: int) -> int:
        """The recorded crc32c of a block."""
        index, at = divmod(block, self.per_page)
        at *= f.CHECKSUM_SIZE
        return int.from_bytes(self.page(index)[at : at + f.CHECKSUM_SIZE], "little")

    def get_run(self, block: int, count: int) -> list[int]:
        """Those of `count` blocks."""
        raw = self.read(block * f.CHECKSUM_SIZE, count * f.CHECKSUM_SIZE)
        return pointers_from(raw, self.store.geometry.order).tolist()

    def set(self, block: int, value: int) -> None:
        """Records the crc32c of a block of the open generation."""
        index, at = divmod(block, self.per_page)
        at *= f.CHECKSUM_SIZE
        self.page_for_write(index)[at : at + f.CHECKSUM_SIZE] = value.to_bytes(f.CHECKSUM_SIZE, "little")

    def set_run(self, block: int, values: list[int]) -> None:
        """Records those of a run of blocks of the open generation."""
        if len(values) == 1:
            self.set(block, values[0])
        else:
            self.write(block * f.CHECKSUM_SIZE, pointers_to(array.array("I", values), self.store.geometry.order))

    def set_each(self, values: dict[int, int]) -> None:
        """Records those of blocks of the open generation that lie anywhere."""
        per_page = self.per_page
        last, page = -1, bytearray()
        for block, value in values.items():
            index, at = divmod(block, per_page)
            if index != last:
                last, page = index, self.page_for_write(index)
            at *= f.CHECKSUM_SIZE
            page[at : at + f.CHECKSUM_SIZE] = value.to_bytes(f.CHECKSUM_SIZE, "little")

    def touch_run(self, block: int, count: int) -> None:
        """The pages of these blocks go into the next commit: called when the blocks are allocated."""
        for index in range(block // self.per_page, (block + count - 1) // self.per_page + 1):
            if (0, index) not in self._dirty:
                self.page_for_write(index)

    def tops(self) -> list[Key]:
        """The keys of the top pages or nodes that are there."""
        return [(self.levels, index) for index, pointer in enumerate(self.ptr) if pointer != f.NO_BLOCK]

    def below(self, key: Key) -> list[Key]:
        """The keys of the pages or nodes that a node leads to. Raises Corrupt, DeviceError."""
        level, index = key
        pointers = self._node(key)[:: self.entry_words]
        return [(level - 1, index * self.fanout + i) for i, pointer in enumerate(pointers) if pointer != f.NO_BLOCK]

    def entry(self, key: Key) -> tuple[int, int]:
        """(block, crc32c) of a page or node as its parent has it: that of the last commit. Raises Corrupt, DeviceError."""
        level, index = key
        if level == self.levels:
            return self.ptr[index], self.top_checks[index]
        parent, slot = divmod(index, self.fanout)
        node = self._node((level + 1, parent))
        return node[2 * slot], node[2 * slot + 1]

    def take_contents(self) -> list[tuple[int, bytes]]:
        """As PagedTree's, from the leaves upwards, each one's crc32c entered into its parent."""
        assert not self._unplaced
        contents = []
        for key in sorted(self._dirty):
            level, index = key
            data = self._bytes(key)
            check = crc32c(data)
            if level == self.levels:
                self.top_checks[index] = check
            else:
                parent, slot = divmod(index, self.fanout)
                parent_key = (level + 1, parent)
                assert parent_key in self._dirty
                self._nodes[parent_key][2 * slot + 1] = check
            contents.append((self._pointer(key), data))
        self._dirty.clear()
        return contents

    def _read_block(self, key: Key, block: int) -> Buffer:
        wanted = self.entry(key)[1]
        store = self.store
        if not 0 <= block < store.num_blocks:
            raise Corrupt(
                "pointer beyond the end of the volume", block=block, wanted=f"< {store.num_blocks}", found=block
            )
        data = store.in_memory(block)
        if data is None:
            data = store.device.read(store.geometry.block_offset(block), self.page_size)
        found = crc32c(data)
        if found != wanted:
            raise Corrupt(
                "checksum of the checksum tree", block=block, wanted=f"{wanted:#010x}", found=f"{found:#010x}"
            )
        return data

    def _empty_node(self, key: Key) -> array.array[int]:
        return array.array("I", [f.NO_BLOCK, 0]) * self.fanout

    def _move_check(self, node: array.array[int], slot: int) -> None:
        node[2 * slot + 1] = self.top_checks[slot]
        self.top_checks[slot] = 0

    def _raise_checks(self, node: array.array[int]) -> None:
        self.top_checks = [node[2 * slot + 1] for slot in range(f.POINTER_COUNT)]

    def _set_absent(self, key: Key) -> None:
        super()._set_absent(key)
        level, index = key
        if level == self.levels:
            self.top_checks[index] = 0
        else:
            parent, slot = divmod(index, self.fanout)
            self._node((level + 1, parent))[2 * slot + 1] = 0

    def _hole(self, level: int) -> int:
        return f.NO_BLOCK

    def _is_hole(self, block: int, level: int) -> bool:
        return block == f.NO_BLOCK

    def _is_empty(self, key: Key) -> bool:
        return False  # a page of zeros is as good as any other here


def tree_capacity_blocks(geometry: Geometry, size: int, entry_words: int = 1, *, pages_max: int | None = None) -> int:
    """Blocks of a full tree of `size` bytes, nodes included: what a commit may at most place of it.

    `pages_max`: no more of its pages are anything but holes.
    """
    level_count = geometry.blocks_of(size)
    total = used = level_count if pages_max is None else min(level_count, pages_max)
    fanout = geometry.fanout // entry_words
    levels = geometry.levels_of(level_count, fanout)
    for _ in range(levels):
        level_count = -(-level_count // fanout)
        total += min(level_count, used)
    return total


def tree_root(geometry: Geometry, size: int, zero_blocks: tuple[int, ...], entry_words: int = 1) -> f.RootNode:
    """The root of an empty tree of `size` bytes."""
    fanout = geometry.fanout // entry_words
    pages = geometry.blocks_of(size)
    levels = geometry.levels_of(pages, fanout)
    tops = -(-pages // fanout**levels)
    hole = hole_pointer(zero_blocks, levels) if entry_words == 1 else f.NO_BLOCK
    return f.RootNode(size, (hole,) * tops + (f.NO_BLOCK,) * (f.POINTER_COUNT - tops), levels)
