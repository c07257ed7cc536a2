"""Commands for rolling snapshots: `policy set`, `show`, `clear`. TARGET is a mount or an image that is not mounted."""

from __future__ import annotations

from typing import Any

import click

from cowfs import control
from cowfs.cli.output import printable, show_json, show_table
from cowfs.cli.target import carry_out

_TARGET = click.argument("target", metavar="IMAGE|MNT", type=click.Path(readable=False))
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def policy() -> None:
    """Have snapshots taken regularly while the volume is mounted, and old ones deleted."""


@policy.command("set")
@_TARGET
@click.option("--every", metavar="TIME", required=True, help="How often: such as 5m, 1h or 1d.")
@click.option(
    "--keep", metavar="RULE", required=True, help="Of which hours, days, weeks to keep one: such as 24h14d8w."
)
@click.option(
    "--thin-when-short", is_flag=True, help="Delete them earlier rather than let a write fail for want of space."
)
@_JSON
def set_(target: str, every: str, keep: str, thin_when_short: bool, as_json: bool) -> None:
    """Take a snapshot every TIME in which something changed, and keep some of them by RULE.

    24h14d8w keeps the newest one of each of the last 24 hours, 14 days and 8 weeks, and all that are younger than an hour.
    Units: s, m, h, d, w for --every, m, h, d, w, y for --keep. Only snapshots that the policy took are ever deleted, and
    of these none that was renamed or is protected.
    """
    options: dict[str, Any] = {"every": every, "keep": keep}
    if thin_when_short:
        options["thin-when-short"] = True
    _show(carry_out(target, control.Command(("policy", "set"), options), write=True), as_json)


@policy.command()
@_TARGET
@_JSON
def show(target: str, as_json: bool) -> None:
    """Show the policy, and how many snapshots it has."""
    _show(carry_out(target, control.Command(("policy", "show"))), as_json)


@policy.command()
@_TARGET
@_JSON
def clear(target: str, as_json: bool) -> None:
    """Take no more snapshots, and delete none. Those that are there stay."""
    _show(carry_out(target, control.Command(("policy", "clear")), write=True), as_json)


def policy_text(policy: dict[str, Any]) -> str:
    """A policy in a few words."""
    thins = ", deleted earlier when space is short" if policy["thin_when_short"] else ""
    return f"every {policy['every']}, keep {policy['keep']}{thins}"


def _show(reply: control.Reply, as_json: bool) -> None:
    if as_json:
        show_json(reply)
        return
    rows = [("policy", "none" if reply["policy"] is None else policy_text(reply["policy"]))]
    rows += [("problem", printable(reply["problem"]))] if reply["problem"] else []
    rows.append(("snapshots", str(reply["snapshots"])))
    rows += [(name, reply[name]) for name in ("newest", "next") if reply[name] is not None]
    show_table(rows)
