"""Common to all tests. That this file is here puts its folder on the path, so that tests can import `support` and `model`."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long, and from which seed on, the tests marked `soak` repeat their workloads."""
    parser.addoption("--seconds", type=float, default=60.0, help="seconds for each test marked soak")
    parser.addoption("--seed", type=int, default=1, help="first seed of the tests marked soak")
