"""Which servers and which router a peer has, by its name, and on which GPUs."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.serving.systems.peer_commands import PeerServer
from benchmarks.serving.systems.peer_names import Peer
from benchmarks.serving.systems.peers import PeerPlan, plan_peer
from protocol.config import ConfigError

MORE = ("--more", "1")


def planned(name: str, num_gpus: int) -> PeerPlan:
    peer = Peer.parse(name, num_gpus)
    return plan_peer(peer, "/m", num_gpus, itertools.count(9000), MORE)


def after(server: PeerServer, flag: str) -> str:
    """The word after a flag in a command."""
    return server.words[server.words.index(flag) + 1]


def pairs_after(server: PeerServer, flag: str, count: int) -> list[tuple[str, ...]]:
    """The words after each time that a flag stands in a command."""
    at = [i for i, word in enumerate(server.words) if word == flag]
    return [server.words[i + 1 : i + 1 + count] for i in at]


@pytest.mark.parametrize(
    ("layout", "num_gpus", "ranks", "num_prefill"),
    [
        ("dp", 8, (1,) * 8, 0),
        ("tp4", 8, (4, 4), 0),
        ("tp4", 4, (4,), 0),
        ("tp4", 7, (4,), 0),
        ("pd", 2, (1, 1), 1),
        ("pd", 5, (1,) * 5, 2),
        ("1p3d", 4, (1,) * 4, 1),
        ("2p6d", 8, (1,) * 8, 2),
        ("tp2+4", 8, (2, 4), 1),
    ],
)
@pytest.mark.parametrize("package", ["sglang", "vllm"])
def test_servers_have_gpus_of_their_own(
    package: str, layout: str, num_gpus: int, ranks: tuple[int, ...], num_prefill: int
) -> None:
    plan = planned(f"{package}-{layout}", num_gpus)
    assert (plan.peer.ranks, plan.peer.num_prefill, plan.router) == (ranks, num_prefill, None)
    assert plan.processes == plan.servers and len(plan.servers) == len(ranks)
    ports = [server.port for server in plan.servers]
    assert len(set(ports)) == len(ranks)
    used: list[int] = []
    for number, (server, num_ranks) in enumerate(zip(plan.servers, ranks, strict=True)):
        assert server.words[-2:] == MORE and "/m" in server.words
        assert after(server, "--tensor-parallel-size") == str(num_ranks)
        seen = server.environment.get("CUDA_VISIBLE_DEVICES", "")
        if not num_prefill:
            assert len(seen.split(",")) == num_ranks, "it sees no others"
        elif package == "sglang":
            assert not seen, "all stay visible"
            first = int(after(server, "--base-gpu-id"))
            seen = ",".join(map(str, range(first, first + num_ranks)))
            role = "prefill" if number < num_prefill else "decode"
            assert after(server, "--disaggregation-mode") == role
        else:
            assert len(set(seen.split(","))) == sum(ranks), "it may open the memory of others"
        if num_prefill:
            assert "cuda_ipc" in server.environment["UCX_TLS"]
        used += [int(gpu) for gpu in seen.split(",")[:num_ranks]]
    assert used == list(range(sum(ranks)))


def test_sglangs_router_knows_the_servers_and_where_they_pair() -> None:
    plan = planned("sglang-1p3d-router", 4)
    router = plan.router
    assert router and plan.processes == (*plan.servers, router)
    assert router.num_workers == 4 and router.port not in {one.port for one in plan.servers}
    prefill, *decodes = plan.servers
    assert pairs_after(router, "--prefill", 2) == [(prefill.url, str(prefill.bootstrap_port))]
    assert after(prefill, "--disaggregation-bootstrap-port") == str(prefill.bootstrap_port)
    assert pairs_after(router, "--decode", 1) == [(one.url,) for one in decodes]
    assert "--pd-disaggregation" in router.words and MORE[0] not in router.words
    assert after(router, "--prefill-policy") == "manual", "it reads no token ids"
    regular = planned("sglang-dp-router", 4)
    assert regular.router and regular.router.words[-4:] == tuple(s.url for s in regular.servers)
    assert after(regular.router, "--policy") == "cache_aware"


def test_vllms_router_needs_no_ports_to_pair() -> None:
    plan = planned("vllm-2p2d-router", 4)
    assert plan.router and "--vllm-pd-disaggregation" in plan.router.words
    following = [words[1] for words in pairs_after(plan.router, "--prefill", 2)]
    assert following == ["--prefill", "--decode"]
    assert after(plan.router, "--prefill-policy") == "cache_aware"
    assert {server.words[1] for server in plan.servers} == {"vllm.entrypoints.openai.api_server"}


@pytest.mark.parametrize(
    ("name", "num_gpus", "words"),
    [
        ("vllm-pd", 1, "vllm-pd needs 2 GPUs; 1 can be used here"),
        ("sglang-3p3d-router", 4, "needs 6 GPUs"),
        ("vllm-tp8", 4, "needs 8 GPUs"),
        ("sglang-tp2+4", 4, "needs 6 GPUs"),
        ("other-dp", 2, "write sglang-dp"),
        ("sglang", 2, "write sglang-dp"),
        ("sglang-0p2d", 2, "write sglang-dp"),
    ],
)
def test_a_peer_that_cannot_run_here_is_refused(name: str, num_gpus: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Peer.parse(name, num_gpus)


def test_a_peer_needs_gpus() -> None:
    with pytest.raises(ConfigError, match="none is visible"):
        plan_peer(Peer.parse("sglang-dp", 2), "/m", 0, itertools.count(9000))
    assert len(planned("sglang-dp", 1).servers) == 1
