"""The `mkcowfs` command: makes a new volume in an image file or on a block device.

What it will not do: touch a device that is mounted or locked, whatever the options say; overwrite a recognised volume,
or change the size of an existing file, without ``--force``; leave a new file behind when it fails. Exit codes: 0, 1 for
a failure, 2 for a wrong command line; every failure is one line on standard error.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
import unicodedata
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, NoReturn

import click

from cowfs import __version__
from cowfs.errors import Busy, CowfsError, Exists, InvalidArgument
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import Geometry, geometry_for_size
from cowfs.storage.device import FileDevice
from cowfs.storage.mkvolume import make_volume
from cowfs.storage.superblock import read_slots
from mkcowfs.recognise import loop_devices, recognise

_SIZE: Final = re.compile(r"(?P<number>[0-9]+)(?:(?P<unit>[KMGTkmgt])(?:i?B)?)?", re.ASCII)
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_LOCK_SECONDS: Final = 1.0  # udev looks at block devices under a lock of its own, for a moment
_WIPE_SIZE: Final = 1 << 20  # where other formats have their signatures: at the start and at the end
EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130


@dataclass(frozen=True)
class Made:
    """What was made, as ``--json`` prints it. `size` is in bytes and ends with the volume."""

    image: str
    size: int
    block_size: int
    blocks: int
    free_blocks: int
    uuid: str
    label: str

    def to_text(self) -> str:
        """One line for a person."""
        label = f", label {self.label}" if self.label else ""
        return (
            f"{self.image}: {self.size} bytes, {self.blocks} blocks of {self.block_size} bytes, "
            f"{self.free_blocks} free, UUID {self.uuid}{label}"
        )


def parse_size(text: str) -> int:
    """Bytes in "4096", "64K", "4G", "4GiB" or "1T": units of 1024, in upper or lower case. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: a whole number and K, M, G or T (powers of 1024), as in 4G")
    return int(match["number"]) * _UNITS[(match["unit"] or "").lower()]


