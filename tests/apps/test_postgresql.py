"""PostgreSQL on a mount: initdb, pgbench, and every acknowledged commit after a kill of the daemon below it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mounting import Place, cowfs, run, wait_until

USER = 65534
SCALE = 2
CLIENTS = 4
KILLS = 3

PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/bin"))
"""Debian keeps the programs of each version apart."""

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.apps,
    pytest.mark.skipif(not (PROGRAMS / "initdb").exists(), reason="needs PostgreSQL's server"),
    pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="needs setpriv of util-linux"),
]

WITHOUT_ROOT = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"] if os.geteuid() == 0 else []
"""PostgreSQL refuses to run as root."""


class Cluster:
    """A database cluster on a mount, and its server."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.data = place.mountpoint / "data"
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, program: str, *words: object, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs one of PostgreSQL's programs."""
        environment = os.environ | {"PGHOST": str(self.place.directory), "PGUSER": "tester", "PGDATABASE": "postgres"}
        command = [*WITHOUT_ROOT, PROGRAMS / program, *words]
        return run(*command, ok=ok, env=environment, cwd=self.place.directory, timeout=600)

    def query(self, text: str) -> str:
        """What a statement gives."""
        return self.run("psql", "-XAtqc", text).stdout.strip()

    def start(self) -> None:
        """Starts the server, and waits until it has recovered."""
        settings = {"listen_addresses": "", "unix_socket_directories": self.place.directory, "shared_buffers": "16MB"}
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with open(self.place.directory / "server.log", "ab") as log:
            command = [*WITHOUT_ROOT, PROGRAMS / "postgres", "-D", self.data, *words]
            self.process = subprocess.Popen(
                [str(word) for word in command], stdout=log, stderr=log, cwd=self.place.directory
            )
        wait_until(lambda: self.run("pg_isready", "-q", ok=False).returncode == 0, seconds=120)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ends the server; with SIGQUIT it does nothing more."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(120)
            self.process = None


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A place that everybody may enter, with a fresh cluster and a running server."""
    with tempfile.TemporaryDirectory() as directory:  # pytest's own are closed to everybody else
        os.chmod(directory, 0o777)
        place = Place(Path(directory)).make(1024)
        place.mount(*(["-o", "allow_other"] if WITHOUT_ROOT else []))
        os.chmod(place.mountpoint, 0o777)
        cluster = Cluster(place)
        try:
            cluster.run("initdb", "--data-checksums", "-U", "tester", "-A", "trust", "-D", cluster.data)
            cluster.start()
            yield cluster
        finally:
            cluster.stop(signal.SIGQUIT)
            place.end()


@contextmanager
def committing(cluster: Cluster, acknowledged: list[int]) -> Iterator[None]:
    """Clients that insert one row after the other, each in a transaction; `acknowledged` gets the rows that are certain."""

    def insert(who: int) -> None:
        text = "".join(
            f"INSERT INTO rows VALUES ({who * 1_000_000 + number}) RETURNING id;\n" for number in range(20_000)
        )
        environment = os.environ | {
            "PGHOST": str(cluster.place.directory),
            "PGUSER": "tester",
            "PGDATABASE": "postgres",
        }
        command = [*WITHOUT_ROOT, str(PROGRAMS / "psql"), "-XAt", "-v", "ON_ERROR_STOP=1", "-f", "-"]
        with subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as client:
            feeding = threading.Thread(target=feed, args=(client, text))
            feeding.start()
            assert client.stdout is not None
            # RETURNING answers before the commit, the line after it does not: "INSERT 0 1".
            row = None
            for line in client.stdout:
                if line.startswith("INSERT") and row is not None:
                    acknowledged.append(row)
                elif line.strip().isdigit():
                    row = int(line)
            feeding.join()

    clients = [threading.Thread(target=insert, args=(who,)) for who in range(CLIENTS)]
    for client in clients:
        client.start()
    yield
    for client in clients:
        client.join(120)
        assert not client.is_alive()


def feed(client: subprocess.Popen[str], text: str) -> None:
    """Writes to a client that may end in the middle."""
    assert client.stdin is not None
    try:
        client.stdin.write(text)
        client.stdin.close()
    except BrokenPipeError:
        return


def assert_consistent(cluster: Cluster) -> None:
    """pgbench's own invariant: each transaction adds the same amount in four tables."""
    sums = [
        cluster.query(f"SELECT sum({column}) FROM {table}")
        for table, column in (
            ("pgbench_accounts", "abalance"),
            ("pgbench_tellers", "tbalance"),
            ("pgbench_branches", "bbalance"),
            ("pgbench_history", "delta"),
        )
    ]
    assert len(set(sums)) == 1, sums
    if (PROGRAMS / "pg_amcheck").exists():
        cluster.run("psql", "-Xqc", "CREATE EXTENSION IF NOT EXISTS amcheck", ok=False)
        cluster.run("pg_amcheck", "--heapallindexed", "--install-missing", "postgres")


def test_pgbench_and_what_a_kill_leaves(cluster: Cluster) -> None:
    place = cluster.place
    cluster.run("pgbench", "-i", "-q", "-s", SCALE, "postgres")
    cluster.query("CREATE TABLE rows (id bigint PRIMARY KEY)")
    acknowledged: list[int] = []
    for _ in range(KILLS):
        enough = len(acknowledged) + 100
        bench = subprocess.Popen(
            [*WITHOUT_ROOT, str(PROGRAMS / "pgbench"), "-n", "-c", "3", "-T", "300", "postgres"],
            env=os.environ | {"PGHOST": str(place.directory), "PGUSER": "tester"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with committing(cluster, acknowledged):
            wait_until(lambda enough=enough: len(acknowledged) > enough, seconds=180)  # type: ignore[misc]
            place.kill()
            assert bench.wait(120) != 0
            cluster.stop(signal.SIGQUIT)
        cowfs("umount", place.mountpoint)
        place.check()
        place.mount(*(["-o", "allow_other"] if WITHOUT_ROOT else []))
        cluster.start()
        found = {int(word) for word in cluster.query("SELECT id FROM rows").split()}
        assert set(acknowledged) - found == set()
        assert_consistent(cluster)
        cluster.query("DELETE FROM rows")
        acknowledged.clear()
    cluster.run("pgbench", "-n", "-c", "3", "-t", "100", "postgres")
    assert_consistent(cluster)
    cluster.stop()
    place.umount()
    place.mount(*(["-o", "allow_other"] if WITHOUT_ROOT else []))
    cluster.run("pg_checksums", "--check", "-D", cluster.data)
    cluster.start()
    assert_consistent(cluster)
    cluster.stop()
