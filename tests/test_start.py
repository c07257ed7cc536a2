"""What starting loads: a mount, and each command, no more than it needs to begin; and nothing that it could do without.

The names are looked at, not the time, which is another one on every machine.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_layers import Module, imports, project_modules

from cowfs.storage.device import FileDevice

ROOT = Path(__file__).resolve().parent.parent

LATER = (
    "cowfs.check",
    "cowfs.export",
    "cowfs.control.commands",
    "cowfs.control.scrub",
    "cowfs.control.policy",
    "mkcowfs",
)
"""What a mount answers without."""
SLOW = ("logging.handlers", "rich", "unittest", "multiprocessing", "asyncio", "http")
"""What takes long, and nobody needs who does not ask for it."""


def loaded_after(code: str) -> set[str]:
    """Names of all modules that a new Python has after `code`."""
    code += "\nimport sys\nprint(*sys.modules, file=sys.__stderr__)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COV_", "COVERAGE"))}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment, check=True
    )
    return set(result.stderr.split())


def under(loaded: set[str], *rooms: str) -> list[str]:
    """Those of `loaded` that are one of the rooms, or lie in one."""
    return sorted(name for name in loaded for room in rooms if name == room or name.startswith(room + "."))


def command(*words: str) -> str:
    """The code that carries out a command, and goes on behind it."""
    return f"from cowfs.cli import program\nassert program.run({list(words)!r}) == 0"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A new volume."""
    path = tmp_path / "image"
    subprocess.run([sys.executable, "-m", "mkcowfs", "--size", "1M", path], check=True, cwd=ROOT, capture_output=True)
    FileDevice.open(path, read_only=True).close()
    return path


def test_a_mount_starts_without_what_only_commands_need() -> None:
    loaded = loaded_after("from cowfs.fuse import daemon, lean\nlean.load_pyfuse3()\nimport cowfs.fuse.server")
    assert under(loaded, "importlib.metadata", "email", "zipfile") == []
    assert {"pyfuse3", "trio", "cowfs.fs.snapshot", "cowfs.fuse.operations"} <= loaded, "that is no mount"
    assert under(loaded, *LATER, "click", "cowfs.cli") == []
    assert under(loaded, *SLOW) == []


def starter(*words: object) -> str:
    """The code of a starter, up to the fork, which is left out."""
    return f"""
import sys
from cowfs import cli
from cowfs.cli import quick
quick.fork.start = lambda report: 0
cli.os._exit = lambda status: None
sys.argv = ["cowfs", *{[str(word) for word in words]!r}]
try:
    cli.main()
except SystemExit as end:
    assert not end.code
"""


def test_the_starter_of_a_mount_loads_next_to_nothing(tmp_path: Path) -> None:
    python = loaded_after("pass")
    for words in (("mount", tmp_path / "image", tmp_path), (tmp_path / "image", tmp_path, "-o", "ro")):
        ours = loaded_after(starter(*words)) - python
        assert {name for name in ours if name.split(".")[0] == "cowfs"} == {
            "cowfs",
            "cowfs.cli",
            "cowfs.cli.quick",
            "cowfs.fuse",
            "cowfs.fuse.fork",
        }
        assert len(ours) <= 8


def test_checksums_do_not_look_for_versions_of_packages() -> None:
    loaded = loaded_after("import cowfs.storage.volume")
    assert "crc32c._crc32c" in loaded
    assert under(loaded, "importlib.metadata", "email", "zipfile") == []


def test_info_of_an_image_loads_only_its_own(image: Path) -> None:
    loaded = loaded_after(command("info", str(image)))
    assert "cowfs.cli.image" in loaded
    assert "cowfs.control.commands" in loaded
    assert under(loaded, "pyfuse3", "trio", "cowfs.check", "cowfs.export", "mkcowfs", *SLOW) == []
    others = {"cowfs.cli." + name for name in ("check", "mount", "reading", "snapshot", "overlay", "crashtest")}
    assert loaded & others == set()


def test_the_list_of_commands_loads_none_of_the_filesystem() -> None:
    loaded = loaded_after("from cowfs.cli import program\nassert program.run(['--help']) == 0")
    assert "cowfs.cli.crashtest" in loaded, "the list says what each command does"
    rooms = ("pyfuse3", "trio", "crc32c", "cowfs.check", "cowfs.export", "cowfs.fs", "cowfs.storage", "cowfs.ondisk")
    assert under(loaded, *rooms, *SLOW) == []


def late_imports(module: Module, known: frozenset[str]) -> set[str]:
    """What the functions of a module import of the product."""
    return {
        target
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for _, target in imports(Module(module.name, module.is_package, ast.Module(node.body, [])), known)
        if target.split(".")[0] in ("cowfs", "mkcowfs")
    }


def test_what_is_loaded_late_is_loaded_all_at_once() -> None:
    """A daemon whose package is upgraded must not load parts of the new one."""
    before = {"cowfs.fuse.daemon"}  # which is left behind when the mount answers
    rooms = ("cowfs.fuse", "cowfs.control", "cowfs.check.scrub", "cowfs.fs", "cowfs.storage", "cowfs.ondisk")
    modules = project_modules()
    known = frozenset(module.name for module in modules)
    wanted: set[str] = set()
    for module in modules:
        if under({module.name}, *rooms) and module.name not in before:
            wanted |= late_imports(module, known)
    assert {"cowfs.control.commands", "cowfs.check.scrub", "cowfs.control.policy"} <= wanted
    loaded = loaded_after("import cowfs.fuse.server\nfrom cowfs.fuse import late\nlate.load()")
    assert wanted - loaded == set()
