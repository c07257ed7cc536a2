"""The session loop under pyfuse3: a filesystem in memory, mounted and served by a process of its own.

Run as a program, this file is that process (see `daemon`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyfuse3
import pytest
import trio

import cowfs
from cowfs.fuse import loop
from cowfs.fuse.loop import YIELD_REQUESTS

FILES = 64


def content(number: int) -> bytes:
    """What file *number* of the test filesystem holds."""
    return random.Random(number).randbytes(1000 + 100 * number)


class Files(pyfuse3.Operations):
    """A directory of read-only files in memory that the kernel caches nothing of."""

    def __init__(self, pauses: bool) -> None:
        super().__init__()
        self.requests = 0
        self._pauses = random.Random(1) if pauses else None
        self._contents = {inode: content(inode - 2) for inode in range(2, 2 + FILES)}
        self._attributes = {inode: self._make_attributes(inode) for inode in (1, *self._contents)}

    def _make_attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = inode
        attributes.st_mode = stat.S_IFDIR | 0o755 if inode == 1 else stat.S_IFREG | 0o444
        attributes.st_size = 0 if inode == 1 else len(self._contents[inode])
        attributes.entry_timeout = attributes.attr_timeout = 0
        return attributes

    async def _count(self) -> None:
        self.requests += 1
        if self._pauses is not None:
            luck = self._pauses.random()
            if luck < 0.05:
                await trio.sleep(0.002)
            elif luck < 0.1:
                await trio.to_thread.run_sync(time.sleep, 0.001)
            elif luck < 0.2:
                await trio.lowlevel.checkpoint()

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        await self._count()
        return self._attributes[inode]

    async def lookup(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        await self._count()
        if not name.isdigit() or int(name) >= FILES:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes[2 + int(name)]

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        await self._count()
        return pyfuse3.FileInfo(fh=inode, direct_io=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        await self._count()
        return self._contents[fh][off : off + size]

    async def release(self, fh: int) -> None:
        await self._count()


class Passing(trio.abc.Instrument):
    """Counts the scheduler's passes, and the requests between two of them."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._requests_before = 0
        self.passes = 0
        self.requests_between_max = 0

    def before_io_wait(self, timeout: float) -> None:
        self.passes += 1
        self.requests_between_max = max(self.requests_between_max, self._files.requests - self._requests_before)
        self._requests_before = self._files.requests


def daemon(mountpoint: str, which_loop: str, pauses: str, at_sigterm: str) -> None:
    """Serve `Files` on *mountpoint* with the stock loop or ours until it is unmounted; print what was counted.

    *at_sigterm*: ``cancel`` the workers or ``terminate`` the session.
    """
    files = Files(pauses == "pauses")
    passing = Passing(files)

    async def stop_on_signal(nursery: trio.Nursery) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                if at_sigterm == "cancel":
                    nursery.cancel_scope.cancel()
                else:
                    pyfuse3.terminate()

    async def main() -> None:
        trio.lowlevel.add_instrument(passing)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_on_signal, nursery)
            await pyfuse3.main()
            nursery.cancel_scope.cancel()

    pyfuse3.init(files, mountpoint, {*pyfuse3.default_options, "fsname=test_loop"})
    try:
        if which_loop == "ours":
            loop.install()
        print("mounted", flush=True)
        trio.run(main)
    finally:
        pyfuse3.close()
    counts = {"requests": files.requests, "passes": passing.passes, "between": passing.requests_between_max}
    if which_loop == "ours":
        counts["fd"] = loop.session_fd()
    print(json.dumps(counts))


class Mount:
    """A running `daemon` and its mountpoint."""

    def __init__(self, mountpoint: Path, *arguments: str) -> None:
        self.path = mountpoint
        mountpoint.mkdir()
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(mountpoint), *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(cowfs.__file__).parents[1])},
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "mounted\n"

    def unmount(self) -> dict[str, int]:
        """What the daemon counted."""
        subprocess.run(["fusermount3", "-u", self.path], check=True)
        return self.result()

    def stop(self) -> dict[str, int]:
        """The same, by SIGTERM."""
        self._process.send_signal(signal.SIGTERM)
        return self.result()

    def result(self) -> dict[str, int]:
        output, _ = self._process.communicate(timeout=20)
        assert self._process.returncode == 0
        counts = json.loads(output)
        assert isinstance(counts, dict)
        return counts

    def clear(self) -> None:
        """End whatever is left."""
        if self._process.poll() is None:
            subprocess.run(["fusermount3", "-uz", self.path], check=False)
            self._process.kill()
            self._process.communicate()
        if os.path.ismount(self.path):
            subprocess.run(["fusermount3", "-uz", self.path], check=False)


