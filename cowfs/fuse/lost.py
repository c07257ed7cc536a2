"""Files that lost data: the kernel had cached it, write(2) had returned, and then there was no space for it.

The kernel reports that at fsync(2) and close(2), but goes on to cache what the same writer writes next, for ever, and all
of it is lost as well: a program that writes until it is told to stop never stops. So once data of a file was lost, the
kernel is made to ask for the file's attributes again, which it does at the beginning of each write(2); and while there is
no space, a process that has the file open for writing gets ENOSPC instead, and with it the write. Everybody else sees the
file as ever, and can truncate or unlink it.

Locking: the trio thread only.
"""

from __future__ import annotations

from collections.abc import Iterable

ANCESTORS_MAX = 64


class LostWrites:
    """The files, by node, each with the processes that opened it for writing."""

    def __init__(self) -> None:
        self._files: dict[int, set[int]] = {}

    def __bool__(self) -> bool:
        return bool(self._files)

    def add(self, node: int, openers: Iterable[int]) -> None:
        """Data of a file was lost. `openers` are the threads that opened it for writing."""
        self._files[node] = {_process(thread)[0] for thread in openers}

    def discard(self, node: int) -> None:
        """The file was closed, or its data found space."""
        self._files.pop(node, None)

    def concerns(self, node: int, thread: int) -> bool:
        """Whether a thread belongs to a process that opened the file, or to a descendant, which may have inherited it."""
        openers = self._files.get(node)
        if openers is None:
            return False
        for _ in range(ANCESTORS_MAX):
            process, parent = _process(thread)
            if process in openers:
                return True
            if parent <= 1:
                return False
            thread = parent
        return False


def _process(thread: int) -> tuple[int, int]:
    """The process of a thread, and the process's parent; of one that has gone, the thread's number and 0."""
    try:
        with open(f"/proc/{thread}/status", encoding="utf-8", errors="replace") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
        return int(fields["Tgid"]), int(fields["PPid"])
    except (OSError, KeyError, ValueError):
        return thread, 0
