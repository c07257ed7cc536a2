"""Repairs of what the medium spoils: lost blocks, flipped bits, and damage at random."""

from __future__ import annotations

import random
import re
import stat
from functools import cache

import pytest
from damage import Image
from damage_sample import sample
from repairing import files_of, mount_and_check, repaired, sound_files, trash

from cowfs.check import check_device
from cowfs.check import problem as p
from cowfs.check.check import examine
from cowfs.check.flipped import without_flipped_bit
from cowfs.check.repair import copy_device, plan_repair
from cowfs.errors import Corrupt, DeviceError
from cowfs.fs import Filesystem
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c
from cowfs.storage.device import MemoryDevice
from cowfs.storage.volume import Volume


def big_file(device: MemoryDevice) -> bytes:
    with_file = Filesystem(Volume.open(MemoryDevice.from_image(device.image()), read_only=True))
    return with_file.read(sample().inodes["big"], 0, 1 << 20)


def test_lost_file_data_stays_an_error() -> None:
    device = sample().device()
    image = Image(device)
    sound = big_file(device)
    trash(image, image.data_block(sample().inodes["big"], 3))
    plan = repaired(device)
    assert plan.exit_code == 4
    assert not plan.slots
    with pytest.raises(Corrupt):
        big_file(device)
    plan = repaired(device, zero_bad_blocks=True)
    assert plan.exit_code == 1
    assert big_file(device) == sound[: 3 * 512] + bytes(512) + sound[4 * 512 :]
    assert any("bytes 1536..2047 are lost, and read as zeros" in action for action in plan.actions)


def test_the_tail_of_a_lost_block_is_not_mended() -> None:
    """It would get a right checksum, and all of the block with it."""
    device = sample().device()
    image = Image(device)
    trash(image, image.data_block(sample().inodes["small"]))
    image.superblock.free_blocks += 1
    image.finish()
    assert repaired(device).exit_code == 4
    fs = Filesystem(Volume.open(device, read_only=True))
    with pytest.raises(Corrupt):
        fs.read(sample().inodes["small"], 0, 100)


def test_what_is_left_is_said_with_its_reason() -> None:
    device = sample().device()
    image = Image(device)
    trash(image, image.data_block(sample().inodes["big"], 3))
    image.superblock.free_blocks += 1
    image.finish()
    plan = repaired(device)
    assert plan.exit_code == 4
    assert [problem.number for problem in plan.left.problems] == [210]
    text = "\n".join(plan.to_text(dry_run=False))
    assert "reading it is an error" in text
    assert "repaired: 1 of 2 problems left" in text


def test_a_lost_block_of_inodes_costs_those_inodes_only() -> None:
    device = sample().device()
    image = Image(device)
    trash(image, image.leaf(image.superblock.inode, 4))  # inodes 17 to 20
    plan = repaired(device)
    assert plan.exit_code == 1
    assert check_device(device).clean
    mount_and_check(device)
    gone = {path for path, number in sample().inodes.items() if 17 <= number <= 20}
    assert sound_files().keys() - files_of(device).keys() == gone
    assert {path: value for path, value in sound_files().items() if path not in gone} == files_of(device)


def test_a_lost_root_directory_loses_no_file() -> None:
    device = sample().device()
    image = Image(device)
    trash(image, image.leaf(image.superblock.inode, 0))
    plan = repaired(device)
    assert check_device(device).clean, plan.actions
    mount_and_check(device)
    found = files_of(device)
    wanted = {number: path for path, number in sample().inodes.items() if path in sound_files()}
    kept = {int(path.partition("#")[2]): path for path in found if path.startswith("lost+found/")}
    assert {wanted[number] for number in kept.keys() & wanted.keys()} >= {"small", "big", "link", "fifo", "attr"}
    for number in kept.keys() & wanted.keys():
        assert found[kept[number]] == sound_files()[wanted[number]]


def test_a_lost_indirect_block_becomes_a_hole() -> None:
    device = sample().device()
    image = Image(device)
    trash(image, image.inode(sample().inodes["big"]).ptr[0])
    assert repaired(device).exit_code == 1
    assert big_file(device) == bytes(40 * 512)
    assert {path for path, value in sound_files().items() if files_of(device)[path] != value} == {"big"}


