"""Commands that read a volume without mounting it: `ls`, `cat`, `extract`, `hash`, `timeline`.

They open the image for reading only, leave no access time where the system lets them, and go on behind damage: each thing
that cannot be read is a line on standard error, and the exit code is 1.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from cowfs.cli.output import printable
from cowfs.cli.place import Place, place_of, place_options
from cowfs.cli.target import unmounted
from cowfs.errors import CowfsError, InvalidArgument, NotFound, NotPermitted

if TYPE_CHECKING:
    from cowfs.export.walk import Visit
    from cowfs.fs import Filesystem
    from cowfs.fs.attributes import Attributes

_SECOND = 10**9


def reader(command: Callable[..., Any]) -> Callable[..., Any]:
    """The arguments and options that all of these commands share."""
    command = place_options(command)
    command = click.option("--snapshot", metavar="NAME", help="Read the snapshot or clone of that name.")(command)
    return click.argument("image", type=click.Path(readable=False))(command)


class Problems:
    """Tells of everything that could not be read, and counts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, path: bytes, error: Exception) -> None:
        from cowfs.export.names import shown

        self.count += 1
        click.echo(f"cowfs: /{shown(path)}: {printable(str(error))}", err=True)

    @property
    def exit_code(self) -> int:
        """1 if there were any."""
        return int(self.count > 0)


@contextlib.contextmanager
def opened(image: str, place: Place, snapshot: str | None) -> Iterator[Filesystem]:
    """The files of a volume in an image, or of one of its snapshots; never written. Raises CowfsError."""
    from cowfs.fs import Filesystem
    from cowfs.fs.snapshot import Snapshots
    from cowfs.storage.volume import Volume

    with unmounted(image, place=place) as device:
        volume = Volume.open(device, read_only=True, superblock=place.superblock)
        for note in volume.notes:
            click.echo(f"cowfs: {printable(note)}", err=True)
        if snapshot is None:
            yield Filesystem(volume)
            return
        if volume.foreign:
            raise NotFound(f"{image} was not made by cowfs: it has no snapshots")
        snapshots = Snapshots(volume)
        try:
            found = snapshots.find(os.fsencode(snapshot))
        except NotFound:
            raise NotFound(f"there is no snapshot {printable(snapshot)}") from None
        yield snapshots.filesystem(found)


def _print_bytes(chunks: Iterable[bytes]) -> None:
    """Bytes to standard output, as they are."""
    sys.stdout.flush()
    output = sys.stdout.buffer
    for chunk in chunks:
        output.write(chunk)
    output.flush()


def _visits(filesystem: Filesystem, attributes: Attributes, problems: Problems, *, recursive: bool) -> Iterator[Visit]:
    """What `ls` shows: what is in a directory, or the thing itself."""
    from cowfs.export.budget import Budget
    from cowfs.export.walk import is_directory, walk

    inside = is_directory(attributes)
    for visit in walk(filesystem, attributes, problems, Budget(filesystem.volume), recursive=recursive):
        if not visit.leaving and (visit.path or not inside):
            yield visit


@click.command()
@reader
@click.argument("path", default="/")
@click.option("-l", "--long", "long", is_flag=True, help="Show type, mode, links, owner, size and time.")
@click.option("-R", "--recursive", is_flag=True, help="Show all below, with paths.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ls(
    image: str,
    path: str,
    long: bool,
    recursive: bool,
    as_json: bool,
    snapshot: str | None,
    offset: int | None,
    partition: int | None,
    superblock: str | None,
) -> int:
    """List the directory PATH of the volume in IMAGE, without mounting it.

    Names are sorted by their bytes; what a terminal cannot show is escaped. Times are UTC.
    """
    from cowfs.export.listing import json_of
    from cowfs.export.names import shown
    from cowfs.export.walk import resolve

    problems = Problems()
    with opened(image, place_of(offset, partition, superblock), snapshot) as filesystem:
        where, attributes = resolve(filesystem, os.fsencode(path))
        visits = _visits(filesystem, attributes, problems, recursive=recursive)
        if as_json:
            _print_bytes(_json_array(json_of(filesystem, visit, where, problems) for visit in visits))
            return problems.exit_code
        names = ((visit, shown(visit.path or where)) for visit in visits)
        lines = (_long_line(filesystem, visit, name, problems) if long else name for visit, name in names)
        _print_bytes(line.encode() + b"\n" for line in lines)
    return problems.exit_code


