"""Volumes that an independent writer made are read as it meant them: all byte orders, block sizes, layouts and states."""

from __future__ import annotations

import hashlib
import itertools
import os
import stat

import pytest
from qnx6writer import (
    BLOCK_SIZES,
    LONG,
    NOTHING,
    SPARSE,
    Node,
    Volume,
    directory,
    file,
    files_of,
    older_tree,
    sample_tree,
)
from support import new_device, open_filesystem

from cowfs.check import check_device
from cowfs.errors import CowfsError, IsADirectory, NotADirectory, NotFound
from cowfs.export.budget import Budget
from cowfs.export.contents import Piece, data_of, pieces
from cowfs.export.listing import checksum_lines
from cowfs.export.walk import resolve, walk
from cowfs.fs import Caller, Filesystem
from cowfs.storage import volume as storage
from cowfs.storage.device import MemoryDevice

ORDERS = ("<", ">")


def no_problem(path: bytes, error: Exception) -> None:
    raise AssertionError(f"{path!r}: {error}")


def opened(image: bytes, superblock: int | None = None) -> Filesystem:
    return Filesystem(storage.Volume.open(MemoryDevice.from_image(image), read_only=True, superblock=superblock))


def visits(filesystem: Filesystem) -> dict[bytes, object]:
    found = walk(filesystem, filesystem.getattr(1), no_problem, Budget(filesystem.volume))
    return {visit.path: visit.attributes for visit in found if not visit.leaving}


def assert_same(filesystem: Filesystem, tree: Node) -> None:
    """All paths, contents, modes, owners and times are those that were written."""
    found = visits(filesystem)
    del found[b""], found[b".boot"]
    expected = dict(files_of(tree))
    assert set(found) == set(expected)
    for path, node in expected.items():
        where, attributes = resolve(filesystem, b"/" + path)
        assert where == path
        assert attributes == found[path]
        assert (attributes.mode, attributes.uid, attributes.gid) == (node.mode, node.uid, node.gid), path
        assert attributes.mtime_ns == node.mtime * 10**9
        if stat.S_ISREG(node.mode):
            data = b"".join(data_of(filesystem, attributes.ino, Budget(filesystem.volume)))
            assert data == node.data, path
        if stat.S_ISLNK(node.mode):
            assert filesystem.readlink(attributes.ino) == node.data


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("boot_block", [True, False])
def test_everything_is_read_as_it_was_written(order: str, block_size: int, boot_block: bool) -> None:
    tree = sample_tree(block_size)
    image = Volume(order, block_size, boot_block=boot_block).image(older_tree(), tree)
    assert_same(opened(image), tree)
    assert_same(opened(image, 1), older_tree())
    for superblock in (None, 1, 2):
        report = check_device(MemoryDevice.from_image(image), superblock=superblock)
        assert not report.totals, report.to_text()


@pytest.mark.parametrize("order", ORDERS)
def test_a_hole_of_qnx_is_a_hole(order: str) -> None:
    """0xFFFFFFFE at the top, and in indirect blocks, is what ~0 is; contents, check and pieces agree."""
    images = [Volume(order, 1024).image(older_tree(), sample_tree(1024, hole=hole)) for hole in (NOTHING, SPARSE)]
    for image in images:
        filesystem = opened(image)
        assert_same(filesystem, sample_tree(1024))
        assert not check_device(MemoryDevice.from_image(image)).totals
        number = filesystem.lookup(1, b"hollow").ino
        found = [(p.offset, p.length, p.data is None) for p in pieces(filesystem, number, Budget(filesystem.volume))]
        assert found == [(0, 1024, False), (1024, 2048, True), (3072, 512, False)]
    assert images[0] != images[1]


def test_the_newest_state_may_be_in_either_slot() -> None:
    image = Volume("<", 512).image(older_tree(), sample_tree(512), newest=1)
    assert_same(opened(image), sample_tree(512))
    assert_same(opened(image, 2), older_tree())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("boot_block", [True, False])
def test_slot_2_is_found_without_slot_1(order: str, block_size: int, boot_block: bool) -> None:
    image = bytearray(Volume(order, block_size, boot_block=boot_block).image(older_tree(), older_tree()))
    start = 0x2000 if boot_block else 0
    image[start : start + 512] = bytes(512)
    filesystem = opened(bytes(image))
    assert_same(filesystem, older_tree())
    assert any("slot 1 is not valid" in note for note in filesystem.volume.notes)


