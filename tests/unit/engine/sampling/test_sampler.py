"""The sampler draws from the right distribution, with randomness that knows no neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import pytest
import torch
from torch import Tensor

from engine.sampling.sampler import _keep_top, sample
from protocol.sampling import Sampling

PROBS = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
LOGITS = PROBS.log() + 3.0  # logits are probabilities up to a constant
NUM_DRAWS = 10_000


def draw(logits: Tensor, samplings: Sequence[Sampling], positions: Sequence[int]) -> Tensor:
    return sample(logits, samplings, positions).tokens


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def counts(sampling: Sampling, logits: Tensor = LOGITS, by: str = "seed") -> Tensor:
    """How often each token is drawn, over many seeds or over many positions of one seed."""
    rows = logits.expand(NUM_DRAWS, -1).clone()
    numbers = range(NUM_DRAWS)
    if by == "seed":
        samplings = [Sampling(**_fields(sampling) | {"seed": n}) for n in numbers]
        tokens = draw(rows, samplings, [7] * NUM_DRAWS)
    else:
        tokens = draw(rows, [sampling] * NUM_DRAWS, numbers)
    return torch.bincount(tokens, minlength=logits.shape[-1])


def _fields(sampling: Sampling) -> dict[str, float]:
    return {name: getattr(sampling, name) for name in sampling.__struct_fields__}


def assert_distributed(observed: Tensor, probs: Tensor) -> None:
    """Pearson's chi-square; 5 degrees of freedom exceed 30 once in 100,000 fair tests."""
    assert not observed[probs == 0].any(), "a token outside of the support"
    kept = probs > 0
    expected = probs[kept].double() / probs.sum() * NUM_DRAWS
    assert ((observed[kept] - expected) ** 2 / expected).sum() < 30


@pytest.mark.parametrize("by", ["seed", "position"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_distribution_at_a_temperature(temperature: float, by: str) -> None:
    observed = counts(Sampling(temperature=temperature, seed=5), by=by)
    assert_distributed(observed, PROBS ** (1 / temperature))


def only(*tokens: int) -> Tensor:
    kept = torch.zeros_like(PROBS)
    kept[list(tokens)] = PROBS[list(tokens)]
    return kept


@pytest.mark.parametrize(
    ("sampling", "support"),
    [
        (Sampling(top_k=1), only(0)),
        (Sampling(top_k=3), only(0, 1, 2)),
        (Sampling(top_k=100), only(0, 1, 2, 3, 4, 5)),
        (Sampling(top_p=0.39), only(0)),
        (Sampling(top_p=0.41), only(0, 1)),
        (Sampling(top_p=0.64), only(0, 1)),
        (Sampling(top_p=0.66), only(0, 1, 2)),
        (Sampling(top_p=1e-9), only(0)),
        # renormalised over the two that top_k left, token 0 has 0.615 of the probability
        (Sampling(top_k=2, top_p=0.6), only(0)),
        (Sampling(top_k=2, top_p=0.63), only(0, 1)),
        (Sampling(min_p=0.36), only(0, 1, 2)),
        (Sampling(min_p=0.39), only(0, 1)),
        (Sampling(min_p=1.0), only(0)),
        (Sampling(top_k=4, top_p=0.9, min_p=0.5), only(0, 1)),
    ],
)
def test_support_and_distribution_of_filters(sampling: Sampling, support: Tensor) -> None:
    assert_distributed(counts(sampling), support)


def test_filters_follow_the_temperature() -> None:
    """At temperature 2 the probabilities are flatter, so the same top_p keeps more tokens."""
    flatter = PROBS.sqrt() / PROBS.sqrt().sum()  # 0.279, 0.220, 0.171, …
    support = torch.where(torch.arange(6) < 3, flatter, 0.0)
    assert_distributed(counts(Sampling(temperature=2.0, top_p=0.6)), support)


def test_greedy_is_argmax_whatever_else_is_set() -> None:
    logits = torch.randn(50, 200, generator=torch.Generator().manual_seed(1))
    greedy = [Sampling(temperature=0.0, top_p=0.5, seed=i) for i in range(50)]
    assert torch.equal(draw(logits, greedy, range(50)), logits.argmax(-1))
    mixed = [s if i % 2 else Sampling(seed=i) for i, s in enumerate(greedy)]
    assert torch.equal(draw(logits, mixed, range(50))[1::2], logits.argmax(-1)[1::2])


@pytest.mark.parametrize("temperature", [1e-6, 1e-12, 1e-40])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    logits = 20 * torch.randn(50, 200, generator=torch.Generator().manual_seed(1))
    samplings = [Sampling(temperature=temperature, seed=i) for i in range(50)]
    assert torch.equal(draw(logits, samplings, range(50)), logits.argmax(-1))


def test_a_neighbour_with_top_p_cuts_nothing_off_a_row_without() -> None:
    """The likeliest token's probability rounds to 1 in float32, yet the others stay possible."""
    relative = torch.tensor([[0.0, -50.0, -80.0, -49.5]]).expand(2, -1)
    kept = _keep_top(relative, [Sampling(), Sampling(top_p=0.5)])
    assert torch.equal(kept[0], relative[0])
    assert kept[1].isfinite().tolist() == [True, False, False, False]


def test_seeds_positions_and_tokens_are_independent() -> None:
    """Neighbouring seeds and positions share no draws beyond chance."""
    flat = torch.zeros(1000, 1000)
    by_seed = draw(flat, [Sampling(seed=i) for i in range(1000)], [0] * 1000)
    by_position = draw(flat, [Sampling(seed=0)] * 1000, range(1000))
    # 1000 fair draws of 1000 tokens hit 632 different ones, give or take 10
    for drawn in (by_seed, by_position):
        assert abs(len(drawn.unique()) - 632) < 60
    assert (by_seed[1:] == by_position[1:]).sum() < 10
    assert (by_seed[1:] == by_seed[:-1]).sum() < 10


def test_extreme_seeds_and_logits_are_no_trouble() -> None:
    logits = torch.full((3, 8), -math.inf)
    logits[:, 5] = 1e30
    samplings = [Sampling(seed=0), Sampling(seed=2**63 - 1), Sampling(top_p=0.1, min_p=1.0)]
    assert draw(logits, samplings, [0, 2**31, 1]).tolist() == [5, 5, 5]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [slice(None), slice(1, 2)], ids=["all", "one"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.0},
        {"top_k": 2},
        {"top_p": 0.5},
        {"top_k": 30, "top_p": 1e-12, "min_p": 0.3},
    ],
    ids=str,
)
def test_a_row_of_no_numbers_gets_some_token_and_spoils_no_other(
    fields: dict[str, float], where: slice, broken: float
) -> None:
    logits = torch.randn(3, 301, generator=torch.Generator().manual_seed(2))
    samplings = [Sampling(seed=i, num_top_logprobs=2, **fields) for i in range(3)]  # type: ignore
    alone = [sample(logits[i : i + 1], samplings[i : i + 1], [4]).tokens for i in (0, 2)]
    logits[1, where] = broken
    tokens = sample(logits, samplings, [4] * 3).tokens
    assert tokens[[0, 2]].tolist() == torch.cat(alone).tolist()
    assert 0 <= tokens[1] < 301


