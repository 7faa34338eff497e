"""A prefill node fetches from a decode node what it has forgotten, in place of computing it."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from tests.support.engine.driving import prompt_of
from tests.support.models.reference import reference_tokens
from tests.support.processes.clusters import Cluster

PAGE_SIZE = 16


def test_what_prefill_forgot_is_fetched_from_decode(
    pair_cluster: Cluster, random_model: tuple[Path, PreTrainedModel]
) -> None:
    prompt = prompt_of(2000, 199, seed=31)
    first = pair_cluster.generate(prompt)
    assert first["meta_info"]["fetched_tokens"] == 0
    pair_cluster.forget("p0")
    before = pair_cluster.settle()
    again = pair_cluster.generate(prompt)
    meta = again["meta_info"]
    assert again["output_ids"] == first["output_ids"]
    assert again["output_ids"] == reference_tokens(random_model[1], prompt, 8)
    assert (meta["fetched_from"], meta["prefill_node"]) == ("d0", "p0")
    reusable = (len(prompt) - 1) // PAGE_SIZE * PAGE_SIZE
    assert meta["fetched_tokens"] == meta["cached_tokens"] == reusable
    assert meta["transferred_pages"] == 1, "decode has the others itself"
    assert "fetched from d0" in meta["route_reason"]
    after = pair_cluster.settle()
    load_before, load_after = (nodes["p0"]["load"]["counters"] for nodes in (before, after))
    fetched = load_after["fetched_tokens"] - load_before["fetched_tokens"]
    computed = load_after["computed_tokens"] - load_before["computed_tokens"]
    assert (fetched, computed) == (reusable, len(prompt) - reusable)


def test_a_tenants_pages_are_not_fetched_for_another(pair_cluster: Cluster) -> None:
    prompt = prompt_of(1000, 199, seed=32)
    body = {"input_ids": prompt, "sampling_params": {"max_new_tokens": 2, "temperature": 0}}
    for salt in ("a", "b"):
        answer = pair_cluster.http.post("/generate", json=body | {"cache_salt": salt}).json()
        meta = answer["meta_info"]
        assert meta["cached_tokens"] == meta["fetched_tokens"] == 0
        assert meta["fetched_from"] is None
