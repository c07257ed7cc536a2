"""The filesystems that are compared: how each is made in the image, mounted, unmounted, killed and looked at.

Each is used the way its own documentation has a user do it, with its default options; only `big_writes` is added for
ntfs-3g, without which it gets 4 KiB at a time. A daemon detaches, and is found by the mount point in its command line.
Whoever is not there says so in one sentence (`missing`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from benchmarks import machine
from benchmarks.common import Failed
from cowfs import control

READY_SECONDS: Final = 120.0
GONE_SECONDS: Final = 600.0
PATIENCE_SECONDS: Final = 10.0
SHUTDOWN: Final = 0x8004587D  # EXT4_IOC_SHUTDOWN
SHUTDOWN_WITHOUT_FLUSH: Final = 2
SUBVOLUME_SNAPSHOT: Final = 0x50009417  # BTRFS_IOC_SNAP_CREATE_V2
FILE_CLONE: Final = 0x40049409  # FICLONE


class NotMeasured(Exception):
    """A peer cannot do this, and the message says why."""


def run(command: list[str]) -> None:
    """Runs a program. Raises Failed with what it said."""
    done = subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise Failed(f"{' '.join(command[:2])}: {said[-1]}")


class Peer:
    """A filesystem in an image, mounted on a directory. `peak` is the largest memory of its daemon so far, in bytes."""

    name = ""
    note = ""
    programs: tuple[str, ...] = ()
    in_user_space = True
    keeps = True
    """Whether what was written is still there after unmounting."""

    def __init__(self, image: Path, mountpoint: Path) -> None:
        self.image = image
        self.mountpoint = mountpoint
        self.pid = 0
        self.peak = 0
        self.process: subprocess.Popen[bytes] | None = None
        """The daemon, where it does not detach by itself."""

    @property
    def medium(self) -> Path:
        """What the daemon has to flush, or the folder that this is in."""
        return self.image

    def missing(self) -> str:
        """Why it cannot be measured here; empty where it can."""
        lacks = [program for program in self.programs if shutil.which(program) is None]
        return f"there is no {' and no '.join(lacks)} on the path" if lacks else ""

    def format(self) -> None:
        """Makes a new, empty filesystem in the image."""
        raise NotMeasured

    def start(self) -> None:
        """Has it mounted; returns once that is so."""
        raise NotMeasured

    def mount(self) -> None:
        """Mounts it, and finds its daemon."""
        self.start()
        self.find_daemon()

    def await_mount(self) -> None:
        """For a daemon that does not say when it is ready."""

        def mounted() -> bool:
            if self.process is not None and self.process.poll() is not None:
                raise Failed(f"{self.name} ended at once, with status {self.process.returncode}")
            return os.path.ismount(self.mountpoint)

        wait_until(mounted, f"{self.name} mounted nothing")

    def find_daemon(self) -> None:
        """After `start`: which process serves the mount."""
        self.pid = daemon_of(self.mountpoint) if self.in_user_space else 0

    def unmount(self) -> None:
        """Returns when everything is on the medium and the daemon has gone."""
        self.note_memory()
        with gone(self.pid):
            unmount(self.mountpoint)
        self._forget_daemon()

    def kill(self) -> None:
        """What a power cut of the daemon leaves behind. The mount is cleared away."""
        self.note_memory()
        if not self.pid:
            raise NotMeasured("no daemon")
        with gone(self.pid):
            os.kill(self.pid, signal.SIGKILL)
        self._forget_daemon()
        unmount(self.mountpoint, lazily=True)

    def check(self) -> None:
        """Looks for damage, unmounted. Raises Failed. Only our own filesystem is judged here."""

    def snapshot(self, name: str) -> None:
        """A snapshot of everything; it is durable afterwards."""
        raise NotMeasured("no snapshots")

    def clone(self, source: str, name: str) -> None:
        """A copy of a file of the root that shares its data."""
        raise NotMeasured("no clones of files")

    def roll_back(self, name: str) -> None:
        """Goes back to the newest snapshot while it is mounted; what that makes of everything is durable afterwards."""
        raise NotMeasured("no rollback of what is mounted")

    def note_memory(self) -> None:
        """Remembers how large the daemon has been."""
        if self.pid:
            self.peak = max(self.peak, peak_memory(self.pid))

    def abandon(self) -> None:
        """Whatever state it is in: nothing stays mounted, and no daemon behind."""
        if os.path.ismount(self.mountpoint) or is_dead(self.mountpoint):
            with contextlib.suppress(Failed, OSError):
                unmount(self.mountpoint, lazily=True)
        pid = self.pid or (self.process.pid if self.process else 0)
        if pid:
            try:
                with gone(pid, seconds=PATIENCE_SECONDS):
                    pass
            except Failed:
                os.kill(pid, signal.SIGKILL)
        self._forget_daemon()

    def _forget_daemon(self) -> None:
        """It has ended."""
        self.pid = 0
        if self.process is not None:
            self.process.wait()
            self.process = None


class Cowfs(Peer):
    """Ours, as `cowfs mount` mounts it."""

    name = "cowfs"
    python = sys.executable

    def format(self) -> None:
        run([self.python, "-P", "-m", "mkcowfs", "--force", str(self.image)])

    def start(self) -> None:
        run([self.python, "-P", "-m", "cowfs", "mount", str(self.image), str(self.mountpoint)])

    def check(self) -> None:
        run([self.python, "-P", "-m", "cowfs", "check", str(self.image)])

    def snapshot(self, name: str) -> None:
        control.send(str(self.mountpoint), control.Command(("snapshot", "create", name)))

    def clone(self, source: str, name: str) -> None:
        control.send(str(self.mountpoint), control.Command(("clone", source, name)))

    def roll_back(self, name: str) -> None:
        control.send(str(self.mountpoint), control.Command(("rollback", name)))


class Compiled(Cowfs):
    """Ours, as another Python has it: in whose environment its inner modules were compiled."""

    name = "cowfs-compiled"
    python = ""

    def missing(self) -> str:
        if not self.python:
            return "--compiled gives the path of a Python in whose environment cowfs was compiled"
        asked = _output([self.python, "-P", "-m", "cowfs", "--version"])
        return "" if "compiled" in asked else f"the cowfs of {self.python} is not compiled"


class Floor(Peer):
    """What pyfuse3 and the session loop of cowfs cost when there is no filesystem behind them; see `floor`."""

    name = "floor"
    note = "in memory: nothing of it is durable, fsync does nothing, and it is not unmounted for a cold cache"
    keeps = False

    def format(self) -> None:
        """There is no image."""

    def start(self) -> None:
        command = [sys.executable, "-m", "benchmarks.floor", str(self.mountpoint)]
        self.process = start_daemon(command)
        self.await_mount()


class Fuse2fs(Peer):
    """ext4 in user space, of e2fsprogs."""

    name = "fuse2fs"
    programs = ("fuse2fs", "mkfs.ext4", "e2fsck")

    def format(self) -> None:
        make_ext4(self.image)

    def start(self) -> None:
        try:
            run(["fuse2fs", str(self.image), str(self.mountpoint)])
        except Failed:  # it may ask for its journal to be replayed
            subprocess.run(["e2fsck", "-p", str(self.image)], capture_output=True, check=False)
            run(["fuse2fs", str(self.image), str(self.mountpoint)])


class Ntfs3g(Peer):
    """NTFS in user space."""

    name = "ntfs-3g"
    programs = ("ntfs-3g", "mkfs.ntfs")

    def format(self) -> None:
        run(["mkfs.ntfs", "--quiet", "--fast", "--force", str(self.image)])

    def start(self) -> None:
        run(["ntfs-3g", str(self.image), str(self.mountpoint), "-o", "big_writes"])


class PassthroughHp(Peer):
    """libfuse's example of a fast daemon in C++: it passes every request on to a directory of the host."""

    name = "passthrough_hp"
    note = "passes requests on to the filesystem that the image is on, so it measures that one as well"
    program = ""

    def __init__(self, image: Path, mountpoint: Path) -> None:
        super().__init__(image, mountpoint)
        self._behind = mountpoint.with_name("behind-passthrough")

    @property
    def medium(self) -> Path:
        return self._behind

    def missing(self) -> str:
        if not self.program:
            return "no Debian package carries it; --passthrough-hp gives the path of one"
        return "" if os.access(self.program, os.X_OK) else f"{self.program} cannot be run"

    def format(self) -> None:
        shutil.rmtree(self._behind, ignore_errors=True)
        self._behind.mkdir()

    def start(self) -> None:
        self.process = start_daemon([self.program, "--foreground", str(self._behind), str(self.mountpoint)])
        self.await_mount()

    def kill(self) -> None:
        raise NotMeasured("it has no state of its own that a crash could harm")

    def abandon(self) -> None:
        super().abandon()
        shutil.rmtree(self._behind, ignore_errors=True)


