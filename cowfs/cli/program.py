"""The frame of the `cowfs` command: which words start what, and how failures are shown.

Starting costs more than most commands do, so a command's module is imported when the command is named, and what it needs
of the filesystem when it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from cowfs import __version__, is_compiled
from cowfs.cli.quick import EXIT_FAILURE, EXIT_INTERRUPTED, explanation, one_line
from cowfs.errors import CowfsError

EXIT_USAGE = 2


COMMANDS = (
    "cat",
    "check",
    "clone",
    "crashtest",
    "df",
    "diff",
    "du",
    "dump",
    "extract",
    "hash",
    "info",
    "ls",
    "merge",
    "mount",
    "policy",
    "rebase",
    "reset",
    "resize",
    "rollback",
    "scrub",
    "seal",
    "snapshot",
    "sync",
    "timeline",
    "trim",
    "umount",
    "unseal",
)


def command_named(name: str) -> click.Command | None:
    """A command, imported now, or None if there is none of that name."""
    module: Any
    match name:
        case "mount" | "umount" | "sync":
            from cowfs.cli import mount as module
        case "info" | "dump":
            from cowfs.cli import image as module
        case "ls" | "cat" | "extract" | "hash" | "timeline":
            from cowfs.cli import reading as module
        case "snapshot" | "rollback" | "diff":
            from cowfs.cli import snapshot as module
        case "reset" | "seal" | "unseal" | "rebase":
            from cowfs.cli import overlay as module
        case "df" | "du":
            from cowfs.cli import space as module
        case "check":
            from cowfs.cli import check as module
        case "clone":
            from cowfs.cli import clone as module
        case "crashtest":
            from cowfs.cli import crashtest as module
        case "merge":
            from cowfs.cli import merge as module
        case "policy":
            from cowfs.cli import policy as module
        case "resize":
            from cowfs.cli import resize as module
        case "scrub":
            from cowfs.cli import scrub as module
        case "trim":
            from cowfs.cli import trim as module
        case _:
            return None
    command: click.Command = getattr(module, "hash_" if name == "hash" else name)
    return command


class _Program(click.Group):
    """The group of commands; mount(8) calls it in the way of mount helpers, without the name of a command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return command_named(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        first = args[0]
        if first not in COMMANDS and len(args) > 1 and ("/" in first or os.path.exists(first)):
            return "mount", command_named("mount"), args
        return super().resolve_command(ctx, args)


def _show_version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"cowfs {__version__}{' (compiled)' if is_compiled() else ''}")
        context.exit()


@click.command(cls=_Program, context_settings={"help_option_names": ["--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def program() -> None:
    """Mount, look at and check cowfs volumes: copy-on-write, power-safe, in one image file or on a block device.

    A new volume is made with mkcowfs. "cowfs IMAGE MNT -o OPTIONS" is "cowfs mount", as mount(8) calls it.

    Exit codes: 0 done, 1 failed, 2 wrong command line; check has those of fsck(8).
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command on `arguments` (sys.argv by default) and returns its exit code."""
    try:
        # Exceptions come here instead of being printed in click's way, which takes several lines.
        result: Any = program.main(args=arguments, prog_name="cowfs", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return EXIT_USAGE
    except click.UsageError as error:
        name = error.ctx.command_path if error.ctx is not None else "cowfs"
        return _complain(f"{error.format_message()} ('{name} --help' tells more)", EXIT_USAGE)
    except click.ClickException as error:
        return _complain(error.format_message(), EXIT_FAILURE)
    except (click.Abort, KeyboardInterrupt):
        return _complain("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has enough. Nothing is left to be flushed into the pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except (CowfsError, OSError) as error:
        return _complain(explanation(error) or str(error), EXIT_FAILURE)
    return result if isinstance(result, int) else 0


def _complain(message: str, code: int) -> int:
    click.echo(f"cowfs: {one_line(message)}", err=True)
    return code
