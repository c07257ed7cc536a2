"""Another size for a volume: what it would be, and the steps that lead there.

Blocks keep their numbers, but slot 2 lies behind the last one, so it moves. All of it happens in one commit, whose write-out
(`commit.SlotMove`) keeps to I40; before it there are ordinary ones that announce it. The trees that say something of each
block grow by holes: what growing costs does not depend on by how much.

Locking: the core thread; what touches the device, `reserve`, is for any thread while no other resizes it.
"""

from __future__ import annotations

from typing import Final

from cowfs.errors import InvalidArgument, NoSpace, NotSupported, SpaceShort
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import Geometry, geometry_for_size
from cowfs.storage.commit import SealedCommit
from cowfs.storage.device import Device, FileDevice
from cowfs.storage.layers import own_device
from cowfs.storage.volume import Tier, Volume, system_capacity

GROW_COST: Final = (
    16  # blocks that the commit may need beside its usual ones: last pages, and levels above all there is
)


def geometry_of(volume: Volume, size: int) -> Geometry:
    """The geometry of the same volume that fills `size` bytes of its device. Raises InvalidArgument, NotSupported."""
    if volume.foreign:
        raise NotSupported("a foreign volume is never written")
    blocks = geometry_for_size(size, volume.geometry.block_size).num_blocks
    return Geometry(volume.geometry.block_size, blocks, base=volume.geometry.base)


def check_growth(volume: Volume, geometry: Geometry) -> None:
    """Raises InvalidArgument where it is too little, NotSupported where the device cannot be as long."""
    old = volume.geometry
    slot = f.SLOT_AREA_SIZE // old.block_size
    reserve = 2 * (system_capacity(geometry) - system_capacity(old))
    least = max(slot, reserve + 1)
    if geometry.num_blocks - old.num_blocks < least:
        raise InvalidArgument(
            f"growing by {geometry.end - old.end} bytes gains nothing: it takes at least {least * old.block_size} bytes"
        )
    device = own_device(volume.device)
    if device.size() < geometry.end and isinstance(device, FileDevice) and device.is_block_device:
        raise NotSupported(
            f"{device.name} is a block device of {device.size()} bytes: a volume of {geometry.end} does not fit"
        )


def reserve(device: Device, geometry: Geometry, *, preallocate: bool = False) -> None:
    """Makes the device long enough, durably. Raises NotSupported, DeviceError; then it may be longer."""
    size = device.size()
    if size < geometry.end:
        device.resize(geometry.end)
        own = own_device(device)
        if preallocate and isinstance(own, FileDevice):
            own.allocate(size)
        device.flush()


def announce(volume: Volume) -> None:
    """From the next commit on the boot block may lead elsewhere. Two commits, and both slots say so. Raises ReadOnly."""
    volume.check_writable()
    assert volume.extension is not None and volume.tx is not None
    volume.extension.resizing = 1
    volume.tx.changes += 1


def renounce(volume: Volume) -> None:
    """What was announced does not happen, for want of space."""
    if volume.extension is not None and volume.extension.resizing and not volume.read_only:
        assert volume.tx is not None
        volume.extension.resizing = 0
        volume.tx.changes += 1


def seal_grown(volume: Volume, geometry: Geometry) -> SealedCommit:
    """Ends the open generation with a commit that grows the volume. Slot 1 is the newest; both were written after `announce`.

    Raises SpaceShort, NoSpace before anything changes; any other failure latches.
    """
    assert volume.newest_slot == 1 and volume.spacemap is not None and not volume.committing
    volume.check_writable()
    inline, volume.inline_commits = volume.inline_commits, False  # a commit in between would leave the newest in slot 2
    try:
        volume.admit(GROW_COST, Tier.SYSTEM)
    finally:
        volume.inline_commits = inline
    try:
        volume.spacemap.grow(geometry.num_blocks)
        set_geometry(volume, geometry)
    except BaseException as error:
        volume.latch(error)
        raise
    return seal_moved(volume)


def begin_larger(volume: Volume, geometry: Geometry) -> None:
    """Gives more blocks, all of them free, to a volume that no slot names yet. Raises Corrupt, DeviceError."""
    assert volume.spacemap is not None and volume.tx is not None
    volume.spacemap.grow(geometry.num_blocks)
    volume.spacemap.seal()  # no state has the old end
    volume.spacemap.admit_new()
    set_geometry(volume, geometry)
    volume.moved_from = None
    volume.measure()
    volume.tx.changes += 1


def seal_moved(volume: Volume) -> SealedCommit:
    """Ends the generation in which `set_geometry` was called. Latches where it fails."""
    return volume.seal(complete=True)


def set_geometry(volume: Volume, geometry: Geometry) -> None:
    """The open generation has another size; its commit moves slot 2."""
    volume.moved_from = volume.geometry.slot_offsets[1]
    volume.superblock.num_blocks = geometry.num_blocks
    volume.geometry = volume.store.geometry = geometry
    volume.store.num_blocks = geometry.num_blocks


def grow(volume: Volume, geometry: Geometry, *, preallocate: bool = False) -> None:
    """All of it, on a volume that nobody else uses. Raises InvalidArgument, NotSupported, NoSpace, DeviceError."""
    check_growth(volume, geometry)
    reserve(volume.device, geometry, preallocate=preallocate)
    announce(volume)
    volume.commit(complete=True)
    sealed = None
    while sealed is None:
        volume.commit(complete=True)
        if volume.newest_slot == 1:
            try:
                sealed = seal_grown(volume, geometry)
            except SpaceShort:
                _bring_forward(volume)
            except NoSpace:
                renounce(volume)
                raise
    volume.finish(sealed)


def _bring_forward(volume: Volume) -> None:
    """Frees what can be freed. Raises NoSpace where that is not enough."""
    try:
        volume.admit(GROW_COST, Tier.SYSTEM)
    except NoSpace:
        renounce(volume)
        raise
