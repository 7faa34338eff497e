"""A cluster whose nodes sleep instead of computing, so that the load does not share their core."""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from infra.cluster import ClusterPlan, LocalCluster
from infra.models import EMBEDDED
from infra.ports import free_port
from infra.process import Child

HOST = "127.0.0.1"
NUM_PREFILL = 2
PREFILL_TOKENS_PER_S = 1_000
PREFILL_BASE_S = 0.01
SHORTEST_PROMPT, LONGEST_PROMPT = 64, 256
ANSWER_TOKENS = 8


@contextmanager
def sleeping_cluster(coordinator_flags: Mapping[str, str]) -> Iterator[LocalCluster]:
    """Runs a coordinator before two nodes that compute prompts at a known pace and one that
    answers."""
    plan = ClusterPlan(
        num_prefill=0,
        num_decode=0,
        host=HOST,
        port=free_port(),
        coordinator_flags={
            "policy": "disaggregate",
            "routing_seed": "1",
            "log_level": "warning",
            **coordinator_flags,
        },
    )
    pace = [
        f"--prefill-tokens-per-s={PREFILL_TOKENS_PER_S}",
        f"--prefill-base-s={PREFILL_BASE_S}",
    ]
    with (
        tempfile.TemporaryDirectory() as directory,
        LocalCluster(plan, Path(directory)) as cluster,
    ):
        for name in [*(f"p{i}" for i in range(NUM_PREFILL)), "d0"]:
            role = "decode" if name == "d0" else "prefill"
            words = [sys.executable, "-m", "benchmarks.clusters.stub_nodes", role, "--name", name]
            words += ["--redis-url", cluster.redis_url, "--simulate"]
            words += pace if role == "prefill" else []
            log_file = Path(directory) / f"{name}.log"
            cluster.children[name] = Child(name, words, log_file, lambda name, line: None)
        cluster.wait_for_nodes()
        yield cluster


@contextmanager
def computing_cluster(coordinator_flags: Mapping[str, str]) -> Iterator[LocalCluster]:
    """Runs a cluster of the embedded model, whose nodes share this machine with the load."""
    plan = ClusterPlan(
        num_prefill=1,
        num_decode=1,
        host=HOST,
        port=free_port(),
        coordinator_flags={
            "model_path": str(EMBEDDED),
            "log_level": "warning",
            **coordinator_flags,
        },
        node_flags={"model_path": str(EMBEDDED), "device": "cpu"},
    )
    with LocalCluster(plan) as cluster:
        yield cluster


def body_of(chance: random.Random, tenant: str) -> bytes:
    """Returns the body of a request whose prompt no other has."""
    length = chance.randint(SHORTEST_PROMPT, LONGEST_PROMPT)
    return msgspec.json.encode(
        {
            "input_ids": [chance.randrange(10, 2_000) for _ in range(length)],
            "sampling_params": {
                "max_new_tokens": ANSWER_TOKENS,
                "temperature": 0,
                "ignore_eos": True,
            },
            "cache_salt": tenant,
            "stream": True,
        }
    )
