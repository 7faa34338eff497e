"""Clusters of nodes of several ranks, and what must hold of any two of them, on any devices.

Beside a prefill node p0 and a decode node d0, whose numbers of ranks change from life to life, a
prefill node p1 and a decode node d1 of one rank each go on whatever happens to those.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, PreTrainedModel

from infra.gpus.assignment import assign_gpus
from tests.support.engine.driving import prompt_of
from tests.support.models.families import LLAMA3_ROPE, SHAPE, random_model
from tests.support.models.reference import reference_tokens
from tests.support.processes.clusters import (
    Cluster,
    body_of,
    save_tokenizer,
    start_cluster,
    wait_until,
)

EIGHT_KV_HEADS = LlamaConfig(
    **SHAPE
    | {
        "hidden_size": 256,
        "intermediate_size": 192,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "initializer_range": 0.1,
    },
    rope_parameters=LLAMA3_ROPE,
    tie_word_embeddings=True,
)
"""Up to eight ranks have KV heads of their own."""
LENGTHS = (1, 17, 300, 2500)
CHUNK_TOKENS = 256
NUM_STREAMED, KILLED_AT = 300, 3
"""Tokens of the answer within which ranks are lost, and how many of them are there before."""
START_S = 120.0
"""How long nodes may take to start: on a GPU they compile kernels."""
NO_LIFE = {"incarnation": 0}
ROLES = {"p0": "prefill", "d0": "decode", "p1": "prefill", "d1": "decode"}


@dataclass(frozen=True)
class Sized:
    """A life of p0 and d0."""

    sizes: Mapping[str, int]
    """How many ranks each has."""
    gpus: Mapping[str, Sequence[int]]
    """The GPU of each of their ranks; empty on a CPU."""


@dataclass(frozen=True)
class RankNodes:
    """The cluster with its model."""

    cluster: Cluster
    model: PreTrainedModel
    num_gpus: int
    """0: all on the CPU."""

    def start(self, prefill: int, decode: int) -> Sized:
        """Starts p0 and d0 with so many ranks, or starts them anew, and waits until both are
        ready."""
        sizes = {"p0": prefill, "d0": decode}
        before = self.cluster.nodes()
        places = assign_gpus(self.num_gpus, sizes) if self.num_gpus else {}
        for name, size in sizes.items():
            if name in self.cluster.local.children:  # alive still, if a test has failed
                self.cluster.kill(name)
            flags = {"device": places[name].flags["device"]} if places else {"device": "cpu"}
            flags["tensor_parallel_size"] = str(size)
            self.cluster.local.start_node(ROLES[name], name, flags)
        for name in sizes:
            is_ready = partial(self._is_ready, name, before.get(name, NO_LIFE)["incarnation"])
            wait_until(is_ready, f"a new life of {name}", START_S)
        return Sized(sizes, {name: place.gpus for name, place in places.items()})

    def _is_ready(self, name: str, before: int) -> bool:
        self.cluster.local.raise_if_dead()
        return bool(self.cluster.nodes().get(name, NO_LIFE)["incarnation"] > before)


@contextmanager
def rank_nodes(tmp_path_factory: pytest.TempPathFactory, num_gpus: int) -> Iterator[RankNodes]:
    """Runs a cluster that has p1 and d1 so far. Their links are of shared memory, so that the GPUs
    of p0 and d0 have no other pairs over NCCL than between those two."""
    path = tmp_path_factory.mktemp("model")
    model = random_model(EIGHT_KV_HEADS)
    model.save_pretrained(path)
    save_tokenizer(path, vocab_size=199)
    flags = {
        "dtype": "float32",
        "max_total_tokens": "16384",
        "chunked_prefill_size": str(CHUNK_TOKENS),
        "max_running_requests": "8",
    }
    cluster = start_cluster(tmp_path_factory, path, 0, 0, **flags)
    try:
        for number, name in enumerate(("p1", "d1")):
            device = f"cuda:{number % num_gpus}" if num_gpus else "cpu"
            cluster.local.start_node(ROLES[name], name, {"device": device, "kv_backend": "shm"})
        cluster.local.wait_for_nodes()
        yield RankNodes(cluster, model, num_gpus)
    finally:
        cluster.local.stop()


def use(cluster: Cluster, *names: str) -> None:
    """Lets only these nodes get requests."""
    for name in cluster.nodes():
        if name in names:
            cluster.admin.undrain(name)
        else:
            cluster.admin.drain(name)


def stream(cluster: Cluster, body: dict[str, Any], at: int = 0, do: Any = None) -> dict[str, Any]:
    """Returns the last update of a streamed answer. `do` is called once, when the answer has `at`
    tokens."""
    last: dict[str, Any] = {}
    with cluster.http.stream("POST", "/generate", json=body | {"stream": True}) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                last = json.loads(line.removeprefix("data: "))
                if do is not None and len(last["output_ids"]) >= at:
                    do()
                    do = None
    return last


def rank_pid(cluster: Cluster, name: str, rank: int) -> int:
    """Returns the process of a rank of the newest life of a node; rank 0 is the node's own."""
    if rank == 0:
        return cluster.local.children[name].process.pid
    log = (cluster.local.log_dir / f"{name}.log").read_text(encoding="utf-8")
    found = re.findall(rf"rank {rank} of {name}@\d+ is process (\d+)", log)
    assert found, log
    return int(found[-1])


