"""Linux's own qnx6 driver, in a User Mode Linux kernel: what it finds in images.

The kernel is an ordinary program (Debian's package `user-mode-linux`): no privileges, no KVM. It boots on a folder of the
host with one program in it, `guest.c`, which mounts one image after the other and writes down what it reads.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from reading import Reading, parse

SOURCE: Final = Path(__file__).with_name("guest.c")
MODULES: Final = ("qnx6.ko", "loop.ko")
MODULE_FOLDERS: Final = ("/usr/lib/uml/modules", "/lib/modules")
SECONDS_MAX: Final = 240
MEMORY: Final = "192M"


class NoGuest(Exception):
    """Why there can be no guest on this machine."""


class Guest:
    """A guest that can be booted any number of times. Raises NoGuest, with the reason, where it cannot be made."""

    def __init__(self, folder: Path) -> None:
        self._kernel = shutil.which("linux.uml")
        if self._kernel is None:
            raise NoGuest("User Mode Linux is not installed (Debian's package user-mode-linux)")
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            raise NoGuest("there is no C compiler for the guest's program")
        self._root = folder / "guest"
        for name in ("dev", "exchange", "mnt"):
            (self._root / name).mkdir(parents=True)
        for module in MODULES:
            shutil.copy(_find_module(module, self._version()), self._root / module)
        command = [compiler, "-O2", "-Wall", "-Werror", "-static", "-o", str(self._root / "init"), str(SOURCE)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            raise NoGuest(f"the guest's program cannot be compiled: {made.stderr.strip()}")

    def read(self, images: Sequence[Path]) -> list[Reading]:
        """Boots once, and reads all images, which lie in one folder. Fails where the guest does not come to its end."""
        (folder,) = {image.parent for image in images}
        (folder / "images").write_text("".join(f"{image.name}\n" for image in images))
        (folder / "found").unlink(missing_ok=True)
        assert self._kernel is not None
        with tempfile.TemporaryDirectory(prefix="uml") as scratch:  # a short path: the kernel makes a socket in it
            command = [
                *("sh", "-c", 'ulimit -c 0; exec "$@"', "sh", self._kernel, f"mem={MEMORY}", f"uml_dir={scratch}"),
                *("umid=guest", "root=/dev/root", "rootfstype=hostfs", f"rootflags={self._root}", "ro", "init=/init"),
                *(f"exchange={folder}", "con=null", "con0=null,fd:1", "quiet", "loglevel=1", "panic=-1"),
            ]
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={"TMPDIR": scratch, "PATH": "/usr/bin:/bin", "HOME": scratch},
                timeout=SECONDS_MAX,
                check=False,
            )
        console = done.stdout.decode(errors="replace")
        if not (folder / "found").exists():
            raise AssertionError(f"the guest read nothing (exit code {done.returncode}): {console}")
        with (folder / "found").open("rb") as stream:
            readings = parse(stream)
            if len(readings) != len(images):
                raise AssertionError(f"the guest ended at {images[len(readings)].name}: {console}")
        return readings

    def _version(self) -> str:
        assert self._kernel is not None
        return subprocess.run([self._kernel, "--version"], capture_output=True, text=True, check=True).stdout.strip()


def _find_module(name: str, version: str) -> Path:
    for folder in MODULE_FOLDERS:
        for path in sorted(Path(folder, version).rglob(name)):
            return path
    raise NoGuest(f"kernel {version} of User Mode Linux has no module {name}")
