"""Lines about files, as the programs of the field have them.

Checksum lines are those of sha256sum(1), which `sha256sum -c` reads; a bodyfile is that of The Sleuth Kit 3 and
later, which mactime(1) reads.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from typing import Final

from cowfs.errors import CowfsError
from cowfs.export.budget import Budget
from cowfs.export.contents import data_of
from cowfs.export.names import shown
from cowfs.export.walk import OnProblem, Visit, walk
from cowfs.fs import Filesystem
from cowfs.fs.attributes import NANOSECONDS, Attributes, type_name

_BODYFILE_TYPES: Final = {
    stat.S_IFREG: "r",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "h",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
}


def target_of(filesystem: Filesystem, attributes: Attributes) -> bytes | None:
    """The target of a symbolic link, None for all else. Raises Corrupt, DeviceError."""
    return filesystem.readlink(attributes.ino) if stat.S_ISLNK(attributes.mode) else None


# --- checksums ---


def checksum_line(digest: str, path: bytes) -> bytes:
    """A line of sha256sum(1): a backslash before it says that there are some in the name."""
    escaped = path.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return (b"\\" if escaped != path else b"") + digest.encode() + b"  " + escaped + b"\n"


def checksum_lines(
    filesystem: Filesystem,
    start: Attributes,
    on_problem: OnProblem,
    *,
    algorithm: str = "sha256",
    name: bytes = b"",
    budget: Budget | None = None,
) -> Iterator[bytes]:
    """The checksum of each regular file from `start` on, sorted by path; `name` is that of `start`, if it is a file.

    A file that cannot be read as a whole has no line. Raises Corrupt when the volume leads to more than it can hold.
    """
    budget = budget or Budget(filesystem.volume)
    digests: dict[int, str] = {}  # of files with several names
    for visit in walk(filesystem, start, on_problem, budget):
        attributes = visit.attributes
        if not stat.S_ISREG(attributes.mode):
            continue
        digest = digests.get(attributes.ino)
        if digest is None:
            state = hashlib.new(algorithm)
            try:
                for data in data_of(filesystem, attributes.ino, budget):
                    state.update(data)
            except CowfsError as error:
                on_problem(visit.path or name, error)
                continue
            digest = state.hexdigest()
            if attributes.links > 1:
                digests[attributes.ino] = digest
        yield checksum_line(digest, visit.path or name)


def digest_of(lines: Iterator[bytes], algorithm: str) -> str:
    """One checksum over all the lines of a manifest."""
    state = hashlib.new(algorithm)
    for line in lines:
        state.update(line)
    return state.hexdigest()


# --- timeline ---


def bodyfile_lines(
    filesystem: Filesystem, start: Attributes, on_problem: OnProblem, *, prefix: bytes = b""
) -> Iterator[str]:
    """The bodyfile: a line for everything from `start` on, whose path in the volume is `prefix`."""
    budget = Budget(filesystem.volume)
    for visit in walk(filesystem, start, on_problem, budget):
        if not visit.leaving:
            yield bodyfile_line(filesystem, visit, on_problem, prefix)


def bodyfile_line(filesystem: Filesystem, visit: Visit, on_problem: OnProblem, prefix: bytes) -> str:
    """MD5|name|inode|mode|UID|GID|size|atime|mtime|ctime|crtime, times in seconds, the MD5 not computed."""
    a = visit.attributes
    path = b"/" + b"/".join(part for part in (prefix, visit.path) if part)
    name = shown(path, "|")
    try:
        target = target_of(filesystem, a)
    except CowfsError as error:
        on_problem(visit.path, error)
        target = b""
    if target is not None:
        name += " -> " + shown(target, "|")
    kind = _BODYFILE_TYPES[stat.S_IFMT(a.mode)]
    mode = f"{kind}/{kind}{stat.filemode(a.mode)[1:]}"
    times = "|".join(str(time // NANOSECONDS) for time in (a.atime_ns, a.mtime_ns, a.ctime_ns, a.birth_ns))
    return f"0|{name}|{a.ino}|{mode}|{a.uid}|{a.gid}|{a.size}|{times}"


# --- lists ---


def json_of(filesystem: Filesystem, visit: Visit, prefix: bytes, on_problem: OnProblem) -> dict[str, object]:
    """For `json.dumps`; bytes of names that are not UTF-8 become lone surrogates, as `os.fsdecode` has them."""
    a = visit.attributes
    path = b"/" + b"/".join(part for part in (prefix, visit.path) if part)
    entry: dict[str, object] = {
        "path": path.decode("utf-8", "surrogateescape"),
        "type": type_name(a.mode),
        "inode": a.ino,
        "mode": f"{a.mode & 0o7777:04o}",
        "links": a.links,
        "uid": a.uid,
        "gid": a.gid,
        "size": a.size,
        "atime_ns": a.atime_ns,
        "mtime_ns": a.mtime_ns,
        "ctime_ns": a.ctime_ns,
        "birth_ns": a.birth_ns,
    }
    try:
        target = target_of(filesystem, a)
    except CowfsError as error:
        on_problem(visit.path, error)
        target = None
    if target is not None:
        entry["target"] = target.decode("utf-8", "surrogateescape")
    return entry
