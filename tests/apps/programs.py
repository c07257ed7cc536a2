"""What tests of real programs share: whether a program is there, and what a tree of files consists of."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest


def needs(*programs: str) -> pytest.MarkDecorator:
    """Leaves a test out where one of these programs is missing; scripts/test installs them."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def describe(root: Path, *, untouched: bool = False) -> dict[str, Any]:
    """Everything that a tree consists of: types, modes, owners, times, links, contents, extended attributes.

    Directories have a time, and everything a number of links, only if `untouched`: what happens in them moves them.
    """
    found: dict[str, Any] = {}
    links: dict[int, str] = {}
    for directory, directories, files in os.walk(root):
        directories.sort()
        for name in directories + sorted(files):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            relative = os.path.relpath(path, root)
            contents: object = None
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    contents = hashlib.file_digest(file, "sha256").hexdigest(), status.st_size
            elif stat.S_ISLNK(status.st_mode):
                contents = os.readlink(path)
            first = links.setdefault(status.st_ino, relative) if status.st_nlink > 1 else relative
            moment = status.st_mtime_ns if untouched or not stat.S_ISDIR(status.st_mode) else None
            count = status.st_nlink if untouched else None
            names = sorted(os.listxattr(path, follow_symlinks=False))
            attributes = {each: os.getxattr(path, each, follow_symlinks=False) for each in names}
            owner = status.st_uid, status.st_gid
            found[relative] = (status.st_mode, owner, moment, contents, attributes, first, count)
    return found


def differences(wanted: Path, found: Path) -> list[str]:
    """The names that are not the same in both trees."""
    one, other = describe(wanted), describe(found)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