def test_filters_leave_a_token_even_of_rows_without_mass() -> None:
    """As some devices make the masses of NaN 0."""
    assert _keep_top(torch.full((1, 8), -torch.inf), [Sampling(top_p=0.5)]).shape == (1, 8)


class TestRowsWithoutNumbers:
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize(
        "sampling",
        [
            Sampling(temperature=0.0),
            Sampling(seed=3),
            Sampling(seed=3, top_k=2, top_p=0.5),
            Sampling(seed=3, min_p=0.1),
            Sampling(seed=3, num_top_logprobs=2),
            Sampling(seed=3, logit_bias=((1, 5.0),), min_new_tokens=4, end_token_ids=(0,)),
        ],
    )
    def test_they_have_an_error_and_their_neighbours_what_they_have_alone(
        self, value: float, sampling: Sampling
    ) -> None:
        rows = LOGITS.repeat(3, 1)
        rows[1, 4] = value
        choices = sample(rows, [sampling] * 3, [1, 2, 3])
        first, broken, last = choices.read(choices.packed)
        assert broken.tokens == () and "not numbers" in broken.error
        for one, position in ((first, 1), (last, 3)):
            alone = sample(LOGITS[None], [sampling], [position])
            assert [one] == alone.read(alone.packed) and not one.error
        ids = choices.tokens.tolist()
        assert all(0 <= token < len(LOGITS) for token in ids), "the next step may look these up"

    def test_a_row_without_any_possible_token_has_an_error_too(self) -> None:
        choices = sample(torch.full((1, 6), -math.inf), [Sampling(seed=1)], [1])
        assert choices.read(choices.packed)[0].error


def test_a_temperature_beyond_float32_is_the_hottest_there_is() -> None:
    hottest = Sampling(temperature=3.4e38, seed=4, min_new_tokens=99, end_token_ids=(0,))
    hotter = msgspec.structs.replace(hottest, temperature=1e39)
    positions = range(64)
    rows = LOGITS.expand(64, -1)
    tokens = draw(rows, [hotter] * 64, positions)
    assert torch.equal(tokens, draw(rows, [hottest] * 64, positions)) and (tokens != 0).all()
