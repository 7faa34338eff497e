"""Pages between real nodes: shared, counted, over every transport, past a node that is cut off."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from protocol.layout import KVLayout
from tests.support.engine.driving import prompt_of
from tests.support.models.reference import reference_tokens
from tests.support.processes.clusters import Cluster, start_cluster, wait_until

PAGE_SIZE = 16


def incoming_bytes(cluster: Cluster) -> int:
    links = cluster.settle()["d0"]["links"]
    return sum(link["bytes"] for link in links if link["direction"] == "in")


def test_prompts_that_begin_alike_are_sent_once(pair_cluster: Cluster) -> None:
    """Eight prompts come at once: their common pages travel with the first one, and with no
    other."""
    pair_cluster.flush()
    common = prompt_of(60 * PAGE_SIZE, 199, seed=40)
    prompts = [common + prompt_of(3 * PAGE_SIZE, 199, seed=41 + i) for i in range(8)]
    before = incoming_bytes(pair_cluster)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda p: pair_cluster.generate(p, max_new_tokens=2), prompts))
    moved = incoming_bytes(pair_cluster) - before
    layout = KVLayout(**pair_cluster.nodes()["d0"]["layout"])
    assert moved == (60 + 8 * 3) * layout.page_bytes
    assert sum(a["meta_info"]["transferred_pages"] for a in answers) == 60 + 8 * 3


def only_link(node: dict[str, Any], direction: str) -> dict[str, Any]:
    (link,) = [link for link in node["links"] if link["direction"] == direction]
    return dict(link)


def test_links_are_told_of_with_what_they_moved(pair_cluster: Cluster) -> None:
    pair_cluster.generate(prompt_of(100, 199, seed=48))
    before = pair_cluster.settle()
    moved = pair_cluster.generate(prompt_of(100, 199, seed=49))["meta_info"]["transferred_pages"]
    nodes = pair_cluster.settle()
    layout = KVLayout(**nodes["d0"]["layout"])
    assert moved > 0
    for name, direction, peer in (("p0", "out", "d0"), ("d0", "in", "p0")):
        link, earlier = only_link(nodes[name], direction), only_link(before[name], direction)
        assert link["peer"] == peer and link["transport"] == "shm"
        assert link["open"] and link["failures"] == 0
        assert link["bytes"] == link["pages"] * layout.page_bytes
        assert link["pages"] - earlier["pages"] == moved
        assert link["busy_s"] > earlier["busy_s"]
    counters, earlier_counters = (some["p0"]["load"]["counters"] for some in (nodes, before))
    assert counters["pages_sent"] - earlier_counters["pages_sent"] == moved


@pytest.fixture
def tcp_cluster(
    tmp_path_factory: pytest.TempPathFactory, random_model: tuple[Path, PreTrainedModel]
) -> Iterator[Cluster]:
    """Two prefill nodes and one decode node, as if each were on a host of its own."""
    cluster = start_cluster(
        tmp_path_factory,
        random_model[0],
        2,
        1,
        makes_secret=True,
        kv_backend="tcp",
        chunked_prefill_size="64",
        max_total_tokens="16384",
        lease_s="1.0",
    )
    yield cluster
    cluster.local.stop()


def test_over_tcp_and_past_a_node_that_is_cut_off(
    tcp_cluster: Cluster, random_model: tuple[Path, PreTrainedModel]
) -> None:
    """A prefill node that is stopped holds its sockets open and says nothing: others take over."""
    for length in (1, 17, 900):
        prompt = prompt_of(length, 199, seed=90)
        answer = tcp_cluster.generate(prompt)
        assert answer["output_ids"] == reference_tokens(random_model[1], prompt, 8)
    assert {link["transport"] for link in tcp_cluster.nodes()["d0"]["links"]} == {"tcp"}
    stopped = answer["meta_info"]["prefill_node"]
    process = tcp_cluster.local.children[stopped].process
    process.send_signal(signal.SIGSTOP)
    try:
        prompt = prompt_of(900, 199, seed=90) + prompt_of(50, 199, seed=91)
        answer = tcp_cluster.generate(prompt)
        assert answer["output_ids"] == reference_tokens(random_model[1], prompt, 8)
        assert answer["meta_info"]["prefill_node"] not in (None, stopped)
        wait_until(
            lambda: (
                not any(
                    link["open"]
                    for link in tcp_cluster.nodes()["d0"]["links"]
                    if link["peer"] == stopped
                )
            ),
            "the loss of its links",
        )
    finally:
        process.send_signal(signal.SIGCONT)
    wait_until(lambda: stopped in tcp_cluster.nodes(), "its return")
    for seed in range(4):
        prompt = prompt_of(300, 199, seed=92 + seed)
        answer = tcp_cluster.generate(prompt)
        assert answer["output_ids"] == reference_tokens(random_model[1], prompt, 8)
    tcp_cluster.wait_until_idle()
