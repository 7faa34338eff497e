"""The next turn of a conversation finds the pages of the answer, however soon it comes."""

from __future__ import annotations

from tests.support.engine.driving import prompt_of
from tests.support.processes.clusters import Cluster

NUM_TRIES = 12
PAGE_SIZE = 16


def test_a_next_turn_sent_at_once_misses_no_page_of_the_answer(pair_cluster: Cluster) -> None:
    """The client does not wait between turns: the record of ownership in Redis may come later."""
    for seed in range(NUM_TRIES):
        prompt = prompt_of(60, 199, seed=700 + seed)
        answer = pair_cluster.generate(prompt, max_new_tokens=40, ignore_eos=True)
        longer = prompt + answer["output_ids"] + prompt_of(20, 199, seed=800 + seed)
        meta = pair_cluster.generate(longer, max_new_tokens=1)["meta_info"]
        num_with_kv = len(prompt) + len(answer["output_ids"]) - 1
        assert meta["cached_tokens"] == num_with_kv // PAGE_SIZE * PAGE_SIZE
