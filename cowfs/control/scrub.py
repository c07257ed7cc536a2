"""Commands for scrubbing a volume that is in use: start it, look how far it is, stop it.

The work is `check.scrub`'s; here it gets a life that is longer than a command's, and than a mount's: position and result
are kept in the settings of the volume (member `scrub`), so that a scrub which was stopped, or ended by unmounting or a
crash, goes on when it is started again. Where nothing can be written, they are kept in memory only.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from cowfs.control.wire import Reply
from cowfs.errors import Busy, CowfsError, InvalidArgument
from cowfs.storage.settings import Settings
from cowfs.storage.volume import Volume

if TYPE_CHECKING:
    from cowfs.check.scrub import Scrub, Work
    from cowfs.control.host import Host
    from cowfs.control.specification import Arguments

SETTING: Final = "scrub"
SAVE_SECONDS: Final = 30.0
"""What a crash of the daemon costs of a scrub at most."""
SAVED_BYTES_MAX: Final = 16_384
"""A result that is longer is saved without the owners."""
SUSPECTS_MAX: Final = 100
"""Suspect blocks that are kept when a scrub ends before its end."""
MEBIBYTE: Final = 1 << 20

log = logging.getLogger(__name__)


class Scrubber:
    """The scrubs of one volume, one at a time."""

    def __init__(
        self,
        volume: Volume,
        *,
        duty: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`duty`: of the time, that of `check.scrub` where it is not given. Raises NotSupported for a foreign volume."""
        from cowfs.check.scrub import DUTY, require_checksums  # only who scrubs needs the checker

        require_checksums(volume)
        self._volume = volume
        self._duty = DUTY if duty is None else duty
        self._clock = clock
        self._wall_clock = wall_clock
        self._scrub: Scrub | None = None  # the one that runs
        self._forbidden: list[str] = []  # why none may start now
        self._saved_at = 0.0
        self._record: dict[str, Any] = {}
        try:
            known = Settings(volume).get(SETTING)
        except CowfsError as error:
            log.warning("how far the last scrub came cannot be read: %s", error)
        else:
            self._record = known if isinstance(known, dict) else {}
        if self._record.get("state") == "running":  # when the daemon ended
            self._record["state"] = "stopped"

    @property
    def running(self) -> bool:
        """Whether a scrub is under way."""
        return self._scrub is not None

    @contextlib.contextmanager
    def none_meanwhile(self, reason: str) -> Iterator[None]:
        """No scrub runs, and none starts, in the block of a `with` statement. Raises Busy where one is running."""
        if self.running:
            raise Busy("a scrub is running: stop it first, or wait for its end")
        self._forbidden.append(reason)
        try:
            yield
        finally:
            self._forbidden.remove(reason)

    def start(self, *, rate: float | None = None, restart: bool = False) -> Work | None:
        """Starts a scrub, where the last one ended unless that was at its end, or with `restart` at the beginning.

        Returns the work, for whoever runs it; None where a scrub is running, which then gets the new `rate` (bytes per
        second at most). Raises Busy in a block of `none_meanwhile`.
        """
        if self._forbidden:
            raise Busy(self._forbidden[0])
        from cowfs.check.scrub import Scrub

        if self._scrub is not None and not restart:
            self._scrub.rate = rate
            return None
        if self._scrub is not None:
            self.stop()
        record = self._record
        resumes = not restart and record.get("state") == "stopped"
        position, done = (_number(record.get(name)) if resumes else 0 for name in ("position", "done"))
        if position > self._volume.geometry.num_blocks:
            position = done = 0
        bad = _suspects(record.get("suspects")) if resumes else {}
        scrub = Scrub(
            self._volume, position=position, done=done, bad=bad, rate=rate, duty=self._duty, clock=self._clock
        )
        started = record.get("started") if position else None
        self._record = {"started": started or int(self._wall_clock()), "finished": None}
        self._scrub = scrub
        self._saved_at = self._clock()
        log.info("scrub: %s at block %d of %d", "goes on" if position else "begins", position, scrub.total)
        return self._run(scrub)

    def stop(self) -> None:
        """Ends the scrub that is running, if one is; the next one goes on from there."""
        scrub, self._scrub = self._scrub, None
        if scrub is not None:
            self._keep(scrub, "stopped")
            log.info("scrub: stopped at block %d", scrub.position)

    def status(self) -> Reply:
        """What is known of the scrub that runs, or of the last one. Sizes are in bytes."""
        scrub = self._scrub
        if scrub is not None:
            self._describe(scrub, "running")
        size = self._volume.geometry.block_size
        assert self._volume.spacemap is not None
        total = self._volume.geometry.num_blocks - self._volume.spacemap.free
        record = self._record
        done = _number(record.get("done"))
        rate = scrub.bytes_per_second if scrub is not None else 0.0
        finished = record.get("state") == "finished"
        return {
            "state": record.get("state", "never"),
            "done": done * size,
            "total": done * size if finished else max(total, done) * size,
            "rate": round(rate),
            "seconds_left": round(max(0, total - done) * size / rate) if rate and not finished else None,
            "started": _utc(record.get("started")),
            "finished": _utc(record.get("finished")),
            "suspects": len(scrub.suspects) if scrub is not None else len(record.get("suspects") or ()),
            **{name: record.get(name, empty) for name, empty in (("bad_count", 0), ("unverified", 0))},
            "bad": record.get("bad", []),
            "slots": record.get("slots", []),
        }

    def _run(self, scrub: Scrub) -> Work:
        """The steps of a scrub for as long as it is the one that runs."""
        steps = scrub.steps()
        answer = None
        try:
            while self._scrub is scrub:
                try:
                    request = steps.send(answer)
                except StopIteration:
                    break
                answer = yield request
                if self._scrub is scrub and self._clock() - self._saved_at >= SAVE_SECONDS:
                    self._keep(scrub, "running")
        finally:
            steps.close()
            if self._scrub is scrub:
                self._scrub = None
                if scrub.finished:
                    self._finish(scrub)
                else:
                    self._keep(scrub, "stopped")

    def _finish(self, scrub: Scrub) -> None:
        self._record["finished"] = int(self._wall_clock())
        self._keep(scrub, "finished")
        for bad in scrub.bad.values():
            held = [f"{path.decode('utf-8', 'backslashreplace')}" for owner in bad.owners for path in owner.paths]
            log.error("scrub: block %d is bad: %s; held by %s", bad.block, bad.problem, ", ".join(held) or "no file")
        for line in scrub.slots:
            log.error("scrub: %s", line)
        log.info("scrub: finished: %d blocks verified, %d bad", scrub.done, scrub.bad_count)

    def _describe(self, scrub: Scrub, state: str) -> None:
        """Brings the record up to date."""
        size = self._volume.geometry.block_size
        suspects = sorted(scrub.suspects.items())
        # Where they are too many to be kept, the next scrub has to find them again.
        position = min([scrub.position, *(block for block, _ in suspects[SUSPECTS_MAX : SUSPECTS_MAX + 1])])
        self._record |= {
            "state": state,
            "position": 0 if scrub.finished else position,
            "done": scrub.done,
            "suspects": {str(block): text for block, text in suspects[:SUSPECTS_MAX]},
            "bad_count": scrub.bad_count,
            "bad": [bad.to_json(self._volume.geometry.block_offset) for bad in scrub.bad.values()],
            "slots": scrub.slots,
            "unverified": scrub.unverified * size,
        }

    def _keep(self, scrub: Scrub, state: str) -> None:
        """Puts the record into the settings, as far as something can be written."""
        self._describe(scrub, state)
        self._saved_at = self._clock()
        if self._volume.read_only:
            return
        record = dict(self._record)
        if len(str(record)) > SAVED_BYTES_MAX:
            record["bad"] = [bad | {"owners": []} for bad in record["bad"][:SUSPECTS_MAX]]
        try:
            Settings(self._volume).put(SETTING, record)
        except CowfsError as error:
            log.warning("how far the scrub came cannot be saved: %s", error)


