"""`kvrelay bench serve` against a cluster, by each API and with each workload."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes.clusters import Cluster
from tests.support.processes.commands import Ended, kvrelay

OPEN_TRACE = Path(__file__).resolve().parents[3] / "benchmarks/data/conversation_trace.jsonl.gz"
NUM_REQUESTS = 8


def measured(cluster: Cluster, *flags: str, num_requests: int = NUM_REQUESTS) -> dict[str, Any]:
    """Runs the command and returns the run it reports, in which nothing may have failed."""
    size = ("--num-requests", str(num_requests), "--timeout-s", "60")
    ended: Ended = kvrelay("bench", "serve", "--url", cluster.local.url, *size, *flags)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    document = json.loads(ended.stdout.splitlines()[-1])
    (run,) = document["runs"]
    assert document["is_result"] and (run["num_requests"], run["errors"]) == (num_requests, {})
    return dict(run)


@pytest.mark.parametrize("api", ["generate", "completions", "chat"])
def test_dialogues_of_two_turns(tiny_cluster: Cluster, api: str) -> None:
    """Each request has all its tokens, and turns find the pages of those before them."""
    sizes = ("--input-tokens", "48", "--prefix-tokens", "64", "--output-tokens", "12")
    seed = ("--seed", {"generate": "1", "completions": "2", "chat": "3"}[api])
    run = measured(tiny_cluster, "--api", api, "--turns", "2", *sizes, *seed)
    tokens = run["output_tokens_per_s"] * run["duration_s"]
    assert tokens == pytest.approx(NUM_REQUESTS * 12)
    assert run["ttft_ms"]["count"] == run["e2e_ms"]["count"] == NUM_REQUESTS
    assert 0.3 < run["hit_rate"] < 1.0


def test_prompts_have_the_lengths_that_were_asked_for(tiny_cluster: Cluster) -> None:
    sizes = ("--input-tokens", "100", "--prefix-tokens", "28", "--output-tokens", "4")
    run = measured(tiny_cluster, *sizes, "--rate", "20")
    assert run["input_tokens_per_s"] * run["duration_s"] == pytest.approx(128 * NUM_REQUESTS)


def test_the_open_trace(tiny_cluster: Cluster) -> None:
    """All its prompts share a first block, which is found."""
    dataset = ("--workload", "mooncake", "--dataset", str(OPEN_TRACE))
    limits = ("--max-input-tokens", "1200", "--output-tokens", "2", "--speedup", "1000")
    measured(tiny_cluster, *dataset, *limits, num_requests=1)
    run = measured(tiny_cluster, *dataset, *limits)
    assert run["hit_rate"] > 0.3


def test_chats_of_a_file(tiny_cluster: Cluster, tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "My dog is called Bramo."},
        {"from": "gpt", "value": "What a nice name for a dog."},
        {"from": "human", "value": "What is my dog called?"},
        {"from": "gpt", "value": "Your dog is called Bramo."},
    ]
    path = tmp_path / "chats.json"
    path.write_text(json.dumps([{"conversations": turns}] * 4))
    dataset = ("--workload", "sharegpt", "--dataset", str(path), "--turns", "2")
    measured(tiny_cluster, *dataset, "--api", "chat")


def test_a_cache_that_is_flushed_is_cold(tiny_cluster: Cluster) -> None:
    token = ("--admin-token", tiny_cluster.local.admin_token)
    flags = ("--prefix-tokens", "0", "--output-tokens", "2", "--seed", "9")
    measured(tiny_cluster, *flags)
    assert measured(tiny_cluster, *flags)["hit_rate"] > 0.9
    tiny_cluster.settle()
    assert measured(tiny_cluster, *flags, *token, "--flush-cache")["hit_rate"] == 0.0
