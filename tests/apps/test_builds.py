"""Compiling, running and installing on a mount: make -j, ccache, shared libraries, scripts, pip, npm."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from mounting import Place, run
from programs import needs

pytestmark = [pytest.mark.fuse, pytest.mark.apps]

PARTS = 100
MAKEFILE = """
CC ?= cc
CFLAGS = -O1 -fPIC -MMD
PARTS = $(patsubst %.c,%.o,$(wildcard part*.c))
program: main.o libparts.so
\t$(CC) -o $@ main.o -L. -lparts -Wl,-rpath,'$$ORIGIN'
libparts.so: libparts.a
\t$(CC) -shared -o $@ -Wl,--whole-archive libparts.a -Wl,--no-whole-archive
libparts.a: $(PARTS)
\trm -f $@
\tar rcs $@ $(PARTS)
main.c: $(wildcard part*.c)
\tsh ./generate > main.c
-include $(wildcard *.d)
"""
GENERATE = """#!/bin/sh
echo '#include <stdio.h>'
echo '#include "common.h"'
echo 'int main(void) { long sum = 0;'
for part in part*.c; do echo "extern long ${part%.c}(long); sum += ${part%.c}(1);"; done
echo 'printf("%ld\\\\n", sum); return 0; }'
"""


def make_project(root: Path) -> None:
    """A C program of a hundred sources, with a static and a shared library, and a source that make itself generates."""
    root.mkdir()
    (root / "Makefile").write_text(MAKEFILE)
    (root / "generate").write_text(GENERATE)
    (root / "common.h").write_text("#define COMMON 1\n")
    for number in range(PARTS):
        text = (
            f'#include <stdlib.h>\n#include "common.h"\nlong part{number}(long n) {{ return COMMON * {number} + n; }}\n'
        )
        (root / f"part{number}.c").write_text(text)


def make(root: Path, *words: str, **environment: str) -> str:
    """Runs make with four jobs."""
    return run("make", "-j4", "-C", root, *words, env=os.environ | environment, timeout=600).stdout


@needs("make", "gcc", "ar")
def test_a_parallel_build(mounted: Place) -> None:
    root = mounted.mountpoint / "project"
    make_project(root)
    make(root)
    assert run(root / "program").stdout == f"{sum(range(PARTS)) + PARTS}\n"
    assert "up to date" in make(root), "times of files never go back"
    mounted.remount()
    assert "up to date" in make(root)
    assert run(root / "program").stdout == f"{sum(range(PARTS)) + PARTS}\n"
    (root / "part5.c").write_text((root / "part5.c").read_text().replace("* 5", "* 1005"))
    said = make(root)
    assert "part5.c" in said
    assert "part6.c" not in said
    assert run(root / "program").stdout == f"{sum(range(PARTS)) + PARTS + 1000}\n"
    (root / "common.h").write_text("#define COMMON 2\n")
    assert make(root).count(" -c ") == PARTS + 1


@needs("make", "gcc", "ccache")
def test_ccache_finds_what_it_kept(mounted: Place) -> None:
    root = mounted.mountpoint / "project"
    make_project(root)
    environment = {"CCACHE_DIR": str(mounted.mountpoint / "ccache"), "CC": "ccache gcc"}
    environment |= {"CCACHE_NOHASHDIR": "1", "CCACHE_TEMPDIR": str(mounted.mountpoint / "ccache-temporary")}
    make(root, "libparts.a", **environment)
    run("sh", "-c", f"rm -f '{root}'/*.o '{root}'/*.d '{root}/libparts.a'")
    mounted.remount()
    make(root, "libparts.a", **environment)
    said = run("ccache", "--print-stats", env=os.environ | environment).stdout
    statistics = {name: int(value) for name, value in (line.split("\t") for line in said.splitlines())}
    assert statistics["cache_miss"] == PARTS
    assert statistics["direct_cache_hit"] + statistics["preprocessed_cache_hit"] == PARTS


@needs("gcc")
def test_running_from_a_mount(mounted: Place) -> None:
    root = mounted.mountpoint
    (root / "wait.c").write_text("#include <unistd.h>\nint main(void) { char c; return read(0, &c, 1) < 0; }\n")
    run("gcc", "-o", root / "wait", root / "wait.c")
    with subprocess.Popen([root / "wait"], stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while os.readlink(f"/proc/{process.pid}/exe") != str(root / "wait"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(OSError) as caught, open(root / "wait", "r+b"):
            pass
        assert caught.value.errno == errno.ETXTBSY
        # What linkers and installers do instead: a new file takes the name, and the old one runs on.
        (root / "new").write_bytes((root / "wait").read_bytes())
        (root / "new").chmod(0o755)
        (root / "new").rename(root / "wait")
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0
    run(root / "wait", stdin=subprocess.DEVNULL)
    with open(root / "script", "w", encoding="utf-8") as file:
        file.write(f"#!{sys.executable} -I\nimport sys\nprint(sys.argv[0], *sys.argv[1:])\n")
    (root / "script").chmod(0o755)
    assert run(root / "script", "one", "two").stdout == f"{root / 'script'} one two\n"
    (root / "script").chmod(0o644)
    with pytest.raises(PermissionError):
        run(root / "script")


def write_wheel(path: Path) -> None:
    """A Python package with a program, made by hand, so that nothing is fetched."""
    files = {f"sample/module{number}.py": f"value = {number}\n" for number in range(200)}
    files["sample/__init__.py"] = "def main():\n    print('it runs')\n"
    information = "sample-1.dist-info/"
    files[information + "METADATA"] = "Metadata-Version: 2.1\nName: sample\nVersion: 1\n"
    files[information + "WHEEL"] = "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[information + "entry_points.txt"] = "[console_scripts]\nsample-program = sample:main\n"
    files[information + "RECORD"] = "".join(f"{name},,\n" for name in [*files, information + "RECORD"])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)


def test_pip_installs_into_an_environment_on_a_mount(mounted: Place) -> None:
    root = mounted.mountpoint
    wheel = root / "sample-1-py3-none-any.whl"
    write_wheel(wheel)
    run(sys.executable, "-m", "venv", root / "venv", timeout=600)
    python = root / "venv" / "bin" / "python"
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "TMPDIR": str(root)}
    run(python, "-m", "pip", "install", "--quiet", "--no-index", wheel, env=environment, timeout=600)
    mounted.remount()
    assert run(root / "venv" / "bin" / "sample-program").stdout == "it runs\n"
    code = "import sample.module7 as m; print(m.value, m.__cached__)"
    value, cached = run(python, "-c", code, cwd=root).stdout.split()
    assert value == "7"
    assert Path(cached).is_file()
    run(python, "-m", "pip", "check", env=environment)
    run(python, "-m", "pip", "uninstall", "--quiet", "-y", "sample", env=environment)
    assert not (root / "venv" / "bin" / "sample-program").exists()


@needs("node", "npm")
def test_npm_installs_from_a_mount(mounted: Place) -> None:
    root = mounted.mountpoint
    library, program = root / "library", root / "program"
    for path, text in ((library, '"name": "library", "main": "index.js"'), (program, '"name": "program"')):
        path.mkdir()
        (path / "package.json").write_text(f'{{{text}, "version": "1.0.0"}}')
    (library / "index.js").write_text("module.exports = 6 * 7\n")
    environment = os.environ | {"npm_config_cache": str(root / "cache"), "npm_config_update_notifier": "false"}
    packed = run("npm", "pack", "--silent", library, cwd=root, env=environment).stdout.strip()
    words = ["--offline", "--no-audit", "--no-fund", root / packed]
    run("npm", "install", *words, cwd=program, env=environment)
    mounted.remount()
    assert run("node", "-p", "require('library')", cwd=program).stdout == "42\n"
