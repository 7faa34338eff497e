"""A node computes each page hash of a request once."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from protocol.hashing import PageHash
from protocol.namespace import SHARED, Namespace
from tests.support.node.lone_nodes import PAGE, LoneNodes


@pytest.mark.parametrize("prefill", ["", "p0"])
def test_each_page_is_hashed_once_by_each_node_also_where_an_answer_gave_way(
    prefill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = LoneNodes(num_pages=13)
    hashed: list[int] = []
    hasher = nodes.cluster.hasher
    hashes_of = hasher.hashes

    def counted(
        tokens: Sequence[int], namespace: Namespace = SHARED, known: Sequence[PageHash] = ()
    ) -> list[PageHash]:
        hashes = hashes_of(tokens, namespace, known)
        hashed.append(len(hashes) - len(known))
        return hashes

    prompts = {name: [ord(name)] * 20 for name in "abcd"}
    for name, prompt in prompts.items():
        nodes.ask("d0", name, prompt, 100, prefill)
    monkeypatch.setattr(hasher, "hashes", counted)
    nodes.run()
    assert nodes.load("d0").counters.preemptions > 0
    at_decode = (20 + 100 - 1) // PAGE  # the last token is not computed
    at_prefill = 20 // PAGE if prefill else 0
    assert sum(hashed) == len(prompts) * (at_decode + at_prefill)
