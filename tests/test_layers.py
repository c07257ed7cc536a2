"""Imports point strictly down, and what one room alone may do is done nowhere else.

The rules are read off the syntax trees of all modules, so that an import inside a function or under ``TYPE_CHECKING``
counts like any other. Each rule is shown to fail on a bad sample, too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LAYERS: tuple[tuple[str, ...], ...] = (
    ("cowfs.__main__", "mkcowfs.__main__"),
    ("cowfs.cli", "mkcowfs"),
    ("cowfs.fuse",),
    ("cowfs.control",),
    ("cowfs.check",),
    ("cowfs.export",),
    ("cowfs.fs",),
    ("cowfs.storage",),
    ("cowfs.ondisk",),
    ("cowfs.errors",),
    ("cowfs",),
)
"""The rooms, highest layer first. A room is a module or a package with all that is in it; `cowfs` is only the package's
own ``__init__``. A room imports itself and lower layers; rooms that share a layer do not import each other."""

KEPT_TO: dict[str, tuple[str, ...]] = {
    "struct": ("cowfs.ondisk",),
    "pyfuse3": ("cowfs.fuse",),
    "trio": ("cowfs.fuse",),
    "click": ("cowfs.cli", "mkcowfs"),
    "benchmarks": (),  # they use the product, which must be there without them
}
"""Libraries, and the only rooms that import them."""

ROOMS_WITHOUT_FILES = ("cowfs.ondisk", "cowfs.storage", "cowfs.fs", "cowfs.check")
DEVICE = "cowfs.storage.device"
"""The only module of the rooms above that opens, reads or writes a file; all others are given a device."""

FILE_MODULES = frozenset({"ctypes", "fcntl", "mmap", "pathlib", "shutil", "tempfile"})
OS_WITHOUT_FILES = frozenset(
    {"cpu_count", "fsdecode", "fsencode", "getpid", "major", "makedev", "minor", "PathLike", "strerror", "urandom"}
)
"""What the rooms above may use of `os`, besides its constants."""


@dataclass(frozen=True)
class Module:
    """A module's dotted name, whether it is a package's ``__init__``, and its syntax tree."""

    name: str
    is_package: bool
    tree: ast.Module

    @classmethod
    def parse(cls, name: str, source: str, *, is_package: bool = False) -> Module:
        return cls(name, is_package, ast.parse(source, filename=name))


def project_modules() -> list[Module]:
    """All modules of the product."""
    modules = []
    for path in sorted([*ROOT.glob("cowfs/**/*.py"), *ROOT.glob("mkcowfs/**/*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        modules.append(Module.parse(name, path.read_text(encoding="utf-8"), is_package=is_package))
    return modules


def inside(name: str, room: str) -> bool:
    """Whether the module `name` is `room` or lies in it."""
    return name == room or (room != "cowfs" and name.startswith(room + "."))


def place(name: str) -> tuple[int, str] | None:
    """Height (0 is the lowest layer) and room of a module, or None where the list of layers has no place for it."""
    for depth, rooms in enumerate(LAYERS):
        for room in rooms:
            if inside(name, room):
                return len(LAYERS) - 1 - depth, room
    return None


def imports(module: Module, known: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that `module` imports. `known` tells ``from package import module`` from
    ``from module import name``."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.name.split(".") if module.is_package else module.name.split(".")[:-1]
                package = package[: len(package) - (node.level - 1)]
                base = ".".join([*package, *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield node.lineno, full if full in known else base


def direction_problems(modules: list[Module]) -> list[str]:
    """Modules without a place, and imports that point up, sideways, or cannot be seen."""
    known = frozenset(module.name for module in modules)
    problems = []
    for module in modules:
        own = place(module.name)
        if own is None:
            problems.append(f"{module.name}: has no place in the list of layers")
            continue
        for line, target in imports(module, known):
            if target.split(".")[0] not in ("cowfs", "mkcowfs"):
                continue
            other = place(target)
            if other is None:
                problems.append(f"{module.name}:{line}: imports {target}, which has no place in the list of layers")
            elif other[1] != own[1] and other[0] >= own[0]:
                problems.append(f"{module.name}:{line}: imports {target}, which is not below it")
        problems += [f"{module.name}:{line}: imports by a computed name" for line in computed_imports(module)]
    return problems


def computed_imports(module: Module) -> Iterator[int]:
    """Lines that import by a name which only exists at run time."""
    for node in ast.walk(module.tree):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        if name in ("__import__", "import_module"):
            yield node.lineno  # type: ignore[attr-defined]


def library_problems(modules: list[Module]) -> list[str]:
    """Libraries imported outside the rooms that they are kept to."""
    problems = []
    for module in modules:
        for line, target in imports(module, frozenset()):
            library = target.split(".")[0]
            rooms = KEPT_TO.get(library)
            if rooms is not None and not any(inside(module.name, room) for room in rooms):
                problems.append(f"{module.name}:{line}: imports {library}, which is for {' and '.join(rooms)} only")
    return problems


def file_problems(modules: list[Module]) -> list[str]:
    """File access in the rooms that are given a device."""
    problems = []
    for module in modules:
        if inside(module.name, DEVICE) or not any(inside(module.name, room) for room in ROOMS_WITHOUT_FILES):
            continue
        problems += [f"{module.name}:{line}: {what} is file access" for line, what in file_accesses(module)]
    return problems


def file_accesses(module: Module) -> Iterator[tuple[int, str]]:
    """Line and name of each use of a file function or module."""
    aliases = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    for node in ast.walk(module.tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    if alias.name.split(".")[0] in FILE_MODULES:
                        yield node.lineno, alias.name
            case ast.ImportFrom(module=str(base), level=0, names=names):
                for alias in names:
                    if base.split(".")[0] in FILE_MODULES:
                        yield node.lineno, base
                    elif is_file_access(base, alias.name):
                        yield node.lineno, f"{base}.{alias.name}"
            case ast.Name(id="open", ctx=ast.Load()):
                yield node.lineno, "open"
            case ast.Attribute(value=ast.Name(id=base), attr=attr):
                library = aliases.get(base, "")
                if is_file_access(library, attr):
                    yield node.lineno, f"{library}.{attr}"


def is_file_access(library: str, name: str) -> bool:
    """Whether `name` of the standard library's module `library` opens, reads, writes or looks at files."""
    if library in ("os", "posix"):
        return not name.isupper() and name not in OS_WITHOUT_FILES
    return library == "io" and name in ("open", "FileIO")


