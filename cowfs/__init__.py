"""A power-safe copy-on-write filesystem in one image file, mounted through FUSE.

Importing this package costs nothing: it holds the version and pulls in no other module.
"""

__version__ = "0.1.0"
