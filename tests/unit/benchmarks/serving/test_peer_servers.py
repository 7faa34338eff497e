"""Servers of a peer as processes: they are waited for, and nothing of them is left."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.serving.systems import peer_servers as module
from benchmarks.serving.systems.peer_commands import PeerServer
from benchmarks.serving.systems.peer_names import Peer
from benchmarks.serving.systems.peer_servers import PeerFailed, peer_servers, versions_for
from benchmarks.serving.systems.peers import PeerPlan
from infra.ports import free_port
from tests.support.processes.clusters import wait_until

SERVER = """
import http.server, os, sys
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
print("told", os.environ["TOLD"], flush=True)
if os.fork() == 0:
    import time
    time.sleep(600)  # a worker that outlives its server
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answers).serve_forever()
"""

TWO = Peer.parse("vllm-dp", 2)
ROUTER = """
import http.server, json, sys, urllib.request
found = []
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if len(found) < 2:
            url = sys.argv[2 + len(found)]
            found.append(urllib.request.urlopen(url + "/health").status)
        self.send_response(200)
        self.end_headers()
        told = {"prefill": {"healthy": 1}, "decode": {"healthy": len(found) - 1}}
        self.wfile.write(json.dumps(told).encode())
        print(self.path, len(found), flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answers).serve_forever()
"""
"""It finds one server whenever it is asked, and ends if that does not answer."""


@pytest.fixture(autouse=True)
def short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.02)


@pytest.fixture
def plan() -> PeerPlan:
    servers = []
    for name in ("s0", "s1"):
        port = free_port()
        servers.append(PeerServer(name, port, ("-c", SERVER, str(port)), {"TOLD": name}))
    return PeerPlan(TWO, tuple(servers))


def groups_of(parent: int) -> Iterator[int]:
    """The process groups that the children of a process lead."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if os.getpgid(int(child)) == int(child):
            yield int(child)


def members_of(group: int) -> list[str]:
    """The living processes of a group."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of_group, *_ = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if int(of_group) == group and state not in "ZX":
            members.append(stat.parent.name)
    return members


def test_servers_answer_within_and_are_gone_after(plan: PeerPlan, tmp_path: Path) -> None:
    before = set(groups_of(os.getpid()))
    with peer_servers(plan, sys.executable, tmp_path):
        started = set(groups_of(os.getpid())) - before
        assert [len(members_of(group)) for group in started] == [2, 2]
        assert all(module.is_ready(server) for server in plan.servers)
    wait_until(lambda: not any(map(members_of, started)), "the end of servers and workers")
    assert (tmp_path / "s1.log").read_text().startswith("told s1")


def test_a_router_starts_last_and_is_ready_when_it_has_found_every_server(
    plan: PeerPlan, tmp_path: Path
) -> None:
    port, urls = free_port(), [server.url for server in plan.servers]
    router = PeerServer("router", port, ("-c", ROUTER, str(port), *urls), num_workers=2)
    with peer_servers(PeerPlan(TWO, plan.servers, router), sys.executable, tmp_path):
        told = (tmp_path / "router.log").read_text().splitlines()
    assert [line for line in told if line.startswith("/readiness")] == [
        "/readiness 1",
        "/readiness 2",
    ]


def test_one_that_ends_is_told_with_its_last_lines_and_the_others_stop(
    plan: PeerPlan, tmp_path: Path
) -> None:
    broken = PeerServer(
        "s1", free_port(), ("-c", "print('no memory is left'); raise SystemExit(3)")
    )
    before = set(groups_of(os.getpid()))
    with (
        pytest.raises(PeerFailed, match=r"s1 ended with exit code 3; .*\n  no memory is left"),
        peer_servers(PeerPlan(TWO, (plan.servers[0], broken)), sys.executable, tmp_path),
    ):
        pytest.fail("a server is missing")
    assert set(groups_of(os.getpid())) == before


def test_one_that_does_not_answer_is_given_up(
    plan: PeerPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "START_S", 0.2)
    silent = PeerServer("s0", free_port(), ("-c", "import time; time.sleep(600)"))
    with (
        pytest.raises(PeerFailed, match="s0 did not answer within 0 s"),
        peer_servers(PeerPlan(TWO, (silent,)), sys.executable, tmp_path),
    ):
        pytest.fail("it has not answered")


def test_a_peer_that_is_not_installed_is_told_with_how_to_install_it(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(PeerFailed, match=r"vllm is not installed .* `pip install vllm==.*--peer-p"):
        versions_for(Peer.parse("vllm-pd", 2), str(python))
    python.write_text("#!/bin/sh\ncase $2 in *router*) exit 1;; esac; echo 0.5.17\n")
    assert versions_for(Peer.parse("sglang-dp", 2), str(python)) == {"sglang": "0.5.17"}
    with pytest.raises(PeerFailed, match="--peer sglang-dp-router: sglang-router is not installed"):
        versions_for(Peer.parse("sglang-dp-router", 2), str(python))
