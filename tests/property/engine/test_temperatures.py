"""However hot or cold, the sampler works with numbers."""

from __future__ import annotations

import math

import msgspec
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.sampling.sampler import sample
from protocol.sampling import Sampling

PROBS = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
LOGITS = PROBS.log() + 3.0  # logits are probabilities up to a constant


@given(
    st.floats(min_value=0.0, max_value=3.4028234663852886e38, width=32),
    st.sampled_from([1.0, 1e4, 1e30]),
    st.integers(0, 2**62),
)
def test_no_temperature_makes_a_number_that_is_none(
    temperature: float, scale: float, seed: int
) -> None:
    """Forbidden tokens stay forbidden, and logprobs are numbers, as hot or cold as may be."""
    sampling = Sampling(
        temperature=temperature,
        seed=seed,
        min_new_tokens=9,
        end_token_ids=(0,),
        num_top_logprobs=6,
        logprob_token_ids=(0,),
    )
    for one in (sampling, msgspec.structs.replace(sampling, top_p=0.9, min_p=0.01)):
        choices = sample(scale * LOGITS[None], [one], [1])
        (chosen,) = choices.read(choices.packed)
        assert chosen.tokens[0] != 0, "it ends the answer too early"
        (table,) = chosen.logprobs
        values = [table.chosen, *table.wanted, *(logprob for _, logprob in table.top)]
        assert all(math.isfinite(value) and value <= 0 for value in values)