class ZfsFuse(Peer):
    """ZFS in user space, with a pool in the image."""

    name = "zfs-fuse"
    programs = ("zfs-fuse", "zpool", "zfs", "pidof")
    POOL: Final = "cowfs-benchmark"

    def missing(self) -> str:
        if why := super().missing():
            return why
        if os.geteuid() != 0:
            return "needs root"
        return "its daemon, of which there can be one only, is in use" if _output(["pidof", "zfs-fuse"]) else ""

    def _start_daemon(self) -> None:
        if _output(["pidof", "zfs-fuse"]):
            raise Failed("somebody else has started a zfs-fuse, of which there can be one only")
        self.process = start_daemon(["zfs-fuse", "--no-daemon", "--no-kstat-mount"])
        self.pid = self.process.pid
        wait_until(lambda: not _fails(["zpool", "list"]), "zfs-fuse does not answer")

    def _stop_daemon(self, number: int) -> None:
        self.note_memory()
        with gone(self.pid):
            os.kill(self.pid, number)
        self._forget_daemon()

    def format(self) -> None:
        self._start_daemon()
        options = ["-O", f"mountpoint={self.mountpoint}", "-o", "cachefile=none"]
        run(["zpool", "create", "-f", *options, self.POOL, str(self.image)])
        run(["zpool", "export", self.POOL])
        self._stop_daemon(signal.SIGTERM)

    def start(self) -> None:
        self._start_daemon()
        run(["zpool", "import", "-f", "-o", "cachefile=none", "-d", str(self.image.parent), self.POOL])
        self.await_mount()

    def find_daemon(self) -> None:
        """It is known."""

    def unmount(self) -> None:
        run(["zpool", "export", self.POOL])
        self._stop_daemon(signal.SIGTERM)

    def kill(self) -> None:
        self._stop_daemon(signal.SIGKILL)
        unmount(self.mountpoint, lazily=True)

    def snapshot(self, name: str) -> None:
        run(["zfs", "snapshot", f"{self.POOL}@{name}"])

    def roll_back(self, name: str) -> None:
        run(["zfs", "rollback", f"{self.POOL}@{name}"])


