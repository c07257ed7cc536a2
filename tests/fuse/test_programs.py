"""A real tree on a mount, unpacked by tar; and a kill in the middle of that. More programs are in tests/apps."""

from __future__ import annotations

import os
import stat
import subprocess
import sysconfig
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mounting import Place, cowfs, run
from programs import describe

pytestmark = pytest.mark.fuse

TREE_FILES_MIN = 5_000
TREE_BYTES_MAX = 300 << 20
SOURCES = (sysconfig.get_path("stdlib"), "/usr/include", "/usr/share", "/usr/lib")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tree of over 5,000 real files, and a tar file of it, with all modes and nanosecond times."""
    directory = tmp_path_factory.mktemp("source")
    names = directory / "names"
    count = size = 0
    with open(names, "wb") as file:
        for path, status in walk_sources():
            if count > TREE_FILES_MIN + 500:
                break
            if not os.access(path, os.R_OK) or size + status.st_size > TREE_BYTES_MAX:
                continue
            file.write(os.fsencode(path.lstrip("/")) + b"\0")
            count += stat.S_ISREG(status.st_mode)
            size += status.st_size
    assert count > TREE_FILES_MIN
    root, archive = directory / "tree", directory / "tree.tar"
    root.mkdir()
    run("sh", "-c", f"tar -C / --null --no-recursion -T '{names}' -cf - | tar -C '{root}' -xpf -")
    some = next(path for path in sorted(root.rglob("*.py")) if path.is_file())
    os.link(some, root / "a-hard-link")
    run("tar", "-C", root, "--format=pax", "-cf", archive, ".")
    return root, archive


def walk_sources() -> Iterator[tuple[str, os.stat_result]]:
    """Everything below the sources, directories before what is in them."""
    for source in SOURCES:
        for directory, directories, files in os.walk(source):
            yield directory, os.lstat(directory)
            for name in sorted(files) + [name for name in directories if os.path.islink(os.path.join(directory, name))]:
                path = os.path.join(directory, name)
                status = os.lstat(path)
                if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                    yield path, status


def test_a_large_tree_is_the_same_after_the_next_mount(place: Place, tree: tuple[Path, Path]) -> None:
    root, archive = tree
    place.make(1024)
    place.mount()
    run("tar", "-C", place.mountpoint, "--numeric-owner", "-xpf", archive)
    wanted = describe(root, untouched=True)
    assert sum(stat.S_ISREG(entry[0]) for entry in wanted.values()) > TREE_FILES_MIN
    place.remount()
    found = describe(place.mountpoint, untouched=True)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []


def test_a_kill_in_the_middle_of_an_unpack(place: Place, tree: tuple[Path, Path]) -> None:
    archive = tree[1]
    place.make(1024)
    place.mount("-o", "commit=0.5")
    root = place.mountpoint
    synced: list[tuple[Path, bytes]] = []
    stop = threading.Event()

    def sync_files() -> None:
        (root / "synced").mkdir()
        while not stop.is_set():
            contents = os.urandom(3000 + 1000 * len(synced))
            path = root / "synced" / str(len(synced))
            with open(path, "wb") as file:
                file.write(contents)
                file.flush()
                os.fsync(file.fileno())
            synced.append((path, contents))
            time.sleep(0.02)

    syncing = threading.Thread(target=ignoring_the_end, args=(sync_files,))
    with subprocess.Popen(["tar", "-C", root, "-xf", archive], stderr=subprocess.DEVNULL) as unpacking:
        syncing.start()
        deadline = time.monotonic() + 60
        while len(synced) < 20 and unpacking.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert unpacking.poll() is None, "the kill must hit the unpacking"
        place.kill()
        stop.set()
        syncing.join()
        assert unpacking.wait(60) != 0
    cowfs("umount", root)
    place.check()
    place.mount()
    assert len(synced) >= 20
    for path, contents in synced:
        assert path.read_bytes() == contents
    place.umount()
    place.check()


def ignoring_the_end(act: Any) -> None:
    """Does something that ends with an error when the daemon goes."""
    try:
        act()
    except OSError:
        return
