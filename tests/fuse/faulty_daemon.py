"""A daemon whose core raises what it is told to. Run as a program: image, mount point, log.

While there is a file ``fault`` beside the image, the operation of the core that its first word names raises the built-in
exception that its second word names, before it does anything.
"""

from __future__ import annotations

import builtins
import functools
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cowfs.fs.filesystem import Filesystem
from cowfs.fuse import options, server
from cowfs.storage.device import FileDevice
from cowfs.storage.volume import Volume

OPERATIONS = [
    name
    for base in Filesystem.__mro__
    for name in vars(base)
    if not name.startswith("_") and callable(getattr(base, name))
]


def faulty(name: str, operation: Callable[..., Any], fault: Path) -> Callable[..., Any]:
    """An operation that fails on demand."""

    @functools.wraps(operation)
    def call(*arguments: Any, **more: Any) -> Any:
        if fault.exists():
            operation_name, exception = fault.read_text().split()
            if operation_name == name:
                raise getattr(builtins, exception)("on demand")
        return operation(*arguments, **more)

    return call


def main() -> None:
    """Mounts and serves."""
    image, mountpoint, log = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, filename=log, format="%(levelname)s: %(message)s")
    fault = Path(os.path.dirname(image)) / "fault"
    for name in OPERATIONS:
        setattr(Filesystem, name, faulty(name, getattr(Filesystem, name), fault))
    device = FileDevice.open(image, read_only=False)
    device.lock(exclusive=True)
    server.serve(
        Volume.open(device), mountpoint, options.parse(["nowriteback"]), on_ready=lambda: print("ready", flush=True)
    )


if __name__ == "__main__":
    main()