@pytest.fixture(scope="module")
def modules() -> list[Module]:
    found = project_modules()
    names = {module.name for module in found}
    assert {"cowfs", "cowfs.errors", "cowfs.__main__", "mkcowfs"} <= names, "the search for modules misses some"
    return found


def test_imports_point_down(modules: list[Module]) -> None:
    assert direction_problems(modules) == []


def test_libraries_stay_in_their_rooms(modules: list[Module]) -> None:
    assert library_problems(modules) == []


def test_only_the_device_touches_files(modules: list[Module]) -> None:
    assert file_problems(modules) == []


SAMPLES = [
    Module.parse("cowfs", "", is_package=True),
    Module.parse("cowfs.errors", ""),
    Module.parse("cowfs.ondisk", "", is_package=True),
    Module.parse("cowfs.ondisk.format", ""),
    Module.parse("cowfs.storage", "", is_package=True),
    Module.parse("cowfs.storage.device", ""),
    Module.parse("cowfs.storage.volume", ""),
    Module.parse("cowfs.fs", "", is_package=True),
    Module.parse("cowfs.cli", ""),
    Module.parse("mkcowfs", "", is_package=True),
    Module.parse("mkcowfs.cli", ""),
]
"""A small project that the bad samples below belong to."""


@pytest.mark.parametrize(
    ("name", "source", "wanted"),
    [
        ("cowfs.ondisk.bad", "import cowfs.storage.volume", "imports cowfs.storage.volume, which is not below"),
        ("cowfs.ondisk.bad", "from cowfs.storage.volume import Volume", "imports cowfs.storage.volume, which is not"),
        ("cowfs.ondisk.bad", "from cowfs import storage", "imports cowfs.storage, which is not below"),
        ("cowfs.ondisk.bad", "from ..storage import volume", "imports cowfs.storage.volume, which is not below"),
        ("cowfs.ondisk.bad", "def f():\n    import cowfs.fs", "bad:2: imports cowfs.fs, which is not below"),
        (
            "cowfs.storage.bad",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from cowfs.fs import Filesystem",
            "bad:3: imports cowfs.fs, which is not below",
        ),
        ("cowfs.errors", "import cowfs.ondisk.format", "imports cowfs.ondisk.format, which is not below"),
        ("mkcowfs.bad", "from cowfs.cli import main", "imports cowfs.cli, which is not below"),
        ("cowfs.novelty", "", "cowfs.novelty: has no place"),
        ("cowfs.cli", "import cowfs.novelty", "imports cowfs.novelty, which has no place"),
        ("cowfs.fs.bad", "import importlib\nimportlib.import_module('cowfs.cli')", "bad:2: imports by a computed name"),
        ("cowfs.fs.bad", "__import__('cowfs.cli')", "imports by a computed name"),
    ],
)
def test_a_wrong_direction_is_found(name: str, source: str, wanted: str) -> None:
    problems = direction_problems([*SAMPLES, Module.parse(name, source)])
    assert len(problems) == 1
    assert wanted in problems[0]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("cowfs.storage.good", "from cowfs.errors import Corrupt\nfrom ..ondisk import format\nfrom . import device"),
        ("cowfs.storage.good", "import os\nimport collections.abc\nfrom cowfs import __version__"),
        ("mkcowfs.good", "from cowfs.storage.volume import Volume\nfrom mkcowfs import cli"),
        ("cowfs.__main__", "from cowfs.cli import main"),
    ],
)
def test_a_right_direction_is_accepted(name: str, source: str) -> None:
    assert direction_problems([*SAMPLES, Module.parse(name, source)]) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("cowfs.storage.bad", "import struct"),
        ("cowfs.fuse.bad", "from struct import pack"),
        ("cowfs.control", "import trio"),
        ("cowfs.fs.bad", "def f():\n    from trio.lowlevel import checkpoint"),
        ("cowfs.cli", "import pyfuse3"),
        ("cowfs.fuse.bad", "import click"),
        ("cowfs.cli.bad", "from benchmarks import common"),
    ],
)
def test_a_library_outside_its_room_is_found(name: str, source: str) -> None:
    (problem,) = library_problems([Module.parse(name, source)])
    assert "which is for" in problem