def exit_code(cluster: Cluster, name: str) -> int | None:
    """Returns what a node's process ended with; None while it runs."""
    return cluster.local.children[name].process.poll()


def check_pages_travel(nodes: RankNodes, sized: Sized) -> None:
    """Tokens are those of transformers, for prompts of several chunks and all at once, and so are
    those of prompts that are cached; and ranks on two GPUs have exchanged the pages over NCCL."""
    cluster, model = nodes.cluster, nodes.model
    use(cluster, "p0", "d0")
    prompts = [prompt_of(length, 199, seed=_seed(sized)) for length in LENGTHS]
    for is_cached in (False, True):
        with ThreadPoolExecutor(len(prompts)) as clients:
            answers = list(clients.map(cluster.generate, prompts))
        for prompt, answer in zip(prompts, answers, strict=True):
            assert answer["output_ids"] == reference_tokens(model, prompt, 8)
            meta = answer["meta_info"]
            assert (meta["prefill_node"], meta["decode_node"]) == ("p0", "d0")
            if is_cached:
                assert meta["cached_tokens"] >= (len(prompt) - 1) // 16 * 16
            else:
                assert meta["transferred_pages"] == -(-len(prompt) // 16)
    num_pages = sum(-(-length // 16) for length in LENGTHS)
    # Ranks other than the first tell of their links now and then.
    wait_until(lambda: _link(cluster)["pages"] >= num_pages, "news of the links of all ranks")
    told, expected = {*_link(cluster)["transport"].split("+")}, _expected_transports(sized.gpus)
    # A rank tells the transport of its newest link, and has several where p0 has more ranks.
    has_one_each = sized.sizes["p0"] <= sized.sizes["d0"]
    assert told == expected if has_one_each else told <= expected
    assert _link(cluster)["failures"] == 0


def _link(cluster: Cluster) -> dict[str, Any]:
    """Returns what d0 tells of the pages that came from p0."""
    links = cluster.nodes()["d0"]["links"]
    (link,) = [one for one in links if (one["peer"], one["direction"]) == ("p0", "in")]
    return dict(link)


def _seed(sized: Sized) -> int:
    """Returns a number that gives each life prompts of its own."""
    return 10 * sized.sizes["p0"] + sized.sizes["d0"]


def _expected_transports(gpus: Mapping[str, Sequence[int]]) -> set[str]:
    """Returns how the ranks of p0 and d0 that have heads in common reach one another: over NCCL if
    they are on two GPUs, else through the memory of the host."""
    if not gpus:
        return {"shm"}
    return {
        "shm" if gpu == other else "nccl"
        for i, gpu in enumerate(gpus["p0"])
        for j, other in enumerate(gpus["d0"])
        if i * len(gpus["d0"]) < (j + 1) * len(gpus["p0"])
        and j * len(gpus["p0"]) < (i + 1) * len(gpus["d0"])
    }


def check_lost_ranks(nodes: RankNodes, sized: Sized) -> None:
    """The last ranks of p0 and of d0 are killed within an answer. It goes on elsewhere with the
    same tokens, both nodes end with all their ranks, and the others serve on."""
    cluster = nodes.cluster
    use(cluster, "p1", "d1")
    body = body_of(prompt_of(60, 199, seed=_seed(sized)), max_new_tokens=NUM_STREAMED)
    undisturbed = cluster.http.post("/generate", json=body).json()
    use(cluster, "p0", "d0")
    cluster.flush()
    pids = {
        name: [rank_pid(cluster, name, rank) for rank in range(size)]
        for name, size in sized.sizes.items()
    }

    def kill() -> None:
        for name in ("d0", "p0"):  # at once: a GPU has the whole answer in a fraction of a second
            os.kill(pids[name][-1], signal.SIGKILL)
        for name in ("p1", "d1"):
            cluster.admin.undrain(name)

    streamed = stream(cluster, body, KILLED_AT, kill)
    assert streamed["output_ids"] == undisturbed["output_ids"]
    assert streamed["meta_info"]["attempts"] >= 2
    assert streamed["meta_info"]["decode_node"] in ("p1", "d1"), "whichever is there first"
    for name in sized.sizes:
        wait_until(partial(_is_gone, cluster, name, pids[name]), f"the end of {name}")
        assert exit_code(cluster, name) != 0
    use(cluster, "p1", "d1")
    prompt = prompt_of(700, 199, seed=_seed(sized))
    answer = cluster.generate(prompt)
    assert answer["output_ids"] == reference_tokens(nodes.model, prompt, 8)
    assert answer["meta_info"]["decode_node"] == "d1"
    cluster.wait_until_idle()


def _is_gone(cluster: Cluster, name: str, pids: Sequence[int]) -> bool:
    """Returns whether a node has ended, and none of its ranks runs any more."""
    return exit_code(cluster, name) is not None and not any(map(_runs, pids[1:]))


def _runs(pid: int) -> bool:
    """Returns whether there is such a process, other than one that has ended and that nobody has
    waited for: in a container there may be nobody who does."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