def test_lost_extended_attributes_are_dropped_as_a_whole() -> None:
    device = sample().device()
    image = Image(device)
    trash(image, image.data_block(image.inode(sample().inodes["attr"]).xattr_inode, 1))
    plan = repaired(device)
    assert plan.exit_code == 1
    assert files_of(device)["attr"][2] == {}
    assert any("its extended attributes are lost" in action for action in plan.actions)


def test_attributes_before_the_damage_are_kept() -> None:
    device = sample().device()
    image = Image(device)
    with image.edit(image.data_block(image.inode(sample().inodes["attr"]).xattr_inode)) as data:
        at = data.index(b"user.size")
        data[at : at + 4] = b"usex"
    image.finish()
    assert repaired(device).exit_code == 1
    assert files_of(device)["attr"][2] == {b"user.colour": b"blue"}


def test_a_symbolic_link_that_cannot_be_read_stays() -> None:
    device = sample().device()
    image = Image(device)
    trash(image, image.data_block(sample().inodes["link"]))
    image.superblock.free_blocks += 1
    image.finish()
    plan = repaired(device)
    assert plan.exit_code == 4
    assert "link" in {entry[1].decode() for entry in Filesystem(Volume.open(device)).listing(f.ROOT_INODE).entries()}
    plan = repaired(device, zero_bad_blocks=True)
    assert plan.exit_code == 1
    assert sound_files().keys() - files_of(device).keys() == {"link"}


def test_a_lost_block_of_checksums_is_counted_anew() -> None:
    device = sample().device()
    image = Image(device)
    trash(image, image.words(image.extension.checksums.ptr[0])[0])
    assert repaired(device).exit_code == 1
    assert check_device(device).clean
    assert files_of(device) == sound_files()


def test_a_flipped_bit_among_the_checksums_costs_no_trust() -> None:
    """In an indirect block of their tree; a block of data that is lost at the same time is not believed."""
    device = sample().device()
    image = Image(device)
    trash(image, image.data_block(sample().inodes["big"], 3))
    with image.edit(image.extension.checksums.ptr[0], checksum=False) as data:
        data[-1] ^= 8
    plan = repaired(device)
    assert [problem.number for problem in plan.left.problems] == [210]
    assert not any("believed" in action for action in plan.actions)
    with pytest.raises(Corrupt):
        big_file(device)


def test_every_single_bit_of_a_block_is_found() -> None:
    data = random.Random(1).randbytes(512)
    for position in range(0, 4096, 7):
        flipped = bytearray(data)
        flipped[position >> 3] ^= 1 << (position & 7)
        assert without_flipped_bit(bytes(flipped), crc32c(data), crc32c(flipped)) == data
    assert without_flipped_bit(b"trash".ljust(512), crc32c(data), crc32c(b"trash".ljust(512))) is None


def test_a_block_that_the_device_cannot_read() -> None:
    class Faulty(MemoryDevice):
        bad = range(0)

        def read(self, offset: int, length: int) -> bytes:
            if offset < self.bad.stop and self.bad.start < offset + length:
                raise DeviceError("input/output error")
            return super().read(offset, length)

    device = Faulty.from_image(sample().image)
    image = Image(sample().device())
    start = image.geometry.block_offset(image.leaf(image.superblock.inode, 4))
    device.bad = range(start, start + 512)
    plan = plan_repair(device)
    copy = MemoryDevice(device.size())
    copy_device(device, copy)
    plan.apply(copy)
    assert plan.exit_code == 1
    assert check_device(copy).clean
    assert len(files_of(copy)) == len(sound_files()) - 4


# --- whatever the bytes are ---


