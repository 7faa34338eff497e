"""Pages moved = pages of the prompt - pages decode had; counted by both ends."""

from __future__ import annotations

from tests.support.engine.driving import prompt_of
from tests.support.processes.clusters import Cluster

PAGE_SIZE = 16


def moved_by(cluster: Cluster, prompt: list[int]) -> int:
    """Returns how many pages this prompt moves; asserts that sender, receiver and response
    agree."""
    before = cluster.settle()
    answer = cluster.generate(prompt, max_new_tokens=2)
    after = cluster.settle()
    before_counters, counters = (
        {name: node["load"]["counters"] for name, node in nodes.items()}
        for nodes in (before, after)
    )
    sent, received = (
        sum(counters[n][counter] - before_counters[n][counter] for n in counters)
        for counter in ("pages_sent", "pages_received")
    )
    assert sent == received == answer["meta_info"]["transferred_pages"]
    page_bytes = 3 * 2 * PAGE_SIZE * 2 * 16 * 4  # layers, K and V, tokens, heads, dim, float32
    then, now = (nodes["p0"]["load"]["counters"] for nodes in (before, after))
    num_bytes = now["bytes_sent"] - then["bytes_sent"]
    assert num_bytes == sent * page_bytes
    return int(sent)


def test_cold_warm_and_partly_warm_prompts(pair_cluster: Cluster) -> None:
    pair_cluster.flush()
    prompt = prompt_of(200, 199, seed=10)  # 13 pages, the last one with 8 tokens
    assert moved_by(pair_cluster, prompt) == 13
    assert moved_by(pair_cluster, prompt) == 13 - 12
    assert moved_by(pair_cluster, prompt[:100] + prompt_of(60, 199, seed=11)) == 10 - 6
    whole_pages = prompt_of(64, 199, seed=12)
    assert moved_by(pair_cluster, whole_pages) == 4
    assert moved_by(pair_cluster, whole_pages) == 4 - 3  # the last token's page is never a hit
