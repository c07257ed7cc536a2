"""Rolling snapshots: when the next one is due, and which old ones a retention rule lets go.

Duty: the rule only. Everything here is a pure function of a policy, of (id, time of creation) of the snapshots that the
policy made, and of the present time; who takes and deletes snapshots is the caller's business, and so is the choice of
those that a policy may touch. Times are nanoseconds since 1970.

**When.** The time line is cut into intervals of `every`, counted from 1970 (of weeks: from a Monday). A snapshot is due
when the newest one, the one with the highest id, is not of the present interval. So a clock that was set back, a machine
that slept and a daemon that was not running need no special case, and no snapshot is made up for.

**Which.** A rule `24h` cuts the time line into hours of UTC and looks at the present hour and the 23 before it; of each it
keeps the newest snapshot. Days begin at midnight, weeks on Monday, years on the first of January. Beside what a rule keeps,
everything younger than the smallest unit of the policy stays (with `24h14d8w`: than an hour), and so does the newest
snapshot, however old it is. The rest goes. Where two were taken at the same moment, the higher id is the newer one.

Invariants:
- Thinning loses nothing that a later thinning would keep: what is the newest of an hour, day or week at any time was so
  at every earlier one. So it does not matter how often, or when, snapshots are thinned.
- A snapshot from the future (the clock was set back) is young, so it stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cowfs.errors import InvalidArgument

Taken = tuple[int, int]
"""(id, time of creation) of a snapshot"""

SECOND: Final = 1_000_000_000
_DAY: Final = 24 * 3600
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": _DAY, "w": 7 * _DAY, "y": 365 * _DAY}
_FIRST_MONDAY: Final = 4 * _DAY  # 1970-01-05
EVERY_UNITS: Final = "smhdw"
KEEP_UNITS: Final = "mhdwy"
EVERY_MIN: Final = 1  # seconds
EVERY_MAX: Final = 366 * _DAY
KEEP_MAX: Final = 100_000  # of one unit
_NUMBER_DIGITS_MAX: Final = 9


@dataclass(frozen=True, slots=True)
class Keep:
    """A rule: the newest snapshot of each of the last `count` units, the present one included."""

    count: int
    unit: str

    def __str__(self) -> str:
        return f"{self.count}{self.unit}"


@dataclass(frozen=True, slots=True)
class Policy:
    """`every`: seconds between two snapshots; `keep`: rules, the smallest unit first.

    `thin_when_short`: when the volume runs short of space, snapshots go earlier than the rules say, in the order of
    `expendable`, rather than a write fails.
    """

    every: int
    keep: tuple[Keep, ...]
    thin_when_short: bool = False

    def __post_init__(self) -> None:
        if not EVERY_MIN <= self.every <= EVERY_MAX:
            raise InvalidArgument(f"the interval must be {EVERY_MIN}s to {EVERY_MAX // _DAY}d")
        units = [rule.unit for rule in self.keep]
        if not units or units != sorted(set(units), key=KEEP_UNITS.find) or not set(units) <= set(KEEP_UNITS):
            raise InvalidArgument(f"retention needs units of {', '.join(KEEP_UNITS)}, each once, smallest first")
        if not all(1 <= rule.count <= KEEP_MAX for rule in self.keep):
            raise InvalidArgument(f"of each unit 1 to {KEEP_MAX} snapshots can be kept")

    @classmethod
    def parse(cls, every: str, keep: str, *, thin_when_short: bool = False) -> Policy:
        """The policy of words such as `5m` and `24h14d8w`. Raises InvalidArgument."""
        return cls(parse_interval(every), parse_keep(keep), thin_when_short)

    @property
    def smallest_unit(self) -> int:
        """Nanoseconds: younger snapshots than this always stay."""
        return _SECONDS[self.keep[0].unit] * SECOND

    def to_json(self) -> dict[str, object]:
        """The policy as JSON has it: words, as `parse` takes them."""
        return {
            "every": interval_text(self.every),
            "keep": "".join(map(str, self.keep)),
            "thin_when_short": self.thin_when_short,
        }

    @classmethod
    def from_json(cls, value: object) -> Policy:
        """The opposite of `to_json`. Raises InvalidArgument for anything else; unknown members are refused."""
        if not isinstance(value, dict) or value.keys() != {"every", "keep", "thin_when_short"}:
            raise InvalidArgument("a policy has the members every, keep and thin_when_short")
        every, keep, thin_when_short = value["every"], value["keep"], value["thin_when_short"]
        if not isinstance(every, str) or not isinstance(keep, str) or not isinstance(thin_when_short, bool):
            raise InvalidArgument("a policy: every and keep are strings, thin_when_short is true or false")
        return cls.parse(every, keep, thin_when_short=thin_when_short)


# --- words ---


def parse_interval(text: str) -> int:
    """Seconds of words such as `30s`, `5m`, `1h30m`, `1d`, `1w`. Raises InvalidArgument."""
    return sum(count * _SECONDS[unit] for count, unit in _numbers(text, EVERY_UNITS, "an interval such as 5m or 1h30m"))


def interval_text(seconds: int) -> str:
    """The opposite of `parse_interval`, in the largest units."""
    words = []
    for unit in reversed(EVERY_UNITS):
        count, seconds = divmod(seconds, _SECONDS[unit])
        if count:
            words.append(f"{count}{unit}")
    return "".join(words)


def parse_keep(text: str) -> tuple[Keep, ...]:
    """The rules of words such as `24h14d8w`, in any order. Raises InvalidArgument."""
    rules = [Keep(count, unit) for count, unit in _numbers(text, KEEP_UNITS, "a retention rule such as 24h14d8w")]
    return tuple(sorted(rules, key=lambda rule: KEEP_UNITS.find(rule.unit)))


def _numbers(text: str, units: str, what: str) -> list[tuple[int, str]]:
    """The (number, unit) pairs of a text that consists of nothing else, each unit at most once."""
    pattern = rf"([0-9]{{1,{_NUMBER_DIGITS_MAX}}})([{units}])"
    if not re.fullmatch(rf"(?:{pattern})+", text):
        raise InvalidArgument(f"{text!r} is not {what} (units: {', '.join(units)})")
    pairs = [(int(number), unit) for number, unit in re.findall(pattern, text)]
    if len({unit for _, unit in pairs}) < len(pairs):
        raise InvalidArgument(f"{text!r} names a unit twice")
    return pairs


# --- when ---


def is_due(policy: Policy, newest: int | None, now: int) -> bool:
    """Whether a snapshot should be taken now; `newest` is when the one with the highest id was made, None without any."""
    return newest is None or _interval(policy, newest) != _interval(policy, now)


def next_due(policy: Policy, newest: int | None, now: int) -> int:
    """When the next snapshot is due: `now`, or the beginning of the next interval."""
    if is_due(policy, newest, now):
        return now
    return (_interval(policy, now) + 1) * policy.every * SECOND + _FIRST_MONDAY * SECOND


def _interval(policy: Policy, time: int) -> int:
    return (time - _FIRST_MONDAY * SECOND) // (policy.every * SECOND)


# --- which ---


def to_thin(policy: Policy, taken: Iterable[Taken], now: int) -> list[int]:
    """The ids of the snapshots that retention lets go now, the oldest first."""
    ordered = _oldest_first(taken)
    kept = {number for number, created in ordered if now - created < policy.smallest_unit}
    kept.update(number for number, _ in ordered[-1:])
    for rule in policy.keep:
        first = _bucket(rule.unit, now) - rule.count + 1
        newest = {_bucket(rule.unit, created): number for number, created in ordered}
        kept.update(number for bucket, number in newest.items() if bucket >= first)
    return [number for number, _ in ordered if number not in kept]


def expendable(policy: Policy, taken: Iterable[Taken]) -> list[int]:
    """All ids in the order in which they should go when space is short: who would be thinned next goes first.

    That is: by the time until which the rules would keep a snapshot, if no newer ones came; then the older one first. The
    newest one comes last, and whether it goes, too, is the caller's decision.
    """
    ordered = _oldest_first(taken)
    until = {number: created + policy.smallest_unit for number, created in ordered}
    for rule in policy.keep:
        newest = {_bucket(rule.unit, created): number for number, created in ordered}
        for bucket, number in newest.items():
            until[number] = max(until[number], _bucket_start(rule.unit, bucket + rule.count))
    last = [number for number, _ in ordered[-1:]]
    return [*sorted((number for number, _ in ordered[:-1]), key=lambda number: until[number]), *last]


def _oldest_first(taken: Iterable[Taken]) -> Sequence[Taken]:
    return sorted(taken, key=lambda one: (one[1], one[0]))


def _bucket(unit: str, time: int) -> int:
    """The number of the minute, hour, day, week or year that a time lies in."""
    seconds = time // SECOND
    if unit == "y":
        return datetime.fromtimestamp(seconds, UTC).year
    if unit == "w":
        seconds -= _FIRST_MONDAY
    return seconds // _SECONDS[unit]


def _bucket_start(unit: str, bucket: int) -> int:
    """The time at which a minute, hour, day, week or year begins."""
    if unit == "y":
        return _year_start(bucket)
    return (bucket * _SECONDS[unit] + (_FIRST_MONDAY if unit == "w" else 0)) * SECOND


def _year_start(year: int) -> int:
    """Years behind those that the calendar knows never begin: their order is all that matters."""
    known = min(year, datetime.max.year)
    return int(datetime(known, 1, 1, tzinfo=UTC).timestamp()) * SECOND + (year - known) * _SECONDS["y"] * SECOND
