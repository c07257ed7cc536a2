"""What a command works on: a volume behind a mount, asked through its control file, or one in an image, opened here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cowfs import control
from cowfs.cli.output import require_mount
from cowfs.errors import Busy, ReadOnly
from cowfs.fuse import mounts

if TYPE_CHECKING:
    from cowfs.storage.device import FileDevice


@contextlib.contextmanager
def unmounted(image: str, *, writable: bool = False) -> Iterator[FileDevice]:
    """The device of an image that nobody else is writing to, or, with `writable`, uses at all. Raises Busy, DeviceError."""
    from cowfs.storage.device import FileDevice

    found = [mount for mount in mounts.of_image(image) if not mounts.is_dead(mount)]
    if found:
        raise Busy(f"{image} is mounted on {found[0].mountpoint}")
    device = FileDevice.open(image, read_only=not writable)
    try:
        device.lock(exclusive=writable)
        yield device
    finally:
        device.close()


def mount_of(target: str) -> mounts.Mount | None:
    """The mount that a target is, lies in, or is the image of; None for an image that is not mounted."""
    if os.path.isdir(target) or mounts.at(target) is not None:
        return require_mount(target)
    return next((mount for mount in mounts.of_image(target) if not mounts.is_dead(mount)), None)


def carry_out(target: str, command: control.Command, *, write: bool = False) -> control.Reply:
    """The reply to a command. `write`: it changes something. Raises the CowfsError of its failure."""
    mount = mount_of(target)
    if mount is not None:
        return control.send(mount.mountpoint, command)
    from cowfs.control import commands
    from cowfs.control.host import Offline
    from cowfs.fs import Filesystem
    from cowfs.fs.snapshot import Snapshots
    from cowfs.storage.volume import Volume

    with unmounted(target, writable=write) as device:
        volume = Volume.open(device, read_only=not write)
        if volume.foreign:
            return commands.run(command, Offline(Filesystem(volume)))
        if write and volume.read_only:
            raise ReadOnly(f"{target}: read-only: {volume.read_only_reason}")
        snapshots = Snapshots(volume)
        reply = commands.run(command, Offline(snapshots.live, snapshots))
        snapshots.close()
        return reply