class KernelPeer(Peer):
    """A filesystem of the kernel, on a loop device over the image."""

    in_user_space = False
    options = "nodiscard"

    def missing(self) -> str:
        if why := super().missing():
            return why
        if os.geteuid() != 0:
            return "a loop device needs root"
        if not os.path.exists("/dev/loop-control"):
            return "there are no loop devices"
        known = Path("/proc/filesystems").read_text(encoding="ascii").split()
        if self.name not in known and _fails(["modprobe", self.name]):
            return "this kernel does not have it"
        return ""

    def start(self) -> None:
        self._loop = _output(["losetup", "--find", "--show", str(self.image)]).strip()
        run(["mount", "-t", self.name, "-o", self.options, self._loop, str(self.mountpoint)])

    def unmount(self) -> None:
        super().unmount()
        self._detach()

    def abandon(self) -> None:
        super().abandon()
        self._detach()

    _loop = ""

    def _detach(self) -> None:
        if self._loop:
            subprocess.run(["losetup", "--detach", self._loop], capture_output=True, check=False)
            self._loop = ""


class Ext4(KernelPeer):
    """The kernel's ext4."""

    name = "ext4"
    programs = ("mkfs.ext4", "losetup", "mount")

    def format(self) -> None:
        make_ext4(self.image)

    def kill(self) -> None:
        """The filesystem is shut down without a last word, which leaves the same as a crash: a journal to be replayed."""
        descriptor = os.open(self.mountpoint, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, struct.pack("I", SHUTDOWN_WITHOUT_FLUSH))
        except OSError as error:
            raise NotMeasured(f"it cannot be cut off: {error.strerror}") from error
        finally:
            os.close(descriptor)
        self.unmount()


