"""Retention with a fake clock: words, when a snapshot is due, and which ones are thinned."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime

import pytest

from cowfs.errors import InvalidArgument
from cowfs.fs.retention import (
    KEEP_MAX,
    SECOND,
    Keep,
    Policy,
    Taken,
    expendable,
    interval_text,
    is_due,
    next_due,
    parse_interval,
    parse_keep,
    to_thin,
)

MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
WEEK = 7 * DAY


def at(text: str) -> int:
    """Nanoseconds since 1970 of a time of UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND


def series(first: int, step: int, count: int) -> list[Taken]:
    return [(number + 1, first + number * step) for number in range(count)]


def kept(policy: Policy, taken: list[Taken], now: int) -> list[int]:
    thinned = set(to_thin(policy, taken, now))
    return [number for number, _ in taken if number not in thinned]


# --- words ---


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5m", 300), ("30s", 30), ("1h30m", 5400), ("2d", 172_800), ("1w", 604_800), ("30m1h", 5400), ("007m", 420)],
)
def test_intervals(text: str, seconds: int) -> None:
    assert parse_interval(text) == seconds
    assert parse_interval(interval_text(seconds)) == seconds


def test_an_interval_is_written_in_its_largest_units() -> None:
    assert [interval_text(n) for n in (300, 5400, 172_800, 604_801, 90)] == ["5m", "1h30m", "2d", "1w1s", "1m30s"]


