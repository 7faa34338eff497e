"""The next turn of a conversation finds the pages of the answer, however soon it comes; in a
session the client sends only what is new."""

from __future__ import annotations

from tests.support.engine.driving import prompt_of
from tests.support.processes.clusters import Cluster, body_of

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


def test_texts_of_a_session_have_one_beginning(tiny_cluster: Cluster) -> None:
    """The tokenizer puts its first token before every text; only that of the first turn is kept."""
    http = tiny_cluster.http
    name = http.post("/open_session", json={"capacity_of_str_len": 1_000}).json()
    rid, whole = None, []
    for text in ("Once upon a time", " there was", " a little dog"):
        params = {"id": name, "rid": rid}
        body = body_of(text, max_new_tokens=4) | {"session_params": params}
        answer = http.post("/generate", json=body | {"return_prompt_token_ids": True}).json()
        encoded = http.post("/tokenize", json={"prompt": text}).json()["tokens"]
        whole += encoded[1:] if rid else encoded
        assert answer["prompt_token_ids"] == whole
        assert whole.count(encoded[0]) == 1
        whole += answer["output_ids"]
        rid = answer["meta_info"]["id"]
    assert tiny_cluster.generate(whole[:-4], max_new_tokens=4)["output_ids"] == whole[-4:]
