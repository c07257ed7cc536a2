"""Mount options: from the words after `-o` to what the door does.

The words are those of mount(8): comma-separated, several `-o` add up, the last word wins. What mount(8) hands through
for its own purposes (`auto`, `user`, `x-*`, ...) is accepted and means nothing here. Every other unknown word is an
error, so that a misspelt option never passes for a working one.

A backslash takes the special meaning from the character behind it, as libfuse has it: `\\,` is a comma in a name, `\\\\` a
backslash; with three octal digits it is that byte (`\\054` is a comma, too, which no other program on the way sees).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from cowfs.errors import InvalidArgument
from cowfs.fs.attributes import AtimeMode

COMMIT_SECONDS_DEFAULT = 10.0
COMMIT_SECONDS_MIN = 0.01
COMMIT_SECONDS_MAX = 86_400.0
CACHE_MEBIBYTES_DEFAULT = 48
CACHE_MEBIBYTES_MIN = 1
CACHE_MEBIBYTES_MAX = 1 << 20
_WORD: Final = re.compile(r"(?:[^,\\]|\\.|\\\Z)*", re.DOTALL)
_ESCAPE: Final = re.compile(rb"\\([0-3][0-7]{2}|.?)", re.DOTALL)
_SPECIAL: Final = re.compile(r"[,\\\s]")


@dataclass(frozen=True)
class MountOptions:
    """What was asked for. The defaults are those of a mount without options."""

    read_only: bool = False
    commit_seconds: float = COMMIT_SECONDS_DEFAULT
    cache_mebibytes: int = CACHE_MEBIBYTES_DEFAULT
    """How much metadata the daemon keeps in memory, about, besides what waits for a commit."""
    xattrs: bool = True
    writeback: bool = True
    allow_other: bool = False
    atime: AtimeMode = AtimeMode.RELATIME
    sync: bool = False
    discard: bool = False
    """Whether what commits free is given back to the medium."""
    superblock: int | None = None
    offset: int | None = None
    """Where in the image the volume begins, in bytes."""
    partition: int | None = None
    """The partition of a disk's image that the volume is in."""
    snapshot: bytes | None = None
    """The snapshot or clone that is mounted as the root, instead of the live tree."""
    base: str | None = None
    """Where the base of an overlay is, if not where the overlay says; an absolute path."""
    ephemeral: bool = False
    """Whether what is mounted is a base, with an overlay on it that vanishes with the mount."""
    ephemeral_dir: str | None = None
    """The directory whose filesystem holds such an overlay; an absolute path."""
    log: str | None = None
    kernel: frozenset[str] = field(default_factory=frozenset)
    """Words that the kernel itself carries out: suid, dev, noexec and their opposites."""

    @property
    def caches_writes(self) -> bool:
        """Whether the kernel may keep written data to itself for a while."""
        return self.writeback and not self.sync and not self.read_only

    def words(self) -> list[str]:
        """The options as words that `parse` turns into the same options, the log file excepted."""
        words = ["ro" if self.read_only else "rw"]
        if self.commit_seconds != COMMIT_SECONDS_DEFAULT:
            words.append(f"commit={self.commit_seconds:g}")
        if self.cache_mebibytes != CACHE_MEBIBYTES_DEFAULT:
            words.append(f"cache={self.cache_mebibytes}")
        if not self.xattrs:
            words.append("noxattr")
        if not self.writeback:
            words.append("nowriteback")
        if self.allow_other:
            words.append("allow_other")
        words.append(self.atime.value)
        if self.sync:
            words.append("sync")
        if self.discard:
            words.append("discard")
        if self.superblock is not None:
            words.append(f"superblock={self.superblock}")
        if self.offset is not None:
            words.append(f"offset={self.offset}")
        if self.partition is not None:
            words.append(f"partition={self.partition}")
        if self.snapshot is not None:
            words.append("snapshot=" + _SPECIAL.sub(_octal, os.fsdecode(self.snapshot)))
        words += ["ephemeral"] if self.ephemeral else []
        for name, path in (("base", self.base), ("ephemeral_dir", self.ephemeral_dir)):
            if path is not None:
                words.append(f"{name}=" + _SPECIAL.sub(_octal, path))
        return words + sorted(self.kernel)


_FLAGS: dict[str, tuple[str, object]] = {
    "ro": ("read_only", True),
    "rw": ("read_only", False),
    "noxattr": ("xattrs", False),
    "nowriteback": ("writeback", False),
    "allow_other": ("allow_other", True),
    "noatime": ("atime", AtimeMode.NOATIME),
    "relatime": ("atime", AtimeMode.RELATIME),
    "strictatime": ("atime", AtimeMode.STRICT),
    "ephemeral": ("ephemeral", True),
    "sync": ("sync", True),
    "async": ("sync", False),
    "discard": ("discard", True),
    "nodiscard": ("discard", False),
}
_OPPOSITES = {"suid": "nosuid", "dev": "nodev", "exec": "noexec"}
_OPPOSITES |= {negative: positive for positive, negative in _OPPOSITES.items()}
_MEANINGLESS = frozenset(
    (
        "defaults",
        "auto",
        "noauto",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "_netdev",
        "nofail",
        "default_permissions",
    )
)


