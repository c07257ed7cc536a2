"""All benchmarks by one command; see README.md."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import growth, layers, machine, mounted, plot
from benchmarks.common import GIB, MIB, Failed, amount
from benchmarks.peers import PEERS, Compiled, PassthroughHp
from benchmarks.workloads import SCENES

QUICK_SCALE = 0.002
IMAGE_GIB = 8.0
IMAGE_GIB_LEAST = 0.25
PARTS = ("mounted", "layers", "growth")


def main(arguments: list[str]) -> int:
    """Runs what was asked for and prints Markdown."""
    parser = _parser()
    options = parser.parse_args(arguments)
    for given, known in (
        (options.parts, PARTS),
        (options.peers, [peer.name for peer in PEERS]),
        (options.scenes, SCENES),
    ):
        if unknown := [name for name in given or () if name not in known]:
            parser.error(f"there is no {unknown[0]}; there are {', '.join(known)}")
    if options.scale <= 0 or options.rounds < 1:
        parser.error("the scale is more than 0, and there is at least one round")
    machine.end_like_an_interrupt()
    if options.pin is not None:
        machine.pin(options.pin)
    scale = QUICK_SCALE if options.quick else options.scale
    rounds = 1 if options.quick else options.rounds
    try:
        with contextlib.ExitStack() as stack:
            output = sys.stdout if options.output is None else stack.enter_context(open(options.output, "w"))
            for text in _texts(options, scale, rounds):
                print(text, file=output, flush=True)
    except (Failed, OSError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks: interrupted; everything was unmounted and removed", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without one")
    add("--scale", type=float, default=1.0, help="factor for all amounts, 1 by default")
    add("--quick", action="store_true", help=f"a smoke run: one round at scale {QUICK_SCALE}")
    add("--rounds", type=int, default=3, help="interleaved rounds of the mounted part, 3 by default")
    add("--peers", type=_names, help=f"of {','.join(peer.name for peer in PEERS)}; all without it")
    add("--scenes", type=_names, help=f"of {','.join(SCENES)}; all without it")
    add("--pin", type=int, metavar="CPU", help="all on this one CPU: to compare versions, not to see what a user sees")
    add("--directory", type=Path, default=Path(tempfile.gettempdir()), help="where the image is made")
    add("--image-size", type=float, metavar="GIB", help="of the image; by default what the scale needs, 8 at 1")
    add(
        "--compiled",
        metavar="PYTHON",
        default="",
        help="the Python of an environment with a compiled cowfs, a peer then",
    )
    add("--passthrough-hp", metavar="PATH", default="", help="libfuse's passthrough_hp, for the comparison with it")
    add("--output", type=Path, help="file for the tables; standard output without it")
    add("--plot", type=Path, help="file for a picture, .svg or .png; needs matplotlib")
    add("--json", type=Path, help="file for the single figures of all rounds")
    return parser


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _texts(options: argparse.Namespace, scale: float, rounds: int) -> Iterator[str]:
    """The pieces of the report, as they come to be."""
    parts = options.parts or PARTS
    yield "\n".join(f"- {line}" for line in machine.description())
    yield f"- scale {scale:g}{'' if options.pin is None else f', all pinned to CPU {options.pin}'}"
    yield f"- load before: {machine.load()}\n"
    if "mounted" in parts:
        yield from _mounted(options, scale, rounds)
    if "layers" in parts:
        yield layers.report(scale, options.directory)
    if "growth" in parts:
        yield from growth.report(scale, options.directory)
    yield f"load after: {machine.load()}"


def _mounted(options: argparse.Namespace, scale: float, rounds: int) -> Iterator[str]:
    Compiled.python = options.compiled and os.path.abspath(options.compiled)
    PassthroughHp.program = options.passthrough_hp and os.path.abspath(options.passthrough_hp)
    size = int((options.image_size or max(IMAGE_GIB_LEAST, IMAGE_GIB * min(1.0, scale))) * GIB)
    plan = mounted.Plan(
        directory=options.directory,
        scale=scale,
        image_size=size // MIB * MIB,
        rounds=rounds,
        peers=[peer for peer in PEERS if not options.peers or peer.name in options.peers],
        scenes=[scene for scene in SCENES if not options.scenes or scene in options.scenes],
    )
    results = mounted.measure(plan)
    yield f"One image of {amount(plan.image_size)}, fully written beforehand.\n"
    yield mounted.report(results)
    if options.json:
        options.json.write_text(json.dumps(results.to_json(), indent=1), encoding="utf-8")
    if options.plot:
        plot.draw(results, options.plot, "; ".join(machine.description()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
