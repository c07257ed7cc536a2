"""What the kernel is told after commands that change names, and who tells it: only what may wait takes another thread."""

from __future__ import annotations

import threading

import pyfuse3
import pytest
import trio
from support import MIB, assert_sound, new_device

from cowfs.fs.attributes import Caller
from cowfs.fuse import trees
from cowfs.fuse.handlers import FileHandle
from cowfs.fuse.options import MountOptions
from cowfs.fuse.server import Server
from cowfs.fuse.trees import ROOT_NODE
from cowfs.storage.device import MemoryDevice
from cowfs.storage.volume import Volume


class Kernel:
    """Hears the notices: (what of, by the thread that serves)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.heard: list[tuple[object, bool]] = []
        monkeypatch.setattr(pyfuse3, "invalidate_inode", lambda node, attr_only=False: self._hear((node, attr_only)))
        monkeypatch.setattr(pyfuse3, "invalidate_entry", lambda node, name: self._hear((node, name)))
        monkeypatch.setattr(trees.os, "write", lambda fd, message: self._hear("all names"))  # type: ignore[attr-defined]

    def _hear(self, notice: object) -> None:
        self.heard.append((notice, threading.current_thread() is threading.main_thread()))


@pytest.fixture
def device() -> MemoryDevice:
    return new_device(16 * MIB)


@pytest.fixture
def server(device: MemoryDevice) -> Server:
    return Server(Volume.open(device), "/nowhere", MountOptions(), None)


def end(server: Server, device: MemoryDevice) -> None:
    server.filesystem.volume.inline_commits = True
    server.close()
    assert_sound(device)


def test_a_new_name_is_forgotten_only_where_it_was_said_to_be_missing(
    server: Server, device: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(monkeypatch)
    server.operations.missing.tell(ROOT_NODE, b"asked for")

    async def main() -> None:
        for name in (b"never asked for", b"asked for"):
            await server.appeared(server.filesystem, ROOT_NODE, name)

    trio.run(main)
    attributes = ((ROOT_NODE, True), True)
    assert kernel.heard == [attributes, attributes, ((ROOT_NODE, b"asked for"), False)]
    end(server, device)


def test_a_rollback_waits_for_the_kernel_only_where_a_file_is_open(
    server: Server, device: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(monkeypatch)

    async def roll_back() -> list[tuple[object, bool]]:
        kernel.heard.clear()
        await server.roll_back(lambda: server.snapshots.roll_back(b"before"))
        return list(kernel.heard)

    async def main() -> None:
        ino = server.filesystem.create(ROOT_NODE, b"file", 0o600, Caller()).ino
        server.snapshots.create(b"before")
        assert await roll_back() == [("all names", True), ("all names", True), ((ROOT_NODE, True), True)]
        tree = server.filesystem
        tree.hold(ino)
        handle = FileHandle(tree, server.trees.node(tree, ino), kills_privileges=False)
        server.operations._register(handle)
        told = await roll_back()
        assert told[-1] == ((handle.node, False), False)
        assert not any(served for _, served in told[1:])

    trio.run(main)
    end(server, device)
