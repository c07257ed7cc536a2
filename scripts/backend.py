"""The build backend: setuptools', and with COWFS_COMPILE=1 in the environment mypyc compiles the modules that pay.

What is compiled, and with which mypyc, is said in pyproject.toml ([tool.cowfs.compile]); only then a build needs it. The
sources are the same, and a wheel holds them as well: for tracebacks, and because Python prefers what is compiled beside them.

Nothing is ever compiled into a checkout: there it would go on to be imported when the source beside it has changed. So
COWFS_COMPILE makes wheels only, in a temporary folder, and an editable installation is refused.
"""

from __future__ import annotations

import os
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
    "setup_arguments",
]

CHECKOUT = Path(__file__).resolve().parent.parent
MYPY_OPTIONS = ("--config-file=", "--ignore-missing-imports", "--hide-error-context")
"""The types were checked, strictly, by the tests: a build needs none of the libraries that the sources import."""

setup_arguments: dict[str, Any] = {}
"""What setup.py gives to setuptools."""


def compiling() -> bool:
    """Whether the environment asks for compiled modules."""
    return os.environ.get("COWFS_COMPILE", "0") not in ("", "0")


def wanted() -> dict[str, list[str]]:
    """What is to be compiled (`modules`), and what that needs (`requires`)."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    table: dict[str, list[str]] = project["tool"]["cowfs"]["compile"]
    return table


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """Nothing but setuptools, unless modules are compiled."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *(wanted()["requires"] if compiling() else ())]


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """The wheel, for any Python, or compiled for this one."""
    if not compiling():
        return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    with tempfile.TemporaryDirectory(prefix="cowfs-build-") as folder:
        setup_arguments.update(
            ext_modules=extensions(wanted()["modules"], folder), options={"build": {"build_base": folder}}
        )
        return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """The sources themselves, which are never compiled."""
    if compiling():
        raise SystemExit("COWFS_COMPILE makes wheels only: what is compiled in a checkout would hide its sources")
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def extensions(modules: list[str], folder: str) -> list[Any]:
    """The compiled form of some modules, whose C sources go into `folder`; run in the checkout."""
    from mypyc.build import mypycify

    paths = [name.replace(".", "/") + ".py" for name in modules]
    options = [*MYPY_OPTIONS, f"--cache-dir={folder}/mypy"]
    made: list[Any] = mypycify([*options, *paths], opt_level="1", debug_level="0", target_dir=folder)
    return made