def _size_option(_context: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        return parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _uuid_option(_context: click.Context, _option: click.Parameter, value: str | None) -> uuid.UUID:
    try:
        return uuid.uuid4() if value is None else uuid.UUID(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a UUID") from error


def _label_option(_context: click.Context, _option: click.Parameter, value: str) -> str:
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise click.BadParameter("a label is UTF-8 text without control characters")
    length = len(value.encode())
    if length > f.LABEL_MAX:
        raise click.BadParameter(f"a label has at most {f.LABEL_MAX} bytes, this one has {length}")
    return value


@click.command(context_settings={"help_option_names": ["--help"], "max_content_width": 100})
@click.argument("image", type=click.Path())
@click.option(
    "--size", metavar="SIZE", callback=_size_option, help="Size of the volume, as in 4G or 512MiB; at least 1M."
)
@click.option(
    "--block-size",
    type=click.Choice([str(size) for size in f.BLOCK_SIZES]),
    default=str(f.BLOCK_SIZE_DEFAULT),
    show_default=True,
    help="Bytes in a block.",
)
@click.option(
    "--label",
    metavar="TEXT",
    callback=_label_option,
    default="",
    help=f"Name of the volume, up to {f.LABEL_MAX} bytes.",
)
@click.option(
    "--uuid", "volume_id", metavar="UUID", callback=_uuid_option, help="UUID of the volume; a random one by default."
)
@click.option("--preallocate", is_flag=True, help="Set aside all of the image's space now; else the file is sparse.")
@click.option("--force", is_flag=True, help="Overwrite what was recognised; give an existing file another size.")
@click.option("--json", "as_json", is_flag=True, help="Print what was made as JSON.")
@click.version_option(__version__, prog_name="mkcowfs", message="%(prog)s %(version)s")
def command(
    *,
    image: str,
    size: int | None,
    block_size: str,
    label: str,
    volume_id: uuid.UUID,
    preallocate: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Make a new, empty cowfs volume in IMAGE, a file or a block device.

    A file that does not exist is made, and needs --size. An existing file keeps its size unless --force is given with
    another --size; an empty one may take any. Its old contents are gone afterwards. A block device is used to its end
    unless --size is less.

    What holds a filesystem, a partition table or the like that blkid or cowfs itself recognises is only overwritten
    with --force; what is mounted or locked never is.

    The new root directory is empty and belongs to whoever runs mkcowfs. The time of making is SOURCE_DATE_EPOCH, if that
    is set in the environment.

    Exit codes: 0 made, 1 failed, 2 wrong command line.
    """
    if size is not None:
        _require_possible(size, int(block_size))
    made = make(image, size, int(block_size), label, volume_id, preallocate=preallocate, force=force)
    click.echo(json.dumps(asdict(made)) if as_json else _printable(made.to_text()))


def make(
    image: str,
    size: int | None,
    block_size: int,
    label: str,
    volume_id: uuid.UUID,
    *,
    preallocate: bool = False,
    force: bool = False,
) -> Made:
    """Makes the volume. Raises CowfsError; a file that did not exist does not exist afterwards, either."""
    now_ns = _now_ns()
    if os.path.exists(image):
        device, geometry = _open_existing(image, size, block_size, force=force)
        created = False
    elif size is None:
        raise InvalidArgument(f"{image} does not exist: a new image needs --size")
    else:
        geometry = geometry_for_size(size, block_size)
        device = _create(image, geometry.end, preallocate=preallocate)
        created = True
    try:
        device.lock(exclusive=True, timeout=_LOCK_SECONDS)
        if not created:
            _clear(device, geometry)
            if preallocate:
                device.allocate()
        owner = os.getuid(), os.getgid()
        make_volume(device, geometry, label=label.encode(), uuid=volume_id.bytes, now_ns=now_ns, owner=owner)
        free_blocks = read_slots(device).newest.superblock.free_blocks
        size_made = geometry.end
    except BaseException:
        if created:
            with contextlib.suppress(OSError):
                os.unlink(device.name)
        raise
    finally:
        device.close()
    return Made(device.name, size_made, block_size, geometry.num_blocks, free_blocks, str(volume_id), label)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command on `arguments` (sys.argv by default) and returns its exit code."""
    try:
        # Exceptions come here instead of being printed in click's way, which takes several lines.
        result: Any = command.main(args=arguments, prog_name="mkcowfs", standalone_mode=False)
    except click.UsageError as error:
        return _complain(f"{error.format_message()} (mkcowfs --help tells more)", EXIT_USAGE)
    except click.Abort:
        return _complain("interrupted", EXIT_INTERRUPTED)
    except CowfsError as error:
        return _complain(str(error), EXIT_FAILURE)
    except OSError as error:
        return _complain(f"{error.filename or 'output'}: {error.strerror}", EXIT_FAILURE)
    return result if isinstance(result, int) else 0


def main() -> NoReturn:
    """The command's entry: ends the process with the exit code."""
    sys.exit(run())


def _require_possible(size: int, block_size: int) -> None:
    try:
        geometry_for_size(size, block_size)
    except InvalidArgument as error:
        raise click.BadParameter(str(error), param_hint="--size") from error


def _create(image: str, size: int, *, preallocate: bool) -> FileDevice:
    try:
        return FileDevice.create(image, size, preallocate=preallocate)
    except Exists as error:  # made by somebody else just now, or a symbolic link that leads nowhere
        raise Exists(f"{image} cannot be made: the name is taken") from error


def _open_existing(image: str, size: int | None, block_size: int, *, force: bool) -> tuple[FileDevice, Geometry]:
    """Opens and locks what exists, and says no wherever it has to stay as it is."""
    device = FileDevice.open(image, read_only=False)
    try:
        device.lock(exclusive=True, timeout=_LOCK_SECONDS)
        loops = [] if device.is_block_device else loop_devices(device.name)
        if loops:
            raise Busy(f"{device.name} is in use: it is attached to {' and '.join(loops)}")
        geometry = _geometry_for_existing(device, size, block_size, force=force)
        if not force:
            contents = recognise(device)
            if contents.note:
                _say(contents.note)
            if contents.what:
                raise Exists(f"{device.name} contains {contents.what}: --force overwrites it")
    except BaseException:
        device.close()
        raise
    return device, geometry


def _geometry_for_existing(device: FileDevice, size: int | None, block_size: int, *, force: bool) -> Geometry:
    """The geometry that fits `size`, if given, and the size that the device has."""
    there = device.size()
    if size is None and not there:
        raise InvalidArgument(f"{device.name} is empty: its volume needs --size")
    if size is None or size == there:
        try:
            return geometry_for_size(there, block_size)
        except InvalidArgument as error:
            raise InvalidArgument(f"{device.name}: {error}") from error
    if device.is_block_device and size > there:
        raise InvalidArgument(f"{device.name} has only {there} bytes, and --size says {size}")
    if not device.is_block_device and there and not force:
        raise Exists(f"{device.name} exists and has {there} bytes: --force makes it {size} bytes long")
    return geometry_for_size(size, block_size)


def _clear(device: FileDevice, geometry: Geometry) -> None:
    """Removes the old contents of a file; from a block device the signatures that would still be recognised."""
    if not device.is_block_device:
        device.resize(0)
        device.resize(geometry.end)
        return
    size = device.size()
    head = min(size, _WIPE_SIZE)
    tail = min(size - head, _WIPE_SIZE)
    device.write(0, [bytes(head)])
    device.write(size - tail, [bytes(tail)])


def _now_ns() -> int:
    """The time of making: now, or what SOURCE_DATE_EPOCH (seconds since 1970) says."""
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is None:
        return time.time_ns()
    if not re.fullmatch(r"[0-9]{1,10}", text, re.ASCII):
        raise InvalidArgument(f"SOURCE_DATE_EPOCH is {text!r}, which is not a number of seconds since 1970")
    return int(text) * 1_000_000_000


def _printable(text: str) -> str:
    """The text on one line, in bytes that every terminal takes: paths may hold anything."""
    text = os.fsencode(text).decode("utf-8", "replace")
    return "".join("�" if unicodedata.category(character) == "Cc" else character for character in text)


def _say(text: str) -> None:
    click.echo(f"mkcowfs: {_printable(text)}", err=True)


def _complain(text: str, code: int) -> int:
    _say(text)
    return code
