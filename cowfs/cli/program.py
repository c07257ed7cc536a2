"""The frame of the `cowfs` command: which words start what, and how failures are shown.

The commands are imported here, but what they need is imported when they run, so that `cowfs --help` and the commands for
a mounted volume start quickly.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from cowfs import __version__
from cowfs.cli import (
    check,
    clone,
    crashtest,
    image,
    merge,
    mount,
    overlay,
    policy,
    reading,
    resize,
    scrub,
    snapshot,
    space,
    trim,
)
from cowfs.errors import CowfsError

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class _Program(click.Group):
    """The group of commands; mount(8) calls it in the way of mount helpers, without the name of a command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        first = args[0]
        if first not in self.commands and len(args) > 1 and ("/" in first or os.path.exists(first)):
            return "mount", self.commands["mount"], args
        return super().resolve_command(ctx, args)


@click.command(cls=_Program, context_settings={"help_option_names": ["--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="cowfs", message="%(prog)s %(version)s")
def program() -> None:
    """Mount, look at and check cowfs volumes: copy-on-write, power-safe, in one image file or on a block device.

    A new volume is made with mkcowfs. "cowfs IMAGE MNT -o OPTIONS" is "cowfs mount", as mount(8) calls it.

    Exit codes: 0 done, 1 failed, 2 wrong command line; check has those of fsck(8).
    """


for _command in (
    mount.mount,
    mount.umount,
    mount.sync,
    image.info,
    check.check,
    crashtest.crashtest,
    scrub.scrub,
    image.dump,
    reading.ls,
    reading.cat,
    reading.extract,
    reading.hash_,
    reading.timeline,
    snapshot.snapshot,
    policy.policy,
    snapshot.rollback,
    overlay.reset,
    overlay.seal,
    overlay.unseal,
    overlay.rebase,
    merge.merge,
    space.df,
    space.du,
    snapshot.diff,
    clone.clone,
    resize.resize,
    trim.trim,
):
    program.add_command(_command)


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
    except CowfsError as error:
        return _complain(str(error), EXIT_FAILURE)
    except (click.Abort, KeyboardInterrupt):
        return _complain("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has enough. Nothing is left to be flushed into the pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return _complain(f"{where}{error.strerror or error}", EXIT_FAILURE)
    return result if isinstance(result, int) else 0


def _complain(message: str, code: int) -> int:
    text = " ".join(message.split("\n")).encode(errors="replace").decode(errors="replace")
    click.echo(f"cowfs: {text}", err=True)
    return code


def main() -> NoReturn:
    """Runs the command and exits."""
    sys.exit(run())
