"""Who asks what and when in the benchmark on GPUs, and which nodes and servers are asked."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from benchmarks.serving.loads import DEFAULT_LOADS, Load, Scale, User
from benchmarks.serving.systems.layouts import Layout, default_layouts
from benchmarks.serving.systems.ours import FAILED, LOST, ClusterSettings, plan_of
from coordinator.routing.registry import Registry
from engine.batches.sequence import Slice
from engine.errors import RequestFailed
from engine.steps.warm_up import WarmUpLimits
from kvrelay.bench.workloads.dialogue import token_ids
from node.shell.steps import Steps
from node.warm_up import warm_up
from protocol.config import ConfigError
from protocol.ids import Node
from tests.support.coordinator.nodes import LEASE_S, heartbeat
from tests.support.node.poisoned_runner import POISON, Runner

FIRST = 20
"""How much is looked at of users who never end."""


def told(users: list[User]) -> list[object]:
    """Everything about users, as far as one can look."""
    return [
        (user.key, user.begins_s, user.ends_s, list(itertools.islice(user.asks, FIRST)))
        for user in users
    ]


@pytest.mark.parametrize("name", DEFAULT_LOADS)
def test_equal_seeds_give_equal_loads_and_other_seeds_other_prompts(name: str) -> None:
    load = Load.parse(name)
    assert load.label == name
    same = [told(load.users(10.0, Scale(), seed)) for seed in (1, 1, 2)]
    assert same[0] == same[1] != same[2]
    passages = [
        {
            p.seed
            for user in load.users(5.0, Scale(), seed)
            for ask in itertools.islice(user.asks, 3)
            for p in ask.passages
        }
        for seed in (1, 2, -1)
    ]
    assert all(one and not one & other for one, other in itertools.combinations(passages, 2)), (
        "a warm-up and each repeat have prompts of their own"
    )


@pytest.mark.parametrize("name", DEFAULT_LOADS)
def test_traffic_grows_with_the_gpus_and_prompts_do_not(name: str) -> None:
    load = Load.parse(name)
    one, two = (load.users(60.0, Scale(traffic), 0) for traffic in (1.0, 2.0))
    share = len(one) / len(two)
    assert share == 1 if name == "alone" else 0.4 < share < 0.6

    def lengths(users: list[User]) -> set[int]:
        asks = (ask for user in users for ask in itertools.islice(user.asks, FIRST))
        return {sum(passage.num_tokens for passage in ask.passages) for ask in asks}

    assert lengths(one) == lengths(two)


def test_the_loads_are_those_that_they_are_named_after() -> None:
    arrivals = [user.begins_s for user in Load.parse("random@14").users(100.0, Scale(), 0)]
    assert arrivals == sorted(arrivals) and 1200 < len(arrivals) < 1600
    shared = Load.parse("shared@20").users(20.0, Scale(), 0)
    heads: dict[int, set[str]] = {}
    for user in shared:
        (ask,) = user.asks
        heads.setdefault(user.key, set()).add(ask.passages[0].seed)
    assert len(heads) == 8 and all(len(seeds) == 1 for seeds in heads.values())
    turns = Load.parse("turns").users(20.0, Scale(), 0)
    assert len(turns) == 32 and all(user.is_dialogue for user in turns)
    rows = [[ask.row for ask in user.asks] for user in turns]
    assert all(row == ["turns first"] + ["turns later"] * 7 for row in rows)
    mixed = Load.parse("mixed").users(5.0, Scale(), 0)
    assert [user.begins_s for user in mixed[32:]] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert {user.ends_s for user in mixed[:32]} == {5.0}


def test_passages_with_one_seed_are_one_head() -> None:
    (ask, *_) = Load.parse("alone").users(1.0, Scale(prompts=1 / 32), 0)[0].asks
    ids = token_ids(ask.passages, range(256, 1536))
    assert len(ids) == 16 and set(ids) <= set(range(256, 1536))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rand@8", "there are alone, full"),
        ("random", "need a rate, as random@8"),
        ("turns@3", "need a rate"),
        ("random@x", "'x' is no number"),
        ("random@-1", "above 0"),
    ],
)
def test_a_load_that_there_is_not_is_refused_with_those_that_there_are(
    name: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        Load.parse(name)


@pytest.mark.parametrize("num_gpus", [1, 2, 4, 8])
def test_the_layouts_use_every_gpu_that_there_is(num_gpus: int, tmp_path: Path) -> None:
    names = default_layouts(num_gpus)
    for name in names:
        layout = Layout.parse(name, num_gpus)
        plan = plan_of(layout, ClusterSettings(tmp_path, num_gpus, {}, tmp_path), 30000)
        used = [gpu for assigned in plan.assignments.values() for gpu in assigned.gpus]
        assert set(used) == set(range(num_gpus)), name
        assert num_gpus == 1 or len(used) == num_gpus, f"nodes of {name} share a GPU"
        assert set(plan.node_names) == set(layout.sizes)
        apart = layout.num_prefill > 0 and name != "mixed"
        assert (plan.coordinator_flags["policy"] == "disaggregate") == apart
    assert ("mixed" in names) == (num_gpus >= 2)
    assert ("2p6d" in names) == (num_gpus == 8) and ("tp2+2" in names) == (num_gpus == 4)


def test_nodes_of_four_ranks_share_four_gpus(tmp_path: Path) -> None:
    settings = ClusterSettings(tmp_path, 4, {}, tmp_path)
    both = plan_of(Layout.parse("tp4+4", 4), settings, 30000)
    places = {name: assigned.flags for name, assigned in both.assignments.items()}
    assert places["p0"] == {"device": "cuda:0", "memory_share": "0.5000"}
    assert places["d0"] == {"device": "cuda:1", "memory_share": "0.5000"}
    one = plan_of(Layout.parse("tp4", 4), settings, 30000)
    assert one.node_names == ("d0",) and one.coordinator_flags["policy"] == "cost"
    assert one.decode_flags == {"tensor_parallel_size": "4"}
    assert one.assignments["d0"].flags["memory_share"] == "1.0000"


def test_without_gpus_all_nodes_compute_on_the_cpu(tmp_path: Path) -> None:
    plan = plan_of(Layout.parse("1p1d", 2), ClusterSettings(tmp_path, 0, {}, tmp_path), 30000)
    assert plan.assignments == {} and plan.node_flags["device"] == "cpu"
    with pytest.raises(ConfigError, match="write 1p1d"):
        Layout.parse("1d1p", 2)
    with pytest.raises(ConfigError, match="needs as many GPUs"):
        plan_of(Layout.parse("tp2+2", 1), ClusterSettings(tmp_path, 1, {}, tmp_path), 30000)


def test_a_lost_lease_is_what_a_coordinator_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    registry = Registry()
    registry.heartbeat(heartbeat("decode", Node("d0", 1)), now=0.0)
    assert not any(map(LOST.search, caplog.messages))
    registry.expire(LEASE_S)
    registry.heartbeat(heartbeat("decode", Node("d1", 1)), now=0.0)
    registry.remove(Node("d1", 1))
    assert sum(LOST.search(message) is not None for message in caplog.messages) == 2


def test_a_failed_step_is_what_a_node_logs(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned = Slice([POISON], 0, [0], None)
    runner = Runner(ValueError("no such kernel"))
    Steps(runner, lambda: 0.0).start([poisoned], lambda _: None)
    assert sum(FAILED.search(message) is not None for message in caplog.messages) == 1
    Steps(Runner(RequestFailed("its grammar")), lambda: 0.0).start([poisoned], lambda _: None)
    assert sum(FAILED.search(message) is not None for message in caplog.messages) == 1
    monkeypatch.setattr("tests.support.node.poisoned_runner.POISON", 1)
    warm_up(runner, WarmUpLimits(4, 1, 16, 10, 100))
    assert sum(FAILED.search(message) is not None for message in caplog.messages) > 1
