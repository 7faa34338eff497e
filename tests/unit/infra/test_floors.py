"""What a launcher takes of its host: ports, a directory for logs, names in a Redis."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from infra import redis_server
from infra.cluster import ClusterPlan, LocalCluster
from infra.command.log_directory import LogDirectory
from infra.ports import free_port, require_free
from infra.process import Child, start_program
from infra.redis_server import check_reachable, require_free_names, server_command
from protocol.config import ConfigError
from protocol.ids import Node
from protocol.redis.client import connect
from protocol.redis.ownership import NodeKeys

HOLD = (
    "import sys; from pathlib import Path; from infra.command.log_directory import LogDirectory; "
    "made = LogDirectory(Path(sys.argv[1])); print(made.path, flush=True); sys.stdin.read()"
)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[tuple[str, Child]]:
    server = server_command(tmp_path)
    child = Child("redis", server.command, tmp_path / "redis.log", lambda *_: None)
    server.wait_until_ready(child)
    yield server.url, child
    child.terminate()
    child.wait()


def test_a_port_that_is_taken_is_told_with_who_has_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as refused:
            require_free("127.0.0.1", port)
    assert f"port {port} on 127.0.0.1 is taken by process {os.getpid()} (" in str(refused.value)
    require_free("127.0.0.1", port)


def test_logs_are_removed_at_the_end_and_those_of_the_living_stay(tmp_path: Path) -> None:
    first, second = LogDirectory(tmp_path), LogDirectory(tmp_path)
    (first.path / "d0.log").write_text("x")
    assert set(tmp_path.iterdir()) == {first.path, second.path}
    first.remove()
    assert list(tmp_path.iterdir()) == [second.path]
    second.remove()
    assert not list(tmp_path.iterdir())


def test_logs_of_a_launcher_that_was_killed_are_removed_by_the_next(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        abandoned = Path(holder.stdout.readline().strip())
        assert abandoned.is_dir()
        LogDirectory(tmp_path).remove()
        assert abandoned.is_dir(), "its launcher lives"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    LogDirectory(tmp_path).remove()
    assert not list(tmp_path.iterdir())


def test_a_cluster_that_was_never_started_or_cannot_start_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    plan = ClusterPlan(0, 1, "127.0.0.1", free_port(), coordinator_flags={"port": "none"})
    LocalCluster(plan)
    assert not list(tmp_path.iterdir())
    gone = replace(plan, redis_url=f"redis://127.0.0.1:{free_port()}")
    for cannot_start in (plan, gone):
        with pytest.raises(ConfigError):
            LocalCluster(cannot_start, start=_refuse).start()
        assert not list(tmp_path.iterdir())


def _refuse(command: object) -> subprocess.Popen[str]:
    raise ConfigError("nothing starts here")


def test_names_of_live_nodes_are_not_taken(
    redis: tuple[str, Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = redis
    monkeypatch.setattr(redis_server, "LEASES_END_S", 0.3)
    client = connect(url, timeout_s=2.0)
    check_reachable(url)
    client.set(NodeKeys.of(Node("d0", 1)).lease, 1)
    with pytest.raises(ConfigError, match="another cluster has nodes of the names d0 ") as refused:
        require_free_names(url, ["p0", "d0"])
    assert "--redis-url" in str(refused.value)
    require_free_names(url, ["p0", "d1"])
    # The lease of a node that was killed ends by itself.
    client.set(NodeKeys.of(Node("d0", 1)).lease, 1, px=100)
    require_free_names(url, ["p0", "d0"])


def test_a_redis_that_took_the_port_first_is_not_shared(redis: tuple[str, Child]) -> None:
    url, child = redis
    mine = server_command(Path("/"))
    other = Child("sleep", [sys.executable, "-c", "input()"], Path("/dev/null"), lambda *_: None)
    try:
        with pytest.raises(ConfigError, match="another Redis has taken the port"):
            replace(mine, url=url).wait_until_ready(other)
        replace(mine, url=url).wait_until_ready(child)
    finally:
        other.process.kill()
        other.wait()


def test_programs_are_started_apart(tmp_path: Path) -> None:
    """A launcher's Ctrl-C must not reach them: each has a session of its own."""
    process = start_program([sys.executable, "-c", "import os; print(os.getsid(0))"])
    assert process.stdout is not None
    with process.stdout:
        assert int(process.stdout.read()) == process.pid != os.getsid(0)
    process.wait()
