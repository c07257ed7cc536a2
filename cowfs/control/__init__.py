"""The command set: text or JSON in, JSON out. The control file of a mount and the command line both use it.

A command is an ``async def`` that waits only for what its `Host` offers. Behind a mount the host is the daemon, where
waiting lets other requests go on; for an image that is not mounted nothing ever waits, and `run` carries the command
through without an event loop. The grammar, the replies and the errnos are in `docs/CONTROL.md`.

`wire` has the grammar and the client, `host` what a command may ask of whoever carries it out, `commands` the table of all
commands, and each further module a family of them.
"""

from cowfs.control.wire import (
    COMMAND_SIZE_MAX,
    DIRECTORY_NAME,
    FILE_NAME,
    INFO,
    QUERY_NAME,
    QUERY_SIZE_MAX,
    SNAPSHOTS_NAME,
    Command,
    CommandFailed,
    Reply,
    encode_reply,
    encode_steps,
    failure,
    parse,
    query_decoded,
    query_goes_on,
    query_joined,
    query_names,
    send,
)

__all__ = [
    "COMMAND_SIZE_MAX",
    "DIRECTORY_NAME",
    "FILE_NAME",
    "INFO",
    "QUERY_NAME",
    "QUERY_SIZE_MAX",
    "SNAPSHOTS_NAME",
    "Command",
    "CommandFailed",
    "Reply",
    "encode_reply",
    "encode_steps",
    "failure",
    "parse",
    "query_decoded",
    "query_goes_on",
    "query_joined",
    "query_names",
    "send",
]
