"""What a new volume is filled from: a directory, or a tar archive, read once from its start to its end.

A source is a stream of `Entry`s in an order that depends on nothing but its contents: a directory's entries by the bytes of
their names, each directory whole before those in it; an archive's members as they come. Of the times only the last change of
the contents is taken: reading a source moves its access times, and copying it the others. What is a hole of a file on this
machine is only used to read less; `author` makes its own holes.

Memory: the names of the directory being read and of those above it, and one path for each file whose other names are still
to come. An archive is never held, however long.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from io import BufferedReader
from lzma import LZMAError
from typing import BinaryIO, Final, cast

from cowfs.errors import CowfsError, InvalidArgument

NANOSECONDS: Final = 1_000_000_000
CELL: Final = 1 << 20
"""Contents are handed on in cells of so many bytes of the file, whole ones, so that their layout depends on them alone."""
ID_MAX: Final = 0xFFFF_FFFF
_XATTR_KEY: Final = "SCHILY.xattr."
_TAR_TYPES: Final = {
    **dict.fromkeys((tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE), stat.S_IFREG),
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
}
_TAR_ERRORS: Final = (tarfile.TarError, EOFError, zlib.error, LZMAError, OSError)


class SourceError(CowfsError):
    """Something of the source cannot be read or taken over; the message begins with its path."""

    def __init__(self, path: bytes, reason: str, number: int = errno.EIO) -> None:
        self.errno = number
        super().__init__(f"{os.fsdecode(path) or '.'}: {reason}")


def _failure(path: bytes, error: OSError, what: str = "") -> SourceError:
    return SourceError(path, what + (error.strerror or str(error)), error.errno or errno.EIO)


@dataclass(slots=True)
class Entry:
    """One object. `path` is relative, without a slash at either end; the root's is empty. `mode` has the type.

    `link` is the path of an earlier entry that this is one more name of; then all else is that one's. `data` gives the
    contents in pieces (offset in bytes, bytes), rising, none across a border of cells; what is left out are zeros.
    """

    path: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    rdev: int = 0
    target: bytes = b""
    link: bytes | None = None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    data: Callable[[], Iterator[tuple[int, bytes]]] = lambda: iter(())


def open_source(name: str, avoid: tuple[int, int] | None) -> Iterator[Entry]:
    """The entries of a directory, of a tar archive, compressed or not, or with "-" of one on standard input.

    `avoid` is (device, inode) of the image that is being made, which cannot hold itself. Raises SourceError as it goes on.
    """
    if name == "-":
        return read_tar(sys.stdin.buffer, "standard input")
    if os.path.isdir(name):
        return read_directory(name, avoid)
    return _read_tar_file(name)


def _read_tar_file(name: str) -> Iterator[Entry]:
    try:
        with open(name, "rb") as stream:
            yield from read_tar(stream, name)
    except OSError as error:
        raise _failure(os.fsencode(name), error) from error


def _cells(extents: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of the cells of a file of `size` bytes that extents (from, to) of data touch."""
    done = 0
    for start, end in extents:
        cell = max(start // CELL * CELL, done)
        while cell < min(end, size):
            yield cell, min(CELL, size - cell)
            cell += CELL
        done = max(done, cell)


# --- a directory ---


def read_directory(name: str, avoid: tuple[int, int] | None) -> Iterator[Entry]:
    """The tree below a directory, which is the root. Mounts in it are part of it, symbolic links are not followed."""
    yield from _DirectorySource(avoid).walk(os.fsencode(name))


class _DirectorySource:
    def __init__(self, avoid: tuple[int, int] | None) -> None:
        self._avoid = avoid
        self._linked: dict[tuple[int, int], tuple[bytes, int]] = {}  # first path, and names still to come

    def walk(self, name: bytes) -> Iterator[Entry]:
        try:
            root = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _failure(name, error) from error
        entry = self._attributes(b"", os.fstat(root))
        entry.xattrs = _xattrs(b"", b"/proc/self/fd/%d" % root, follow=True)
        yield entry
        open_folders: list[tuple[int, bytes, list[bytes]]] = []  # descriptor, path, folders in it that are to be read
        try:
            yield from self._list(root, b"", open_folders)
            while open_folders:
                folder, path, waiting = open_folders[-1]
                if not waiting:
                    os.close(folder)
                    del open_folders[-1]
                    continue
                name = waiting.pop()
                below = _join(path, name)
                yield from self._list(_open(folder, name, below, os.O_DIRECTORY), below, open_folders)
        finally:
            for folder, _, _ in open_folders:
                os.close(folder)

    def _list(self, folder: int, path: bytes, open_folders: list[tuple[int, bytes, list[bytes]]]) -> Iterator[Entry]:
        """The entries of a directory, which is then the last of those that are open."""
        waiting: list[bytes] = []
        open_folders.append((folder, path, waiting))
        try:
            names = sorted(os.fsencode(name) for name in os.listdir(folder))
        except OSError as error:
            raise _failure(path, error) from error
        for name in names:
            entry = self._entry(folder, name, _join(path, name))
            yield entry
            if stat.S_ISDIR(entry.mode):
                waiting.append(name)
        waiting.reverse()

    def _entry(self, folder: int, name: bytes, path: bytes) -> Entry:
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except OSError as error:
            raise _failure(path, error) from error
        key = status.st_dev, status.st_ino
        if key == self._avoid:
            raise SourceError(path, "is the image that is being made", errno.EINVAL)
        entry = self._attributes(path, status)
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            first, waiting = self._linked.pop(key, (b"", status.st_nlink))
            if first:
                entry.link = first
            if waiting > 1:
                self._linked[key] = first or path, waiting - 1
        if entry.link is None:
            self._contents(entry, folder, name, status)
        return entry

    def _attributes(self, path: bytes, status: os.stat_result) -> Entry:
        return Entry(path, status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns)

    def _contents(self, entry: Entry, folder: int, name: bytes, status: os.stat_result) -> None:
        try:
            if stat.S_ISLNK(entry.mode):
                entry.target = os.readlink(name, dir_fd=folder)
            elif stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode):
                entry.rdev = status.st_rdev
            elif stat.S_ISREG(entry.mode):
                entry.size = status.st_size
                entry.data = lambda: _read_file(folder, name, entry.path, entry.size)
        except OSError as error:
            raise _failure(entry.path, error) from error
        entry.xattrs = _xattrs(entry.path, b"/proc/self/fd/%d/%s" % (folder, name), follow=False)


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


