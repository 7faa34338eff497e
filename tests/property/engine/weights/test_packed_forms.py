"""Packed integers survive any layout, and parts of packed weights are parts of the weight."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.kernels.dequantise import dequantise, packed_nibbles, unpacked_nibbles
from engine.kernels.packed_weights import IntegerWeight
from engine.model.forms.integer import IntegerForm
from engine.model.linear_form import Axis, TensorForm
from engine.weights.formats.words import per_word, unpacked_part, words_of
from tests.support.quantised.packers import random_integers, words

SEEDS = st.integers(0, 1 << 30)


@given(SEEDS, st.sampled_from([4, 8]), st.integers(1, 70), st.data())
def test_any_part_of_packed_words(
    seed: int, num_bits: int, length: int, data: st.DataObject
) -> None:
    chance = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 1 << num_bits, (3, length), generator=chance)
    begin = data.draw(st.integers(0, length - 1))
    part = range(begin, data.draw(st.integers(begin + 1, length)))
    packed = words(values, num_bits)
    assert packed.shape == (3, -(-length // per_word(num_bits)))
    found = unpacked_part(packed[:, words_of(part, num_bits)], num_bits, part)
    assert torch.equal(found.long(), values[:, part.start : part.stop])


@given(SEEDS, st.integers(1, 5), st.integers(1, 5))
def test_nibbles_are_undone(seed: int, num_out: int, num_runs: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 16, (num_out, 32 * num_runs), generator=chance).to(torch.uint8)
    packed = packed_nibbles(values)
    assert packed.shape == (num_out, 16 * num_runs)
    assert torch.equal(unpacked_nibbles(packed), values)
    assert torch.equal(packed[:, 3] & 15, values[:, 3])
    assert torch.equal(packed[:, 3] >> 4, values[:, 19])


@given(st.sampled_from([2, 4, 8]), st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 2, 4]))
def test_shorter_groups_repeat_the_scales_of_longer_ones(
    size: int, num_groups: int, runs_of_group: int
) -> None:
    """Whatever a rank's part of the inputs, its groups have the scales of the file's groups."""
    group, part_size = 32 * runs_of_group, 32 * num_groups
    total = part_size * size
    if total % group:
        return
    stored = IntegerForm(4, group)
    part_form = stored.of_part(part_size)
    assert part_form is not None and part_form.group_size is not None
    assert part_size % part_form.group_size == 0 and group % part_form.group_size == 0
    scales = torch.arange(total // group)
    long = TensorForm("scales", Axis(0), Axis(1, group))
    short = TensorForm("scales", Axis(0), Axis(1, part_form.group_size))
    for rank in range(size):
        inputs = range(rank * part_size, (rank + 1) * part_size)
        part, picks = long.cover_of_inputs(inputs, short)
        found = scales[part[-1]][list(picks)].repeat_interleave(part_form.group_size)
        expected = scales.repeat_interleave(group)[inputs.start : inputs.stop]
        assert torch.equal(found, expected)


@given(SEEDS, st.integers(1, 4), st.sampled_from([32, 64]), st.booleans())
def test_dequantising_is_exact(seed: int, num_out: int, group: int, is_symmetric: bool) -> None:
    chance = torch.Generator().manual_seed(seed)
    integers = random_integers(num_out, 128, chance, 4, group, is_symmetric)
    zeros = None if is_symmetric else integers.zeros.to(torch.uint8)
    packed = packed_nibbles(integers.values.to(torch.uint8))
    assert torch.equal(dequantise(IntegerWeight(packed, integers.scales, zeros)), integers.weight)