def corrupt_at_random(seed: int) -> MemoryDevice:
    """Words, inodes and whole blocks become others; most checksums are put right."""
    rng = random.Random(seed)
    device = sample().device()
    image = Image(device)
    if rng.random() < 0.4:
        image.add_snapshots([image.snapshot(1, b"first"), image.snapshot(2, b"second")])
        image.finish()
        image = Image(device)
    bitmap = image.block(image.leaf(image.superblock.bitmap, 0))
    used = [block for block in range(120) if bitmap[block >> 3] >> (block & 7) & 1]
    used = [block for block in used if block not in image.checksum_blocks()]
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        with image.edit(rng.choice(used), checksum=rng.random() < 0.8) as data:
            at = rng.randrange(512)
            match rng.randrange(4):
                case 0:
                    data[at] ^= 1 << rng.randrange(8)
                case 1:
                    word = rng.choice((rng.randrange(8160), rng.choice(used), 0, f.NO_BLOCK, rng.randrange(1, 60)))
                    data[at & ~3 : (at & ~3) + 4] = word.to_bytes(4, "little")
                case 2:
                    data[at & ~127 : (at & ~127) + 128] = rng.choice((bytes(128), rng.randbytes(128)))
                case _:
                    data[:] = rng.choice((bytes(512), image.block(rng.choice(used)), rng.randbytes(512)))
    image.finish()
    return device


@pytest.mark.parametrize("seed", range(1000, 1040))
def test_random_damage_never_gets_worse(seed: int) -> None:
    device = corrupt_at_random(seed)
    zeros = seed % 2 == 0
    before = device.image()
    plan = repaired(device, zero_bad_blocks=zeros)
    report = check_device(device)
    assert report.error_count <= plan.found.error_count
    assert {problem.kind for problem in report.problems} <= {p.CHECKSUM}
    assert not (zeros and report.problems)
    if report.clean and not plan.found.clean:
        mount_and_check(device)
    if plan.found.clean:
        assert device.image() == before


def blocks_of(device: MemoryDevice) -> dict[int, dict[int, bytes | None]]:
    """By inode and byte offset, the blocks of all regular files; None where reading is an error."""
    fs = Filesystem(Volume.open(MemoryDevice.from_image(device.image()), read_only=True))
    found: dict[int, dict[int, bytes | None]] = {}

    def block(ino: int, offset: int) -> bytes | None:
        try:
            return fs.read(ino, offset, 512)
        except Corrupt:
            return None

    def visit(directory: int) -> None:
        for _, name, ino, _ in list(fs.listing(directory).entries()):
            attributes = fs.getattr(ino)
            if stat.S_ISREG(attributes.mode):
                end = attributes.size
                offsets = range(end - end % 512 if end > 1 << 20 else 0, end, 512)
                found[ino] = {offset: block(ino, offset) for offset in offsets}
            elif stat.S_ISDIR(attributes.mode) and name not in (b".", b".."):
                visit(ino)

    visit(f.ROOT_INODE)
    return found


@cache
def sound_blocks() -> dict[int, dict[int, bytes | None]]:
    """Those of the sample."""
    return blocks_of(sample().device())


@pytest.mark.parametrize("seed", range(25))
def test_what_the_medium_spoils_never_reads_as_wrong_data(seed: int) -> None:
    """Blocks that are changed, lost, or land elsewhere: files read as before, or as an error, or as zeros that are said."""
    rng = random.Random(seed)
    device = sample().device()
    _, found = examine(device)
    assert found is not None
    usage, geometry = found.walk.usage, found.state.geometry
    count = rng.choice((1, 2, 4, 8))
    checks = Image(device).checksum_blocks() if count > 1 else set()  # where these are lost as well, all is believed
    used = [block for block in range(usage.num_blocks) if usage.role(block) and block not in checks]
    for block in rng.sample(used, count):
        data = bytearray(found.reader.block(block))
        match rng.randrange(4):
            case 0:
                data[rng.randrange(512)] ^= 1 << rng.randrange(8)
            case 1:
                data[rng.randrange(512)] ^= rng.randrange(1, 256)
            case 2:
                data[:] = bytes(512)
            case _:
                data[:] = found.reader.block(rng.choice(used))
        device.write(geometry.block_offset(block), [data])
    plan = repaired(device)
    report = check_device(device)
    assert {problem.kind for problem in report.problems} <= {p.CHECKSUM}
    said = {int(number) for action in plan.actions for number in re.findall(r"^inode (\d+): .*lost", action)}
    for ino, blocks in blocks_of(device).items():
        for offset, data in blocks.items():
            right = data is None or data == sound_blocks()[ino][offset]
            assert right or (ino in said and not any(data)), (ino, offset)
