"""The `cowfs` command: parsing, output and exit codes, nothing else.

Every failure is one line on standard error that begins with ``cowfs: ``. Exit codes: 0 success, 1 failure, 2 wrong usage;
`cowfs check` has those of fsck(8).
"""

from __future__ import annotations

import gc
import os
import sys

from cowfs.cli import quick

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

COLLECTOR_THRESHOLD = 20_000
"""What modules are made of is no garbage, and looking for some among it makes importing a tenth slower."""


def main() -> NoReturn:
    """Runs the command and exits."""
    gc.set_threshold(COLLECTOR_THRESHOLD)
    starter = os.getpid()
    asked = quick.understood(sys.argv[1:])
    if asked is None:
        from cowfs.cli import program

        sys.exit(program.run())
    try:
        status = quick.mount(asked)
    except KeyboardInterrupt:
        print("cowfs: interrupted", file=sys.stderr)
        status = quick.EXIT_INTERRUPTED
    if os.getpid() == starter:
        sys.stderr.flush()
        os._exit(status)  # there is nothing to tidy up, and Python would take longer to do so than all of this took
    sys.exit(status)
