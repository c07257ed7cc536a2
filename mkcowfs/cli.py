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
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from cowfs import __version__
from cowfs.control.sizes import parse_size
from cowfs.errors import Busy, CowfsError, Exists, InvalidArgument
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import Geometry, geometry_for_size
from cowfs.ondisk.records import ByteOrder
from cowfs.storage.device import Device, FileDevice
from cowfs.storage.mkvolume import make_volume
from cowfs.storage.overlay import (
    default_size,
    make_overlay,
    open_base,
    overlay_geometry,
    recorded_path,
    require_settled,
    require_unsealed,
)
from cowfs.storage.superblock import read_slots
from mkcowfs.recognise import loop_devices, recognise

if TYPE_CHECKING:
    from mkcowfs.author import Filled

_LOCK_SECONDS: Final = 1.0  # udev looks at block devices under a lock of its own, for a moment
_PROGRESS_SECONDS: Final = 0.2
_WIPE_SIZE: Final = 1 << 20  # where other formats have their signatures: at the start and at the end
_OWNER: Final = re.compile(r"([0-9]{1,10})(?::([0-9]{1,10}))?", re.ASCII)
FIT: Final = -1
"""The size of a volume that is to be as small as its contents allow."""
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
    objects: int | None = None

    def to_text(self) -> str:
        """One line for a person."""
        label = f", label {self.label}" if self.label else ""
        objects = f", {self.objects} objects" if self.objects is not None else ""
        return (
            f"{self.image}: {self.size} bytes, {self.blocks} blocks of {self.block_size} bytes, "
            f"{self.free_blocks} free, UUID {self.uuid}{label}{objects}"
        )

    def to_json(self) -> str:
        """One document; `objects` only where there were any to take over."""
        return json.dumps({name: value for name, value in asdict(self).items() if value is not None})


