"""The checker and the filesystem agree: what a check calls sound can be opened, walked, read and changed.

The two share no code but the declarations of the format. Damage is random, behind right checksums.
"""

from __future__ import annotations

import random
import stat
from functools import cache

from damage import Image
from damage_sample import sample

from cowfs.check import check_device
from cowfs.errors import Corrupt, CowfsError
from cowfs.fs import Filesystem
from cowfs.ondisk import format as f
from cowfs.storage.device import MemoryDevice
from cowfs.storage.volume import Volume

SEEDS = 300
COUNTER_MAX = 1 << 63


@cache
def blocks_with_contents() -> list[int]:
    """Blocks of the sample that are not all zeros, without those of the checksum tree."""
    image = Image(sample().device())
    own = image.checksum_blocks()
    return [n for n in range(image.geometry.num_blocks) if n not in own and any(image.block(n))]


def damaged(seed: int) -> MemoryDevice:
    """The sample with one word changed: of the records, of an inode, or of any block in use."""
    rng = random.Random(seed)
    device = sample().device()
    image = Image(device)
    value = rng.choice([0, 1, f.NO_BLOCK, rng.getrandbits(32), rng.getrandbits(12), 1 << rng.randrange(32)])
    word = value.to_bytes(4, "little")
    where = rng.choice(["records", "inodes", "blocks"])
    if where == "records":
        raw = bytearray(image.superblock.pack() + image.extension.pack())
        at = rng.randrange(f.CRC_START, len(raw), 4)
        raw[at : at + 4] = word
        image.superblock = f.Superblock.unpack(raw)
        image.extension = f.Extension.unpack(raw, f.RECORD_SIZE)
    else:
        blocks = blocks_with_contents()
        inodes = [pointer for pointer in image.superblock.inode.ptr if pointer != f.NO_BLOCK]
        with image.edit(rng.choice(blocks if where == "blocks" else inodes)) as data:
            at = rng.randrange(0, len(data), 4)
            data[at : at + 4] = word
        image.fix_checksums()
    serial = min(image.superblock.serial, COUNTER_MAX)
    image.write_slot(1, serial=serial)
    image.write_slot(2, serial=max(serial - 1, 0))
    return device


def walk(fs: Filesystem, ino: int, visited: set[int]) -> None:
    """Reads everything below a directory."""
    for _, name, number, _ in fs.listing(ino).entries(0):
        attributes = fs.lookup(ino, name)
        if attributes.ino != number:
            raise Corrupt(f"{name!r} is in inode {ino} twice")
        fs.listxattr(number)
        if number in visited:
            continue
        visited.add(number)
        if stat.S_ISDIR(attributes.mode):
            walk(fs, number, visited)
        elif stat.S_ISREG(attributes.mode):
            fs.read(number, 0, 50_000)
        elif stat.S_ISLNK(attributes.mode):
            fs.readlink(number)


def use(device: MemoryDevice) -> None:
    """Mounts for writing, walks, changes a little, and unmounts."""
    fs = Filesystem(Volume.open(device))
    walk(fs, 1, {1})
    fs.write(sample().inodes["small"], 0, b"changed")
    fs.close()


def test_what_is_sound_can_be_used() -> None:
    found = 0
    for seed in range(SEEDS):
        device = damaged(seed)
        copy = MemoryDevice.from_image(device.image())
        try:
            clean = check_device(device).clean
        except CowfsError:
            clean = False
        found += not clean
        try:
            use(copy)
        except CowfsError as error:
            assert not clean, f"seed {seed}: {error!r}"
        else:
            if clean:
                assert check_device(copy).clean, f"seed {seed}: no longer sound after a change"
    assert SEEDS // 3 < found < SEEDS
