"""Readers that we did not write see what cowfs serves: Linux's own qnx6 driver, and dissect.qnxfs.

All images are made first, and each reader is started once. A volume that cowfs serves in a way that the others do not see,
or the other way round, is a mistake in one of us: the format is shared.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest
from guest import Guest, NoGuest
from mounting import Place
from reading import Reading, parse
from served import DISSECT_MAX, Object, as_dissect, as_linux, differences, seen_by
from volumes import CASES, Shown

from cowfs.ondisk import format as f

DISSECT_READER: Final = Path(__file__).with_name("dissect_reader.py")
PAIRS = [(case, block_size) for case in CASES for block_size in f.BLOCK_SIZES]
NAMES = [f"{case}-{block_size}" for case, block_size in PAIRS]


@dataclass(repr=False)
class Exhibition:
    """All images, by the name of their case."""

    folder: Path
    cases: dict[str, list[Shown]]

    def images(self) -> list[Path]:
        return [item.image for case in self.cases.values() for item in case]


@pytest.fixture(scope="module")
def exhibition(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exhibition]:
    folder = tmp_path_factory.mktemp("images")
    cases = {name: list(CASES[case](folder, size)) for name, (case, size) in zip(NAMES, PAIRS, strict=True)}
    yield Exhibition(folder, cases)
    for path in folder.iterdir():
        path.unlink()


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    try:
        return Guest(tmp_path_factory.mktemp("guest"))
    except NoGuest as reason:
        pytest.skip(f"Linux's driver cannot be asked here: {reason}")


@pytest.fixture(scope="module")
def linux(exhibition: Exhibition, guest: Guest) -> dict[Path, Reading]:
    images = exhibition.images()
    return dict(zip(images, guest.read(images), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_linux_sees_what_cowfs_serves(exhibition: Exhibition, linux: dict[Path, Reading], name: str) -> None:
    for item in exhibition.cases[name]:
        found = linux[item.image]
        assert (item.image.name, found.errors) == (item.image.name, [])
        assert (item.image.name, differences(seen_by(as_linux, item.wanted), found.objects)) == (item.image.name, [])


@pytest.mark.fuse
def test_linux_sees_what_a_mount_served(tmp_path: Path, guest: Guest) -> None:
    """The same through the kernel: what lstat(2) and read(2) say on a mount, before it is unmounted."""
    place = Place(tmp_path).make(64, block_size=1024)
    place.mount()
    try:
        for number in range(200):
            folder = place.mountpoint / f"folder {number % 9}"
            folder.mkdir(exist_ok=True)
            file = folder / (f"file {number}" + " with a name that lies in a slot" * (number % 2))
            file.write_bytes(b"%d\n" % number * (number * 37))
            file.chmod(0o600 + number % 0o200)
            (folder / f"link {number}").symlink_to(file.name)
        (place.mountpoint / "folder 1" / "file 1 with a name that lies in a slot").rename(place.mountpoint / "moved")
        (place.mountpoint / "hard").hardlink_to(place.mountpoint / "moved")
        os.mkfifo(place.mountpoint / "fifo")
        os.sync()
        paths = sorted(place.mountpoint.rglob("*"))
        data = {path: path.read_bytes() for path in paths if path.is_file() and not path.is_symlink()}
        wanted = {os.fsencode(f"/{path.relative_to(place.mountpoint)}"): _by_lstat(path, data) for path in paths}
    finally:
        place.umount()
    (found,) = guest.read([place.image])
    assert found.errors == []
    found.objects.pop(b"")
    assert len(wanted) > 400
    assert differences(seen_by(as_linux, wanted), found.objects) == []


def _by_lstat(path: Path, data: dict[Path, bytes]) -> Object:
    status = path.lstat()
    target = os.fsencode(path.readlink()) if path.is_symlink() else data.get(path, b"")
    times = (int(status.st_mtime), int(status.st_atime), int(status.st_ctime))
    numbers = (status.st_mode, status.st_uid, status.st_gid, status.st_size, *times, status.st_ino)
    return Object(*numbers, status.st_nlink, status.st_blocks, (0, 0), target)


@pytest.fixture(scope="module")
def dissect(exhibition: Exhibition) -> dict[Path, Reading]:
    if find_spec("dissect") is None or find_spec("dissect.qnxfs") is None:
        pytest.skip("dissect.qnxfs is not installed (pip install 'cowfs[interop]')")
    images = exhibition.images()
    with (exhibition.folder / "found").open("w+b") as found:
        command = [sys.executable, str(DISSECT_READER), str(DISSECT_MAX), *map(str, images)]
        done = subprocess.run(command, stdout=found, stderr=subprocess.PIPE, text=True, check=False)
        found.seek(0)
        readings = parse(found)
    assert len(readings) == len(images), f"it ended at {images[len(readings)].name}: {done.stderr}"
    return dict(zip(images, readings, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_dissect_sees_what_cowfs_serves(exhibition: Exhibition, dissect: dict[Path, Reading], name: str) -> None:
    for item in exhibition.cases[name]:
        wanted = item.wanted if item.of_newest is None else item.of_newest
        found = differences(seen_by(as_dissect, wanted), dissect[item.image].objects)
        assert (item.image.name, found) == (item.image.name, [])


def test_a_difference_is_seen(exhibition: Exhibition, guest: Guest) -> None:
    """What the comparison is worth: one changed byte of one file, and a volume that does not mount."""
    item = exhibition.cases[NAMES[0]][0]
    image = bytearray(item.image.read_bytes())
    contents = [
        found.data for found in item.wanted.values() if stat.S_ISREG(found.mode) and found.data[:64].strip(b"\0")
    ]
    place = image.index(max(contents, key=len)[:64])
    image[place] ^= 1
    spoiled = exhibition.folder / "spoiled"
    spoiled.write_bytes(image)
    image[f.SLOT1_OFFSET + 0x20] ^= 1
    broken = exhibition.folder / "broken"
    broken.write_bytes(image)
    one, other = guest.read([spoiled, broken])
    assert differences(seen_by(as_linux, item.wanted), one.objects)
    assert other.errors == ["mount '': EINVAL"]