def _size_option(_context: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    if value.strip().lower() == "auto":
        return FIT
    try:
        return parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _uuid_option(_context: click.Context, _option: click.Parameter, value: str | None) -> uuid.UUID:
    try:
        return uuid.uuid4() if value is None else uuid.UUID(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a UUID") from error


def _owner_option(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    match = _OWNER.fullmatch(value)
    numbers = (int(match[1]), int(match[2] or match[1])) if match else (1 << 32, 0)
    if max(numbers) >= 0xFFFFFFFF:
        raise click.BadParameter(f"{value!r} is not UID:GID in numbers")
    return numbers


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
    "--size",
    metavar="SIZE",
    callback=_size_option,
    help="Size of the volume, as in 4G or 512MiB; at least 1M; with --from also auto: as small as the contents allow.",
)
@click.option(
    "--block-size",
    type=click.Choice([str(size) for size in f.FOREIGN_BLOCK_SIZES]),
    default=str(f.BLOCK_SIZE_DEFAULT),
    show_default=True,
    help="Bytes in a block; more than 4096 only with --profile qnx6.",
)
@click.option(
    "--from", "source", metavar="DIR|TAR", help="Fill it with a folder or a tar archive; - is standard input."
)
@click.option(
    "--base",
    metavar="BASE",
    type=click.Path(),
    help="Make an overlay on the volume in BASE, which is never written: it begins with the same contents, and only what "
    "changes lies in IMAGE. By default it is as large as BASE, and as much again.",
)
@click.option("--owner", metavar="UID[:GID]", callback=_owner_option, help="With --from: all belongs to this user.")
@click.option("--all-root", is_flag=True, help="The same as --owner 0:0.")
@click.option(
    "--profile",
    type=click.Choice(["cowfs", "qnx6"]),
    default="cowfs",
    show_default=True,
    help="qnx6: a plain QNX Power-Safe volume, to be handed to QNX. It was tested with Linux's driver and other readers, "
    "but never with QNX itself, which was not at hand.",
)
@click.option(
    "--byte-order",
    type=click.Choice(["little", "big"]),
    default="little",
    show_default=True,
    help="With --profile qnx6: of all numbers.",
)
@click.option(
    "--inodes", type=click.IntRange(1, f.INODE_COUNT_MAX), metavar="N", help="With --profile qnx6: how many, for good."
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
    source: str | None,
    base: str | None,
    owner: tuple[int, int] | None,
    all_root: bool,
    profile: str,
    byte_order: str,
    inodes: int | None,
) -> None:
    """Make a new cowfs volume in IMAGE, a file or a block device: an empty one, or with --from one with contents.

    A file that does not exist is made, and needs --size. An existing file keeps its size unless --force is given with
    another --size; an empty one may take any. Its old contents are gone afterwards. A block device is used to its end
    unless --size is less.

    What holds a filesystem, a partition table or the like that blkid or cowfs itself recognises is only overwritten
    with --force; what is mounted or locked never is.

    With --base, BASE was cleanly unmounted, and nobody writes to it while the overlay is in use; should it be written
    after that, the overlay is refused. 'cowfs seal' keeps it from that. If BASE and IMAGE are given by relative paths
    they can be moved together.

    An empty root directory belongs to whoever runs mkcowfs. With --from, modes, owners, times of the contents, links,
    device nodes, extended attributes and holes are taken over; blocks of zeros become holes. The time of making is
    SOURCE_DATE_EPOCH, if that is set in the environment; then no file's time is later. With that and --uuid, the same
    contents make the same bytes.

    Exit codes: 0 made, 1 failed, 2 wrong command line.
    """
    order: ByteOrder = ">" if byte_order == "big" else "<"
    plan = Plan(
        image=image,
        size=size,
        block_size=int(block_size),
        label=label,
        volume_id=volume_id,
        preallocate=preallocate,
        force=force,
        source=source,
        owner=(0, 0) if all_root else owner,
        plain=profile == "qnx6",
        order=order,
        inodes=inodes or 0,
        base=base,
        block_size_given=_is_given("block_size"),
    )
    plan.check(owners=int(all_root) + (owner is not None))
    made = make(plan)
    click.echo(made.to_json() if as_json else _printable(made.to_text()))


@dataclass(frozen=True)
class Plan:
    """What to make: the options. `size` None: that of the image; FIT: as small as the contents allow."""

    image: str
    size: int | None
    block_size: int
    label: str
    volume_id: uuid.UUID
    preallocate: bool = False
    force: bool = False
    source: str | None = None
    owner: tuple[int, int] | None = None
    plain: bool = False
    order: ByteOrder = "<"
    inodes: int = 0
    base: str | None = None
    block_size_given: bool = False

    def check(self, owners: int) -> None:
        """Raises click.UsageError for options that do not go together."""
        if self.source is None and (self.size == FIT or owners or self.plain):
            raise click.UsageError("--size auto, --owner, --all-root and --profile qnx6 go with --from")
        if self.base is not None and self.source is not None:
            raise click.UsageError("--base and --from exclude each other")
        if owners > 1:
            raise click.UsageError("--owner and --all-root exclude each other")
        if self.plain and self.label:
            raise click.UsageError("a qnx6 volume has no label")
        if not self.plain and (self.order != "<" or self.inodes or self.block_size not in f.BLOCK_SIZES):
            raise click.UsageError(
                "--byte-order big, --inodes and blocks of more than 4096 bytes go with --profile qnx6"
            )
        if self.size is not None and self.size != FIT:
            try:
                self.geometry(self.size)
            except InvalidArgument as error:
                raise click.BadParameter(str(error), param_hint="--size") from error

    def geometry(self, size: int) -> Geometry:
        """The geometry of a volume that fills `size` bytes. Raises InvalidArgument."""
        if not self.plain:
            return geometry_for_size(size, self.block_size)
        empty = Geometry(self.block_size, 0, self.order)
        blocks = (size - empty.end) // self.block_size
        if size < f.VOLUME_SIZE_MIN or blocks > f.BLOCK_COUNT_MAX:
            wanted = f"at least {f.VOLUME_SIZE_MIN} bytes" if size < f.VOLUME_SIZE_MIN else "larger blocks"
            raise InvalidArgument(f"{size} bytes in blocks of {self.block_size} are no volume: it needs {wanted}")
        return Geometry(self.block_size, blocks, self.order)


def _is_given(option: str) -> bool:
    """Whether an option of the command stands on the command line."""
    return click.get_current_context().get_parameter_source(option) is not click.core.ParameterSource.DEFAULT


def make(plan: Plan) -> Made:
    """Makes the volume. Raises CowfsError; a file that did not exist does not exist afterwards, either."""
    if plan.base is None:
        return _make(plan, None)
    if os.path.exists(plan.image) and os.path.exists(plan.base) and os.path.samefile(plan.image, plan.base):
        raise InvalidArgument(f"{plan.image} cannot be an overlay on itself")
    base = open_base(plan.base)
    try:
        return _make(_on_base(plan, base), base)
    finally:
        base.close()


def _on_base(plan: Plan, base: Device) -> Plan:
    """The plan with what the base decides. Raises InvalidArgument, NotSupported."""
    geometry = require_settled(base).newest.geometry
    if plan.block_size_given and plan.block_size != geometry.block_size:
        raise InvalidArgument(f"an overlay has the block size of its base, {geometry.block_size}")
    size = plan.size
    if size is None and not (os.path.exists(plan.image) and _has_size(plan.image)):
        size = default_size(base)
    if size is not None:
        overlay_geometry(base, size)
    return replace(plan, block_size=geometry.block_size, size=size)


def _has_size(image: str) -> bool:
    """Whether what exists says how large a volume becomes: a block device, and a file that is not empty."""
    return not os.path.isfile(image) or os.path.getsize(image) > 0


def _make(plan: Plan, base: Device | None) -> Made:
    now_ns = _now_ns()
    image, fit = plan.image, plan.size == FIT
    geometry: Geometry | None
    if os.path.exists(image):
        device, geometry = _open_existing(plan)
        created = False
    elif plan.size is None:
        more = ", or --size auto" if plan.source else ""
        raise InvalidArgument(f"{image} does not exist: a new image needs --size{more}")
    else:
        geometry = None if fit else plan.geometry(plan.size)
        device = _create(image, geometry.end if geometry else 0, preallocate=plan.preallocate)
        created = True
    try:
        device.lock(exclusive=True, timeout=_LOCK_SECONDS)
        if base is not None and geometry is not None:
            overlay_geometry(base, geometry.end)
        if not created:
            _clear(device, geometry.end if geometry else 0)
            if plan.preallocate:
                device.allocate()
        made_geometry, objects = _make_contents(device, geometry, plan, now_ns, base)
        if fit and plan.preallocate:
            device.allocate()
        free_blocks = _free_blocks(device)
    except BaseException:
        if created:
            with contextlib.suppress(OSError):
                os.unlink(device.name)
        raise
    finally:
        device.close()
    size, blocks, volume_id = made_geometry.end, made_geometry.num_blocks, str(plan.volume_id)
    return Made(device.name, size, plan.block_size, blocks, free_blocks, volume_id, plan.label, objects)


def _make_contents(
    device: FileDevice, geometry: Geometry | None, plan: Plan, now_ns: int, base: Device | None
) -> tuple[Geometry, int | None]:
    """Writes the volume; its geometry, and how many objects it was filled with."""
    label, volume_id = plan.label.encode(), plan.volume_id.bytes
    if plan.base is not None and base is not None:
        assert geometry is not None
        path = recorded_path(plan.base, plan.image)
        make_overlay(device, base, geometry, path=path, uuid=volume_id, now_ns=now_ns, label=label)
        return geometry, None
    if plan.source is None:
        assert geometry is not None
        owner = os.getuid(), os.getgid()
        make_volume(device, geometry, label=label, uuid=volume_id, now_ns=now_ns, owner=owner)
        return geometry, None
    from mkcowfs.author import Wishes
    from mkcowfs.fill import Recipe, fill_plain, fill_volume

    wishes = Wishes(plan.owner, now_ns if "SOURCE_DATE_EPOCH" in os.environ else None)
    recipe = Recipe(geometry, plan.block_size, label, volume_id, now_ns, plan.source, wishes)
    with Progress() as progress:
        if not plan.plain:
            made, filled = fill_volume(device, recipe, progress)
            return made, filled.objects
        zeroed = not device.is_block_device
        made, filled, left_out = fill_plain(device, recipe, plan.order, plan.inodes, zeroed=zeroed, tell=progress)
    for line in left_out.lines():
        _say(line)
    return made, filled.objects


def _free_blocks(device: Device) -> int:
    """Blocks of the volume on a device that can be given out."""
    slot = read_slots(device).newest
    buried = 0 if slot.extension is None else slot.extension.overlay.buried_free
    return slot.superblock.free_blocks - buried


class Progress:
    """Shows on a terminal how far it is, now and then."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._next = time.monotonic() + _PROGRESS_SECONDS
        self._length = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._show("")

    def __call__(self, filled: Filled) -> None:
        """Tells what is done so far."""
        if self._shown and time.monotonic() >= self._next:
            self._next = time.monotonic() + _PROGRESS_SECONDS
            self._show(f"{filled.objects} objects, {filled.data >> 20} MiB")

    def _show(self, text: str) -> None:
        if self._length or text:
            click.echo(f"\r{text:<{self._length}}\r{text}", nl=False, err=True)
            self._length = len(text)


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


def _create(image: str, size: int, *, preallocate: bool) -> FileDevice:
    try:
        return FileDevice.create(image, size, preallocate=preallocate)
    except Exists as error:  # made by somebody else just now, or a symbolic link that leads nowhere
        raise Exists(f"{image} cannot be made: the name is taken") from error


def _open_existing(plan: Plan) -> tuple[FileDevice, Geometry | None]:
    """Opens and locks what exists, and says no wherever it has to stay as it is. No geometry for what is to fit."""
    device = FileDevice.open(plan.image, read_only=False)
    try:
        device.lock(exclusive=True, timeout=_LOCK_SECONDS)
        loops = [] if device.is_block_device else loop_devices(device.name)
        if loops:
            raise Busy(f"{device.name} is in use: it is attached to {' and '.join(loops)}")
        geometry = _geometry_for_existing(device, plan)
        require_unsealed(device)
        if not plan.force:
            contents = recognise(device)
            if contents.note:
                _say(contents.note)
            if contents.what:
                raise Exists(f"{device.name} contains {contents.what}: --force overwrites it")
    except BaseException:
        device.close()
        raise
    return device, geometry


def _geometry_for_existing(device: FileDevice, plan: Plan) -> Geometry | None:
    """The geometry that fits the size wished for, if any, and the size that the device has."""
    there, size = device.size(), plan.size
    if size == FIT:
        if device.is_block_device:
            raise InvalidArgument(f"{device.name} is a block device: its size is given")
        if there and not plan.force:
            raise Exists(f"{device.name} exists and has {there} bytes: --force gives it another size")
        return None
    if size is None and not there:
        raise InvalidArgument(f"{device.name} is empty: its volume needs --size")
    if size is None or size == there:
        try:
            return plan.geometry(there)
        except InvalidArgument as error:
            raise InvalidArgument(f"{device.name}: {error}") from error
    if device.is_block_device and size > there:
        raise InvalidArgument(f"{device.name} has only {there} bytes, and --size says {size}")
    if not device.is_block_device and there and not plan.force:
        raise Exists(f"{device.name} exists and has {there} bytes: --force makes it {size} bytes long")
    return plan.geometry(size)


def _clear(device: FileDevice, end: int) -> None:
    """Removes the old contents of a file; from a block device the signatures that would still be recognised."""
    if not device.is_block_device:
        device.resize(0)
        device.resize(end)
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
