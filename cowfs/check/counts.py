"""Comparing what was counted with what the volume says: bitmap, references, checksums, and the numbers in the record.

`trees` has counted before: `Usage` knows what every block is used for and how many parents it has beyond the first. Here
each recorded copy of that is read once, in the order of block numbers. Regions that are holes on the medium and unused in
fact are passed over, so an empty volume of any size is checked at once.
"""

from __future__ import annotations

import array
from typing import Final

from cowfs.check import problem as p
from cowfs.check.reader import BlockReader
from cowfs.check.trees import BITMAP, CHECKSUMS, REFERENCES, TreeWalk, role_of, used_runs
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c
from cowfs.ondisk.geometry import pointers_from

_READ_BYTES: Final = 1 << 20
IS_USED: Final = bytes([0]) + bytes([1]) * 255
_AS_DIGIT: Final = b"0" + b"1" * 255
_CHECKSUM_ROLES: Final = frozenset(role_of(CHECKSUMS, level) for level in range(f.SYSTEM_LEVEL_MAX + 1))
_HAS_CHECKSUM: Final = bytes(0 if role == 0 or role in _CHECKSUM_ROLES else 1 for role in range(256))


def bits_of(page: bytearray) -> bytes:
    """The bitmap of a page of roles: block i is bit i & 7 of byte i >> 3."""
    return int(page.translate(_AS_DIGIT)[::-1], 2).to_bytes(len(page) // 8, "little")


def check_bitmap(walk: TreeWalk, reader: BlockReader, report: p.Report) -> int:
    """Compares the bitmap with what was counted; returns how many of its bits are 0."""
    leaves = walk.leaf_blocks[BITMAP]
    pages = walk.usage.pages
    per_page = walk.usage.page_blocks
    ones = 0
    for index in sorted(leaves.keys() | pages.keys()):
        found = reader.block(leaves[index]) if index in leaves else reader.zeros
        wanted = bits_of(pages[index]) if index in pages else reader.zeros
        inside = max(0, min(per_page, walk.usage.num_blocks - index * per_page))
        mask = (1 << inside) - 1
        found_bits = int.from_bytes(found, "little")
        wanted_bits = int.from_bytes(wanted, "little") & mask
        if found_bits | mask != (1 << per_page) - 1:
            report.add(p.BITMAP_PADDING, f"bits behind block {walk.usage.num_blocks - 1}", block=leaves.get(index))
        found_bits &= mask
        ones += found_bits.bit_count()
        if found_bits != wanted_bits:
            _report_runs(report, p.BITMAP_FREE, wanted_bits & ~found_bits, index * per_page, "used, but marked free")
            if not walk.foreign:  # QNX keeps a region for itself
                text = "marked in use, but used by nothing"
                _report_runs(report, p.BITMAP_USED, found_bits & ~wanted_bits, index * per_page, text)
    return walk.usage.num_blocks - ones


def check_bitmap_tail(walk: TreeWalk, report: p.Report) -> None:
    """The last block of the bitmap cannot be a hole if bits behind the last block of the volume must be 1."""
    last, rest = divmod(walk.usage.num_blocks, walk.usage.page_blocks)
    if rest and last not in walk.leaf_blocks[BITMAP] and last not in walk.usage.pages:
        report.add(p.BITMAP_PADDING, f"bits behind block {walk.usage.num_blocks - 1} are a hole")


def check_references(walk: TreeWalk, reader: BlockReader, report: p.Report) -> None:
    """Compares every reference count with the number of parents that were counted beyond the first."""
    per_leaf = reader.block_size // f.REFERENCE_SIZE
    extra = walk.usage.extra
    leaves = walk.leaf_blocks[REFERENCES]
    for index in sorted(leaves):
        words = pointers_from(reader.block(leaves[index]), reader.geometry.order)
        if words.count(0) == len(words):
            continue
        for at, found in enumerate(words):
            block = index * per_leaf + at
            if found and found != extra.get(block, 0):
                _report_reference(walk, report, block, found)
    for block in sorted(extra):
        index, at = divmod(block, per_leaf)
        if index not in leaves or not _word(reader, leaves[index], at):
            _report_reference(walk, report, block, 0)


def check_sums(walk: TreeWalk, reader: BlockReader, report: p.Report) -> None:
    """Reads every block in use: compares it with the checksum recorded for it, and looks behind the end of its file."""
    per_leaf = reader.block_size // f.CHECKSUM_SIZE
    leaves = walk.leaf_blocks[CHECKSUMS]
    run_max = max(1, _READ_BYTES // reader.block_size)
    for page_index in sorted(walk.usage.pages):
        base = page_index * walk.usage.page_blocks
        for start, count in used_runs(walk.usage.pages[page_index], _HAS_CHECKSUM):
            first, end = base + start, base + start + count
            while first < end:
                leaf = first // per_leaf
                stop = min(end, (leaf + 1) * per_leaf, first + run_max)
                data = reader.run(first, stop - first)
                if leaf in leaves:
                    _check_run(reader, report, data, first, stop - first, leaves[leaf])
                else:
                    report.add(p.CHECKSUM_MISSING, f"{stop - first} blocks from here on", block=first)
                if page_index in walk.usage.tails:
                    at = first - base
                    _check_tails(reader, report, data, first, walk.usage.tails[page_index][at : at + stop - first])
                first = stop


def _check_tails(reader: BlockReader, report: p.Report, data: bytes, first: int, tails: array.array[int]) -> None:
    size = reader.block_size
    for i, tail in enumerate(tails):
        if tail and data[i * size + tail : (i + 1) * size] != reader.zeros[tail:] and first + i not in reader.damaged:
            report.add(p.FILE_TAIL, f"behind byte {tail}", block=first + i)


def _check_run(reader: BlockReader, report: p.Report, data: bytes, first: int, count: int, leaf: int) -> None:
    size = reader.block_size
    at = first % (size // f.CHECKSUM_SIZE)
    wanted = reader.pointers_kept(leaf)[at : at + count].tolist()
    view = memoryview(data)
    found = [crc32c(view[offset : offset + size]) for offset in range(0, count * size, size)]
    if found != wanted:
        for i in range(count):
            if found[i] != wanted[i] and first + i not in reader.unreadable:
                reader.damaged[first + i] = wanted[i], found[i]
                report.add(p.CHECKSUM, f"{wanted[i]:#010x} wanted, {found[i]:#010x} found", block=first + i)


def check_numbers(walk: TreeWalk, reader: BlockReader, report: p.Report, zero_bits: int) -> None:
    """The volume-wide counts in the record and the extension area."""
    superblock, extension = reader.state.superblock, reader.state.extension
    if superblock.free_blocks != zero_bits:
        report.add(p.FREE_BLOCKS, f"{zero_bits} counted, {superblock.free_blocks} found")
    if extension is not None and extension.system_blocks != walk.system_blocks:
        report.add(p.SYSTEM_BLOCKS, f"{walk.system_blocks} counted, {extension.system_blocks} found")


def _report_reference(walk: TreeWalk, report: p.Report, block: int, found: int) -> None:
    wanted = walk.usage.extra.get(block, 0)
    parents = wanted + 1 if walk.usage.role(block) else 0
    report.add(p.REFERENCES, f"{wanted} extra parents counted ({parents} in all), {found} found", block=block)


def _word(reader: BlockReader, block: int, at: int) -> int:
    return reader.pointers_kept(block)[at]


def _report_runs(report: p.Report, kind: p.Kind, bits: int, base: int, text: str) -> None:
    """One problem for each run of 1 bits."""
    at = 0
    while bits:
        skip = (bits & -bits).bit_length() - 1
        bits >>= skip
        at += skip
        length = (~bits & bits + 1).bit_length() - 1
        last = f"..{base + at + length - 1}" if length > 1 else ""
        report.add(kind, f"block {base + at}{last} {text}", block=base + at)
        bits >>= length
        at += length