def _number(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _suspects(value: Any) -> dict[int, str]:
    items = value.items() if isinstance(value, dict) else ()
    return {int(block): str(text) for block, text in items if block.isdecimal() and len(block) < 12}


def _utc(seconds: Any) -> str | None:
    if not isinstance(seconds, int):
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def bytes_per_second(value: Any) -> float | None:
    """A rate in MiB/s, as a number or its text, in bytes per second. Raises InvalidArgument."""
    if value is None:
        return None
    try:
        rate = float(value)
    except (TypeError, ValueError):
        rate = 0.0
    if isinstance(value, bool) or not 0.001 <= rate <= 1e9:
        raise InvalidArgument("a rate is a number of MiB per second")
    return rate * MEBIBYTE


async def start(arguments: Arguments, host: Host) -> Reply:
    """`scrub start`: the work goes on in the background."""
    scrubber = host.scrubber
    rate, restart = bytes_per_second(arguments.options.get("rate")), arguments.flag("restart")
    work = scrubber.start(rate=rate, restart=restart)
    if work is not None:
        host.start_job(work)
    return scrubber.status()


async def status(arguments: Arguments, host: Host) -> Reply:
    """`scrub status`."""
    return host.scrubber.status()


async def stop(arguments: Arguments, host: Host) -> Reply:
    """`scrub stop`."""
    host.scrubber.stop()
    return host.scrubber.status()
