"""A volume and its mount for one test, by the real commands, and the promise that nothing of it is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cowfs import control
from cowfs.check import check_device
from cowfs.errors import CowfsError
from cowfs.fuse import daemon, mounts
from cowfs.ondisk.geometry import geometry_for_size
from cowfs.storage.device import LOCK_SECONDS, Device, FileDevice
from cowfs.storage.mkvolume import make_volume
from cowfs.storage.overlay import open_layers

ROOT = Path(__file__).resolve().parent.parent.parent
COWFS = [sys.executable, "-m", "cowfs"]
TIMEOUT = 120


def run(*command: object, ok: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
    """Runs a program; `ok` says whether it must succeed."""
    result = subprocess.run(
        [str(word) for word in command],
        check=False,
        **({"capture_output": True, "text": True, "timeout": TIMEOUT, "cwd": ROOT} | more),
    )
    if ok:
        assert result.returncode == 0, f"{command}: {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


def cowfs(*words: object, ok: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
    """Runs the `cowfs` command."""
    return run(*COWFS, *words, ok=ok, **more)


def errno_of(call: Callable[..., object], *arguments: object) -> int:
    """The errno that a call, or a command, fails with; 0 where it does not."""
    try:
        call(*arguments)
    except OSError as error:
        return error.errno or -1
    except control.CommandFailed as error:
        return error.errno
    return 0


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Returns when `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


class Place:
    """A directory with an image, a mount point and a log."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.image = directory / "volume.img"
        self.mountpoint = directory / "mnt"
        self.log = directory / "log"
        self.mountpoint.mkdir()
        self.expects_errors = False
        """Whether the test provokes errors that the log has to show."""
        self.expects_problems = False
        """Whether the test damages the image."""
        self.pids: list[int] = []

    def make(self, megabytes: int = 64, *, block_size: int = 4096) -> Place:
        """Formats the image."""
        geometry = geometry_for_size(megabytes << 20, block_size)
        device = FileDevice.create(self.image, geometry.end)
        owner = os.getuid(), os.getgid()
        make_volume(device, geometry, label=b"", uuid=uuid.uuid4().bytes, now_ns=time.time_ns(), owner=owner)
        device.close()
        return self

    def mount(self, *options: object, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Mounts it."""
        result = cowfs("mount", self.image, self.mountpoint, "--log", self.log, *options, ok=ok)
        if ok:
            self.pids.append(self.info()["mount"]["pid"])
        return result

    @property
    def pid(self) -> int:
        """The daemon of the last mount."""
        return self.pids[-1]

    @property
    def control(self) -> Path:
        """The control file."""
        return self.mountpoint / ".cowfs" / "control"

    def info(self) -> dict[str, Any]:
        """What the mount says of itself."""
        return control.send(str(self.mountpoint), control.INFO)

    def command(self, text: str) -> dict[str, Any]:
        """Has the daemon carry out a command."""
        descriptor = os.open(self.control, os.O_RDWR)
        try:
            os.write(descriptor, text.encode())
            reply: dict[str, Any] = json.loads(os.read(descriptor, 1 << 20))
        finally:
            os.close(descriptor)
        return reply

    def umount(self) -> None:
        """Unmounts it, and waits."""
        daemon.unmount(str(self.mountpoint))
        assert not self.is_mounted
        assert not alive(self.pid)

    def remount(self, *options: object) -> None:
        """Unmounts and mounts again, so that the kernel knows nothing any more."""
        self.umount()
        self.mount(*options)

    def kill(self) -> None:
        """The daemon's sudden end."""
        os.kill(self.pid, signal.SIGKILL)
        wait_until(lambda: not alive(self.pid))

    @property
    def is_mounted(self) -> bool:
        """Whether the kernel lists a mount, dead or alive."""
        return mounts.at(str(self.mountpoint)) is not None

    def check(self) -> str:
        """The checker's last line, after it found nothing wrong."""
        device: Device = FileDevice.open(self.image, read_only=True)
        try:
            device.lock(exclusive=False, timeout=LOCK_SECONDS)  # threads of a killed daemon outlive it for a moment
            device = open_layers(device)
            report = check_device(device)
        finally:
            device.close()
        text = report.to_text()
        assert report.clean, "\n".join(text)
        return text[-1]

    def end(self) -> None:
        """Nothing of it stays behind: the mount goes, the daemon goes, and the volume and the log are in order."""
        if self.is_mounted:
            try:
                daemon.unmount(str(self.mountpoint))
            except CowfsError:
                mounts.unmount(str(self.mountpoint), lazy=True)
        for pid in self.pids:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda pid=pid: not alive(pid))  # type: ignore[misc]
        if self.image.exists() and not self.expects_problems:
            self.check()
        if self.log.exists() and not self.expects_errors:
            bad = [line for line in self.log.read_text().splitlines() if " ERROR" in line or "Traceback" in line]
            assert not bad, "\n".join(bad)
