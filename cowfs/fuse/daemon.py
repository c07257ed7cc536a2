"""The process behind a mount: what it opens, where it logs, and how the starter hears of it. `fork` has its beginning.

It is forked before pyfuse3 and trio are imported.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from cowfs.errors import Busy, CowfsError, DeviceError, InvalidArgument, NotAVolume
from cowfs.fuse import lean, mounts
from cowfs.fuse.fork import READY

if TYPE_CHECKING:
    from cowfs.fuse.options import MountOptions
    from cowfs.storage.device import Device, FileDevice
    from cowfs.storage.volume import Volume

SYSLOG_SOCKET = "/dev/log"

log = logging.getLogger("cowfs")


def run(image: str, mountpoint: str, options: MountOptions, *, detach: bool, report: Callable[[str], None]) -> int:
    """Mounts and serves; returns the exit status when the mount is gone. Raises CowfsError where it cannot begin.

    `detach`: standard error belongs to a starter, who waits for `READY`. `report` shows one line to the user.
    """
    lean.load_pyfuse3()
    from cowfs.fuse import server

    _start_log(options.log, to_stderr=not detach)
    mountpoint = mounts.require_mountpoint(mountpoint)
    if options.ephemeral:
        volume = _open_ephemeral(os.path.realpath(image), options.ephemeral_dir)
    else:
        volume = _open_volume(os.path.realpath(image), options)
    device = volume.device
    for note in volume.notes:
        log.warning("%s: %s", device.name, note)
        if detach:
            report(f"{device.name}: {note}")
    server.serve(volume, mountpoint, options, on_ready=_detach if detach else None)
    return 1 if volume.latched else 0


def _open_volume(image: str, options: MountOptions) -> Volume:
    """Opens the volume in an image, with the layers below it; it owns them."""
    from cowfs.storage.overlay import open_layers, require_unsealed
    from cowfs.storage.volume import Volume

    device = _open(image, read_only=options.read_only)
    opened: Device = device
    part: Device = device
    try:
        if not options.read_only:
            require_unsealed(device)  # before its lock is asked for: overlays on it hold that
        _lock(device, exclusive=not device.read_only)
        if options.offset is not None or options.partition is not None:
            from cowfs.storage.partitions import open_part  # seldom needed, and a mount is to be quick

            opened = part = open_part(device, offset=options.offset, partition=options.partition)
        opened = open_layers(part, base=options.base, superblock=options.superblock)
        return Volume.open(opened, read_only=options.read_only, superblock=options.superblock)
    except NotAVolume as error:
        from cowfs.storage.partitions import not_a_volume

        hint = not_a_volume(device, error) if part is device else error
        opened.close()
        raise hint from None
    except BaseException:
        opened.close()
        raise


def _open_ephemeral(image: str, directory: str | None) -> Volume:
    """A new overlay on the volume in an image, in a file without a name: it is gone when the process ends, however that is."""
    import tempfile
    import time
    import uuid

    from cowfs.storage.device import FileDevice
    from cowfs.storage.overlay import default_size, make_overlay, open_base, overlay_geometry
    from cowfs.storage.volume import Volume

    base = open_base(image)
    opened: Device = base
    try:
        geometry = overlay_geometry(base, default_size(base))
        places = [directory] if directory is not None else [os.path.dirname(image), tempfile.gettempdir()]
        top = FileDevice.unnamed(places, geometry.end, name=f"{image} (ephemeral)")
        try:
            opened = make_overlay(
                top, base, geometry, path=os.fsencode(image), uuid=uuid.uuid4().bytes, now_ns=time.time_ns()
            )
        except BaseException:
            top.close()
            raise
        return Volume.open(opened)
    except BaseException:
        opened.close()
        raise


def _open(image: str, *, read_only: bool) -> FileDevice:
    """Opens the image. One that may only be read is mounted all the same, and the volume's notes say so."""
    from cowfs.storage.device import FileDevice

    try:
        return FileDevice.open(image, read_only=read_only)
    except DeviceError as error:
        cause = error.__cause__
        if read_only or not isinstance(cause, OSError) or cause.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return FileDevice.open(image, read_only=True)


def _lock(device: FileDevice, *, exclusive: bool) -> None:
    """Locks the image. Who holds it and has no mount any more is about to leave, and is waited for. Raises Busy."""
    from cowfs.storage.device import LOCK_SECONDS

    try:
        device.lock(exclusive=exclusive)
    except Busy:
        living = [mount for mount in mounts.of_image(device.name) if not mounts.is_dead(mount)]
        if living:
            raise Busy(f"{device.name} is already mounted on {living[0].mountpoint}") from None
        device.lock(exclusive=exclusive, timeout=LOCK_SECONDS)


def _detach() -> None:
    """Lets the starter go, and all that ties the daemon to where it was started."""
    with contextlib.suppress(OSError):
        os.write(2, f"{READY}\n".encode())
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)
    os.chdir("/")


def _start_log(path: str | None, *, to_stderr: bool) -> None:
    """Sends the log to a file, to standard error, or to syslog where there is one."""
    handler: logging.Handler
    form = "%(asctime)s cowfs[%(process)d] %(levelname)s: %(message)s"
    if path is not None:
        try:
            handler = logging.FileHandler(path, encoding="utf-8")
        except OSError as error:
            raise InvalidArgument(f"log file {path}: {error.strerror}") from error
    elif to_stderr:
        handler = logging.StreamHandler()
        form = "cowfs: %(message)s"
    else:
        from logging import handlers

        try:
            handler = handlers.SysLogHandler(SYSLOG_SOCKET, handlers.SysLogHandler.LOG_DAEMON)
        except OSError:
            handler = logging.NullHandler()
        # Trying to reach one that is not there takes longer than all else about a command.
        handler.addFilter(lambda record: os.path.exists(SYSLOG_SOCKET))
        form = "cowfs[%(process)d]: %(message)s"
    handler.setFormatter(logging.Formatter(form))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.getLogger("pyfuse3").addFilter(_is_worth_logging)
    logging.raiseExceptions = False  # a log that cannot be written is no reason to write elsewhere


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Drops pyfuse3's errors about answers to requests that the kernel waits for no more: interrupted, or unmounted."""
    return not ("fuse_reply_* failed" in str(record.msg) and os.strerror(errno.ENOENT) in str(record.args))


def unmount(path: str) -> None:
    """Takes a mount away and returns when its daemon has committed and gone. Raises CowfsError.

    A dead mount, whose daemon was killed, is cleared away.
    """
    mount = mounts.at(path)
    if mount is None or not mount.is_cowfs:
        raise InvalidArgument(f"{path} is not the mount point of a cowfs volume")
    if mounts.is_dead(mount):
        mounts.unmount(mount.mountpoint, lazy=True)
        return
    with mounts.exit_of(daemon_pid(mount)) as daemon:
        mounts.unmount(mount.mountpoint)
        daemon.wait()


def daemon_pid(mount: mounts.Mount) -> int | None:
    """The process behind a mount: it says so itself, else the lock on the image tells; None where neither does."""
    from cowfs import control
    from cowfs.storage.device import FileDevice

    with contextlib.suppress(CowfsError, OSError):
        return int(control.send(mount.mountpoint, control.INFO)["mount"]["pid"])
    try:
        device = FileDevice.open(mount.source, read_only=True)
    except CowfsError:
        return None
    try:
        return device.holder()
    finally:
        device.close()
