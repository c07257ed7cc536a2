"""The `cowfs` command: parsing, output and exit codes, nothing else.

Every failure is one line on standard error that begins with ``cowfs: ``. Exit codes: 0 success, 1 failure, 2 wrong usage;
`cowfs check` has those of fsck(8).
"""

from __future__ import annotations

from cowfs.cli.program import main

__all__ = ["main"]