@pytest.mark.parametrize(
    "text", ["", "5", "m", "5x", "5m ", "-5m", "5m5m", "1.5h", "5M", "\u0665m", "1y", "9999999999s", "5m\n"]
)
def test_what_is_no_interval(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_interval(text)


def test_retention_words() -> None:
    assert parse_keep("24h14d8w") == (Keep(24, "h"), Keep(14, "d"), Keep(8, "w"))
    assert parse_keep("8w24h14d") == parse_keep("24h14d8w")
    assert parse_keep("10m1y") == (Keep(10, "m"), Keep(1, "y"))


@pytest.mark.parametrize("text", ["", "24", "h", "24h24h", "24s", "24h,14d", "24h 14d", "forever"])
def test_what_is_no_retention(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_keep(text)


@pytest.mark.parametrize(("every", "keep"), [("0s", "1h"), ("367d", "1h"), ("5m", "0h"), ("5m", f"{KEEP_MAX + 1}d")])
def test_a_policy_has_bounds(every: str, keep: str) -> None:
    with pytest.raises(InvalidArgument):
        Policy.parse(every, keep)


@pytest.mark.parametrize("rules", [(), (Keep(1, "d"), Keep(1, "h")), (Keep(1, "d"), Keep(2, "d")), (Keep(1, "q"),)])
def test_a_policy_made_by_hand_is_checked(rules: tuple[Keep, ...]) -> None:
    with pytest.raises(InvalidArgument):
        Policy(300, rules)


@pytest.mark.parametrize("short", [False, True])
def test_a_policy_is_stored_as_json(short: bool) -> None:
    policy = Policy.parse("1h30m", "8w24h", thin_when_short=short)
    value = json.loads(json.dumps(policy.to_json()))
    assert value == {"every": "1h30m", "keep": "24h8w", "thin_when_short": short}
    assert Policy.from_json(value) == policy


@pytest.mark.parametrize(
    "data",
    [
        "[]",
        "{}",
        "7",
        '{"every": 5, "keep": "24h", "thin_when_short": false}',
        '{"every": "5m", "keep": "24h", "thin_when_short": 0}',
        '{"every": "5m", "keep": "24h"}',
        '{"every": "5m", "keep": "24h", "thin_when_short": false, "more": 1}',
        '{"every": "5m", "keep": "no", "thin_when_short": false}',
    ],
)
def test_a_stored_policy_that_makes_no_sense_is_refused(data: str) -> None:
    with pytest.raises(InvalidArgument):
        Policy.from_json(json.loads(data))


# --- when ---


def test_a_snapshot_is_due_once_in_each_interval() -> None:
    policy = Policy.parse("5m", "24h")
    start = at("2024-03-10 12:00:00")
    assert is_due(policy, None, start)
    assert not is_due(policy, start, start + 5 * MINUTE - 1)
    assert is_due(policy, start, start + 5 * MINUTE)
    assert is_due(policy, start + 299 * SECOND, start + 5 * MINUTE)  # not five minutes ago, but of the interval before
    assert is_due(policy, start, start + 3 * DAY)  # slept: one is due, not hundreds
    assert not is_due(policy, start + 3 * DAY, start + 3 * DAY + MINUTE)


def test_a_clock_that_is_set_back_does_not_stop_snapshots() -> None:
    policy = Policy.parse("5m", "24h")
    future, now = at("2030-01-01"), at("2024-01-01 00:02:00")
    assert is_due(policy, future, now)
    assert not is_due(policy, now, now + MINUTE)


def test_when_the_next_one_is_due() -> None:
    policy = Policy.parse("5m", "24h")
    now = at("2024-03-10 12:03:00")
    assert next_due(policy, None, now) == now
    assert next_due(policy, at("2024-03-10 11:59:59"), now) == now
    due = next_due(policy, at("2024-03-10 12:01:00"), now)
    assert due == at("2024-03-10 12:05:00")
    assert is_due(policy, now, due) and not is_due(policy, now, due - 1)


@pytest.mark.parametrize(
    ("every", "boundary"),
    [("1h", "2024-03-10 12:00:00"), ("1d", "2024-03-10"), ("1w", "2024-03-11"), ("6h", "2024-03-10 18:00:00")],
)
def test_intervals_begin_where_hours_days_and_weeks_do(every: str, boundary: str) -> None:
    policy = Policy.parse(every, "24h")
    assert is_due(policy, at(boundary) - 1, at(boundary))
    assert not is_due(policy, at(boundary), at(boundary) + 1)


# --- which ---


def test_one_an_hour_one_a_day_one_a_week() -> None:
    """Five-minute snapshots over half a year, thinned once: exactly which remain."""
    policy = Policy.parse("5m", "24h14d8w")
    first, now = at("2024-01-01"), at("2024-06-29 10:32:00")  # a Saturday
    taken = series(first, 5 * MINUTE, (now - first) // (5 * MINUTE) + 1)
    created = dict(taken)
    remaining = {created[number] for number in kept(policy, taken, now)}
    young = {created for _, created in taken if now - created < HOUR}
    hours = {at("2024-06-29 10:00:00") - back * HOUR - 5 * MINUTE for back in range(23)}
    days = {at("2024-06-29") - back * DAY - 5 * MINUTE for back in range(13)}
    weeks = {at("2024-06-24") - back * WEEK - 5 * MINUTE for back in range(7)}
    assert min(hours) == at("2024-06-28 11:55:00") and min(days) == at("2024-06-16 23:55:00")
    assert min(weeks) == at("2024-05-12 23:55:00")
    assert len(young) == 12 and max(young) == at("2024-06-29 10:30:00")
    assert remaining == young | hours | days | weeks


def test_years() -> None:
    policy = Policy.parse("1d", "3y")
    taken = series(at("2019-01-01 06:00:00"), DAY, 5 * 365)
    now = taken[-1][1]
    created = dict(taken)
    old = [created[number] for number in kept(policy, taken, now) if now - created[number] > 365 * DAY]
    assert old == [at("2021-12-31 06:00:00")]  # 2022 and 2023 are the other two years: the last one is among the young
    assert len(kept(policy, taken, now)) == 366


def test_the_newest_stays_however_old() -> None:
    policy = Policy.parse("5m", "2h")
    taken = series(at("2001-01-01"), MINUTE, 3)
    assert to_thin(policy, taken, at("2024-01-01")) == [1, 2]
    assert to_thin(policy, [], at("2024-01-01")) == []


def test_the_future_stays() -> None:
    policy = Policy.parse("5m", "2h")
    now = at("2024-01-01")
    taken = [(1, now + 10 * DAY), (2, now + 10 * DAY + 1), (3, now), (4, now - 9 * HOUR)]
    assert to_thin(policy, taken, now) == [4]


def test_of_two_at_the_same_moment_the_higher_id_stays() -> None:
    policy = Policy.parse("5m", "5d")
    moment, now = at("2024-01-03 12:00:00"), at("2024-01-05 12:00:00")
    assert to_thin(policy, [(7, moment), (9, moment), (8, moment), (10, now)], now) == [7, 8]


@pytest.mark.parametrize("keep", ["24h14d8w", "3h", "5d", "30m6h", "2w1y", "1h1d1w1y"])
@pytest.mark.parametrize("seed", range(4))
def test_it_does_not_matter_when_one_thins(keep: str, seed: int) -> None:
    """Thinned after each snapshot, now and then, or once at the end: the same ones remain."""
    choose = random.Random(f"{keep}.{seed}")
    policy = Policy.parse("5m", keep)
    now = at("2023-12-28")
    always: list[Taken] = []
    sometimes: list[Taken] = []
    everything: list[Taken] = []
    for number in range(1, 400):
        now += choose.choice((1, 5 * MINUTE, 5 * MINUTE, HOUR, 7 * HOUR, 2 * DAY))
        for taken in (always, sometimes, everything):
            taken.append((number, now))
        for taken in (always, *([sometimes] if choose.random() < 0.05 else [])):
            thinned = set(to_thin(policy, taken, now))
            taken[:] = [one for one in taken if one[0] not in thinned]
    assert kept(policy, always, now) == kept(policy, sometimes, now) == kept(policy, everything, now)
    assert len(always) < len(everything) // 2 or policy.keep[-1].unit == "y"


def test_weeks_of_rolling_snapshots_stay_few() -> None:
    """The daemon's loop with a fake clock: never more snapshots than the rules can name."""
    policy = Policy.parse("5m", "24h14d8w")
    taken: list[Taken] = []
    now = at("2024-02-01 00:00:07")
    most = 0
    for number in range(1, 12 * 24 * 20):
        if is_due(policy, taken[-1][1] if taken else None, now):
            taken.append((number, now))
        gone = set(to_thin(policy, taken, now))
        taken = [one for one in taken if one[0] not in gone]
        most = max(most, len(taken))
        now = next_due(policy, taken[-1][1], now)
    assert 12 + 22 + 13 + 1 <= most <= 12 + 24 + 14 + 2


# --- when space is short ---


def test_what_would_be_thinned_next_goes_first() -> None:
    policy = Policy.parse("5m", "24h14d8w")
    first, now = at("2024-01-01"), at("2024-06-29 10:32:00")
    taken = series(first, 5 * MINUTE, (now - first) // (5 * MINUTE) + 1)
    gone = set(to_thin(policy, taken, now))
    taken = [one for one in taken if one[0] not in gone]
    created = dict(taken)
    order = [created[number] for number in expendable(policy, taken)]
    assert sorted(order) == sorted(created.values())
    assert order[-1] == max(order)
    assert order[:2] == [at("2024-06-29 09:35:00"), at("2024-06-29 09:40:00")]  # the young ones, and hours between them
    assert order.index(at("2024-06-28 11:55:00")) < 11
    assert order[-2] == at("2024-06-23 23:55:00")  # the last of a week, and so of its day and its hour
    thinned = [{*to_thin(policy, taken, now + step * HOUR)} for step in range(60 * 24)]
    until = [next(i for i, gone in enumerate(thinned) if number in gone) for number in expendable(policy, taken)[:-1]]
    assert until == sorted(until)
    assert len(set(until)) > 30


def test_the_order_is_total() -> None:
    policy = Policy.parse("5m", "2h")
    moment = at("2024-01-01")
    taken = [(3, moment), (1, moment), (2, moment - 5 * DAY)]
    assert expendable(policy, taken) == [2, 1, 3]
    assert expendable(policy, []) == []
