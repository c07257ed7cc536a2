"""cowfs and its peers, mounted, side by side: rounds, medians, and ratios within a round.

Rounds are interleaved: in each one every scene is played on every peer, on the same bytes of the same image, before the
next scene begins, and the order of the peers changes from round to round. So what else happens on the machine hits all
of them, and a ratio within a round says more than one between two medians.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import image, machine
from benchmarks.common import BLOCK, MIB, Failed, figure, table
from benchmarks.peers import NotMeasured, Peer, wait_until
from benchmarks.workloads import WORKLOADS, Sizes, Stage, Workload, opened, prepare_programs, window

FLUSH_CALLS = "fsync,fdatasync,syncfs,sync"
FLUSH_TURNS = 3
MEMORY = "daemon's peak memory"
OURS = "cowfs"
FLOOR = "floor"
COMPILED = "cowfs-compiled"


@dataclass
class Results:
    """All figures: of a line of the table, of a peer, of each round (None: not measured)."""

    sizes: Sizes
    peers: list[str]
    rounds: int
    lines: list[tuple[str, str]] = field(default_factory=list)
    """(title, unit), in the order of the table."""
    figures: dict[tuple[str, str], list[float | None]] = field(default_factory=dict)
    computed: dict[tuple[str, str], list[float | None]] = field(default_factory=dict)
    """The same figures in processor time: what they would be if nobody ever waited, on one processor."""
    remarks: list[str] = field(default_factory=list)
    flushes: dict[str, str] = field(default_factory=dict)
    in_user_space: set[str] = field(default_factory=set)

    def add(self, title: str, unit: str, peer: str, turn: int, value: float, share: float = 0.0) -> None:
        """One figure; `share` is the processor time in each second of it, 0 if that is not known."""
        if (title, unit) not in self.lines:
            self.lines.append((title, unit))
        self.figures.setdefault((title, peer), [None] * self.rounds)[turn] = value
        if share:
            computed = value / share if unit.endswith("/s") else value * share
            self.computed.setdefault((title, peer), [None] * self.rounds)[turn] = computed

    def remark(self, text: str) -> None:
        """Something that a reader has to know, once."""
        if text not in self.remarks:
            self.remarks.append(text)

    def median(self, title: str, peer: str, *, computed: bool = False) -> float | None:
        """Of the rounds in which it was measured."""
        figures = self.computed if computed else self.figures
        values = [value for value in figures.get((title, peer), []) if value is not None]
        return statistics.median(values) if values else None

    def ratios(self, title: str, unit: str, peer: str, *, computed: bool = False) -> list[float]:
        """How many times as good cowfs was, in each round that has both."""
        figures = self.computed if computed else self.figures
        pairs = zip(figures.get((title, OURS), []), figures.get((title, peer), []), strict=False)
        both = [(ours, theirs) for ours, theirs in pairs if ours and theirs]
        return [ours / theirs if unit.endswith("/s") else theirs / ours for ours, theirs in both]

    def to_json(self) -> dict[str, Any]:
        """Everything, for those who want to compute something else."""
        figures = {f"{title} | {peer}": values for (title, peer), values in self.figures.items()}
        computed = {f"{title} | {peer}": values for (title, peer), values in self.computed.items()}
        return {
            "lines": self.lines,
            "figures": figures,
            "computed": computed,
            "flushes": self.flushes,
            "remarks": self.remarks,
        }


@dataclass(frozen=True)
class Plan:
    """What is measured, and where."""

    directory: Path
    scale: float
    image_size: int
    rounds: int
    peers: Sequence[type[Peer]]
    scenes: Sequence[str]


def measure(plan: Plan) -> Results:
    """Plays all scenes. Raises Failed where cowfs fails; what fails with a peer is a remark."""
    workspace = Path(tempfile.mkdtemp(prefix="cowfs-benchmark-", dir=plan.directory)).resolve()
    mountpoint = workspace / "mount"
    scratch = workspace / "scratch"
    peers: list[Peer] = []
    try:
        for path in (mountpoint, scratch):
            path.mkdir()
        candidates = [kind(workspace / "image", mountpoint) for kind in plan.peers]
        peers = [peer for peer in candidates if not peer.missing()]
        results = Results(Sizes.of(plan.scale, plan.image_size), [peer.name for peer in peers], plan.rounds)
        results.in_user_space = {peer.name for peer in peers if peer.in_user_space}
        results.remarks += [f"{peer.name} was not measured: {peer.missing()}" for peer in candidates if peer.missing()]
        results.remarks += [f"{peer.name}: {peer.note}" for peer in peers if peer.note]
        if not machine.may_drop_caches():
            results.remark("the kernel's caches could not be dropped, which takes root: 'cold' is only unmounted")
        machine.say(f"writing an image of {plan.image_size // MIB} MiB")
        image.make(workspace / "image", plan.image_size)
        if "programs" in plan.scenes:
            prepare_programs(scratch, results.sizes)
        for turn in range(plan.rounds):
            _play_round(plan, results, peers, scratch, turn)
        return results
    finally:
        for peer in peers:
            peer.abandon()
        shutil.rmtree(workspace, ignore_errors=True)


def _play_round(plan: Plan, results: Results, peers: list[Peer], scratch: Path, turn: int) -> None:
    shift = turn % len(peers)
    for peer in peers:
        peer.peak = 0
    for scene in plan.scenes:
        for peer in peers[shift:] + peers[:shift]:
            begin = time.monotonic()
            try:
                _play(scene, results, peer, scratch, turn)
            except (Failed, OSError, subprocess.SubprocessError) as error:
                if peer.name == OURS:
                    raise
                results.remark(f"{peer.name} failed in '{scene}': {error}")
            except NotMeasured:
                pass
            finally:
                peer.abandon()
            machine.say(f"round {turn + 1}, {scene}, {peer.name}: {time.monotonic() - begin:.0f} s")
    for peer in peers:
        if peer.peak:
            results.add(MEMORY, "MiB", peer.name, turn, peer.peak / MIB)


def _play(scene: str, results: Results, peer: Peer, scratch: Path, turn: int) -> None:
    """One scene on one peer, on a new filesystem."""
    workloads = [entry for entry in WORKLOADS if entry.scene == scene]
    if scene.endswith("copies") and not _copies(peer):
        return
    peer.format()
    if peer.keeps and peer.image.exists():
        image.refill(peer.image)
    peer.mount()
    stage = Stage(peer, results.sizes, scratch, seed=turn)
    for entry in workloads:
        _measure(entry, results, stage, turn)
    if scene == "data" and peer.name not in results.flushes and peer.in_user_space and peer.keeps:
        results.flushes[peer.name] = flushes(peer)
    peer.unmount()
    peer.check()


def _measure(entry: Workload, results: Results, stage: Stage, turn: int) -> None:
    title = entry.title(results.sizes)
    stage.elapsed = stage.computed = 0.0
    try:
        value = entry.action(stage)
        share = stage.computed / stage.elapsed if stage.elapsed and stage.peer.in_user_space else 0.0
        results.add(title, entry.unit, stage.peer.name, turn, value, share)
    except NotMeasured as error:
        results.remark(f"{stage.peer.name}, {title}: {error}")


def _copies(peer: Peer) -> bool:
    """Whether it can make snapshots or clones at all: it says so itself, by having a way."""
    return type(peer).snapshot is not Peer.snapshot


def flushes(peer: Peer) -> str:
    """Whether the daemon flushes its image when a program calls fsync(2): asks strace(1) to watch it."""
    if shutil.which("strace") is None:
        return "unknown: there is no strace here"
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        command = ["strace", "-f", "-y", "-qq", "-e", f"trace={FLUSH_CALLS}", "-o", str(log), "-p", str(peer.pid)]
        tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: tracer.poll() is not None or _is_traced(peer.pid), "strace does not attach")
            time.sleep(0.2)  # the other threads of the daemon
            with opened(peer.mountpoint / "watched", os.O_RDWR | os.O_CREAT) as file:
                for number in range(FLUSH_TURNS):
                    os.pwrite(file, window(number, BLOCK), number * BLOCK)
                    os.fsync(file)
            time.sleep(0.1)
        finally:
            tracer.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                tracer.wait(10)
        if not log.exists():
            return "unknown: strace may not watch it"
        medium = str(peer.medium)
        calls = [line for line in log.read_text(errors="replace").splitlines() if "resumed>" not in line]
        count = sum(medium in line or " sync()" in line for line in calls)
    return f"{count / FLUSH_TURNS:.1f} flushes at each fsync" if count else "does not flush the image at fsync"


def _is_traced(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "TracerPid:\t0" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return False


# --- what is printed ---


def titles(sizes: Sizes) -> list[str]:
    """The lines of the table."""
    return [entry.title(sizes) for entry in WORKLOADS] + [MEMORY]


def report(results: Results) -> str:
    """The tables, the gaps, and the remarks."""
    names = results.peers
    marks = {name: " †" if "does not flush" in results.flushes.get(name, "") else "" for name in names}
    text = [_medians(results, names, marks, f"Medians of {results.rounds} interleaved rounds")]
    if OURS in names:
        others = [name for name in names if name != OURS]
        rows: list[tuple[object, ...]] = [
            (title, *(_ratio(results.ratios(title, unit, name)) for name in others)) for title, unit in results.lines
        ]
        heading = "How many times as good cowfs is: median of the ratios within a round, and their range"
        text.append(table(heading, ("workload", *(name + marks[name] for name in others)), rows))
    ours = [name for name in names if name in results.in_user_space]
    if ours:
        heading = "The same in processor time: what client and daemon would need if nobody ever waited"
        text.append(_medians(results, ours, marks, heading, computed=True))
    if OURS in names:
        text.append(gaps(results))
    remarks = [f"{name}: {what}" for name, what in results.flushes.items()] + results.remarks
    if any(marks.values()):
        remarks.insert(0, "† does not flush the image when a program calls fsync, so it promises less")
    text.append("\n".join(f"- {remark}" for remark in remarks) + "\n")
    return "\n".join(text)


def _medians(
    results: Results, names: Sequence[str], marks: dict[str, str], heading: str, *, computed: bool = False
) -> str:
    rows: list[tuple[object, ...]] = []
    for title, unit in results.lines:
        values = [results.median(title, name, computed=computed) for name in names]
        if any(value is not None for value in values):
            rows.append((f"{title}, {unit}", *("-" if value is None else figure(value) for value in values)))
    return table(heading, ("workload", *(name + marks[name] for name in names)), rows)


def _ratio(ratios: list[float]) -> str:
    if not ratios:
        return "-"
    middle = figure(statistics.median(ratios))
    return middle if len(ratios) == 1 else f"{middle} ({figure(min(ratios))} to {figure(max(ratios))})"


def gaps(results: Results) -> str:
    """Where a filesystem in user space is ahead of cowfs, the largest gap first, each workload's best one only."""
    candidates = [
        name for name in results.peers if name in results.in_user_space and name not in (OURS, COMPILED, FLOOR)
    ]
    found = []
    for title, unit in results.lines:
        gap, best = max(((_gap(results, title, unit, name), name) for name in candidates), default=(0.0, ""))
        if gap > 1 and title != MEMORY:
            found.append((gap, title, unit, best))
    rows: list[tuple[object, ...]] = []
    for gap, title, unit, best in sorted(found, reverse=True):
        computed = _gap(results, title, unit, best, computed=True)
        floor = _gap(results, title, unit, FLOOR)
        rows.append((title, best, figure(gap), figure(computed) if computed else "-", figure(floor) if floor else "-"))
    if not rows:
        return "No filesystem in user space is ahead of cowfs in any line.\n"
    head = ("workload", "best one", "times as good", "times as good in processor time", "times as good the floor is")
    return table("Where cowfs is behind, the largest gap first", head, rows)


def _gap(results: Results, title: str, unit: str, peer: str, *, computed: bool = False) -> float:
    """How many times as good as cowfs a peer is; 0 where that is not known."""
    ratios = results.ratios(title, unit, peer, computed=computed)
    return 1 / statistics.median(ratios) if ratios else 0.0
