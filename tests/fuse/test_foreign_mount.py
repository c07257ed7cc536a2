"""Volumes that QNX made, behind a mount: in a partition of a disk's image, the newest state and the one before."""

from __future__ import annotations

import os
import stat

import pytest
from mounting import Place, cowfs
from qnx6writer import Volume, files_of, older_tree, sample_tree

from cowfs.fuse.options import parse

pytestmark = pytest.mark.fuse

START = 2048 * 512


def test_a_partition_of_a_disk(place: Place) -> None:
    tree = sample_tree(1024)
    contents = Volume("<", 1024).image(older_tree(), tree)
    table = bytearray(START)
    table[510:512] = b"\x55\xaa"
    table[446 + 4] = 0xB1
    table[446 + 8 : 446 + 16] = (START // 512).to_bytes(4, "little") + (len(contents) // 512).to_bytes(4, "little")
    data = bytes(table) + contents
    place.image.write_bytes(data)
    place.expects_problems = True  # the disk is no volume
    failed = cowfs("mount", place.image, place.mountpoint, "-o", "ro", ok=False)
    assert f"choose a partition: partition 1 at byte {START}" in failed.stderr

    place.mount("-o", "ro,partition=1")
    top = os.fsencode(place.mountpoint) + b"/"
    for path, node in files_of(tree):
        if b"n" * 510 in path:  # programs of Linux have names of 255 bytes
            continue
        status = os.lstat(top + path)
        assert (status.st_mode, status.st_uid, int(status.st_mtime)) == (node.mode, node.uid, node.mtime), path
        if stat.S_ISREG(node.mode):
            with open(top + path, "rb") as file:
                assert file.read() == node.data
    place.umount()

    place.mount("-o", f"ro,offset={START},superblock=1")
    assert sorted(os.listdir(place.mountpoint)) == [".boot", "before", "small"]
    assert (place.mountpoint / "small").read_bytes() == b"old"
    place.umount()
    assert place.image.read_bytes() == data


def test_parts_need_ro_and_numbers() -> None:
    assert parse(["ro,offset=512"]).offset == 512
    assert parse(parse(["ro,partition=3"]).words()).partition == 3
    for words in ("offset=512", "partition=1", "ro,offset=x", "ro,partition=-1", "ro,offset="):
        with pytest.raises(Exception, match=r"need ro|wants a number"):
            parse([words])