def parse(
    arguments: Iterable[str],
    *,
    log: str | None = None,
    superblock: str | None = None,
    base: str | None = None,
    ephemeral: bool = False,
    ephemeral_dir: str | None = None,
) -> MountOptions:
    """The options of all `-o` arguments; all other arguments stand for words of these names.

    Raises InvalidArgument for an unknown word or a bad value.
    """
    values: dict[str, object] = {}
    if log is not None:
        values["log"] = os.path.abspath(log)
    if superblock is not None:
        values["superblock"] = superblock_number(superblock)
    values |= {
        name: os.path.abspath(path)
        for name, path in (("base", base), ("ephemeral_dir", ephemeral_dir))
        if path is not None
    }
    if ephemeral:
        values["ephemeral"] = True
    kernel: set[str] = set()
    for word in (word for argument in arguments for word in _split(argument)):
        name, equals, value = word.partition("=")
        value = unescaped(value)
        if not word or word in _MEANINGLESS or name.startswith("x-") or (name == "comment" and equals):
            continue
        if word in _FLAGS:
            key, meaning = _FLAGS[word]
            values[key] = meaning
        elif word in _OPPOSITES:
            kernel.discard(_OPPOSITES[word])
            kernel.add(word)
        elif name == "commit" and equals:
            values["commit_seconds"] = _seconds(value)
        elif name == "cache" and equals:
            values["cache_mebibytes"] = _mebibytes(value)
        elif name == "superblock" and equals:
            values["superblock"] = superblock_number(value)
        elif name in ("offset", "partition") and equals:
            values[name] = _number(name, value)
        elif name == "snapshot" and value:
            values["snapshot"] = os.fsencode(value)
        elif name in ("log", "base", "ephemeral_dir") and value:
            values[name] = os.path.abspath(value)
        else:
            raise InvalidArgument(f"unknown mount option '{word}'")
    options = MountOptions(kernel=frozenset(kernel), **values)  # type: ignore[arg-type]
    if options.superblock is not None and not options.read_only:
        raise InvalidArgument("superblock= chooses an older state to look at, so it needs ro")
    if (options.offset is not None or options.partition is not None) and not options.read_only:
        raise InvalidArgument("offset= and partition= choose a part of an image to look at, so they need ro")
    _check_overlay_options(options)
    return options


def _check_overlay_options(options: MountOptions) -> None:
    """Raises InvalidArgument for what an overlay that vanishes cannot be combined with."""
    if options.ephemeral:
        other = (options.base, options.offset, options.partition, options.superblock)
        if options.read_only or any(value is not None for value in other):
            raise InvalidArgument(
                "ephemeral is for writing, on a whole image: without ro, base=, offset=, partition= and superblock="
            )
    elif options.ephemeral_dir is not None:
        raise InvalidArgument("ephemeral_dir= goes with ephemeral")


def _split(argument: str) -> list[str]:
    """The words between the commas that no backslash stands before, without blanks around them; escapes stay."""
    return [word.strip() for word in _WORD.findall(argument) if word.strip()]


def unescaped(text: str) -> str:
    """`text` with what its backslashes stand for. Raises InvalidArgument for one that nothing follows."""

    def meaning(match: re.Match[bytes]) -> bytes:
        code = match[1]
        if not code:
            raise InvalidArgument(f"nothing follows the last backslash in '{text}'")
        return bytes((int(code, 8),)) if len(code) == 3 else code

    return os.fsdecode(_ESCAPE.sub(meaning, os.fsencode(text)))


def _octal(match: re.Match[str]) -> str:
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(match[0]))


def superblock_number(text: str) -> int:
    """1 or 2. Raises InvalidArgument."""
    if text not in ("1", "2"):
        raise InvalidArgument(f"there are superblocks 1 and 2, not '{text}'")
    return int(text)


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise InvalidArgument(f"{name}= wants a number, not '{text}'")
    return int(text)


def _mebibytes(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not CACHE_MEBIBYTES_MIN <= number <= CACHE_MEBIBYTES_MAX:
        raise InvalidArgument(f"cache= wants MiB from {CACHE_MEBIBYTES_MIN} to {CACHE_MEBIBYTES_MAX}, not '{text}'")
    return number


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not COMMIT_SECONDS_MIN <= seconds <= COMMIT_SECONDS_MAX:
        raise InvalidArgument(
            f"commit= wants seconds from {COMMIT_SECONDS_MIN:g} to {COMMIT_SECONDS_MAX:.0f}, not '{text}'"
        )
    return seconds


def fuse_options(options: MountOptions, source: str, *, privileged: bool) -> set[str]:
    """The words for libfuse. `source` is shown in /proc/mounts; `privileged`: the mounting user is root."""
    words = {f"fsname={escaped(source)}", "subtype=cowfs", "default_permissions"}
    if options.read_only:
        words.add("ro")
    if options.allow_other:
        words.add("allow_other")
    if options.atime is AtimeMode.NOATIME:
        words.add("noatime")
    # fusermount3 refuses to let anybody else bring in programs and devices of root's.
    words |= {word for word in options.kernel if privileged or word not in ("suid", "dev")}
    return words


def escaped(text: str) -> str:
    """`text` as libfuse's option parser wants it: ASCII, with every special byte as a backslash and octal digits."""
    plain = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@%:=~ "
    data = text.encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in data)
