"""A new volume: zero blocks, system trees, an empty root directory, the hidden orphan list, both slots, the boot block.

The number of writes does not depend on the size of the volume: absent pages of every tree are holes.

Order: the places where slots of an older volume may be found are wiped first, so that an interrupted format leaves no
volume rather than a mixture; the boot block comes last.
"""

from __future__ import annotations

import stat

from cowfs.errors import InvalidArgument
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import Geometry
from cowfs.ondisk.times import encode_time
from cowfs.storage.blockio import pointer_bytes
from cowfs.storage.blocktree import Root
from cowfs.storage.device import Device
from cowfs.storage.pagedtree import CHECKSUM_ENTRY_WORDS, tree_root
from cowfs.storage.spacemap import new_bitmap_padding
from cowfs.storage.superblock import Slot, slot_pointer
from cowfs.storage.volume import Volume

ROOT_MODE = stat.S_IFDIR | 0o755
ZERO_BLOCKS = (0, 1, 2, 3)
DATA_HINT_SHARE = 64  # file data begins behind the first 1/64 of the volume; metadata grows from the front


def make_volume(
    device: Device,
    geometry: Geometry,
    *,
    label: bytes,
    uuid: bytes,
    now_ns: int,
    owner: tuple[int, int] = (0, 0),
) -> None:
    """Formats `device`. `label` is at most 64 bytes of UTF-8, `uuid` 16 bytes, `owner` (uid, gid) of the root directory.

    The device is flushed at the end and stays open. Raises InvalidArgument, DeviceError.
    """
    if len(label) > f.LABEL_MAX or len(uuid) != 16:
        raise InvalidArgument(f"a label has at most {f.LABEL_MAX} bytes, a UUID 16")
    if device.size() < geometry.end:
        raise InvalidArgument(f"{device.name} has {device.size()} bytes, the volume needs {geometry.end}")
    wipe(device, geometry)
    volume = empty_volume(device, geometry, label, uuid, now_ns)
    fill_zero_blocks(volume)
    _make_root(volume, now_ns, owner)
    volume.settle()
    write_boot_block(device, geometry)


def write_boot_block(device: Device, geometry: Geometry, base_name: bytes = b"") -> None:
    """The last step of making a volume: what leads to both slots, and an overlay's `BaseName`. Flushes."""
    head, pointer = slot_pointer(geometry)
    boot = bytearray(f.BOOT_SIZE)
    boot[: len(head)] = head
    boot[f.SLOT_POINTER_OFFSET : f.SLOT_POINTER_OFFSET + len(pointer)] = pointer
    boot[f.BASE_NAME_OFFSETS[0] : f.BASE_NAME_OFFSETS[0] + len(base_name)] = base_name
    device.write(geometry.base, [boot])
    device.flush()


def wipe(device: Device, geometry: Geometry) -> None:
    """Overwrites all places where slots of a volume that was there may be found. Flushes."""
    nothing = bytes(f.SLOT_AREA_SIZE)
    device.write(geometry.base, [bytes(f.BOOT_SIZE)])
    for offset in geometry.slot_offsets:
        device.write(offset, [nothing])
    # A volume that filled the device has slot 2 there, up to a block before the very end.
    device.write(device.size() - 2 * f.SLOT_AREA_SIZE, [bytes(2 * f.SLOT_AREA_SIZE)])
    device.flush()


def empty_volume(device: Device, geometry: Geometry, label: bytes, uuid: bytes, now_ns: int) -> Volume:
    """A volume of which nothing is written yet, not even the Z blocks."""
    blocks = geometry.num_blocks
    superblock = f.Superblock(
        serial=0,
        ctime=now_ns // 1_000_000_000 & 0xFFFFFFFF,
        volume_id=uuid,
        block_size=geometry.block_size,
        num_blocks=blocks,
        free_blocks=blocks,
        bitmap=tree_root(geometry, -(-blocks // 8), ZERO_BLOCKS),
    )
    extension = f.Extension(
        zero_blocks=ZERO_BLOCKS,
        format_time=max(now_ns, 0),
        label=label,
        data_hint=max(len(ZERO_BLOCKS), blocks // DATA_HINT_SHARE),
        metadata_hint=len(ZERO_BLOCKS),
        checksums=tree_root(geometry, blocks * f.CHECKSUM_SIZE, ZERO_BLOCKS, CHECKSUM_ENTRY_WORDS),
        references=tree_root(geometry, blocks * f.REFERENCE_SIZE, ZERO_BLOCKS),
    )
    volume = Volume(device, Slot(1, geometry, superblock, extension), read_only_reason="")
    volume.clock = lambda: now_ns
    return volume


def fill_zero_blocks(volume: Volume) -> None:
    """Z0 is zeros, Zk full of pointers to Z(k-1). They are in use for good, and no count is kept of them."""
    geometry = volume.geometry
    assert volume.spacemap is not None
    padding = new_bitmap_padding(geometry.num_blocks, geometry.block_size)
    if padding is not None:
        offset, bits = padding
        page = volume.bitmap.page_for_write(offset // geometry.block_size)
        window = ((1 << geometry.block_size * 8) - 1) ^ ((1 << bits) - 1)
        page[:] = window.to_bytes(geometry.block_size, "little")
    volume.bitmap.place_end()
    volume.spacemap.take_at(ZERO_BLOCKS[0], len(ZERO_BLOCKS))
    volume.store.put(ZERO_BLOCKS[0], bytearray(geometry.block_size))
    for level in range(1, len(ZERO_BLOCKS)):
        content = pointer_bytes([ZERO_BLOCKS[level - 1]], geometry) * geometry.fanout
        volume.store.put(ZERO_BLOCKS[level], bytearray(content))


def _make_root(volume: Volume, now_ns: int, owner: tuple[int, int]) -> None:
    trees, live = volume.trees, volume.live
    block_size = volume.geometry.block_size
    directory = Root(f.KIND_FILE)
    trees.resize(trees.token(directory), block_size)
    entries = trees.writable_leaf(trees.token(directory), 0)
    for number, name in enumerate((b".", b"..")):
        entry = f.ShortEntry(f.ROOT_INODE, len(name), name).pack()
        entries[number * len(entry) : (number + 1) * len(entry)] = entry
    seconds, extra = encode_time(now_ns)
    root = _inode(volume, seconds, extra, ROOT_MODE)
    root.size, root.blocks, root.links = block_size, 1, 2
    root.uid, root.gid = owner
    root.ptr = tuple(directory.ptr)
    orphans = _inode(volume, seconds, extra, stat.S_IFREG)
    orphans.flags = f.INODE_FLAG_HIDDEN
    trees.resize(live.writable_inodes(), block_size)
    leaf = trees.writable_leaf(live.writable_inodes(), 0)
    content = root.pack() + orphans.pack()
    leaf[: len(content)] = content
    live.num_inodes = block_size // f.INODE_SIZE
    live.free_inodes = live.num_inodes - 2
    live.inode_hint = 1  # hints go by leaves


def _inode(volume: Volume, seconds: int, extra: int, mode: int) -> f.DiskInode:
    return f.DiskInode(
        birth=seconds,
        mtime=seconds,
        atime=seconds,
        ctime=seconds,
        mode=mode,
        links=1,
        status=f.STATUS_IN_USE,
        mtime_extra=extra,
        atime_extra=extra,
        ctime_extra=extra,
        generation=volume.next_generation(),
    )
