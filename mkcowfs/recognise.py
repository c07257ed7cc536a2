"""What is on a device already: whose contents would be lost, and who uses them now.

libblkid knows all filesystems, partition tables, RAID members and the like but those of the qnx6 family; these are
recognised with our own reader. Nothing here writes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from cowfs.errors import Corrupt, NotAVolume, Unsupported
from cowfs.storage.device import FileDevice
from cowfs.storage.superblock import read_slots

_ADMINISTRATORS_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin"
_BLKID_NOTHING: Final = 2
_BLKID_SEVERAL: Final = 8


@dataclass(frozen=True)
class Contents:
    """`what` was recognised, as words that follow "contains"; empty: nothing. `note`: why that may be incomplete."""

    what: str
    note: str = ""


def recognise(device: FileDevice) -> Contents:
    """Looks for the signatures of filesystems and the like. Raises DeviceError where the device cannot be read."""
    own = _recognise_qnx6(device)
    return Contents(own) if own else recognise_with_blkid(device.name)


def loop_devices(path: str) -> list[str]:
    """The loop devices that the regular file `path` is attached to: the kernel may have it mounted."""
    found = []
    for entry in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        try:
            if os.path.samefile(entry.read_text().rstrip("\n"), path):
                found.append(f"/dev/{entry.parent.parent.name}")
        except OSError:  # detached meanwhile, or its file has no name any more
            continue
    return found


def _recognise_qnx6(device: FileDevice) -> str:
    try:
        slot = read_slots(device).newest
    except NotAVolume:
        return ""
    except Corrupt:
        return "a damaged cowfs or qnx6 volume"
    except Unsupported:
        return "a cowfs volume of an unknown version"
    kind = "a qnx6 volume" if slot.extension is None else "a cowfs volume"
    if slot.extension is not None and slot.extension.is_overlay:
        kind = "a cowfs overlay"
    return f"{kind} (UUID {UUID(bytes=slot.superblock.volume_id)})"


def recognise_with_blkid(path: str) -> Contents:
    """What libblkid finds; nothing, with a note, where it is not installed or fails."""
    program = shutil.which("blkid", path=f"{os.environ.get('PATH', os.defpath)}:{_ADMINISTRATORS_PATH}")
    if program is None:
        return Contents("", "blkid is not installed, so only cowfs and qnx6 volumes were looked for")
    command = [program, "-p", "-o", "export", "--", path]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if result.returncode == _BLKID_NOTHING:
        return Contents("")
    if result.returncode == _BLKID_SEVERAL:
        return Contents("signatures of several filesystems")
    if result.returncode:
        return Contents(
            "", f"blkid failed (exit code {result.returncode}), so only cowfs and qnx6 volumes were looked for"
        )
    tags = dict(line.partition("=")[::2] for line in result.stdout.splitlines())
    if "TYPE" in tags:
        usage = {"filesystem": "filesystem", "raid": "RAID member", "crypto": "encrypted volume"}
        return Contents(f"a volume of type {tags['TYPE']} ({usage.get(tags.get('USAGE', ''), 'not a filesystem')})")
    if "PTTYPE" in tags:
        return Contents(f"a partition table of type {tags['PTTYPE']}")
    return Contents("")
