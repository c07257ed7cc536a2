"""The golden images: today's code makes the same bytes, reads what was written then, and finds nothing wrong with it."""

from __future__ import annotations

import importlib.util
import lzma
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from cowfs.check import Report, check_device, check_image
from cowfs.fs import Filesystem
from cowfs.ondisk import format as f
from cowfs.storage.device import MemoryDevice
from cowfs.storage.superblock import read_slots
from cowfs.storage.volume import Volume

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "images"
IMAGE_BYTES_MAX = 16 << 10
NAMES = [f"{kind}-{block_size}" for kind in ("empty", "objects", "crashed") for block_size in f.BLOCK_SIZES]
CRASHED = [name for name in NAMES if name.startswith("crashed")]
ORDINARY_AFTER_A_CRASH = {"not-settled", "orphans", "reclaim-pending"}


@pytest.fixture(scope="module")
def make() -> Iterator[ModuleType]:
    """The recipe, as a module."""
    specification = importlib.util.spec_from_file_location("images_make", FOLDER / "make.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    yield module
    del sys.modules[specification.name]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def stored(name: str) -> bytes:
    return lzma.decompress((FOLDER / f"{name}.img.xz").read_bytes())


def noted(report: Report) -> set[str]:
    return {note.kind.name for note in report.notes}


def test_the_folder_holds_these(make: ModuleType) -> None:
    assert list(make.IMAGES) == NAMES
    wanted = {"README.md", "make.py"} | {f"{name}{suffix}" for name in NAMES for suffix in (".img.xz", ".txt")}
    assert {path.name for path in FOLDER.iterdir() if path.is_file()} == wanted
    assert max(path.stat().st_size for path in FOLDER.glob("*.xz")) <= IMAGE_BYTES_MAX
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{kind}-*`" in readme for kind in ("empty", "objects", "crashed"))


def test_the_same_bytes_again(make: ModuleType, name: str) -> None:
    image = make.IMAGES[name]()
    assert image == stored(name), "if blocks or bytes moved on purpose, run images/make.py"


def test_what_it_holds(make: ModuleType, name: str) -> None:
    filesystem = make.open_read_only(stored(name))
    assert filesystem.volume.notes == []
    assert make.listing(filesystem) == (FOLDER / f"{name}.txt").read_text(encoding="ascii")


def test_it_is_sound(name: str) -> None:
    report = check_image(MemoryDevice.from_image(stored(name)))
    assert noted(report) == (ORDINARY_AFTER_A_CRASH if name in CRASHED else set())
    assert report.counts.orphans == report.counts.reclaim_entries == (name in CRASHED)


def test_it_can_be_written(make: ModuleType, name: str) -> None:
    device = MemoryDevice.from_image(stored(name))
    filesystem = Filesystem(Volume.open(device))
    assert filesystem.volume.notes == []
    before = make.listing(filesystem)
    make.new_file(filesystem, f.ROOT_INODE, b"new", b"contents")
    filesystem.sync()
    filesystem.unlink(f.ROOT_INODE, b"new")
    while filesystem.volume.reclaim_slice():
        pass
    filesystem.close()
    report = check_image(device)
    assert noted(report) == set()
    assert report.counts.orphans == report.counts.reclaim_entries == 0
    root, *others = make.listing(make.open_read_only(device.image())).splitlines()
    assert others == before.splitlines()[1:], "only the times of the root differ"
    assert root.endswith(" /")


@pytest.mark.parametrize("name", CRASHED)
def test_the_crash_left_two_states(make: ModuleType, name: str) -> None:
    image = stored(name)
    slots = read_slots(MemoryDevice.from_image(image)).slots
    newest, older = slots[2], slots[1]
    assert newest.serial == older.serial + 1
    assert newest.manifest, "its blocks were flushed together with the slot"
    assert check_device(MemoryDevice.from_image(image), superblock=1).clean
    volume = Volume.open(MemoryDevice.from_image(image), read_only=True, superblock=1)
    older_listing = make.listing(Filesystem(volume))
    assert "/orphan" in older_listing
    assert "/stays" not in older_listing
    torn = bytearray(image)
    block = newest.geometry.block_offset(newest.manifest[0].block)
    torn[block] ^= 1
    volume = Volume.open(MemoryDevice.from_image(torn))
    assert "was not completely written" in " ".join(volume.notes)
    assert make.listing(Filesystem(volume)) == older_listing


def test_the_recipe_as_a_program(tmp_path: Path, make: ModuleType) -> None:
    command = [sys.executable, str(FOLDER / "make.py"), str(tmp_path), "empty-512"]
    subprocess.run(command, check=True, env={"PYTHONPATH": str(ROOT)})
    assert {path.name for path in tmp_path.iterdir()} == {"empty-512.img.xz", "empty-512.txt"}
    assert lzma.decompress((tmp_path / "empty-512.img.xz").read_bytes()) == stored("empty-512")
