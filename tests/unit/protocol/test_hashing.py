"""Golden vectors: hashes are shared between nodes and versions, so they must never change."""

from __future__ import annotations

import pytest

from protocol.hashing import (
    PageHasher,
    chain_start,
    join_hashes,
    page_hashes,
    split_hashes,
    token_bytes,
    tokens_from_bytes,
)
from protocol.layout import KVLayout
from protocol.namespace import Namespace

LAYOUT = KVLayout(page_size=4, num_layers=2, num_kv_heads=2, head_dim=8, dtype="float32")


def test_golden_vectors() -> None:
    start = chain_start("model", LAYOUT)
    assert start.hex() == "614548d400958298e9ea56ddba0487c4"
    hashes = page_hashes(range(9), 4, start)
    assert [h.hex() for h in hashes] == [
        "7b883d188a6d2263f0f8dac96d198c72",
        "da80cade2db339621ddad9e179c15a49",
    ]


def test_only_full_pages_have_hashes() -> None:
    start = chain_start("model", LAYOUT)
    assert [len(page_hashes(range(n), 4, start)) for n in (0, 3, 4, 7, 8)] == [0, 0, 1, 1, 2]


def test_a_hash_covers_everything_before_it() -> None:
    start = chain_start("model", LAYOUT)
    one, other = (
        page_hashes([1, 2, 3, 4, 5, 6, 7, 8], 4, start),
        page_hashes([9, 2, 3, 4, 5, 6, 7, 8], 4, start),
    )
    assert one[0] != other[0] and one[1] != other[1]


@pytest.mark.parametrize(
    ("fingerprint", "salt", "adapter"),
    [("other", "", ""), ("model", "tenant", ""), ("model", "", "tenant"), ("mode", "l", "")],
)
def test_namespaces_keep_apart(fingerprint: str, salt: str, adapter: str) -> None:
    plain = page_hashes(range(4), 4, chain_start("model", LAYOUT))
    other = page_hashes(range(4), 4, chain_start(fingerprint, LAYOUT, Namespace(salt, adapter)))
    assert plain != other


def test_chains_continue_from_a_page_hash() -> None:
    start = chain_start("model", LAYOUT)
    whole = page_hashes(range(12), 4, start)
    assert page_hashes(range(4, 12), 4, whole[0]) == whole[1:]


def test_blobs_round_trip() -> None:
    hashes = page_hashes(range(12), 4, chain_start("model", LAYOUT))
    assert split_hashes(join_hashes(hashes)) == hashes
    assert tokens_from_bytes(token_bytes([0, 7, 2**31 - 1])) == [0, 7, 2**31 - 1]
    with pytest.raises(ValueError, match="whole number"):
        split_hashes(b"short")


def test_the_page_of_the_last_prompt_token_is_never_reusable() -> None:
    hasher = PageHasher("model", LAYOUT)
    for length, reusable in [(1, 0), (4, 0), (5, 1), (8, 1), (9, 2)]:
        hashes = hasher.hashes(range(length))
        assert len(hasher.reusable(hashes, length)) == reusable