def _open(folder: int, name: bytes, path: bytes, more: int = 0) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | more, dir_fd=folder)
    except OSError as error:
        raise _failure(path, error) from error


def _xattrs(path: bytes, place: bytes, *, follow: bool) -> dict[bytes, bytes]:
    try:
        names = sorted(os.fsencode(name) for name in os.listxattr(place, follow_symlinks=follow))
        return {name: os.getxattr(place, name, follow_symlinks=follow) for name in names}
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return {}
        raise _failure(path, error, "extended attributes: ") from error


def _read_file(folder: int, name: bytes, path: bytes, size: int) -> Iterator[tuple[int, bytes]]:
    descriptor = _open(folder, name, path)
    try:
        for offset, length in _cells(_extents(descriptor, size), size):
            data = os.pread(descriptor, length, offset)
            while len(data) < length:
                more = os.pread(descriptor, length - len(data), offset + len(data))
                if not more:
                    raise SourceError(path, f"it became shorter while it was read (it had {size} bytes)")
                data += more
            yield offset, data
    except OSError as error:
        raise _failure(path, error) from error
    finally:
        os.close(descriptor)


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where an open file has data; all of it where the system cannot say."""
    start = 0
    while start < size:
        try:
            start = os.lseek(descriptor, start, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole to the end
                return
            if error.errno != errno.EINVAL:
                raise
            end = size
        yield start, end
        start = end


# --- an archive ---


def read_tar(stream: BinaryIO, name: str) -> Iterator[Entry]:
    """The members of a tar archive, plain or compressed with gzip, bzip2 or xz; `name` is for messages."""
    path = os.fsencode(name)
    try:
        with tarfile.open(fileobj=stream, mode="r|*", encoding="utf-8", errors="surrogateescape") as archive:
            while (member := archive.next()) is not None:
                path = _bytes(member.name)
                yield _member(archive, member)
                vars(archive)["members"] = []  # it keeps them all, for an access that streams have not
    except _TAR_ERRORS as error:
        raise SourceError(path, f"{name} cannot be read: {error}") from error


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    path = _relative(member.name)
    if not (0 <= member.uid <= ID_MAX and 0 <= member.gid <= ID_MAX):
        raise SourceError(
            path, f"user {member.uid} and group {member.gid} do not both fit into 32 bits", errno.EOVERFLOW
        )
    entry = Entry(path, 0, member.uid, member.gid, _mtime(member))
    if member.islnk():
        entry.mode, entry.link = stat.S_IFREG, _relative(member.linkname)
        return entry
    kind = _TAR_TYPES.get(member.type)
    if kind is None:
        raise SourceError(path, f"a member of type {member.type!r}, which is none of a file", errno.EINVAL)
    entry.mode = kind | (member.mode & 0o7777)
    if kind == stat.S_IFLNK:
        entry.target = _bytes(member.linkname)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        entry.rdev = _device(path, member)
    elif kind == stat.S_IFREG:
        entry.size = member.size
        entry.data = lambda: _read_member(archive, member, path)
    entry.xattrs = {
        _bytes(key.removeprefix(_XATTR_KEY)): _bytes(value)
        for key, value in sorted(member.pax_headers.items())
        if key.startswith(_XATTR_KEY)
    }
    return entry


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo, path: bytes) -> Iterator[tuple[int, bytes]]:
    extents = [(0, member.size)]
    if member.issparse():
        pieces = cast(Iterable[tuple[int, int]], member.sparse)
        extents = [(start, start + length) for start, length in pieces]
    file = archive.extractfile(member)
    if file is None:
        raise InvalidArgument(f"{os.fsdecode(path)}: not a regular file")
    # Only the reader below the buffer goes forward in a stream without reading what is between: the holes.
    reader = cast(BinaryIO, cast(BufferedReader, file).raw)
    for offset, length in _cells(extents, member.size):
        try:
            reader.seek(offset)
            data = reader.read(length)
        except _TAR_ERRORS as error:
            raise SourceError(path, f"the archive cannot be read: {error}") from error
        if len(data) != length:
            raise SourceError(path, f"the archive ends in it ({member.size} bytes)")
        yield offset, data


def _relative(name: str) -> bytes:
    """A member's path without leading slashes and dots. Raises SourceError for one that leads out of the root."""
    parts = [part for part in _bytes(name).split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise SourceError(_bytes(name), "leads out of the archive", errno.EINVAL)
    return b"/".join(parts)


def _device(path: bytes, member: tarfile.TarInfo) -> int:
    try:
        return os.makedev(member.devmajor, member.devminor)
    except (OverflowError, ValueError):
        what = f"device number {member.devmajor}:{member.devminor} cannot be"
        raise SourceError(path, what, errno.EINVAL) from None


def _mtime(member: tarfile.TarInfo) -> int:
    """Nanoseconds; the archive's own digits, where it has a fraction."""
    try:
        return int(Decimal(member.pax_headers.get("mtime", str(member.mtime))) * NANOSECONDS)
    except (ArithmeticError, ValueError):
        return 0


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
