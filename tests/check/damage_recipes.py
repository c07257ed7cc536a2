"""How each kind of problem comes about: for every permanent number a recipe that damages the sample volume.

A recipe gets an `Image` and the inode numbers by path. It is registered with the kind that must be found and the kinds
that follow from the same damage; no other may be found. After an ordinary recipe all checksums are put right; a recipe
that is registered as `raw` leaves the device as it wants it checked.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass

from damage import Image, long_entry, short_entry
from damage_sample import LONG_NAMES

from cowfs.check import Kind
from cowfs.check import problem as p
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c

Inodes = dict[str, int]
Damage = Callable[[Image, Inodes], None]
REGULAR = stat.S_IFREG | 0o644


@dataclass(frozen=True)
class Recipe:
    """Damage, and what a check must find."""

    name: str
    kind: Kind
    damage: Damage
    also: frozenset[str]
    raw: bool


RECIPES: list[Recipe] = []


def recipe(kind: Kind, *also: Kind, raw: bool = False) -> Callable[[Damage], Damage]:
    """Registers a function as a recipe for `kind`; `also` are the kinds that the same damage shows as."""

    def register(damage: Damage) -> Damage:
        RECIPES.append(Recipe(damage.__name__, kind, damage, frozenset(other.name for other in also), raw))
        return damage

    return register


def flip(image: Image, offset: int) -> None:
    """Inverts a byte of the device."""
    byte = image.device.read(offset, 1)[0]
    image.device.write(offset, [bytes([byte ^ 0xFF])])


# --- slots and boot block ---


@recipe(p.SLOT_INVALID, raw=True)
def torn_record(image: Image, inodes: Inodes) -> None:
    flip(image, image.geometry.slot_offsets[1] + 0x20)


@recipe(p.SLOT_INVALID, raw=True)
def torn_extension(image: Image, inodes: Inodes) -> None:
    flip(image, f.SLOT1_OFFSET + 0xFFF)


@recipe(p.SLOT_INVALID, raw=True)
def lost_slot_1(image: Image, inodes: Inodes) -> None:
    image.device.write(f.SLOT1_OFFSET, [bytes(f.SLOT_AREA_SIZE)])


@recipe(p.SLOT_REFUSED, raw=True)
def commit_not_complete(image: Image, inodes: Inodes) -> None:
    image.manifest = [f.ManifestEntry(image.data_block(inodes["small"]), 0)]
    image.write_slot(1)


@recipe(p.SLOT_REFUSED, raw=True)
def manifest_out_of_range(image: Image, inodes: Inodes) -> None:
    image.manifest = [f.ManifestEntry(image.geometry.num_blocks, 0)]
    image.write_slot(1)


@recipe(p.NO_VALID_SLOT, p.SLOT_INVALID, raw=True)
def both_torn(image: Image, inodes: Inodes) -> None:
    for offset in image.geometry.slot_offsets:
        flip(image, offset + 0x20)


@recipe(p.NO_VALID_SLOT, p.SLOT_INVALID, raw=True)
def both_lost(image: Image, inodes: Inodes) -> None:
    """The boot block still says that this was a volume."""
    for offset in image.geometry.slot_offsets:
        image.device.write(offset, [bytes(f.SLOT_AREA_SIZE)])


@recipe(p.SLOTS_DIFFER, raw=True)
def other_volume_in_slot_2(image: Image, inodes: Inodes) -> None:
    def change(superblock: f.Superblock, extension: f.Extension) -> None:
        superblock.volume_id = b"another volume.."

    image.write_slot(2, change=change)


@recipe(p.TRUNCATED, p.SLOT_INVALID, raw=True)
def end_cut_off(image: Image, inodes: Inodes) -> None:
    image.device.resize(image.geometry.end - 512)


@recipe(p.BOOT_HEAD, raw=True)
def boot_head(image: Image, inodes: Inodes) -> None:
    flip(image, 0x0C)


@recipe(p.SLOT_POINTER, raw=True)
def slot_pointer(image: Image, inodes: Inodes) -> None:
    flip(image, f.SLOT_POINTER_OFFSET + 8)


@recipe(p.RESIZING, raw=True)
def resizing_interrupted(image: Image, inodes: Inodes) -> None:
    """The boot block leads to where slot 2 will be, and slot 1 says that this may be so."""

    def change(superblock: f.Superblock, extension: f.Extension) -> None:
        extension.resizing = 1

    for number in (1, 2):
        image.write_slot(number, change=change)
    pointer = f.SlotPointer(slot2_offset=image.geometry.slot_offsets[1] + 4096, block_size=image.geometry.block_size)
    pointer.checksum = crc32c(pointer.pack()[:-4])
    image.device.write(f.SLOT_POINTER_OFFSET, [pointer.pack()])


@recipe(p.RECORD_FIELD)
def record_flags(image: Image, inodes: Inodes) -> None:
    image.superblock.flags = f.SB_FLAG_INCOMPATIBLE | 1


@recipe(p.RECORD_FIELD)
def foreign_root_in_use(image: Image, inodes: Inodes) -> None:
    image.superblock.iclaim.size = 1


@recipe(p.EXTENSION_FIELD)
def label_not_utf8(image: Image, inodes: Inodes) -> None:
    image.extension.label = b"\xff\xfe"


@recipe(p.EXTENSION_FIELD)
def spare_in_use(image: Image, inodes: Inodes) -> None:
    image.extension.spare_0c0 = 1


@recipe(p.EXTENSION_FIELD)
def impossible_generation(image: Image, inodes: Inodes) -> None:
    image.extension.generation = 1 << 63


@recipe(p.ZERO_BLOCK_NUMBER, p.BITMAP_USED)
def zero_blocks_equal(image: Image, inodes: Inodes) -> None:
    zero = image.zero_blocks
    image.extension.zero_blocks = (*zero[:3], zero[2])


@recipe(p.MANIFEST, p.SLOT_INVALID, raw=True)
def commit_not_complete_and_alone(image: Image, inodes: Inodes) -> None:
    commit_not_complete(image, inodes)
    torn_record(image, inodes)


@recipe(p.NOT_SETTLED, raw=True)
def slot_2_newer(image: Image, inodes: Inodes) -> None:
    image.write_slot(2, serial=image.superblock.serial + 1)


@recipe(p.SLOT_CONTENTS, raw=True)
def serial_differs(image: Image, inodes: Inodes) -> None:
    def change(superblock: f.Superblock, extension: f.Extension) -> None:
        extension.serial += 1

    image.write_slot(1, change=change)


@recipe(p.SLOT_CONTENTS, raw=True)
def impossible_serial(image: Image, inodes: Inodes) -> None:
    image.write_slot(2, serial=1 << 63)


@recipe(p.SLOT_CONTENTS, raw=True)
def no_anchor(image: Image, inodes: Inodes) -> None:
    def change(superblock: f.Superblock, extension: f.Extension) -> None:
        superblock.anchor.magic = bytes(8)

    image.write_slot(1, change=change)


# --- block trees and checksums ---


@recipe(p.ROOT_NODE)
def references_too_long(image: Image, inodes: Inodes) -> None:
    image.extension.references.size += f.REFERENCE_SIZE


@recipe(p.ROOT_NODE, p.BITMAP_USED, p.LONG_NAME_SLOT)
def too_many_levels(image: Image, inodes: Inodes) -> None:
    image.superblock.longfile.levels = f.LEVEL_MAX + 1


@recipe(p.POINTER_RANGE, p.BITMAP_USED)
def pointer_out_of_volume(image: Image, inodes: Inodes) -> None:
    with image.edit_inode(inodes["small"]) as inode:
        inode.ptr = (image.geometry.num_blocks, *inode.ptr[1:])


@recipe(p.POINTER_BEHIND_END)
def pointer_behind_end(image: Image, inodes: Inodes) -> None:
    with image.edit_inode(inodes["small"]) as inode:
        inode.ptr = (inode.ptr[0], image.zero_blocks[0], *inode.ptr[2:])


@recipe(p.POINTER_BEHIND_END)
def pointer_behind_end_in_indirect_block(image: Image, inodes: Inodes) -> None:
    image.set_word(image.inode(inodes["big"]).ptr[0], 100, image.data_block(inodes["big"]))


@recipe(p.POINTER_BEHIND_END)
def zero_block_of_another_level_behind_end(image: Image, inodes: Inodes) -> None:
    image.set_word(image.inode(inodes["big"]).ptr[0], 100, image.zero_blocks[1])


@recipe(p.HOLES_BEHIND_END)
def hole_behind_end_in_indirect_block(image: Image, inodes: Inodes) -> None:
    image.set_word(image.inode(inodes["big"]).ptr[0], 100, image.zero_blocks[0])


@recipe(p.HOLES_BEHIND_END)
def end_in_a_hole(image: Image, inodes: Inodes) -> None:
    with image.edit_inode(inodes["small"]) as inode:
        block = inode.ptr[0]
        inode.ptr, inode.levels = (image.zero_blocks[1], *f.NO_BLOCK_POINTERS[1:]), 1
        inode.blocks = 0
    image.set_bit(block, 0)


@recipe(p.POINTER_MISSING)
def hole_without_zero_block(image: Image, inodes: Inodes) -> None:
    image.set_word(image.inode(inodes["big"]).ptr[0], 25, f.NO_BLOCK)


@recipe(p.ZERO_BLOCK_LEVEL, p.BITMAP_USED)
def zero_block_as_data(image: Image, inodes: Inodes) -> None:
    with image.edit_inode(inodes["small"]) as inode:
        inode.ptr = (image.zero_blocks[1], *inode.ptr[1:])


@recipe(p.BLOCK_TWO_ROLES, p.BITMAP_USED, p.FILE_TAIL)
def inodes_as_data(image: Image, inodes: Inodes) -> None:
    block = image.leaf(image.superblock.inode, 0)
    with image.edit_inode(inodes["small"]) as inode:
        inode.ptr = (block, *inode.ptr[1:])


@recipe(p.BLOCK_SHARED)
def references_leaf_twice(image: Image, inodes: Inodes) -> None:
    leaf = image.system_leaf(image.extension.references, 0)
    image.set_word(image.extension.references.ptr[0], 1, leaf)


@recipe(p.ZERO_BLOCK_CONTENTS)
def zero_block_not_zero(image: Image, inodes: Inodes) -> None:
    with image.edit(image.zero_blocks[0]) as data:
        data[-1] = 1


@recipe(p.ZERO_BLOCK_CONTENTS)
def zero_block_leads_elsewhere(image: Image, inodes: Inodes) -> None:
    image.set_word(image.zero_blocks[2], 7, image.zero_blocks[0])


@recipe(p.CHECKSUM)
def flipped_bit_in_data(image: Image, inodes: Inodes) -> None:
    with image.edit(image.data_block(inodes["big"], 3), checksum=False) as data:
        data[100] ^= 0x10


@recipe(p.CHECKSUM_TREE, raw=True)
def flipped_bit_in_checksum_tree(image: Image, inodes: Inodes) -> None:
    words = image.words(image.extension.checksums.ptr[0])
    with image.edit(words[0], checksum=False) as data:
        at = image.free_block() * f.CHECKSUM_SIZE
        data[at] ^= 1


@recipe(p.CHECKSUM_TREE, raw=True)
def absent_subtree_with_checksum(image: Image, inodes: Inodes) -> None:
    top = image.extension.checksums.ptr[0]
    slot = image.words(top)[::2].index(f.NO_BLOCK)
    with image.edit(top, checksum=False) as data:
        data[slot * f.CHECKED_POINTER_SIZE + f.POINTER_SIZE] = 5
    image.extension.checksum_checks = (crc32c(data), *image.extension.checksum_checks[1:])
    image.write_slot(1)
    image.write_slot(2)


@recipe(p.CHECKSUM_MISSING, p.BITMAP_USED, p.SYSTEM_BLOCKS)
def checksum_leaf_lost(image: Image, inodes: Inodes) -> None:
    top = image.extension.checksums.ptr[0]
    data_leaf = image.data_block(inodes["big"]) * f.CHECKSUM_SIZE // image.block_size
    with image.edit(top, checksum=False) as data:
        at = data_leaf * f.CHECKED_POINTER_SIZE
        data[at : at + f.CHECKED_POINTER_SIZE] = b"\xff\xff\xff\xff\0\0\0\0"


@recipe(p.BLOCK_REPEATED, p.UNREACHABLE, p.LINK_COUNT, p.BITMAP_USED)
def directory_block_twice(image: Image, inodes: Inodes) -> None:
    with image.edit_inode(inodes["dir"]) as inode:
        inode.ptr = (inode.ptr[0], inode.ptr[0], *inode.ptr[2:])
    image.set_reference(inode.ptr[0], 1)


@recipe(p.FILE_TAIL)
def bytes_behind_end(image: Image, inodes: Inodes) -> None:
    with image.edit(image.data_block(inodes["small"])) as data:
        data[100] = 1


# --- inodes ---


@recipe(p.INODE_STATUS)
def status_not_used(image: Image, inodes: Inodes) -> None:
    with image.edit_inode(inodes["fifo"]) as inode:
        inode.status = 0


@recipe(p.INODE_TYPE, p.BITMAP_USED)
def no_type(image: Image, inodes: Inodes) -> None:
    with image.edit_inode(inodes["small"]) as inode:
        inode.mode = 0o644


@recipe(p.INODE_FIELD)
def unknown_flag(image: Image, inodes: Inodes) -> None:
    with image.edit_inode(inodes["small"]) as inode:
        inode.flags = 0x8000


@recipe(p.INODE_FIELD)
def too_many_nanoseconds(image: Image, inodes: Inodes) -> None:
    with image.edit_inode(inodes["small"]) as inode:
        inode.mtime_extra = 1_000_000_000


@recipe(p.INODE_SIZE)
def fifo_with_size(image: Image, inodes: Inodes) -> None:
    with image.edit_inode(inodes["fifo"]) as inode:
        inode.size = 1


@recipe(p.INODE_SIZE, p.BITMAP_USED)
def file_with_too_many_levels(image: Image, inodes: Inodes) -> None:
    with image.edit_inode(inodes["small"]) as inode:
        inode.levels = f.LEVEL_MAX + 1


@recipe(p.INODE_SIZE, p.POINTER_MISSING)
def file_too_long_for_levels(image: Image, inodes: Inodes) -> None:
    with image.edit_inode(inodes["small"]) as inode:
        inode.size = (1 << 64) - 1


@recipe(p.INODE_POINTERS)
def fifo_with_pointers(image: Image, inodes: Inodes) -> None:
    with image.edit_inode(inodes["fifo"]) as inode:
        inode.ptr = (image.data_block(inodes["small"]), *inode.ptr[1:])


@recipe(p.INODE_BLOCKS)
def wrong_block_count(image: Image, inodes: Inodes) -> None:
    with image.edit_inode(inodes["big"]) as inode:
        inode.blocks += 1


@recipe(p.SYMLINK_TARGET)
def zero_byte_in_target(image: Image, inodes: Inodes) -> None:
    with image.edit(image.data_block(inodes["link"])) as data:
        data[2] = 0


@recipe(p.XATTR_INODE)
def xattrs_in_ordinary_file(image: Image, inodes: Inodes) -> None:
    with image.edit_inode(inodes["small"]) as inode:
        inode.xattr_inode = inodes["big"]


@recipe(p.XATTR_SHARED)
def xattrs_of_two(image: Image, inodes: Inodes) -> None:
    with image.edit_inode(inodes["small"]) as inode:
        inode.xattr_inode = image.inode(inodes["attr"]).xattr_inode


@recipe(p.XATTR_CONTENTS)
def too_few_xattrs(image: Image, inodes: Inodes) -> None:
    holder = image.inode(inodes["attr"]).xattr_inode
    with image.edit(image.data_block(holder)) as data:
        data[4] += 1


@recipe(p.HIDDEN_UNUSED)
def xattrs_of_nobody(image: Image, inodes: Inodes) -> None:
    with image.edit_inode(inodes["attr"]) as inode:
        inode.xattr_inode = 0


@recipe(p.ORPHAN_LIST, p.UNREACHABLE)
def orphan_list_not_hidden(image: Image, inodes: Inodes) -> None:
    with image.edit_inode(f.ORPHAN_INODE) as inode:
        inode.flags = 0


@recipe(p.ORPHAN_LIST)
def orphan_list_too_long(image: Image, inodes: Inodes) -> None:
    with image.edit_inode(f.ORPHAN_INODE) as inode:
        inode.size = 3 * f.ORPHAN_ENTRY_SIZE + 1
        inode.ptr = (image.zero_blocks[0], *inode.ptr[1:])


@recipe(p.ORPHAN_ENTRY)
def orphan_with_links(image: Image, inodes: Inodes) -> None:
    image.set_orphans([inodes["small"]])


@recipe(p.ORPHAN_ENTRY, p.ORPHANS)
def orphan_twice(image: Image, inodes: Inodes) -> None:
    number = image.new_inode(f.DiskInode(mode=REGULAR, status=f.STATUS_IN_USE))
    image.set_orphans([number, number])


@recipe(p.ORPHAN_UNLISTED)
def orphan_not_listed(image: Image, inodes: Inodes) -> None:
    image.new_inode(f.DiskInode(mode=REGULAR, status=f.STATUS_IN_USE))


@recipe(p.ORPHANS)
def orphan(image: Image, inodes: Inodes) -> None:
    image.set_orphans([image.new_inode(f.DiskInode(mode=REGULAR, status=f.STATUS_IN_USE))])


# --- directories and names ---


@recipe(p.ROOT_DIRECTORY, p.UNREACHABLE, p.LINK_COUNT, p.LONG_NAME_UNUSED)
def root_is_a_file(image: Image, inodes: Inodes) -> None:
    with image.edit_inode(f.ROOT_INODE) as inode:
        inode.mode = REGULAR


@recipe(p.DIRECTORY_SIZE)
def odd_directory_size(image: Image, inodes: Inodes) -> None:
    with image.edit_inode(inodes["dir/inner"]) as inode:
        inode.size -= 1


@recipe(p.DIRECTORY_DOTS)
def wrong_parent(image: Image, inodes: Inodes) -> None:
    image.set_entry(inodes["dir/inner"], b"..", short_entry(f.ROOT_INODE, b".."))


@recipe(p.DIRECTORY_DOTS)
def wrong_self(image: Image, inodes: Inodes) -> None:
    image.set_entry(inodes["dir/inner"], b".", short_entry(f.ROOT_INODE, b"."))


@recipe(p.DIRECTORY_DOTS)
def stray_byte_behind_dot(image: Image, inodes: Inodes) -> None:
    image.set_entry(inodes["dir/inner"], b".", f.ShortEntry(inodes["dir/inner"], 1, b".\0x"))


@recipe(p.DIRECTORY_GAP, p.UNREACHABLE)
def entry_erased(image: Image, inodes: Inodes) -> None:
    """The entries behind it in the same block are lost as well: readers stop at the gap."""
    block, offset = image.entry_place(inodes["dir"], b"file3")
    with image.edit(block) as data:
        data[offset : offset + 4] = bytes(4)


@recipe(p.DIRECTORY_GAP)
def stray_bytes_behind_entries(image: Image, inodes: Inodes) -> None:
    block, offset = image.entry_place(inodes["dir/inner"], b"")
    with image.edit(block) as data:
        data[offset + 40] = 1


@recipe(p.ENTRY_NAME)
def slash_in_name(image: Image, inodes: Inodes) -> None:
    image.set_entry(f.ROOT_INODE, b"fifo", short_entry(inodes["fifo"], b"fi/o"))


@recipe(p.ENTRY_NAME)
def name_longer_than_its_length(image: Image, inodes: Inodes) -> None:
    image.set_entry(f.ROOT_INODE, b"fifo", f.ShortEntry(inodes["fifo"], 3, b"fifo"))


@recipe(p.ENTRY_DUPLICATE)
def same_name_twice(image: Image, inodes: Inodes) -> None:
    image.set_entry(f.ROOT_INODE, b"fifo", short_entry(inodes["fifo"], b"tty"))


@recipe(p.ENTRY_INODE, p.UNREACHABLE)
def entry_leads_to_free_inode(image: Image, inodes: Inodes) -> None:
    image.set_entry(f.ROOT_INODE, b"fifo", short_entry(image.superblock.num_inodes + 1, b"fifo"))


@recipe(p.ENTRY_INODE, p.UNREACHABLE)
def entry_leads_to_hidden_inode(image: Image, inodes: Inodes) -> None:
    image.set_entry(f.ROOT_INODE, b"fifo", short_entry(f.ORPHAN_INODE, b"fifo"))


@recipe(p.LONG_NAME_SLOT, p.LONG_NAME_UNUSED)
def slot_behind_end(image: Image, inodes: Inodes) -> None:
    name = LONG_NAMES[1]
    image.set_entry(f.ROOT_INODE, name, long_entry(inodes[name.decode()], 1000, name))


@recipe(p.LONG_NAME_SLOT, p.LONG_NAME_UNUSED)
def slot_is_free(image: Image, inodes: Inodes) -> None:
    name = LONG_NAMES[1]
    image.set_entry(f.ROOT_INODE, name, long_entry(inodes[name.decode()], 0, name))


@recipe(p.LONG_NAME_CHECKSUM)
def wrong_name_checksum(image: Image, inodes: Inodes) -> None:
    name = LONG_NAMES[1]
    entry = image.long_entry(f.ROOT_INODE, name)
    entry.checksum ^= 1
    image.set_entry(f.ROOT_INODE, name, entry)


@recipe(p.LONG_NAME_SHARED, p.LONG_NAME_UNUSED)
def one_slot_for_two(image: Image, inodes: Inodes) -> None:
    first, second = LONG_NAMES[1:]
    slot = image.long_entry(f.ROOT_INODE, first).slot
    image.set_entry(inodes["dir"], second, long_entry(inodes[second.decode()], slot, first))


@recipe(p.LONG_NAME_UNUSED)
def slot_of_nobody(image: Image, inodes: Inodes) -> None:
    root = image.superblock.longfile
    assert root.levels == 0
    name = b"n" * 100
    slots = root.size // image.block_size
    block = image.take_block(f.LongNameHeader(len(name)).pack() + name)
    root.ptr = (*root.ptr[:slots], block, *root.ptr[slots + 1 :])
    root.size += image.block_size


@recipe(p.DIRECTORY_NAMED_TWICE, p.UNREACHABLE)
def hard_link_to_directory(image: Image, inodes: Inodes) -> None:
    image.set_entry(f.ROOT_INODE, b"fifo", short_entry(inodes["dir/inner"], b"fifo"))


@recipe(p.UNREACHABLE)
def file_without_name(image: Image, inodes: Inodes) -> None:
    image.new_inode(f.DiskInode(mode=REGULAR, links=1, status=f.STATUS_IN_USE))


@recipe(p.DIRECTORY_LOOP)
def directories_in_a_circle(image: Image, inodes: Inodes) -> None:
    outer, inner = inodes["dir"], inodes["dir/inner"]
    image.set_entry(f.ROOT_INODE, b"dir", short_entry(inodes["fifo"], b"dir"))
    image.set_entry(outer, b"..", short_entry(inner, b".."))
    image.set_entry(inner, b"", short_entry(outer, b"dir"))
    for number, change in ((f.ROOT_INODE, -1), (inner, 1), (inodes["fifo"], 1)):
        with image.edit_inode(number) as inode:
            inode.links += change


@recipe(p.LINK_COUNT)
def too_many_links(image: Image, inodes: Inodes) -> None:
    with image.edit_inode(inodes["small"]) as inode:
        inode.links += 1


@recipe(p.LINK_COUNT)
def directory_without_its_subdirectory(image: Image, inodes: Inodes) -> None:
    with image.edit_inode(inodes["dir"]) as inode:
        inode.links -= 1


@recipe(p.ORPHAN_NOT_EMPTY, p.ORPHANS)
def orphan_directory_with_entries(image: Image, inodes: Inodes) -> None:
    number = image.new_inode(f.DiskInode(mode=stat.S_IFDIR | 0o755, status=f.STATUS_IN_USE))
    entries = ((number, b"."), (f.ROOT_INODE, b".."), (inodes["fifo"], b"fifo"))
    block = image.take_block(b"".join(short_entry(inode, name).pack() for inode, name in entries))
    with image.edit_inode(number) as directory:
        directory.size, directory.blocks = image.block_size, 1
        directory.ptr = (block, *directory.ptr[1:])
    with image.edit_inode(inodes["fifo"]) as fifo:
        fifo.links += 1
    image.set_orphans([number])


# --- counts ---


@recipe(p.BITMAP_FREE)
def used_block_marked_free(image: Image, inodes: Inodes) -> None:
    image.set_bit(image.data_block(inodes["small"]), 0)


@recipe(p.BITMAP_USED)
def unused_block_marked_used(image: Image, inodes: Inodes) -> None:
    image.set_bit(image.free_block(), 1)


@recipe(p.BITMAP_PADDING)
def padding_not_set(image: Image, inodes: Inodes) -> None:
    last = image.geometry.num_blocks // (image.block_size * 8)
    with image.edit(image.leaf(image.superblock.bitmap, last)) as page:
        page[-1] = 0x7F


@recipe(p.REFERENCES)
def count_too_high(image: Image, inodes: Inodes) -> None:
    image.set_reference(image.data_block(inodes["small"]), 1)


@recipe(p.REFERENCES)
def shared_block_not_counted(image: Image, inodes: Inodes) -> None:
    block = image.data_block(inodes["big"], 2)
    other = image.data_block(inodes["big"], 3)
    indirect = image.inode(inodes["big"]).ptr[0]
    image.set_word(indirect, 3, block)
    image.set_bit(other, 0)


@recipe(p.REFERENCES)
def free_block_counted(image: Image, inodes: Inodes) -> None:
    image.set_reference(image.free_block() + 20, 7)


@recipe(p.FREE_BLOCKS)
def wrong_number_of_free_blocks(image: Image, inodes: Inodes) -> None:
    image.superblock.free_blocks += 1


@recipe(p.NUM_INODES)
def wrong_number_of_inodes(image: Image, inodes: Inodes) -> None:
    image.superblock.num_inodes += 1
    image.superblock.free_inodes += 1


@recipe(p.FREE_INODES)
def wrong_number_of_free_inodes(image: Image, inodes: Inodes) -> None:
    image.superblock.free_inodes -= 1


@recipe(p.INODE_HINT)
def inode_hint_too_high(image: Image, inodes: Inodes) -> None:
    image.superblock.inode.hint = image.superblock.num_inodes + 1


@recipe(p.LONG_NAME_HINT)
def long_name_hint_too_high(image: Image, inodes: Inodes) -> None:
    image.superblock.longfile.hint = 1


@recipe(p.SYSTEM_BLOCKS)
def wrong_number_of_system_blocks(image: Image, inodes: Inodes) -> None:
    image.extension.system_blocks += 1


# --- queues and tables ---


@recipe(p.RECLAIM_QUEUE)
def queue_shorter_than_its_count(image: Image, inodes: Inodes) -> None:
    image.extension.reclaim_count = 1


@recipe(p.RECLAIM_ENTRY, p.RECLAIM_PENDING)
def queue_entry_of_no_kind(image: Image, inodes: Inodes) -> None:
    image.use_system_tree("reclaim", f.ReclaimEntry(image.free_block() + 20, f.KIND_COUNT, 0).pack())
    image.extension.reclaim_count = 1


@recipe(p.RECLAIM_ENTRY, p.RECLAIM_PENDING)
def queue_in_a_hole(image: Image, inodes: Inodes) -> None:
    pointers = (image.zero_blocks[3],) * f.POINTER_COUNT
    image.extension.reclaim = f.RootNode(16 * 128**3 * image.block_size, pointers, f.LEVEL_MAX)
    image.extension.reclaim_count = image.extension.reclaim.size // f.ReclaimEntry.SIZE


@recipe(p.RECLAIM_PENDING)
def subtree_in_queue(image: Image, inodes: Inodes) -> None:
    leaf = image.take_block(b"dropped")
    words = [leaf, *[image.zero_blocks[0]] * (image.geometry.fanout - 1)]
    indirect = image.take_block(b"".join(word.to_bytes(4, "little") for word in words))
    image.use_system_tree("reclaim", f.ReclaimEntry(indirect, f.KIND_FILE, 1).pack())
    image.extension.reclaim_count = 1


@recipe(p.SNAPSHOT_COUNT)
def snapshot_that_is_none(image: Image, inodes: Inodes) -> None:
    image.extension.snapshot_count = 1


@recipe(p.SNAPSHOT_RECORD)
def snapshot_with_unknown_flag(image: Image, inodes: Inodes) -> None:
    record = image.snapshot(1, b"first")
    record.flags = 0x100
    image.add_snapshots([record])


@recipe(p.SNAPSHOT_RECORD)
def automatic_clone(image: Image, inodes: Inodes) -> None:
    record = image.snapshot(1, b"first")
    record.flags = f.SNAPSHOT_WRITABLE | f.SNAPSHOT_AUTOMATIC
    image.add_snapshots([record])


@recipe(p.SNAPSHOT_RECORD)
def snapshot_without_name(image: Image, inodes: Inodes) -> None:
    image.add_snapshots([image.snapshot(1, b"")])


@recipe(p.PINS_LEFT)
def pin_that_a_crash_left(image: Image, inodes: Inodes) -> None:
    record = image.snapshot(1, b"")
    record.flags = f.SNAPSHOT_INTERNAL | f.SNAPSHOT_PIN
    image.add_snapshots([record])
    image.extension.first_pin = image.extension.pin_count = 1


@recipe(p.BURIED_BLOCKS)
def buried_without_a_layer(image: Image, inodes: Inodes) -> None:
    image.extension.overlay.buried_free = 1


@recipe(p.EXTENSION_FIELD)
def base_of_a_whole_volume(image: Image, inodes: Inodes) -> None:
    image.extension.overlay.base_serial = 7


@recipe(p.SLOT_CONTENTS, raw=True)
def overlay_by_its_magic_number_alone(image: Image, inodes: Inodes) -> None:
    image.superblock.magic = f.OVERLAY_MAGIC
    image.write_slot(2)


@recipe(p.BASE_TREES)
def base_tree_that_is_not_chained(image: Image, inodes: Inodes) -> None:
    record = image.snapshot(1, b"")
    record.flags = f.SNAPSHOT_INTERNAL | f.SNAPSHOT_BASE
    image.add_snapshots([record])


@recipe(p.BASE_TREES)
def chain_of_base_trees_leads_to_a_snapshot(image: Image, inodes: Inodes) -> None:
    image.add_snapshots([image.snapshot(1, b"first")])
    image.extension.overlay.base_snapshot = 1


@recipe(p.SNAPSHOT_RECORD)
def base_tree_that_can_be_written(image: Image, inodes: Inodes) -> None:
    record = image.snapshot(1, b"")
    record.flags = f.SNAPSHOT_INTERNAL | f.SNAPSHOT_BASE | f.SNAPSHOT_WRITABLE
    image.add_snapshots([record])
    image.extension.overlay.base_snapshot = image.extension.overlay.spent = 1


@recipe(p.PINS)
def pin_counted_that_is_none(image: Image, inodes: Inodes) -> None:
    image.extension.pin_count = 1


@recipe(p.PINS)
def chain_of_pins_leads_to_a_snapshot(image: Image, inodes: Inodes) -> None:
    image.add_snapshots([image.snapshot(1, b"first")])
    image.extension.first_pin = 1


@recipe(p.PINS, p.PINS_LEFT)
def chain_of_pins_goes_round(image: Image, inodes: Inodes) -> None:
    records = [image.snapshot(1, b"first"), image.snapshot(2, b""), image.snapshot(3, b"")]
    for record, following in zip(records[1:], (3, 2), strict=True):
        record.flags, record.next_pin = f.SNAPSHOT_INTERNAL | f.SNAPSHOT_PIN, following
    image.add_snapshots(records)
    image.extension.first_pin, image.extension.pin_count = 2, 2


@recipe(p.PINS, p.PINS_LEFT)
def pin_that_is_not_chained(image: Image, inodes: Inodes) -> None:
    record = image.snapshot(1, b"")
    record.flags = f.SNAPSHOT_INTERNAL | f.SNAPSHOT_PIN
    image.add_snapshots([record])


@recipe(p.SNAPSHOT_RECORD, p.PINS_LEFT)
def pin_that_can_be_written(image: Image, inodes: Inodes) -> None:
    record = image.snapshot(1, b"")
    record.flags = f.SNAPSHOT_INTERNAL | f.SNAPSHOT_PIN | f.SNAPSHOT_WRITABLE
    image.add_snapshots([record])
    image.extension.first_pin = image.extension.pin_count = 1


@recipe(p.SNAPSHOT_RECORD)
def snapshot_with_a_pin_behind_it(image: Image, inodes: Inodes) -> None:
    record = image.snapshot(1, b"first")
    record.next_pin = 1
    image.add_snapshots([record])


@recipe(p.SNAPSHOT_RECORD)
def snapshot_id_given_twice(image: Image, inodes: Inodes) -> None:
    image.add_snapshots([image.snapshot(1, b"first")])
    image.extension.snapshot_id = 1


@recipe(p.SNAPSHOT_DUPLICATE)
def snapshots_of_one_name(image: Image, inodes: Inodes) -> None:
    image.add_snapshots([image.snapshot(1, b"same"), image.snapshot(2, b"same")])


@recipe(p.SNAPSHOT_RECORD)
def snapshot_with_a_slash(image: Image, inodes: Inodes) -> None:
    image.add_snapshots([image.snapshot(1, b"a/b")])


def index_entry(image: Image, slot: int) -> tuple[int, int]:
    """Block and byte of an entry of the index."""
    at = slot * f.SnapshotIndexEntry.SIZE
    return image.leaf(image.extension.snapshot_index, at // image.block_size), at % image.block_size


@recipe(p.SNAPSHOT_INDEX)
def index_too_small(image: Image, inodes: Inodes) -> None:
    image.add_snapshots([image.snapshot(1, b"first")])
    image.extension.snapshot_index.size = f.SnapshotIndexEntry.SIZE


@recipe(p.SNAPSHOT_INDEX)
def snapshot_not_in_the_index(image: Image, inodes: Inodes) -> None:
    image.add_snapshots([image.snapshot(1, b"first")])
    block, offset = index_entry(image, crc32c(b"first") % 64)
    with image.edit(block) as data:
        data[offset : offset + f.SnapshotIndexEntry.SIZE] = bytes(f.SnapshotIndexEntry.SIZE)


@recipe(p.SNAPSHOT_INDEX)
def index_leads_to_no_record(image: Image, inodes: Inodes) -> None:
    image.add_snapshots([image.snapshot(1, b"first")])
    block, offset = index_entry(image, 5)
    with image.edit(block) as data:
        data[offset : offset + f.SnapshotIndexEntry.SIZE] = f.SnapshotIndexEntry(5, 9).pack()


@recipe(p.SNAPSHOT_INDEX)
def index_entry_away_from_home(image: Image, inodes: Inodes) -> None:
    image.add_snapshots([image.snapshot(1, b"first")])
    home = crc32c(b"first") % 64
    block, offset = index_entry(image, home)
    away = index_entry(image, (home + 2) % 64)[1]
    with image.edit(block) as data:
        entry = data[offset : offset + f.SnapshotIndexEntry.SIZE]
        data[offset : offset + f.SnapshotIndexEntry.SIZE] = bytes(f.SnapshotIndexEntry.SIZE)
        data[away : away + f.SnapshotIndexEntry.SIZE] = entry


@recipe(p.SETTINGS_CONTENTS)
def settings_longer_than_their_tree(image: Image, inodes: Inodes) -> None:
    image.use_system_tree("settings", f.SettingsHeader(f.SETTINGS_LENGTH_MAX).pack() + b"{}")


@recipe(p.SETTINGS_CONTENTS)
def settings_that_are_a_list(image: Image, inodes: Inodes) -> None:
    image.use_system_tree("settings", f.SettingsHeader(2).pack() + b"[]")


@recipe(p.SETTINGS_CONTENTS)
def settings_that_are_no_text(image: Image, inodes: Inodes) -> None:
    image.use_system_tree("settings", f.SettingsHeader(2).pack() + b"\xff{")
