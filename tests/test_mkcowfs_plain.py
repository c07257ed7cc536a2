"""`mkcowfs --profile qnx6`: what docs/FORMAT.md, section 11, says of a plain volume, byte by byte; and what is left out."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from served import Object
from test_mkcowfs_contents import SAME, archive, contents, every_kind, failing, make, member

from cowfs.errors import ReadOnly
from cowfs.fs import Filesystem
from cowfs.ondisk import format as f
from cowfs.ondisk.records import ByteOrder
from cowfs.storage.device import FileDevice
from cowfs.storage.superblock import Slot, read_slots
from cowfs.storage.volume import Volume

PLAIN = ("--profile", "qnx6")
ORDERS: dict[str, ByteOrder] = {"little": "<", "big": ">"}


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    """As `every_kind`, without the name that QNX does not take, with a directory of several blocks and a `.boot`."""
    kept = [(info, data) for info, data in _members(every_kind()) if not info.name.startswith("folder/\udcff")]
    many = [member(f"many/{number} and the rest of a long name", data=b"%d" % number) for number in range(100)]
    path = tmp_path / "all.tar"
    path.write_bytes(archive(*kept, *many, member(".boot/loader", data=b"boots")))
    return path


def _members(raw: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(raw), errors="surrogateescape") as tar:
        found = []
        for info in tar:
            file = tar.extractfile(info) if info.isreg() else None
            found.append((info, file.read() if file else b""))
        return found


def slots_of(image: Path) -> tuple[FileDevice, dict[int, Slot]]:
    """The open image, and its slots."""
    device = FileDevice.open(image, read_only=True)
    found = read_slots(device)
    assert not found.notes
    return device, found.slots


def in_use(device: FileDevice, slot: Slot) -> tuple[int, bytes]:
    """Number of ones among the blocks of the volume, and the bytes of the bitmap, padding included."""
    geometry, root = slot.geometry, slot.superblock.bitmap
    assert root.levels == 0
    blocks = [block for block in root.ptr if block != f.NO_BLOCK]
    raw = b"".join(device.read(geometry.block_offset(block), geometry.block_size) for block in blocks)
    bits = int.from_bytes(raw, "little")
    return (bits & (1 << geometry.num_blocks) - 1).bit_count(), raw


@pytest.mark.parametrize("byte_order", ORDERS)
@pytest.mark.parametrize("block_size", f.FOREIGN_BLOCK_SIZES)
def test_the_rules_of_a_plain_volume(tmp_path: Path, tar: Path, block_size: int, byte_order: str) -> None:
    image = make(tmp_path / "image", tar, *PLAIN, "--block-size", block_size, "--byte-order", byte_order, *SAME)
    device, slots = slots_of(image)
    one, two = slots[1], slots[2]
    geometry = one.geometry
    assert (geometry.order, geometry.block_size, image.stat().st_size) == (ORDERS[byte_order], block_size, geometry.end)
    assert (one.serial, two.serial) == (2, 1)
    assert one.extension is None and two.extension is None
    head = f.BootHead.unpack(device.read(0, f.BootHead.SIZE))
    assert (head.jump, head.slot1_sector, head.slot2_sector) == (f.BOOT_JUMP, 16, geometry.slot_offsets[1] // 512)
    assert not any(device.read(f.BootHead.SIZE, f.BOOT_SIZE - f.BootHead.SIZE))
    for slot, offset in zip((one, two), geometry.slot_offsets, strict=True):
        record = slot.superblock
        assert (record.flags, record.version1, record.version2) == (0x100, 4, 3)
        assert (record.iclaim, record.iextra, record.anchor) == (f.RootNode(), f.zero_root(), f.no_anchor())
        assert record.inode.size == record.num_inodes * f.INODE_SIZE and record.inode.size % block_size == 0
        assert not any(device.read(offset + f.RECORD_SIZE, f.SLOT_AREA_SIZE - f.RECORD_SIZE))
        ones, raw = in_use(device, slot)
        assert record.free_blocks == geometry.num_blocks - ones
        assert record.free_blocks * 32 >= geometry.num_blocks, "QNX keeps back three of a hundred"
        padding = len(raw) * 8 - geometry.num_blocks
        assert int.from_bytes(raw, "little") >> geometry.num_blocks == (1 << padding) - 1
    # The system area: the bitmap first, then the inodes, one half for each slot, with equal contents.
    half = two.superblock.bitmap.ptr[0]
    assert one.superblock.bitmap.ptr[0] == 0
    for root in ("bitmap", "inode"):
        here, there = getattr(one.superblock, root), getattr(two.superblock, root)
        pairs = [pair for pair in zip(here.ptr, there.ptr, strict=True) if pair != (f.NO_BLOCK, f.NO_BLOCK)]
        assert all(b - a == half and a < half <= b < 2 * half for a, b in pairs)
        if here.levels == 0:
            for a, b in pairs:
                data = [device.read(geometry.block_offset(block), block_size) for block in (a, b)]
                assert data[0] == data[1]
    assert one.superblock.longfile == two.superblock.longfile
    device.close()


@pytest.mark.parametrize("byte_order", ORDERS)
@pytest.mark.parametrize("block_size", f.FOREIGN_BLOCK_SIZES)
def test_the_files_are_those_of_the_archive(tmp_path: Path, tar: Path, block_size: int, byte_order: str) -> None:
    ours = contents(make(tmp_path / "ours", tar))
    options = ("--block-size", block_size, "--byte-order", byte_order)
    plain = contents(make(tmp_path / "image", tar, *PLAIN, *options, size="64M"))
    assert plain[b"/.boot"].ino == 2
    assert plain[b"/file"].ino == plain[b"/folder/hard"].ino

    def shared(objects: dict[bytes, Object]) -> dict[bytes, Object]:
        """Without what depends on the blocks, or on the numbers of inodes."""
        kept = {
            path: item for path, item in objects.items() if stat.S_IFMT(item.mode) not in (stat.S_IFCHR, stat.S_IFBLK)
        }
        return {
            path: replace(
                item, ino=0, blocks=0, size=0 if stat.S_ISDIR(item.mode) else item.size, data=item.data[:4096]
            )
            for path, item in kept.items()
        }

    assert shared(plain) == shared(ours)
    device = FileDevice.open(tmp_path / "image", read_only=False)
    volume = Volume.open(device)
    assert volume.foreign and volume.read_only
    with pytest.raises(ReadOnly):
        volume.check_writable()
    whole = Filesystem(volume)
    sparse = whole.read(plain[b"/folder/sparse"].ino, 0, 4 << 20)
    original = Filesystem(Volume.open(FileDevice.open(tmp_path / "ours", read_only=True), read_only=True))
    assert sparse == original.read(ours[b"/folder/sparse"].ino, 0, 4 << 20)


def test_boot_is_made_where_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "tar").write_bytes(archive(member("./", tarfile.DIRTYPE, mode=0o755), member("file", data=b"x")))
    found = contents(make(tmp_path / "image", tmp_path / "tar", *PLAIN))
    boot = found[b"/.boot"]
    assert (boot.ino, boot.mode, boot.links, boot.mtime) == (2, stat.S_IFDIR | 0o700, 2, 1_700_000_000)
    assert (found[b""].ino, found[b""].links, found[b"/file"].ino) == (1, 3, 3)
    device, slots = slots_of(tmp_path / "image")
    geometry, record = slots[1].geometry, slots[1].superblock
    table = device.read(geometry.block_offset(record.inode.ptr[0]), geometry.block_size)
    inodes = [f.DiskInode.unpack(table, number * f.INODE_SIZE) for number in range(3)]
    assert [inode.status for inode in inodes] == [1, 1, 3]
    assert not any(table[3 * f.INODE_SIZE :]) and record.free_inodes == record.num_inodes - 3
    assert not any(table[number * 128 + 0x66 : number * 128 + 128] != bytes(26) for number in range(3))
    device.close()


def test_what_is_left_out_is_said(tmp_path: Path, tar: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "image", tar, *PLAIN)
    assert capsys.readouterr().err.splitlines() == [
        "mkcowfs: qnx6 has no place for device nodes: left out, 2 times (first of null)",
        "mkcowfs: qnx6 has no place for extended attributes: left out, 1 times (first of without/folders)",
    ]


def test_the_number_of_inodes_is_fixed(tmp_path: Path, tar: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = make(tmp_path / "image", tar, *PLAIN, "--inodes", "1000")
    device, slots = slots_of(image)
    assert slots[1].superblock.num_inodes == 1024, "whole blocks of 32"
    device.close()
    image.unlink()
    capsys.readouterr()
    assert "inodes are needed, and --inodes says 9" in failing(tmp_path, capsys, tar, *PLAIN, "--inodes", "9")


@pytest.mark.parametrize(
    ("bad", "wanted"),
    [
        (member("d/\udcff"), "d/\udcff: QNX takes only names in UTF-8 without control characters"),
        (member("line\nfeed"), "line�feed: QNX takes only names in UTF-8 without control characters"),
        (member("link", tarfile.SYMTYPE, linkname="t" * 513), "link: a symbolic link of 513 bytes; QNX takes 512"),
        (member(".boot", data=b"x"), ".boot: QNX has a directory of this name"),
    ],
)
def test_what_qnx_could_not_read_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: tuple[tarfile.TarInfo, bytes], wanted: str
) -> None:
    (tmp_path / "tar").write_bytes(archive(bad))
    assert failing(tmp_path, capsys, tmp_path / "tar", *PLAIN) == wanted.encode("utf-8", "replace").decode().replace(
        "?", "�"
    )


def test_too_small_a_volume(tmp_path: Path, tar: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "are needed" in failing(tmp_path, capsys, tar, *PLAIN, size="4M")


def test_old_contents_of_an_image_do_not_show_through(tmp_path: Path, tar: Path) -> None:
    fresh = make(tmp_path / "fresh", tar, *PLAIN, *SAME, size="16M").read_bytes()
    (tmp_path / "old").write_bytes(os.urandom(1 << 20) * 16)
    assert make(tmp_path / "old", tar, *PLAIN, *SAME, "--force", size="16M").read_bytes() == fresh


def test_no_file_of_the_work_is_left(tmp_path: Path, tar: Path) -> None:
    make(tmp_path / "image", tar, *PLAIN)
    assert sorted(os.listdir(tmp_path)) == ["all.tar", "image"]