def test_a_volume_that_is_cut_short_is_read_as_far_as_it_is_there() -> None:
    tree = directory({b"first": file(b"a" * 5000), b"last": file(b"b" * 5000)})
    volume = Volume("<", 1024)
    image = volume.image(older_tree(), tree, newest=1)
    cut = image[: volume.start + (volume.blocks - 6) * 1024]  # all of the older state, and two blocks of "last"
    filesystem = opened(cut)
    assert any("cut short" in note for note in filesystem.volume.notes)
    with pytest.raises(CowfsError):
        opened(cut, 2)
    problems: list[bytes] = []
    lines = list(checksum_lines(filesystem, filesystem.getattr(1), lambda path, error: problems.append(path)))
    assert [line.split()[1] for line in lines] == [b"first"]
    assert problems == [b"last"]


def test_paths() -> None:
    filesystem = opened(Volume("<", 512).image(older_tree(), sample_tree(512)))
    assert resolve(filesystem, b"")[0] == resolve(filesystem, b"//./")[0] == b""
    assert resolve(filesystem, b"directory//deep/" + LONG)[0] == b"directory/deep/" + LONG
    for path, error in (
        (b"/nothing", NotFound),
        (b"directory/..", NotFound),
        (b"small/x", NotADirectory),
        (b"link/x", NotADirectory),
    ):
        with pytest.raises(error):
            resolve(filesystem, path)
    with pytest.raises(IsADirectory):
        list(pieces(filesystem, 1, Budget(filesystem.volume)))


def test_the_order_is_that_of_the_paths() -> None:
    """Also where a directory's name is the beginning of another name: 'a.b' comes before 'a/b'."""
    names = {
        b"a": directory({b"b": file(b"")}),
        b"a.b": file(b""),
        b"a0": file(b""),
        b"a-": directory({b"x": file(b"")}),
    }
    filesystem = opened(Volume(">", 1024).image(older_tree(), directory(names)))
    lines = list(checksum_lines(filesystem, filesystem.getattr(1), no_problem))
    paths = [line.split(b"  ", 1)[1].rstrip(b"\n") for line in lines]
    assert paths == sorted(paths) == [b"a-/x", b"a.b", b"a/b", b"a0"]


def test_holes_of_a_volume_of_ours_cost_nothing() -> None:
    """A file of a terabyte with a few bytes in it: as many pieces as there are data, and few reads."""
    device = new_device()
    filesystem = open_filesystem(device)
    number = filesystem.create(1, b"sparse", 0o644, Caller()).ino
    filesystem.write(number, 0, b"begin")
    filesystem.write(number, 1 << 39, os.urandom(10_000))
    filesystem.close()
    device.reset_counters()
    filesystem = open_filesystem(device, read_only=True)
    found = list(pieces(filesystem, number, Budget(filesystem.volume)))
    assert sum(piece.length for piece in found) == (1 << 39) + 10_000
    assert [piece.length for piece in found if piece.data is not None] == [4096, 10_000]
    assert _contiguous(found)
    assert device.reads < 40


def _contiguous(found: list[Piece]) -> bool:
    return all(a.offset + a.length == b.offset for a, b in itertools.pairwise(found))


def test_a_bad_block_hides_only_itself() -> None:
    device = new_device(block_size=512)
    filesystem = open_filesystem(device)
    data = os.urandom(300 * 512)
    number = filesystem.create(1, b"file", 0o644, Caller()).ino
    filesystem.write(number, 0, data)
    filesystem.close()
    block = filesystem.volume.trees.pointer(filesystem.inode(number).root, 100)
    offset = filesystem.volume.geometry.block_offset(block)
    device.write(offset, [b"rot"])
    filesystem = open_filesystem(device, read_only=True)
    found = list(pieces(filesystem, number, Budget(filesystem.volume)))
    assert _contiguous(found)
    bad = [(piece.offset, piece.length) for piece in found if piece.error is not None]
    assert bad == [(100 * 512, 512)]
    good = b"".join(bytes(512) if piece.data is None else piece.data for piece in found)
    assert good == data[: 100 * 512] + bytes(512) + data[101 * 512 :]
    problems: list[bytes] = []
    assert not list(checksum_lines(filesystem, filesystem.getattr(1), lambda path, error: problems.append(path)))
    assert problems == [b"file"]


def test_checksums_are_those_of_the_contents() -> None:
    tree = sample_tree(2048)
    filesystem = opened(Volume("<", 2048).image(older_tree(), tree))
    lines = b"".join(checksum_lines(filesystem, filesystem.getattr(1), no_problem, algorithm="sha512"))
    files = [(path, node.data) for path, node in files_of(tree) if stat.S_ISREG(node.mode)]
    assert lines.count(b"\n") == len(files)
    for path, data in files:
        if path.startswith(b"odd"):
            escaped = path.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
            assert b"\n\\" + hashlib.sha512(data).hexdigest().encode() + b"  " + escaped + b"\n" in lines
        else:
            assert hashlib.sha512(data).hexdigest().encode() + b"  " + path + b"\n" in lines
