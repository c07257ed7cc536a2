"""What a command works on: a volume behind a mount, asked through its control file, or one in an image, opened here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from cowfs import control
from cowfs.cli.output import require_mount
from cowfs.cli.place import Place
from cowfs.errors import Busy, CowfsError, NotAVolume, ReadOnly
from cowfs.fuse import mounts

if TYPE_CHECKING:
    from cowfs.storage.device import Device

_WHOLE = Place()


@contextlib.contextmanager
def unmounted(image: str, *, writable: bool = False, place: Place = _WHOLE, layers: bool = True) -> Iterator[Device]:
    """The device of an image that nobody else is writing to, or, with `writable`, uses at all; or a part of it.

    That of an overlay has the layers below it, but not without `layers`. Raises Busy, DeviceError, InvalidArgument,
    BaseChanged; NotAVolume that is raised meanwhile gets to know of partitions.
    """
    from cowfs.storage.device import LOCK_SECONDS, FileDevice
    from cowfs.storage.overlay import open_layers
    from cowfs.storage.partitions import not_a_volume

    found = [mount for mount in mounts.of_image(image) if not mounts.is_dead(mount)]
    if found:
        raise Busy(f"{image} is mounted on {found[0].mountpoint}")
    device = FileDevice.open(image, read_only=not writable)
    opened: Device = device
    try:
        device.lock(exclusive=writable, timeout=LOCK_SECONDS)  # of a daemon whose mount is gone
        part = place.part_of(device)
        opened = open_layers(part, superblock=place.superblock) if layers else part
        yield opened
    except NotAVolume as error:
        raise (not_a_volume(device, error) if place.whole else error) from None
    finally:
        opened.close()


def mount_of(target: str) -> mounts.Mount | None:
    """The mount that a target is, lies in, or is the image of; None for an image that is not mounted."""
    if os.path.isdir(target) or mounts.at(target) is not None:
        return require_mount(target)
    return next((mount for mount in mounts.of_image(target) if not mounts.is_dead(mount)), None)


def carry_out(target: str, command: control.Command, *, write: bool = False, place: Place = _WHOLE) -> control.Reply:
    """The reply to a command. `write`: it changes something; with a `place` it is about an image, and does not.

    Raises the CowfsError of its failure.
    """
    mount = None if place.given else mount_of(target)
    if mount is not None:
        return control.send(mount.mountpoint, command)
    command = replace(command, uid=os.geteuid())
    from cowfs.control import commands
    from cowfs.control.host import Offline
    from cowfs.fs import Filesystem
    from cowfs.fs.snapshot import Snapshots
    from cowfs.storage.volume import Volume

    with unmounted(target, writable=write, place=place) as device:
        volume = Volume.open(device, read_only=not write, superblock=place.superblock)
        if volume.foreign:
            return commands.run(command, Offline(Filesystem(volume)))
        if write and volume.read_only:
            raise ReadOnly(f"{target}: read-only: {volume.read_only_reason}")
        snapshots = Snapshots(volume)
        try:
            reply = commands.run(command, Offline(snapshots.live, snapshots))
        except CowfsError:
            with contextlib.suppress(CowfsError):  # what was refused leaves the volume as a clean unmount does
                volume.settle()
            raise
        snapshots.close()
        return reply
