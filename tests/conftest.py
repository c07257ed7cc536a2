"""Common to all tests. That this file is here puts its folder on the path, so that tests can import `support` and `model`."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cowfs import is_compiled


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long, and from which seed on, the tests marked `soak` repeat their workloads."""
    parser.addoption("--seconds", type=float, default=60.0, help="seconds for each test marked soak")
    parser.addoption("--seed", type=int, default=1, help="first seed of the tests marked soak")


def pytest_configure(config: pytest.Config) -> None:
    """A run of `scripts/test --compiled` is one on a compiled package, whatever else can be imported."""
    if os.environ.get("COWFS_TEST_COMPILED") == "1" and not is_compiled():
        raise pytest.UsageError("the package that the tests found is not compiled")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `interpreted` need plain Python."""
    if is_compiled():
        for item in items:
            if item.get_closest_marker("interpreted") is not None:
                item.add_marker(
                    pytest.mark.skip(reason="replaces a part of a module, which is there for good when compiled")
                )


def is_for_good(owner: object, name: str) -> bool:
    """Whether `name` of a module or class cannot be replaced: it is compiled, or a constant that compiled modules took in."""
    place = (
        owner if isinstance(owner, ModuleType) else sys.modules[owner.__module__] if isinstance(owner, type) else None
    )
    if place is None or not place.__name__.startswith(("cowfs.storage", "cowfs.fs.", "cowfs.ondisk")):
        return False
    source = Path(str(place.__file__))
    if source.suffix != ".py" and (place is not owner or callable(getattr(place, name))):
        return True
    if source.suffix == ".py" and not place.__name__.startswith("cowfs.ondisk"):
        return False
    text = (source.parent / f"{place.__name__.rpartition('.')[2]}.py").read_text(encoding="utf-8")
    return re.search(rf"^{name}: Final\b", text, re.MULTILINE) is not None


@pytest.fixture(autouse=True)
def replacing_is_not_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled does not notice that something in it was replaced, and a test would show nothing: that is an error.

    Attributes of objects cannot be replaced at all, and say so themselves.
    """
    if not is_compiled():
        return
    original = pytest.MonkeyPatch.setattr

    def setattr_(patch: pytest.MonkeyPatch, target: Any, name: Any, *rest: Any, **options: Any) -> None:
        owner, what = target, name
        if isinstance(target, str):
            place, _, what = target.rpartition(".")
            owner = sys.modules.get(place)
        assert not is_for_good(owner, what), f"{owner}: {what} is there for good; mark the test `interpreted`"
        original(patch, target, name, *rest, **options)

    monkeypatch.setattr(pytest.MonkeyPatch, "setattr", setattr_)
