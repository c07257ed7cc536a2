"""What the commands share: what a user's word stands for, and how things are printed."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import click

from cowfs.errors import InvalidArgument
from cowfs.fuse import mounts

Progress = Callable[[int, int], None]
"""Told how much is done, and how much there is."""


def require_mount(path: str) -> mounts.Mount:
    """The mount of ours that a path lies in. Raises InvalidArgument."""
    mount = mounts.containing(path)
    if mount is None:
        raise InvalidArgument(f"{path} does not lie in a mounted cowfs volume")
    if mounts.is_dead(mount):
        raise InvalidArgument(f"{mount.mountpoint} is a dead mount: its daemon is gone; 'cowfs umount' clears it")
    return mount


def printable(text: str) -> str:
    """`text` without the bytes that no terminal can show."""
    return text.encode("utf-8", "backslashreplace").decode()


def show_json(value: Any) -> None:
    """One JSON document."""
    click.echo(json.dumps(value, indent=2))


def show_table(rows: list[tuple[str, str]]) -> None:
    """Names and values, aligned."""
    width = max(len(name) for name, _ in rows) + 1
    for name, value in rows:
        click.echo(printable(f"{name + ':':<{width}} {value}"))


@contextlib.contextmanager
def progress_bar(label: str, total: int, quiet: bool, *, numbers: bool = False) -> Iterator[Progress]:
    """A bar on a terminal, with what is done and what there is where `numbers` are wanted; elsewhere nothing."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    bar = click.progressbar(length=max(total, 1), label=label, show_eta=True, show_pos=numbers, file=sys.stderr)
    with bar:

        def show(done: int, total: int) -> None:
            bar.length = max(total, 1)
            bar.update(max(0, done - bar.pos))

        yield show


def size_text(size: int) -> str:
    """A size in bytes, with its larger unit."""
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{size} bytes" if unit == "bytes" else f"{value:.1f} {unit} ({size} bytes)"


def time_text(seconds: int) -> str:
    """A time in seconds since 1970, as UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
