"""Long random runs: session after session, each begun on what a power cut left of the one before, some with faults.

The ordinary run has a fixed budget and fixed seeds. For as long as one likes, from any seed:

    pytest -m soak tests/crash/test_soak.py --seconds 3600 --seed 1

A failure says, in one line, the seed that repeats it.
"""

from __future__ import annotations

import time
from collections import Counter

import pytest
from workloads import QUICK, LongRun

from cowfs.check.crashdevice import Thoroughness
from cowfs.check.crashtest import Judge

SEEDS = range(8)
SESSIONS = 2
STEPS = 25


def long_run(seed: int, judge: Judge, thoroughness: Thoroughness, sessions: int, steps: int) -> LongRun:
    """One run; an exception that leaves it says how to repeat it."""
    run = LongRun(seed, judge, thoroughness)
    try:
        for _ in range(sessions):
            run.session(steps)
    except Exception as error:
        error.add_note(f"repeat it with: pytest -m soak tests/crash/test_soak.py --seconds 1 --seed {seed}")
        raise
    return run


def test_fixed_seeds() -> None:
    judge = Judge()
    performed: Counter[str] = Counter()
    refused: Counter[int] = Counter()
    for seed in SEEDS:
        run = long_run(seed, judge, QUICK, SESSIONS, STEPS)
        performed += run.performed
        refused += run.refused
    print(f"\n{judge.counts}\n{dict(performed)}\nrefused: {dict(refused)}")


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_soak(request: pytest.FixtureRequest) -> None:
    seconds, seed = request.config.getoption("--seconds"), request.config.getoption("--seed")
    judge = Judge()
    performed: Counter[str] = Counter()
    end = time.monotonic() + seconds
    begun = seed
    while seed == begun or time.monotonic() < end:
        thoroughness = Thoroughness(exhaustive_max=4, samples=6, near_misses=8, tears=2)
        performed += long_run(seed, judge, thoroughness, 1 + seed % 5, (20, 60, 150)[seed % 3]).performed
        seed += 1
    print(f"\nseeds {begun} to {seed - 1}: {judge.counts}\n{dict(performed)}")
