"""Makes a volume with contents: of ours, or a plain qnx6 one, in a given size or as small as they allow.

A volume that is to fit is first made far too large, which costs nothing in a sparse file, filled from its front, and cut. A
plain qnx6 volume must be counted before it can be laid out, and an archive passes but once: so the source goes into a volume
of ours first, in an unnamed file beside the image, and is written from there.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from cowfs.errors import DeviceError
from cowfs.fs import Filesystem
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import Geometry
from cowfs.ondisk.records import ByteOrder
from cowfs.storage.device import FileDevice
from cowfs.storage.mkvolume import ZERO_BLOCKS, make_volume
from cowfs.storage.refit import refit
from cowfs.storage.volume import Volume
from mkcowfs.author import Author, Filled, Wishes
from mkcowfs.plain import LeftOut, Plain, write_plain
from mkcowfs.source import open_source

ROOMY_BLOCKS: Final = 1 << 31
"""Blocks of a volume before it is cut to fit: 8 TiB of 4096 bytes."""
ROOMY_BLOCKS_MIN: Final = 1 << 20
Tell = Callable[[Filled], object]


@dataclass
class Recipe:
    """What to make. `geometry` None: as small as the contents allow; then the device is a regular file."""

    geometry: Geometry | None
    block_size: int
    label: bytes
    volume_id: bytes
    made_ns: int
    source: str
    wishes: Wishes


def fill_volume(device: FileDevice, recipe: Recipe, tell: Tell) -> tuple[Geometry, Filled]:
    """Makes a volume of ours with the contents of the source. Raises CowfsError."""
    geometry = recipe.geometry or _roomy(device, recipe.block_size)
    volume, filled = _filled_volume(device, geometry, recipe, _identity(device), tell)
    if recipe.geometry is None:
        geometry = refit(volume, label=recipe.label, now_ns=recipe.made_ns)
        device.resize(geometry.end)
        device.flush()
    return geometry, filled


def fill_plain(
    device: FileDevice, recipe: Recipe, order: ByteOrder, inodes: int, *, zeroed: bool, tell: Tell
) -> tuple[Geometry, Filled, LeftOut]:
    """Makes a plain qnx6 volume with the contents of the source. Raises CowfsError."""
    with _scratch(device) as scratch:
        roomy = _roomy(scratch, f.BLOCK_SIZE_DEFAULT)
        volume, filled = _filled_volume(scratch, roomy, recipe, _identity(device), tell)
        plain = Plain(
            recipe.block_size,
            order,
            recipe.geometry.num_blocks if recipe.geometry else 0,
            inodes,
            recipe.volume_id,
            recipe.made_ns,
            zeroed,
        )
        reread = Volume.open(scratch, read_only=True)
        geometry, left_out = write_plain(device, Filesystem(reread), plain, recipe.geometry is None, tell)
        del volume
    return geometry, filled, left_out


def _filled_volume(
    device: FileDevice, geometry: Geometry, recipe: Recipe, avoid: tuple[int, int] | None, tell: Tell
) -> tuple[Volume, Filled]:
    owner = recipe.wishes.owner or (0, 0)
    make_volume(device, geometry, label=recipe.label, uuid=recipe.volume_id, now_ns=recipe.made_ns, owner=owner)
    volume = Volume.open(device, clock=lambda: recipe.made_ns)
    if geometry.num_blocks >= ROOMY_BLOCKS_MIN and recipe.geometry is None:
        assert volume.spacemap is not None
        volume.spacemap.data_hint = len(ZERO_BLOCKS)
    author = Author(volume, recipe.wishes, recipe.made_ns, tell)
    return volume, author.fill(open_source(recipe.source, avoid))


def _roomy(device: FileDevice, block_size: int) -> Geometry:
    """Makes the file as long as anything may need; less where the filesystem below has no files so long."""
    blocks = ROOMY_BLOCKS
    while True:
        geometry = Geometry(block_size, blocks)
        try:
            device.resize(geometry.end)
        except DeviceError:
            if blocks <= ROOMY_BLOCKS_MIN:
                raise
            blocks //= 2
        else:
            return geometry


def _identity(device: FileDevice) -> tuple[int, int]:
    status = os.stat(device.name)
    return status.st_dev, status.st_ino


class _ScratchDevice(FileDevice):
    """A file of which nothing has to survive."""

    def flush(self) -> None:
        """Nothing."""

    def drop_cache(self) -> None:
        """Nothing."""


@contextmanager
def _scratch(device: FileDevice) -> Iterator[FileDevice]:
    """An empty file without a name, beside the image; for a block device where temporary files are."""
    descriptor, name = tempfile.mkstemp(
        prefix=".mkcowfs-", dir=None if device.is_block_device else os.path.dirname(device.name)
    )
    os.close(descriptor)
    try:
        scratch = _ScratchDevice.open(name, read_only=False)
    finally:
        os.unlink(name)
    try:
        yield scratch
    finally:
        scratch.close()
