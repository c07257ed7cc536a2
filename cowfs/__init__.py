"""A power-safe copy-on-write filesystem in one image file, mounted through FUSE.

Importing this package costs nothing: it holds the version and pulls in no other module.
"""

__version__ = "0.1.0"


def is_compiled() -> bool:
    """Whether the modules that a build can compile (docs/PERFORMANCE.md) are compiled in this installation."""
    from importlib.util import find_spec

    spec = find_spec("cowfs.storage.volume")
    return spec is not None and not str(spec.origin).endswith(".py")
