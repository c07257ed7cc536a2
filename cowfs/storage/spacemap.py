"""The space map: which blocks are in use, which may be given out, and how many parents a block has.

Three views of each bitmap page are kept while it is loaded: `bits` (the open generation's truth, which the next commit
writes), `committed` (what the last sealed generation says; kept only for pages that the open generation changed) and
`busy` (bits plus the blocks that were freed but are still named by a state in one of the slots; in an overlay also the
buried ones, which a layer below uses). Only blocks that are not busy are given out.

Invariants:
- I2 A block freed in generation g is given out only after generation g + 1 is durable: both slots always name a complete
  state.
- I3 A block is *born* in the open generation if it is in use now and was not when the last generation was sealed. A block
  born and freed in the same generation is free at once: no state names it.
- I4 `free` is the number of zero bits; `held` the number of these that I2 keeps back; `buried_free` the number of those that
  are buried, which are never held, and never given out.

How many parents a block has: `parents`.

Locking: the core thread only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cowfs.errors import Corrupt, NoSpace
from cowfs.ondisk import format as f
from cowfs.storage.bits import all_set, bits_of, clear_bits, either, set_bits
from cowfs.storage.blockio import BlockStore
from cowfs.storage.freed import Freed, RunList
from cowfs.storage.layers import Buried, bit_runs
from cowfs.storage.pagedtree import ChecksumTree, PagedTree
from cowfs.storage.parents import ParentCounts, by_page

_NOT_FULL: Final = re.compile(rb"[^\xff]")
_ROOM: Final = bytes(2)  # 16 free blocks: what a small commit writes beside its data
_ROOM_SEARCH_BYTES: Final = 1024  # how far it is looked for: further, metadata would lie all over the volume
_STRETCH_BYTES: Final = 256
_FULL_STRETCH: Final = b"\xff" * _STRETCH_BYTES  # passed over at once
_LOWEST_ZERO: Final = bytes(next((bit for bit in range(8) if not byte >> bit & 1), 8) for byte in range(256))
_LONG_SEARCH_PAGES: Final = 8  # bitmap pages looked through for a long run before a short one is taken
_LONG_RUN_BYTES: Final = 8  # a "long" free run: 64 blocks


@dataclass(slots=True)
class _Page:
    """The views of one bitmap page; `committed` is None while the open generation has not changed it, `buried` where no
    block is."""

    bits: bytearray
    busy: bytearray
    buried: bytes | None = None
    committed: bytes | None = None
    held: int = 0


class SpaceMap(ParentCounts):
    """Allocation and reference counts of one volume."""

    def __init__(
        self,
        store: BlockStore,
        bitmap: PagedTree,
        references: PagedTree,
        checksums: ChecksumTree,
        *,
        free: int,
        hints: tuple[int, int],
        buried: Buried | None = None,
        buried_free: int = 0,
    ) -> None:
        self.bitmap = bitmap
        super().__init__(references, store.num_blocks, store.geometry.order)
        self.free = free
        self.held = 0
        self.buried = buried  # None: this is no overlay
        self.buried_free = buried_free
        self.withheld = 0
        """Free blocks that are not given out because their place on the medium is being given back (I41)."""
        self.freed = Freed(store.block_size)  # in the open generation
        self.born_runs: list[tuple[int, int]] = []  # allocated in the open generation, for the manifest
        self.born_count = 0
        self.data_hint, self.metadata_hint = hints
        self._store = store
        self._checksums = checksums
        self._page_bits = store.block_size * 8
        self._end = self.num_blocks  # where what is given out ends
        self._page_count = -(-self._end // self._page_bits)
        self._pages: dict[int, _Page] = {}
        self._changed: set[int] = set()
        self._full: set[int] = set()  # pages known to have nothing to give out
        self._added = (0, 0)  # how many, and how many of them buried: blocks of a larger volume that is not durable yet

    # --- queries ---

    @property
    def available(self) -> int:
        """Blocks that can be given out now."""
        return self.free - self.held - self.buried_free - self.withheld

    def unburied(self, start: int, count: int) -> int:
        """How many blocks of a run no layer below uses. Raises Corrupt, DeviceError where the base cannot be read."""
        if self.buried is None:
            return count
        return sum(length for _, length, buried in self.buried.runs(start, count) if not buried)

    def is_buried(self, block: int) -> bool:
        """Whether a layer below uses the block. Raises Corrupt, DeviceError where the base cannot be read."""
        return self.buried is not None and self.buried.has(block)

    def in_use(self, block: int) -> bool:
        """Whether the open generation uses the block."""
        return bool(self._page(block // self._page_bits).bits[block % self._page_bits >> 3] >> (block & 7) & 1)

    def born(self, block: int) -> bool:
        """Whether the block was allocated in the open generation (I3)."""
        index, bit = divmod(block, self._page_bits)
        page = self._pages.get(index)
        if page is None or page.committed is None:
            return False
        at, mask = bit >> 3, 1 << (bit & 7)
        return bool(page.bits[at] & mask) and not page.committed[at] & mask

    def born_runs_of(self, start: int, count: int) -> list[tuple[int, int, bool]]:
        """A run in pieces: (first, number, whether they were allocated in the open generation)."""
        pieces: list[tuple[int, int, bool]] = []
        for index, bit, number in self._split(start, count):
            page = self._pages.get(index)
            first = index * self._page_bits + bit
            if page is None or page.committed is None:
                pieces.append((first, number, False))
                continue
            born = bits_of(page.bits, bit, number) & ~bits_of(page.committed, bit, number)
            born_bytes = born.to_bytes(-(-number // 8), "little")
            pieces += [(first + at, length, value) for at, length, value in bit_runs(born_bytes, 0, number)]
        return pieces

    def born_among(self, blocks: list[int]) -> list[int]:
        """Those of some blocks, ascending, that were allocated in the open generation."""
        found: list[int] = []
        for index, first, part in by_page(blocks, self._page_bits):
            page = self._pages.get(index)
            if page is None or page.committed is None:
                continue
            bits, committed = page.bits, page.committed
            for block in part:
                bit = block - first
                if (bits[bit >> 3] & ~committed[bit >> 3]) >> (bit & 7) & 1:
                    found.append(block)
        return found

    # --- allocation ---

    def allocate(self, count: int, hint: int) -> tuple[int, int]:
        """A run of up to `count` contiguous blocks near `hint`: (first, number >= 1). Raises NoSpace, Corrupt."""
        if count == 1:
            return self._allocate_one(hint), 1
        if self.available <= 0:
            raise NoSpace("no free block")
        start, length = self._find(count, hint if hint < self._end else 0)
        self._take(start, length)
        return start, length

    def _allocate_one(self, block: int) -> int:
        """The lowest block at or behind this one that can be given out: most are taken alone."""
        if self.free - self.held - self.buried_free <= self.withheld:
            raise NoSpace("no free block")
        if block >= self._end:
            block = 0
        index, bit = divmod(block, self._page_bits)
        page = self._pages.get(index) or self._page(index)
        if page.busy[bit >> 3] >> (bit & 7) & 1:
            block, _ = self._find(1, block)
            if block >= self.num_blocks:
                raise Corrupt("the bitmap has free blocks behind the end of the volume", block=block)
            index, bit = divmod(block, self._page_bits)
        self._checksums.touch(block // self._checksums.per_page)  # as in `_take`
        page = self._change(index)
        at, mask = bit >> 3, 1 << (bit & 7)
        page.bits[at] |= mask
        page.busy[at] |= mask
        self.free -= 1
        self._note_born(block)
        return block

    def allocate_metadata(self) -> int:
        """One block for metadata: the lowest free one at or behind the hint, so that metadata stays together."""
        block = self._allocate_one(self.metadata_hint)
        self.metadata_hint = block + 1
        return block

    def replace_metadata(self, old: int) -> int:
        """As `allocate_metadata`, and frees a block, in one step; -1 where these have to be two.

        Raises Corrupt, DeviceError, before anything changes.
        """
        new = self.metadata_hint
        index, bit = divmod(new, self._page_bits)
        old_index, old_bit = divmod(old, self._page_bits)
        page = self._pages.get(index)
        if (
            page is None
            or page.committed is None
            or page.buried is not None
            or old_index != index
            or new >= self._end
            or self.free - self.held - self.buried_free <= self.withheld
        ):
            return -1
        at, mask = bit >> 3, 1 << (bit & 7)
        old_at, old_mask = old_bit >> 3, 1 << (old_bit & 7)
        if page.busy[at] & mask or not page.bits[old_at] & page.committed[old_at] & old_mask:
            return -1
        self._checksums.touch(new // self._checksums.per_page)  # as in `_take`
        self.bitmap.touch(index)  # as in `_change`
        page.bits[old_at] ^= old_mask
        page.bits[at] |= mask
        page.busy[at] |= mask
        page.held += 1
        self.held += 1
        self.freed.add_one(index, old_at, old_mask)
        self.metadata_hint = new + 1
        self._note_born(new)
        return new

    def _note_born(self, block: int) -> None:
        self.born_count += 1
        if len(self.born_runs) <= f.MANIFEST_ENTRY_MAX:
            self.born_runs.append((block, 1))

    def allocate_data(self, count: int, near: int | None) -> tuple[int, int]:
        """A run for file data behind block `near` (the file's block before), or behind the last data allocated."""
        start, length = self.allocate(count, self.data_hint if near is None else near + 1)
        self.data_hint = start + length
        return start, length

    def take_at(self, block: int, count: int) -> None:
        """Takes these very blocks, which are free: for a new volume's fixed places."""
        self._take(block, count)

    def adopt(self, start: int, count: int) -> None:
        """Says that free blocks were in use all the time: for a volume that is built around what is there already."""
        for index, bit, number in self._split(start, count):
            page = self._change(index)
            for bits in (page.bits, page.busy):
                set_bits(bits, bit, number)
            committed = bytearray(page.committed or b"")
            set_bits(committed, bit, number)
            page.committed = bytes(committed)
        self.free -= count

    def _take(self, start: int, count: int) -> None:
        if start + count > self.num_blocks:
            raise Corrupt("the bitmap has free blocks behind the end of the volume", block=start)
        self._checksums.touch_run(start, count)  # reads, so it may fail: before anything changes
        for index, bit, number in self._split(start, count):
            page = self._change(index)
            set_bits(page.bits, bit, number)
            set_bits(page.busy, bit, number)
        self.free -= count
        self.born_count += count
        if len(self.born_runs) <= f.MANIFEST_ENTRY_MAX:
            self.born_runs.append((start, count))

    # --- another size ---

    def grow(self, num_blocks: int) -> None:
        """More blocks from the next commit on; they are held back until that is durable and `admit_new` is called."""
        first, added = self.num_blocks, num_blocks - self.num_blocks
        index, bit = divmod(first, self._page_bits)
        if bit:  # bits behind the end are ones; in `busy` they stay so for now
            page, number = self._change(index), min(added, self._page_bits - bit)
            clear_bits(page.bits, bit, number)
            page.held += number
        self._set_tree_sizes(num_blocks)
        padding = new_bitmap_padding(num_blocks, self._store.block_size)
        if padding is not None and (not bit or num_blocks > (index + 1) * self._page_bits):
            page_index, bits = padding[0] // self._store.block_size, padding[1]
            set_bits(self.bitmap.page_for_write(page_index), bits, self._page_bits - bits)
        buried = 0 if self.buried is None else max(0, min(num_blocks, self.buried.extent) - first)
        self.free += added
        self.buried_free += buried
        self.held += added - buried
        self._added = added, buried

    def admit_new(self) -> None:
        """The commit that `grow` was for is durable: its blocks are given out from now on."""
        first, (added, buried), self._added = self.num_blocks, self._added, (0, 0)
        if not added:
            return
        index, bit = divmod(first, self._page_bits)
        if bit:
            page, number = self._pages[index], min(added, self._page_bits - bit)
            clear_bits(page.busy, bit, number)
            if page.buried is not None:
                either(page.busy, page.buried)
            page.held -= number
        self.num_blocks += added
        self._end = self.num_blocks
        self._page_count = -(-self.num_blocks // self._page_bits)
        self.held -= added - buried
        self._opened(index, first)

    def limit_to(self, end: int) -> None:
        """Gives out no block from `end` on any more. To be called anew when blocks there have become free; nothing is held."""
        assert not self.held
        index, bit = divmod(end, self._page_bits)
        if bit:
            page = self._page(index)
            set_bits(page.busy, bit, self._page_bits - bit)
            page.held += self._end != end  # it stays in memory
        self._end = end
        self._page_count = -(-end // self._page_bits)
        self.withheld = sum(number - used for number, used in self._usage(end))

    def used_from(self, start: int) -> int:
        """Blocks in use from `start` on. Raises Corrupt, DeviceError."""
        return sum(used for _, used in self._usage(start))

    def _usage(self, start: int) -> Iterator[tuple[int, int]]:
        """(blocks, how many of them are in use) of each bitmap page from `start` on."""
        for index, bit, number in self._split(start, self.num_blocks - start):
            if self.bitmap.is_hole(index):
                yield number, 0
                continue
            known = index in self._pages
            yield number, bits_of(self.bitmap.page(index), bit, number).bit_count()
            if not known:
                self.bitmap.forget(index)

    def shrink(self, num_blocks: int) -> None:
        """Fewer blocks from the next commit on. Those that go are free, in every state; `limit_to` was called for them."""
        assert self._end == num_blocks and not self.held

        def free(block: int) -> None:
            self.free_run(block, 1)
            self._store.forget(block)

        index, bit = divmod(num_blocks, self._page_bits)
        if bit:
            page = self._change(index)
            set_bits(page.bits, bit, self._page_bits - bit)
            page.held -= 1
        self.free -= self.num_blocks - num_blocks
        self.withheld = 0
        for number in [number for number in self._pages if number >= self._page_count]:
            del self._pages[number]
            self._changed.discard(number)
        self.num_blocks = num_blocks
        self.bitmap.cut(-(-num_blocks // 8), free)
        self.references.cut(num_blocks * f.REFERENCE_SIZE, free)
        self._checksums.cut(num_blocks * f.CHECKSUM_SIZE, free)

    def _set_tree_sizes(self, num_blocks: int) -> None:
        self.bitmap.set_size(-(-num_blocks // 8))
        self.references.set_size(num_blocks * f.REFERENCE_SIZE)
        self._checksums.set_size(num_blocks * f.CHECKSUM_SIZE)

    # --- freeing ---

    def free_run(self, start: int, count: int) -> None:
        """Frees blocks that have no parent left. Raises Corrupt where one is free already."""
        if not 0 <= start <= self.num_blocks - count:
            raise Corrupt("freeing a block beyond the end", block=start)
        if count == 1:
            self._free_one(start)
            return
        for index, bit, number in self._split(start, count):
            page = self._change(index)
            if not all_set(page.bits, bit, number):
                raise Corrupt("a block is freed that is free already", block=index * self._page_bits + bit)
            assert page.committed is not None
            clear_bits(page.bits, bit, number)
            for at, length, old in bit_runs(page.committed, bit, number):
                if old:
                    self._hold(page, index, at, length)
                else:
                    clear_bits(page.busy, at, length)
                    self._opened(index, index * self._page_bits + at)
        self.free += count

    def _hold(self, page: _Page, index: int, bit: int, count: int) -> None:
        """Keeps back blocks that a durable state names; buried ones for good."""
        runs = [(bit, count, False)] if page.buried is None else bit_runs(page.buried, bit, count)
        for at, length, buried in runs:
            if buried:
                self.buried_free += length
            else:
                page.held += length
                self.held += length
                self.freed.add(index, at, length)

    def _free_one(self, block: int) -> None:
        """As `free_run`, for what most frees are: a block of metadata, or a small file's."""
        index, bit = divmod(block, self._page_bits)
        page = self._change(index)
        at, mask = bit >> 3, 1 << (bit & 7)
        if not page.bits[at] & mask:
            raise Corrupt("a block is freed that is free already", block=block)
        assert page.committed is not None
        page.bits[at] ^= mask
        if page.committed[at] & mask:
            if page.buried is None:
                page.held += 1
                self.held += 1
                self.freed.add_one(index, at, mask)
            else:
                self._hold(page, index, bit, 1)
        else:
            page.busy[at] ^= mask
            self._opened(index, block)
        self.free += 1

    def free_blocks(self, blocks: list[int]) -> None:
        """As `free_run`, for blocks that lie anywhere, ascending."""
        if blocks and not 0 <= blocks[0] <= blocks[-1] < self.num_blocks:
            raise Corrupt("freeing a block beyond the end", block=blocks[-1])
        for index, first, part in by_page(blocks, self._page_bits):
            page = self._change(index)
            bits, busy, committed = page.bits, page.busy, page.committed
            assert committed is not None
            old: list[int] = []
            opened = -1
            for block in part:
                bit = block - first
                at, mask = bit >> 3, 1 << (bit & 7)
                if not bits[at] & mask:
                    raise Corrupt("a block is freed that is free already", block=block)
                bits[at] ^= mask
                if committed[at] & mask:
                    old.append(bit)
                else:
                    busy[at] ^= mask
                    if opened < 0:
                        opened = block
            if page.buried is None:
                page.held += len(old)
                self.held += len(old)
                self.freed.add_each(index, old)
            else:
                for bit in old:
                    self._hold(page, index, bit, 1)
            if opened >= 0:
                self._opened(index, opened)
        self.free += len(blocks)

    def release(self, freed: Freed) -> None:
        """Makes the blocks of a generation's `Freed` available: the generation after it is durable (I2)."""
        for index, mask in freed.pages.items():
            page = self._page(index)
            start, end = freed.spans[index]
            bits = int.from_bytes(mask[start:end], "little")
            busy = int.from_bytes(page.busy[start:end], "little") & ~bits
            page.busy[start:end] = busy.to_bytes(end - start, "little")
            page.held -= bits.bit_count()
            self._opened(index, index * self._page_bits + start * 8 + (bits & -bits).bit_length() - 1)
        self.held -= freed.count
        self._find_room()

    def _find_room(self) -> None:
        """Moves the hint for metadata to the next place with room for a small commit, so that it is one run on the device.

        Never from before the file data to behind it, where it would be in the way of more.
        """
        hint = self.metadata_hint
        index, bit = divmod(hint, self._page_bits)
        page = self._pages.get(index)
        at = bit + 7 >> 3
        end = at + _ROOM_SEARCH_BYTES
        if hint < self.data_hint:
            end = min(end, (self.data_hint - index * self._page_bits) >> 3)
        found = -1 if page is None else page.busy.find(_ROOM, at, end)
        if found >= 0:
            self.metadata_hint = index * self._page_bits + found * 8

    # --- giving back to the medium ---

    def next_free(
        self, start: int, end: int, *, least: int, most: int, pages: int
    ) -> tuple[list[tuple[int, int]], int]:
        """Runs of blocks from `start` on that can be given out, and where to go on: (first, count).

        What belongs to free runs shorter than `least` is left out; there are about `most` blocks at the most, and so many
        bitmap pages are looked at, and around a run that is cut as many as `least` takes. Raises Corrupt, DeviceError.
        """
        found = RunList()
        at, end = start, min(end, self.num_blocks)
        while at < end and pages and found.count < most:
            index, bit = divmod(at, self._page_bits)
            known = index in self._pages
            number = min(end - at, self._page_bits - bit)
            before = found.count
            for first, length, busy in bit_runs(self._page(index).busy, bit, number):
                if not busy:
                    taken = min(length, most - found.count)
                    found.add(index * self._page_bits + first, taken)
                    at = index * self._page_bits + first + taken
                    if found.count == most:
                        break
            else:
                at = index * self._page_bits + bit + number
            if not known and found.count == before and self.evictable(index):
                self.bitmap.forget(index)
            pages -= 1
        cut = (start, at)
        runs = [
            (first, count)
            for first, count in found.runs
            if count >= least or ((first in cut or first + count in cut) and self._is_in_run_of(least, first, count))
        ]
        return runs, at

    def _is_in_run_of(self, least: int, start: int, count: int) -> bool:
        """Whether a free run is, with what is free before and behind it, as long as `least`."""
        end = start + count
        while end - start < least and end < self.num_blocks:
            index, bit = divmod(end, self._page_bits)
            number = self._run_length(index, bit, min(least, self.num_blocks - end))
            end += number
            if not number:
                break
        while end - start < least and start:
            index, bit = divmod(start - 1, self._page_bits)
            _, number, busy = bit_runs(self._page(index).busy, 0, bit + 1)[-1]
            if busy:
                break
            start -= number
        return end - start >= least

    def withhold(self, start: int, count: int) -> None:
        """Blocks that could be given out are not, until `give_back` (I41)."""
        for index, bit, number in self._split(start, count):
            page = self._page(index)
            set_bits(page.busy, bit, number)
            page.held += number
        self.withheld += count

    def give_back(self, start: int, count: int) -> None:
        """Ends `withhold`."""
        for index, bit, number in self._split(start, count):
            page = self._page(index)
            clear_bits(page.busy, bit, number)
            page.held -= number
            self._full.discard(index)
            if not page.held and self.bitmap.is_hole_on_device(index) and self.evictable(index):
                self.bitmap.forget(index)
        self.withheld -= count

    def _opened(self, index: int, block: int) -> None:
        self._full.discard(index)
        self.metadata_hint = min(self.metadata_hint, block)

    # --- commit ---

    def seal(self) -> Freed:
        """Ends the generation: what was freed in it is handed over, and what was born becomes old."""
        for index in self._changed:
            self._pages[index].committed = None
        self._changed.clear()
        freed, self.freed = self.freed, Freed(self._store.block_size)
        self.born_runs = []
        self.born_count = 0
        return freed

    def evictable(self, index: int) -> bool:
        """Whether the bitmap's page may leave memory: nothing in it is held or changed."""
        page = self._pages.get(index)
        if page is not None:
            if page.held or page.committed is not None:
                return False
            del self._pages[index]
        return True

    # --- pages ---

    def _page(self, index: int) -> _Page:
        page = self._pages.get(index)
        if page is None:
            bits = self.bitmap.page(index)
            buried = None if self.buried is None else self.buried.page(index)
            if buried is None or buried.count(0) == len(buried):
                page = _Page(bits, bytearray(bits))
            else:
                page = _Page(bits, bytearray(bits), buried)
                either(page.busy, buried)
            self._pages[index] = page
        return page

    def _change(self, index: int) -> _Page:
        page = self._pages.get(index) or self._page(index)
        if page.committed is None:
            page.committed = bytes(page.bits)
            page.bits = self.bitmap.page_for_write(index)
            self._changed.add(index)
        else:
            self.bitmap.touch(index)  # a page that became a hole while it was empty is no longer dirty
        return page

    def _split(self, start: int, count: int) -> list[tuple[int, int, int]]:
        """(page, first bit, number) pieces of a run."""
        index, bit = divmod(start, self._page_bits)
        if bit + count <= self._page_bits:
            return [(index, bit, count)]
        pieces = []
        while count > 0:
            number = min(count, self._page_bits - bit)
            pieces.append((index, bit, number))
            index, bit, count = index + 1, 0, count - number
        return pieces

    # --- searching ---

    def _find(self, count: int, hint: int) -> tuple[int, int]:
        index, bit = divmod(hint, self._page_bits)
        if count > 1:
            found = self._find_long(count, index, bit)
            if found is not None:
                return found
        for step in range(self._page_count + 1):
            at = (index + step) % self._page_count
            if at in self._full and (step or bit == 0):
                continue
            start = self._first_free(at, bit if step == 0 else 0)
            if start is not None:
                return at * self._page_bits + start, 1 if count == 1 else self._run_length(at, start, count)
            if step or bit == 0:
                self._full.add(at)
        raise Corrupt("the bitmap has fewer free blocks than the superblock says", wanted=self.available, found=0)

    def _find_long(self, count: int, index: int, bit: int) -> tuple[int, int] | None:
        """A run right at the hint if it is long enough, else a long run of whole bytes in the pages that follow."""
        length = self._run_length(index, bit, count)
        wanted = min(count, _LONG_RUN_BYTES * 8)
        if length >= wanted:
            return index * self._page_bits + bit, length
        pattern = bytes(max(1, min(_LONG_RUN_BYTES, count // 8)))
        for step in range(min(self._page_count, _LONG_SEARCH_PAGES)):
            at = (index + step) % self._page_count
            if at in self._full:
                continue
            found = self._page(at).busy.find(pattern, bit >> 3 if step == 0 else 0)
            if found >= 0:
                return at * self._page_bits + found * 8, self._run_length(at, found * 8, count)
        return None

    def _first_free(self, index: int, bit: int) -> int | None:
        busy = self._page(index).busy
        at = bit >> 3
        if bit & 7:
            zero = _LOWEST_ZERO[busy[at] | (1 << (bit & 7)) - 1]
            if zero < 8:
                return at * 8 + zero
            at += 1
        while busy.startswith(_FULL_STRETCH, at):
            at += _STRETCH_BYTES
        match = _NOT_FULL.search(busy, at)
        return None if match is None else match.start() * 8 + _LOWEST_ZERO[busy[match.start()]]

    def _run_length(self, index: int, bit: int, count: int) -> int:
        """How many blocks from this bit on can be given out, at most `count`, within the page."""
        number = min(count, self._page_bits - bit)
        busy = self._page(index).busy
        end = bit + number + 7 >> 3
        window = int.from_bytes(busy[bit >> 3 : end], "little") >> (bit & 7)
        if window == 0:
            return number
        return min(number, (window & -window).bit_length() - 1)


def new_bitmap_padding(num_blocks: int, block_size: int) -> tuple[int, int] | None:
    """(byte offset of the last bitmap page, bits of it that lie in the volume), None where the page has no padding."""
    page_bits = block_size * 8
    if num_blocks % page_bits == 0:
        return None
    return num_blocks // page_bits * block_size, num_blocks % page_bits
