"""The routers of SGLang and vLLM, as the benchmark on GPUs starts them, before servers that play
SGLang's and vLLM's: the commands start, find the servers, and bring every answer."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from benchmarks.serving.client import LoadClient
from benchmarks.serving.loads import Ask, User
from benchmarks.serving.systems.peer_commands import PeerServer, router_of
from benchmarks.serving.systems.peer_names import Peer
from benchmarks.serving.systems.peer_servers import peer_servers
from benchmarks.serving.systems.peers import PeerPlan
from infra.ports import free_port
from kvrelay.bench.workloads.dialogue import Passage
from tests.support.bench.played_peers import (
    NUM_TOKENS,
    Json,
    PlayedServer,
    sglang_reply,
    vllm_reply,
)

ROOT = Path(__file__).resolve().parents[3]
PYTHON = Path(os.environ.get("KVRELAY_LOAD", ROOT / ".venv-load")) / "bin" / "python"
VOCABULARY = range(16_000, 90_000)
HEAD_TOKENS, OWN_TOKENS, NUM_USERS, NUM_ASKS = 400, 20, 4, 4
REPLIES = {"sglang": sglang_reply, "vllm": vllm_reply}

pytestmark = [
    pytest.mark.verify,
    pytest.mark.skipif(
        not PYTHON.exists(), reason="the routers are not installed; `make verify` installs them"
    ),
]


def users() -> list[User]:
    """Users who each ask several things that begin alike."""
    found = []
    for key in range(NUM_USERS):
        head = Passage(f"head {key}", HEAD_TOKENS)
        asks = [
            Ask("row", (head, Passage(f"{key}/{i}", OWN_TOKENS)), NUM_TOKENS)
            for i in range(NUM_ASKS)
        ]
        found.append(User(key, asks))
    return found


def ports() -> Iterator[int]:
    while True:
        yield free_port()


async def bodies_behind(name: str, logs: Path) -> list[list[Json]]:
    """What each server of a peer was asked through its router by all users, who all were answered
    as they should be."""
    peer = Peer.parse(name, 4)
    async with AsyncExitStack() as stack:
        played = [
            await stack.enter_async_context(PlayedServer(REPLIES[peer.package])) for _ in peer.ranks
        ]
        bootstraps = itertools.count(9000) if peer.package == "sglang" else itertools.repeat(0)
        servers = [
            PeerServer("played", server.port, (), bootstrap_port=bootstrap)
            for server, bootstrap in zip(played, bootstraps, strict=False)
        ]
        plan = PeerPlan(peer, (), router_of(peer, servers, ports()))
        router = peer_servers(plan, str(PYTHON), logs)
        await asyncio.to_thread(router.__enter__)
        try:
            seen = await LoadClient(plan.system(), VOCABULARY).run(users())
        finally:
            await asyncio.to_thread(router.__exit__, None, None, None)
        answers = [record.answer for record in seen.records]
        assert {(one.failure, one.message, one.num_tokens) for one in answers} == {
            ("", "", NUM_TOKENS)
        }
        assert len(answers) == NUM_USERS * NUM_ASKS
        return [server.bodies for server in played]


def servers_of_heads(asked: list[list[Json]]) -> list[set[int]]:
    """For each head of prompts: the servers that were asked with it."""
    found = defaultdict(set)
    for server, bodies in enumerate(asked):
        for body in bodies:
            prompt = body.get("input_ids") or body["prompt"]
            found[tuple(prompt[:HEAD_TOKENS])].add(server)
    return list(found.values())


@pytest.mark.parametrize("name", ["sglang-dp-router", "vllm-dp-router"])
def test_prompts_that_begin_alike_meet_one_server(name: str, tmp_path: Path) -> None:
    asked = asyncio.run(bodies_behind(name, tmp_path))
    assert sum(map(len, asked)) == NUM_USERS * NUM_ASKS
    assert [len(servers) for servers in servers_of_heads(asked)] == [1] * NUM_USERS


@pytest.mark.parametrize("name", ["sglang-2p2d-router", "vllm-2p2d-router"])
def test_prompts_that_begin_alike_meet_one_prefill_server_and_decode_servers_take_turns(
    name: str, tmp_path: Path
) -> None:
    asked = asyncio.run(bodies_behind(name, tmp_path))
    prefills, decodes = asked[:2], asked[2:]
    assert [len(servers) for servers in servers_of_heads(prefills)] == [1] * NUM_USERS
    assert [len(bodies) for bodies in decodes] == [NUM_USERS * NUM_ASKS // 2] * 2
    assert sum(map(len, prefills)) == NUM_USERS * NUM_ASKS


def test_sglangs_router_lets_both_halves_meet_in_a_room(tmp_path: Path) -> None:
    asked = asyncio.run(bodies_behind("sglang-1p3d-router", tmp_path))
    rooms = [[body["bootstrap_room"] for body in bodies] for bodies in asked]
    assert sorted(rooms[0]) == sorted(itertools.chain(*rooms[1:]))
    assert {body["bootstrap_port"] for body in asked[3]} == {9000}
