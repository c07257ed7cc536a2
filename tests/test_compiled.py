"""What can be compiled: the modules listed in pyproject.toml keep to the rules that make them mean the same either way.

That they really do is what `scripts/test --compiled` shows, which runs the other tests on a compiled package.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_layers import Module, imports, project_modules

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LISTED: list[str] = PROJECT["tool"]["cowfs"]["compile"]["modules"]
MODULES = {module.name: module for module in project_modules()}


def classes(module: Module) -> Iterator[ast.ClassDef]:
    return (node for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef))


def base_names(node: ast.ClassDef) -> set[str]:
    return {ast.unparse(base).rpartition(".")[2] for base in node.bases}


def rule_problems(module: Module) -> list[str]:
    """What a compiled module would do otherwise, or not at all."""
    problems = []
    for line, target in imports(module, frozenset()):
        if target.split(".")[0] == "weakref":
            problems.append(f"{module.name}:{line}: compiled objects cannot be referred to weakly")
    for node in classes(module):
        where = f"{module.name}:{node.lineno}: {node.name}"
        methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
        if methods & {"__getattr__", "__getattribute__", "__setattr__", "__del__"}:
            problems.append(f"{where}: attributes of a compiled class are fixed")
        decorated = any("dataclass" in ast.unparse(item) for item in node.decorator_list)
        plain = not decorated and not base_names(node) & {"IntEnum", "Enum", "NamedTuple", "Protocol"}
        for item in node.body:
            if plain and isinstance(item, ast.Assign) and ast.unparse(item.targets[0]) != "__slots__":
                problems.append(f"{where}: {ast.unparse(item)}: what all objects share is a ClassVar or Final")
    return problems


def inheritance_problems(modules: dict[str, Module], listed: list[str]) -> list[str]:
    """Classes of one kind that have a base, or are the base, of the other."""
    defined = {node.name: module for module in modules.values() for node in classes(module)}
    problems = []
    for module in modules.values():
        for node in classes(module):
            for base in base_names(node):
                home = defined.get(base)
                if home is not None and (module.name in listed) != (home.name in listed):
                    problems.append(
                        f"{module.name}:{node.lineno}: {node.name} is compiled and {base} not, or the reverse"
                    )
    return problems


def test_the_list_names_modules_in_order() -> None:
    assert LISTED == sorted(LISTED)
    assert len(LISTED) > 20
    assert set(LISTED) <= MODULES.keys()
    assert {name.split(".")[1] for name in LISTED} >= {"fs", "storage"}


def test_modules_that_are_compiled_keep_to_the_rules() -> None:
    assert [problem for name in LISTED for problem in rule_problems(MODULES[name])] == []
    assert inheritance_problems(MODULES, LISTED) == []


@pytest.mark.parametrize(
    "source",
    [
        "from weakref import WeakValueDictionary",
        "class A:\n    def __getattr__(self, name): ...",
        "class A:\n    words = 1",
    ],
)
def test_each_rule_can_fail(source: str) -> None:
    assert rule_problems(Module.parse("cowfs.fs.bad", source))


def test_the_rule_of_inheritance_can_fail() -> None:
    pair = {
        "cowfs.fs.a": Module.parse("cowfs.fs.a", "class A: ..."),
        "cowfs.fs.b": Module.parse("cowfs.fs.b", "class B(A): ..."),
    }
    assert inheritance_problems(pair, ["cowfs.fs.a"])
    assert inheritance_problems(pair, ["cowfs.fs.b"])
    assert not inheritance_problems(pair, ["cowfs.fs.a", "cowfs.fs.b"])


def test_nothing_compiled_lies_in_the_checkout() -> None:
    """It would hide the source beside it, whatever is changed there."""
    assert [str(path) for room in ("cowfs", "mkcowfs") for path in (ROOT / room).rglob("*.so")] == []


def backend(code: str, compile_it: str) -> subprocess.CompletedProcess[str]:
    """Runs code that has imported the build backend, as a build does, in the checkout."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, 'scripts'); import backend; {code}"],
        check=False,
        env={**os.environ, "COWFS_COMPILE": compile_it},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def test_only_a_build_that_compiles_needs_mypy() -> None:
    code = "print(backend.wanted()['requires'] if backend.compiling() else [])"
    assert backend(code, "").stdout == backend(code, "0").stdout == "[]\n"
    assert "mypy" in backend(code, "1").stdout


def test_an_editable_installation_is_never_compiled(tmp_path: Path) -> None:
    result = backend(f"backend.build_editable({str(tmp_path)!r})", "1")
    assert result.returncode == 1
    assert "COWFS_COMPILE makes wheels only" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_module_compiles_and_works(tmp_path: Path) -> None:
    """A small one, which imports no other; the whole takes minutes."""
    code = f"""
import os
from setuptools import setup
extensions = backend.extensions(['cowfs.storage.bits'], {str(tmp_path)!r})
for extension in extensions:
    extension.extra_compile_args = [option for option in extension.extra_compile_args if option != '-O3'] + ['-O0']
os.chdir({str(tmp_path)!r})
setup(name='part', packages=[], py_modules=[], ext_modules=extensions,
      script_args=['build', '--build-base', {str(tmp_path)!r}, '--build-lib', {str(tmp_path / "made")!r}])
"""
    result = backend(code, "1")
    assert result.returncode == 0, result.stdout + result.stderr
    room = tmp_path / "made" / "cowfs" / "storage"
    (path,) = room.glob("bits.*.so")
    (room / "__init__.py").touch()
    (room.parent / "__init__.py").touch()
    code = """
from cowfs.storage import bits
page = bytearray(4)
bits.set_bits(page, 3, 9)
print(bits.__file__, page.hex(), bits.all_set(page, 3, 9), bits.all_set(page, 3, 10))
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "made")}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path, check=True
    )
    assert found.stdout == f"{path} f80f0000 True False\n"
