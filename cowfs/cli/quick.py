"""`cowfs mount` as it is almost always given, started without click and before anything else is loaded.

Only what is understood here in full is done here; every other command line, and every wrong one, is click's business.
`tests/cli/test_quick.py` holds that both take the same words for the same.

Only what Python has loaded by itself is imported here.
"""

from __future__ import annotations

import os
import sys

from cowfs.fuse import fork

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130
WITH_VALUE = {
    "-o": "words",
    "--log": "log",
    "--superblock": "superblock",
    "--base": "base",
    "--ephemeral-dir": "ephemeral_dir",
}
FLAGS = {"--ephemeral": "ephemeral"}


class Mount:
    """What was asked for."""

    def __init__(self) -> None:
        self.places: list[str] = []  # image and mount point
        self.words: list[str] = []
        self.log: str | None = None
        self.superblock: str | None = None
        self.base: str | None = None
        self.ephemeral = False
        self.ephemeral_dir: str | None = None


def understood(arguments: Sequence[str]) -> Mount | None:
    """A command line, if it is a mount in the background and nothing about it is special or wrong."""
    if not arguments or "_COWFS_COMPLETE" in os.environ:
        return None
    if arguments[0] == "mount":
        arguments = arguments[1:]
    elif "/" not in arguments[0]:  # mount(8) calls us with the image first
        return None
    asked = Mount()
    rest = iter(arguments)
    for word in rest:
        if not word.startswith("-"):
            asked.places.append(word)
            continue
        name, is_given, value = word.partition("=")
        if name in FLAGS and not is_given:
            setattr(asked, FLAGS[name], True)
            continue
        if word.startswith("-o") and len(word) > 2 and word[2] != "=":
            name, value = "-o", word[2:]
        elif name not in WITH_VALUE or (is_given and name == "-o"):
            return None
        elif not is_given:
            following = next(rest, None)
            if following is None:
                return None
            value = following
        if name == "-o":
            asked.words.append(value)
        else:
            setattr(asked, WITH_VALUE[name], value)
    if len(asked.places) != 2 or asked.superblock not in (None, "1", "2"):
        return None
    return asked


def mount(asked: Mount) -> int:
    """Mounts; the exit status of the starter once the mount answers, of the daemon when it is gone."""
    status = fork.start(_report)
    return _serve(asked) if status is None else status


def _serve(asked: Mount) -> int:
    """What the daemon does."""
    try:
        from cowfs.fuse import daemon, options

        parsed = options.parse(
            asked.words,
            log=asked.log,
            superblock=asked.superblock,
            base=asked.base,
            ephemeral=asked.ephemeral,
            ephemeral_dir=asked.ephemeral_dir,
        )
        image, mountpoint = os.path.realpath(asked.places[0]), os.path.abspath(asked.places[1])
        return daemon.run(image, mountpoint, parsed, detach=True, report=lambda line: _report(f"cowfs: {line}"))
    except Exception as error:
        explained = explanation(error)
        if explained is None:
            raise
        _report(f"cowfs: {explained}")
        return EXIT_FAILURE


def explanation(error: Exception) -> str | None:
    """The line that tells of a failure, None for what is a mistake of ours."""
    from cowfs.errors import CowfsError

    if isinstance(error, CowfsError):
        text = str(error)
    elif isinstance(error, OSError):
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        text = f"{where}{error.strerror or error}"
    else:
        return None
    return one_line(text)


def one_line(text: str) -> str:
    """A text as one line that can be written."""
    return " ".join(text.split("\n")).encode(errors="replace").decode(errors="replace")


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
