"""The hits that the replay predicts are the hits of a real cluster, for two policies in one run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from benchmarks.replaying.replay import Outcome, Replay, Settings
from infra.models import EMBEDDED
from infra.ports import free_port
from kvrelay.bench.workloads.trace import BLOCK_TOKENS, TraceRequest
from protocol.hashing import PageHasher
from protocol.layout import KVLayout
from tests.support.processes.clusters import Cluster, http_client, wait_until

PAGE_SIZE = 16
NUM_CONVERSATIONS = 5
NUM_TURNS = 4
SYSTEM_PAGES = 12
PAUSE_S = 100.0
"""Between the turns of the replay: in the cluster each waits for the one before it to end."""
TOLERANCE = 0.02

Turn = list[list[int]]
"""The prompts of all conversations at one moment."""


@pytest.fixture(scope="module")
def turns() -> list[Turn]:
    """Returns conversations with one system prompt. They grow by a question and an answer, of
    different lengths, and none ends at a page's border."""
    rng = random.Random(7)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(100, 2000) for _ in range(count)]

    system = tokens(SYSTEM_PAGES * PAGE_SIZE)
    conversations = [system + tokens(rng.randrange(40, 200)) for _ in range(NUM_CONVERSATIONS)]
    turns: list[Turn] = [[[*system, *tokens(5)]]]  # somebody was here before
    for _ in range(NUM_TURNS):
        turns.append([list(conversation) for conversation in conversations])
        for conversation in conversations:
            conversation += tokens(rng.randrange(20, 200))
    return turns


@pytest.fixture(scope="module")
def round_robin(tiny_cluster: Cluster) -> Iterator[httpx.Client]:
    """A second coordinator of the same cluster, with the other policy."""
    port = free_port()
    flags = {"model_path": str(EMBEDDED), "port": str(port), "policy": "round-robin"}
    child = tiny_cluster.local.start_process("coordinator", "coordinator-round-robin", flags)
    http = http_client(f"http://127.0.0.1:{port}")

    def knows_all_nodes() -> bool:
        try:
            return len(http.get("/admin/nodes").json()) == 4
        except httpx.HTTPError:
            return False  # not listening yet

    wait_until(knows_all_nodes, "four nodes at the second coordinator")
    yield http
    child.terminate()
    child.wait()


def measured(http: httpx.Client, turns: list[Turn], salt: str) -> list[dict[str, Any]]:
    """Returns the meta_info of every answer. The prompts of a turn are one batch, so that their
    order is certain."""
    metas = []
    for turn in turns:
        sampling = {"max_new_tokens": 4, "temperature": 0.0, "ignore_eos": True}
        body = {"input_ids": turn, "sampling_params": sampling, "cache_salt": salt}
        response = http.post("/generate", json=body)
        assert response.status_code == 200, response.text
        metas += [dict(answer["meta_info"]) for answer in response.json()]
    return metas


def predicted(turns: list[Turn], policy: str) -> Outcome:
    """Returns what the replay of the same prompts on two nodes predicts; a page is a block of
    it."""
    layout = KVLayout(PAGE_SIZE, num_layers=1, num_kv_heads=1, head_dim=1, dtype="float32")
    hasher = PageHasher("", layout)
    trace = [
        TraceRequest(PAUSE_S * number, len(prompt) // PAGE_SIZE * BLOCK_TOKENS + 1, 1, hashes)
        for number, turn in enumerate(turns)
        for prompt in turn
        for hashes in [hasher.hashes(prompt)]
    ]
    return Replay(trace, Settings(nodes=2, pages_per_node=0, policy=policy)).run()


def test_hits_are_those_of_the_replay(
    tiny_cluster: Cluster, round_robin: httpx.Client, turns: list[Turn]
) -> None:
    num_prompt_tokens = sum(len(prompt) for turn in turns for prompt in turn)
    ratios = {}
    for policy, http in (("disaggregate", tiny_cluster.http), ("round-robin", round_robin)):
        metas = measured(http, turns, salt=policy)
        outcome = predicted(turns, policy)
        found = sum(meta["cached_tokens"] for meta in metas) / num_prompt_tokens
        expected_pages = outcome.hit_blocks + outcome.fetched_blocks
        expected = expected_pages * PAGE_SIZE / num_prompt_tokens
        assert abs(found - expected) <= TOLERANCE, f"{policy}: {found:.3f}, not {expected:.3f}"
        ratios[policy] = found
    assert {meta["prefill_node"] for meta in metas} == {"p0", "p1"}, "round robin uses both"
    assert ratios["disaggregate"] > ratios["round-robin"] + 0.1