def _long_line(filesystem: Filesystem, visit: Visit, name: str, problems: Problems) -> str:
    from cowfs.export.listing import target_of
    from cowfs.export.names import shown

    a = visit.attributes
    size = f"{os.major(a.rdev)},{os.minor(a.rdev)}" if a.rdev else str(a.size)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(a.mtime_ns // _SECOND))
    try:
        target = target_of(filesystem, a)
    except CowfsError as error:
        problems(visit.path, error)
        target = b"?"
    arrow = "" if target is None else f" -> {shown(target)}"
    return f"{stat.filemode(a.mode)} {a.links:>4} {a.uid:>5} {a.gid:>5} {size:>12} {when} {name}{arrow}"


def _json_array(entries: Iterable[dict[str, object]]) -> Iterator[bytes]:
    """One JSON array, as it comes."""
    before = "["
    for entry in entries:
        yield f"{before}\n  {json.dumps(entry)}".encode()
        before = ","
    yield b"[]\n" if before == "[" else b"\n]\n"


@click.command()
@reader
@click.argument("path")
def cat(
    image: str,
    path: str,
    snapshot: str | None,
    offset: int | None,
    partition: int | None,
    superblock: str | None,
) -> None:
    """Write the contents of the file PATH of the volume in IMAGE to standard output."""
    from cowfs.export.budget import Budget
    from cowfs.export.contents import data_of
    from cowfs.export.walk import resolve

    with opened(image, place_of(offset, partition, superblock), snapshot) as filesystem:
        _, attributes = resolve(filesystem, os.fsencode(path))
        if stat.S_ISLNK(attributes.mode):
            raise InvalidArgument(f"{path} is a symbolic link, which is not followed ('cowfs ls -l' shows its target)")
        _print_bytes(data_of(filesystem, attributes.ino, Budget(filesystem.volume)))


@click.command()
@reader
@click.argument("paths", metavar="[PATH] DEST", nargs=-1, required=True, type=click.Path(readable=False))
@click.option("--no-same-owner", is_flag=True, help="Leave everything to who runs this, even if that is root.")
@click.option("--devices", is_flag=True, help="Make device nodes, too; for root.")
def extract(
    image: str,
    paths: tuple[str, ...],
    no_same_owner: bool,
    devices: bool,
    snapshot: str | None,
    offset: int | None,
    partition: int | None,
    superblock: str | None,
) -> int:
    """Copy the volume in IMAGE, or what is at PATH in it, to DEST.

    A directory's contents go into the new or empty directory DEST; anything else becomes DEST, or goes into it if it is a
    directory. Nothing is written elsewhere, and nothing that exists is replaced. Modes, times, hard and symbolic links,
    holes, attributes and, for root, owners are kept.
    """
    from cowfs.export.budget import Budget
    from cowfs.export.extract import Extraction
    from cowfs.export.walk import is_directory, resolve

    if len(paths) > 2:
        raise click.UsageError("wanted: IMAGE [PATH] DEST")
    if devices and os.geteuid() != 0:
        raise NotPermitted("only root can make device nodes")
    problems = Problems()
    with opened(image, place_of(offset, partition, superblock), snapshot) as filesystem:
        where, attributes = resolve(filesystem, os.fsencode(paths[0]) if len(paths) == 2 else b"/")
        owners = os.geteuid() == 0 and not no_same_owner
        extraction = Extraction(filesystem, problems, owners, devices, Budget(filesystem.volume))
        if is_directory(attributes):
            extraction.directory(attributes, paths[-1])
        else:
            extraction.single(attributes, where.rpartition(b"/")[2], paths[-1])
    return problems.exit_code


@click.command("hash")
@reader
@click.argument("path", default="/")
@click.option("--manifest", is_flag=True, help="Print a line for each file, as sha256sum does.")
@click.option(
    "--algorithm",
    type=click.Choice(["sha256", "sha512", "sha1", "md5", "blake2b"]),
    default="sha256",
    show_default=True,
    help="Which checksum.",
)
def hash_(
    image: str,
    path: str,
    manifest: bool,
    algorithm: str,
    snapshot: str | None,
    offset: int | None,
    partition: int | None,
    superblock: str | None,
) -> int:
    """Print checksums of the files in the volume in IMAGE, or at PATH in it.

    With --manifest a line for each file, sorted by path, relative to PATH: "sha256sum -c" verifies an extracted tree with
    it. Without, one checksum over that manifest; of a single file, its line.
    """
    from cowfs.export.listing import checksum_lines, digest_of
    from cowfs.export.walk import is_directory, resolve

    problems = Problems()
    with opened(image, place_of(offset, partition, superblock), snapshot) as filesystem:
        where, attributes = resolve(filesystem, os.fsencode(path))
        name = where.rpartition(b"/")[2]
        if not is_directory(attributes) and not stat.S_ISREG(attributes.mode):
            raise InvalidArgument(f"{path} is neither a file nor a directory")
        lines = checksum_lines(filesystem, attributes, problems, algorithm=algorithm, name=name)
        if is_directory(attributes) and not manifest:
            digest = digest_of(lines, algorithm)
            if problems.count:
                click.echo("cowfs: no checksum over all, since not all could be read", err=True)
            else:
                click.echo(digest)
        else:
            _print_bytes(map(_for_terminal, lines) if sys.stdout.isatty() else lines)
    return problems.exit_code


def _for_terminal(line: bytes) -> bytes:
    """A line whose name cannot command the terminal; only programs need the bytes as they are."""
    from cowfs.export.names import shown

    return shown(line.rstrip(b"\n")).replace("\\\\", "\\").encode() + b"\n"


@click.command()
@reader
@click.argument("path", default="/")
def timeline(
    image: str,
    path: str,
    snapshot: str | None,
    offset: int | None,
    partition: int | None,
    superblock: str | None,
) -> int:
    """Print a bodyfile of the volume in IMAGE: the times of everything, for mactime(1) and its like."""
    from cowfs.export.listing import bodyfile_lines
    from cowfs.export.walk import resolve

    problems = Problems()
    with opened(image, place_of(offset, partition, superblock), snapshot) as filesystem:
        where, attributes = resolve(filesystem, os.fsencode(path))
        _print_bytes(line.encode() + b"\n" for line in bodyfile_lines(filesystem, attributes, problems, prefix=where))
    return problems.exit_code
