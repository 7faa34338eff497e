"""A node computes each page hash of a request once."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from protocol.hashing import PageHash
from protocol.namespace import SHARED, Namespace
from tests.support.world import (
    DECODE,
    HASHER,
    PAGE,
    PREFILL,
    World,
    answer_of,
    decode_scheduler,
    generate,
    prefill_scheduler,
)


@pytest.mark.parametrize("prefill", ["", PREFILL])
def test_each_page_is_hashed_once_by_each_node_also_where_an_answer_gave_way(
    prefill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[int] = []
    hashes_of = HASHER.hashes

    def counted(
        tokens: Sequence[int], namespace: Namespace = SHARED, known: Sequence[PageHash] = ()
    ) -> list[PageHash]:
        hashes = hashes_of(tokens, namespace, known)
        hashed.append(len(hashes) - len(known))
        return hashes

    monkeypatch.setattr(HASHER, "hashes", counted)
    decode = decode_scheduler(num_pages=13)
    world = World(random.Random(3), {PREFILL: prefill_scheduler(), DECODE: decode})
    prompts = {name: [ord(name)] * 20 for name in "abcd"}
    for name, prompt in prompts.items():
        world.post(DECODE, generate(name, prompt, 100, prefill))
    world.run()
    monkeypatch.undo()
    for name, prompt in prompts.items():
        assert world.tokens[name] == answer_of(prompt, 100)
    assert decode.load().counters.preemptions > 0
    at_decode = (20 + 100 - 1) // PAGE  # the last token is not computed
    at_prefill = 20 // PAGE if prefill else 0
    assert sum(hashed) == len(prompts) * (at_decode + at_prefill)
