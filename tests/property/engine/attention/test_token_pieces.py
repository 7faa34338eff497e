"""Pieces of a decode step hold every key that a token sees, and none is much longer than others."""

from __future__ import annotations

from itertools import groupby, pairwise

from hypothesis import given
from hypothesis import strategies as st

from engine.attention.token_pieces import (
    FEW_PIECES,
    LEAST_BLOCKS,
    SLACK,
    TokenPiece,
    most_pieces,
    token_pieces,
)

CONTEXTS = st.lists(st.integers(1, 20_000) | st.integers(1, 300), min_size=1, max_size=60)
WINDOWS = st.none() | st.integers(1, 5000)
BLOCKS = st.sampled_from([32, 64])
WORKERS = st.integers(1, 264)


def num_blocks(begin: int, end: int, block: int) -> int:
    return -(-end // block) - begin // block


def sequences(pieces: list[TokenPiece]) -> list[list[TokenPiece]]:
    return [list(its) for _, its in groupby(pieces, key=lambda piece: piece.sequence)]


@given(CONTEXTS, WINDOWS, BLOCKS, WORKERS)
def test_each_key_that_is_seen_is_in_exactly_one_piece(
    contexts: list[int], window: int | None, block: int, workers: int
) -> None:
    found = sequences(token_pieces(contexts, window, block, workers))
    assert sorted(its[0].sequence for its in found) == list(range(len(contexts)))
    for its in found:
        context = contexts[its[0].sequence]
        first = 0 if window is None else max(0, context - window)
        assert its[0].begin == first and its[-1].end == context
        assert all(piece.begin < piece.end for piece in its)
        for piece, follower in pairwise(its):
            assert piece.end == follower.begin and piece.end % block == 0


@given(CONTEXTS, WINDOWS, BLOCKS, WORKERS)
def test_no_piece_is_much_longer_than_an_equal_share(
    contexts: list[int], window: int | None, block: int, workers: int
) -> None:
    pieces = token_pieces(contexts, window, block, workers)
    lengths = [num_blocks(piece.begin, piece.end, block) for piece in pieces]
    least = min(LEAST_BLOCKS, sum(lengths) / FEW_PIECES + 1)
    assert max(lengths) < max(sum(lengths) * SLACK[0] / (workers * SLACK[1]) + 1, least + 1)
    for its in sequences(pieces):
        own = [num_blocks(piece.begin, piece.end, block) for piece in its]
        assert max(own) - min(own) <= 1


@given(CONTEXTS, WINDOWS, BLOCKS, WORKERS)
def test_pieces_fit_into_buffers_whose_size_no_context_changes(
    contexts: list[int], window: int | None, block: int, workers: int
) -> None:
    pieces = token_pieces(contexts, window, block, workers)
    assert len(pieces) <= most_pieces(len(contexts), workers)


@given(CONTEXTS, WINDOWS, BLOCKS, WORKERS)
def test_the_longest_contexts_come_first_and_equal_ones_are_cut_alike(
    contexts: list[int], window: int | None, block: int, workers: int
) -> None:
    twice = [*contexts, *contexts]
    found = sequences(token_pieces(twice, window, block, workers))
    seen = [num_blocks(its[0].begin, its[-1].end, block) for its in found]
    assert seen == sorted(seen, reverse=True)
    cuts = {its[0].sequence: [(piece.begin, piece.end) for piece in its] for its in found}
    assert all(cuts[i] == cuts[i + len(contexts)] for i in range(len(contexts)))


def test_one_long_context_spreads_over_all_workers() -> None:
    """Of 32 contexts of 300 tokens, and one of 12,000, on 132 multiprocessors with 8 KV heads."""
    pieces = token_pieces([300] * 32 + [12_000], None, 64, 33)
    own = [piece for piece in pieces if piece.sequence == 32]
    assert len(own) == 16 and len(pieces) == 48


def test_equal_contexts_that_fill_the_device_stay_whole() -> None:
    assert len(token_pieces([2080] * 32, None, 64, 33)) == 32
    assert len(token_pieces([2080] * 128, None, 64, 33)) == 128


def test_a_few_blocks_are_not_cut_into_single_ones() -> None:
    """Whatever the device has room for; but a short context alone has nothing to wait for."""
    assert [len(token_pieces([n], None, 64, 66)) for n in (64, 300, 1000, 2048)] == [1, 5, 8, 11]
    assert len(token_pieces([300] * 32, None, 64, 264)) == 64