MakeMount = Callable[..., Mount]


@pytest.fixture
def make_mount(tmp_path: Path) -> Iterator[MakeMount]:
    mounts: list[Mount] = []

    def make(which_loop: str = "ours", pauses: str = "none", at_sigterm: str = "cancel") -> Mount:
        mounts.append(Mount(tmp_path / f"mount-{len(mounts)}", which_loop, pauses, at_sigterm))
        return mounts[-1]

    yield make
    for mount in mounts:
        mount.clear()


@pytest.mark.fuse
def test_each_client_gets_its_own_answers_while_handlers_wait(make_mount: MakeMount) -> None:
    mount = make_mount(pauses="pauses")
    barrier = threading.Barrier(64)

    def client(seed: int) -> int:
        choice = random.Random(seed)
        barrier.wait()
        for _ in range(40):
            number = choice.randrange(FILES)
            expected = content(number)
            match choice.randrange(3):
                case 0:
                    assert os.stat(mount.path / str(number)).st_size == len(expected)
                case 1:
                    with pytest.raises(FileNotFoundError):
                        os.stat(mount.path / f"no-{number}")
                case _:
                    offset = choice.randrange(len(expected))
                    fd = os.open(mount.path / str(number), os.O_RDONLY)
                    try:
                        assert os.pread(fd, 500, offset) == expected[offset : offset + 500]
                    finally:
                        os.close(fd)
        return 40

    with ThreadPoolExecutor(64) as pool:
        assert sum(pool.map(client, range(64))) == 64 * 40
    counts = mount.unmount()
    assert counts["requests"] > 64 * 40
    assert counts["between"] <= YIELD_REQUESTS


@pytest.mark.fuse
def test_the_scheduler_is_rarely_passed_under_load(make_mount: MakeMount) -> None:
    passes_per_request = {}
    for which_loop in ("stock", "ours"):
        mount = make_mount(which_loop)
        fds = [os.open(mount.path / str(number), os.O_RDONLY) for number in range(8)]

        def client(fd: int) -> None:
            for _ in range(500):
                os.fstat(fd)

        with ThreadPoolExecutor(len(fds)) as pool:
            list(pool.map(client, fds))
        for fd in fds:
            os.close(fd)
        counts = mount.unmount()
        assert counts["requests"] >= 8 * 500
        passes_per_request[which_loop] = counts["passes"] / counts["requests"]
        if which_loop == "ours":
            assert counts["between"] <= YIELD_REQUESTS
    assert passes_per_request["stock"] > 1.5
    assert passes_per_request["ours"] < 0.3


@pytest.mark.fuse
@pytest.mark.parametrize("at_sigterm", ["cancel", "terminate"])
@pytest.mark.parametrize("pauses", ["none", "pauses"])
@pytest.mark.parametrize("clients", [0, 8])
def test_a_signal_ends_an_idle_and_a_busy_session(
    make_mount: MakeMount, clients: int, pauses: str, at_sigterm: str
) -> None:
    mount = make_mount(pauses=pauses, at_sigterm=at_sigterm)
    fds = [os.open(mount.path / str(number), os.O_RDONLY) for number in range(clients)]

    def client(fd: int) -> None:
        with contextlib.suppress(OSError):  # the session is gone
            while True:
                os.fstat(fd)

    with ThreadPoolExecutor(clients + 1) as pool:
        futures = [pool.submit(client, fd) for fd in fds]
        os.stat(mount.path)
        time.sleep(0.2)
        counts = mount.stop()
        for future in futures:
            future.result()
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
    assert counts["requests"] > clients
    assert not os.path.ismount(mount.path)


@pytest.mark.fuse
def test_the_descriptor_of_the_session_is_known(make_mount: MakeMount) -> None:
    mount = make_mount()
    os.stat(mount.path)
    descriptors = {
        int(link.name) for link in Path(f"/proc/{mount.pid}/fd").iterdir() if os.readlink(link) == "/dev/fuse"
    }
    assert {mount.unmount()["fd"]} == descriptors


if __name__ == "__main__":
    daemon(*sys.argv[1:])