class Btrfs(KernelPeer):
    """The kernel's btrfs."""

    name = "btrfs"
    programs = ("mkfs.btrfs", "losetup", "mount")

    def format(self) -> None:
        run(["mkfs.btrfs", "--quiet", "--force", "--nodiscard", str(self.image)])

    def kill(self) -> None:
        raise NotMeasured("it has no daemon to kill, and cannot be cut off from its device")

    def snapshot(self, name: str) -> None:
        """The ioctl behind `btrfs subvolume snapshot`, which waits for the transaction."""
        descriptor = os.open(self.mountpoint, os.O_RDONLY)
        try:
            arguments = bytearray(struct.pack("<qQQ32x4040s", descriptor, 0, 0, name.encode()))
            fcntl.ioctl(descriptor, SUBVOLUME_SNAPSHOT, arguments)
        finally:
            os.close(descriptor)

    def clone(self, source: str, name: str) -> None:
        with open(self.mountpoint / source, "rb") as old, open(self.mountpoint / name, "wb") as new:
            fcntl.ioctl(new.fileno(), FILE_CLONE, old.fileno())
            os.fsync(new.fileno())


class S3ql(Peer):
    """Known, and never measured: it keeps its data in a folder of objects, not in an image."""

    name = "s3ql"

    def missing(self) -> str:
        where = "" if shutil.which("mkfs.s3ql") else "there is no mkfs.s3ql on the path; besides, "
        return f"{where}it stores objects in a folder, so it has no place on the same image"


PEERS: tuple[type[Peer], ...] = (Cowfs, Compiled, Floor, Fuse2fs, Ntfs3g, ZfsFuse, S3ql, PassthroughHp, Ext4, Btrfs)


# --- what they share ---


def make_ext4(image: Path) -> None:
    """With everything initialised now, so that no thread of the kernel does it while something is measured."""
    run(["mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", str(image)])


def start_daemon(command: list[str]) -> subprocess.Popen[bytes]:
    """Starts one that does not detach by itself, in a session of its own, so that Ctrl-C is not for it."""
    return subprocess.Popen(
        command,
        cwd=machine.CHECKOUT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_until(condition: Callable[[], bool], complaint: str) -> None:
    """Asks every millisecond. Raises Failed after a while."""
    end = time.monotonic() + READY_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise Failed(complaint)
        time.sleep(0.001)


def unmount(mountpoint: Path, *, lazily: bool = False) -> None:
    """Takes a mount away, waiting for whoever still looks at it. Raises Failed."""
    if os.geteuid() == 0:
        command = ["umount", *(["--lazy"] if lazily else []), str(mountpoint)]
    else:
        command = ["fusermount3", "-u", *(["-z"] if lazily else []), str(mountpoint)]
    for patience in (0.1, 0.5, 2.0, 0.0):
        try:
            run(command)
            return
        except Failed:
            if not patience:
                raise
            time.sleep(patience)


def is_dead(mountpoint: Path) -> bool:
    """Whether something is mounted there whose daemon has gone."""
    try:
        os.stat(mountpoint)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def daemon_of(mountpoint: Path) -> int:
    """The process that has the mount point in its command line. Raises Failed."""
    wanted = os.fsencode(mountpoint)
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if wanted in (entry / "cmdline").read_bytes().split(b"\0"):
                    return int(entry.name)
    raise Failed(f"there is no daemon behind {mountpoint}")


def peak_memory(pid: int) -> int:
    """The most bytes of memory that a process has had at once."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


@contextlib.contextmanager
def gone(pid: int, *, seconds: float = GONE_SECONDS) -> Iterator[None]:
    """Waits at the end until a process has ended. Raises Failed."""
    try:
        descriptor = os.pidfd_open(pid) if pid else -1
    except ProcessLookupError:
        descriptor = -1
    try:
        yield
        if descriptor >= 0 and not select.select((descriptor,), (), (), seconds)[0]:
            raise Failed(f"the daemon {pid} does not end")
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _fails(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode != 0


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