def test_a_library_in_its_room_is_accepted() -> None:
    samples = [
        Module.parse("cowfs.ondisk.good", "import struct"),
        Module.parse("cowfs.fuse.good", "import pyfuse3\nimport trio"),
        Module.parse("mkcowfs.cli", "import click"),
    ]
    assert library_problems(samples) == []


@pytest.mark.parametrize(
    "source",
    [
        "open('image')",
        "import os\nos.pread(3, 4096, 0)",
        "import os as system\nsystem.pwrite(3, b'', 0)",
        "from os import fsync",
        "import os\nos.path.exists('image')",
        "from pathlib import Path",
        "import mmap",
        "import io\nio.open('image')",
        "from io import FileIO",
        "import functools\nfunctools.partial(open, 'image')",
    ],
)
@pytest.mark.parametrize("name", ["cowfs.ondisk.bad", "cowfs.storage.bad", "cowfs.fs.bad", "cowfs.check.bad"])
def test_file_access_is_found(name: str, source: str) -> None:
    (problem,) = file_problems([Module.parse(name, source)])
    assert "is file access" in problem


def test_file_access_is_accepted_where_it_belongs() -> None:
    samples = [
        Module.parse("cowfs.storage.device", "import os\nos.pread(3, 4096, 0)"),
        Module.parse("cowfs.cli", "open('image')"),
        Module.parse(
            "cowfs.fs.good", "import io\nimport os\nos.urandom(4)\nos.O_EXCL\nio.BytesIO()\nfilesystem.open(7)"
        ),
        Module.parse("cowfs.check.good", "from os import fsencode\ndevice.read(0, 512)"),
    ]
    assert file_problems(samples) == []
