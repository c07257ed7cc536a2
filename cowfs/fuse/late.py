"""What a mount does not need in order to answer, and loads later: the commands, and the checker that a scrub and they need.

It is loaded once, in another thread while requests go on: for the first command, or a moment after the mount answers.
Later would not do: a daemon lives for months, and what it loads after its package was upgraded is of another version.
"""

from __future__ import annotations

import trio

from cowfs.control.host import Host

LOAD_SECONDS = 2.0
"""After the mount answers. A shorter mount that is told no command never pays for them."""

_loaded = False


def load() -> None:
    """Loads all that the modules of a mount import in their functions."""
    global _loaded  # noqa: PLW0603
    import cowfs.check.scrub
    import cowfs.control.commands
    import cowfs.storage.overlay  # noqa: F401

    _loaded = True


async def commands_loaded(host: Host) -> None:
    """Returns when it is loaded, so that importing it takes no time."""
    if not _loaded:
        await host.aside(load)


async def load_soon(host: Host) -> None:
    """Loads it when the mount has been answering for a moment."""
    await trio.sleep(LOAD_SECONDS)
    await commands_loaded(host)
