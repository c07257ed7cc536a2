"""Imports pyfuse3 without what nobody needs of it.

pyfuse3 asks importlib.metadata for its own version, which imports the standard library's mail and zip modules for that: a
twentieth of what a mount takes to start. While it is imported it is told that there is no such record.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Final

_METADATA: Final = "importlib.metadata"


class _NotFound(Exception):
    """What importlib.metadata raises for a package of which there is no record."""


def _version(package: str) -> str:
    raise _NotFound(package)


def load_pyfuse3() -> None:
    """To be called before anything is imported that imports pyfuse3."""
    if "pyfuse3" in sys.modules or _METADATA in sys.modules:
        return
    stand_in = ModuleType(_METADATA)
    stand_in.__dict__.update(PackageNotFoundError=_NotFound, version=_version)
    sys.modules[_METADATA] = stand_in
    try:
        import pyfuse3  # noqa: F401
    except ImportError:
        return  # it is not there, or wants more of that module: it is imported again where it is needed
    finally:
        del sys.modules[_METADATA]
