"""Questions that share fewer tokens than a page has: what they share is computed once per node."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

import pytest
from tokenizers import Tokenizer

from infra.models import EMBEDDED
from tests.support.processes.clusters import Cluster, start_cluster

QUESTIONS = ("你是谁？你能做什么？", "你是谁？你能帮我写代码吗？")
PAGE_SIZE = 64
"""Larger than either question."""


@pytest.fixture(scope="module", params=[(0, 1), (1, 1)], ids=["one node", "disaggregated"])
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    num_prefill, num_decode = request.param
    cluster = start_cluster(
        tmp_path_factory,
        EMBEDDED,
        num_prefill,
        num_decode,
        dtype="float32",
        page_size=str(PAGE_SIZE),
        deterministic="true",
    )
    yield cluster
    cluster.local.stop()


@pytest.mark.parametrize("num_answered", [2, PAGE_SIZE])
def test_the_second_question_computes_only_what_is_new(cluster: Cluster, num_answered: int) -> None:
    """The first one's page is full only after the longer answer. The tokens are those of a node
    that has nothing cached."""
    cluster.flush()
    tokenizer = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    prompts = [tokenizer.encode(question).ids for question in QUESTIONS]
    num_common = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(*prompts, strict=False))))
    assert 0 < num_common < min(map(len, prompts)) < PAGE_SIZE
    alone = cluster.generate(prompts[1], max_new_tokens=8)
    assert alone["meta_info"]["cached_tokens"] == 0
    cluster.flush()
    cluster.generate(prompts[0], max_new_tokens=num_answered, ignore_eos=True)
    second = cluster.generate(prompts[1], max_new_tokens=8)
    again = cluster.generate(prompts[1], max_new_tokens=8)
    assert second["meta_info"]["cached_tokens"] == num_common
    assert again["meta_info"]["cached_tokens"] == len(prompts[1]) - 1
    assert alone["output_ids"] == second["output_ids"] == again["output_ids"]
