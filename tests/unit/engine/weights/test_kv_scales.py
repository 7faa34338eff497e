"""The scales that a checkpoint brings for FP8 pages, and what pages of what scales are shared."""

from __future__ import annotations

import pytest
import torch

from engine.weights.pages.kv_scales import static_kv_scales
from engine.weights.pages.page_form import PageForm
from protocol.layout import FP8
from protocol.model.directory import ModelDirectoryError
from tests.support.models.sources import MemorySource

LAYER = "model.layers.{}.self_attn.{}"


def test_scales_are_of_the_whole_model_and_a_rank_has_those_of_its_heads() -> None:
    tensors = {
        LAYER.format(0, "k_scale"): torch.tensor([0.1, 0.2, 0.3, 0.4]),
        LAYER.format(0, "v_proj.v_scale"): torch.tensor(0.5),
        LAYER.format(1, "kv_scale"): torch.tensor([0.6]).bfloat16().float(),
        LAYER.format(1, "q_proj.weight"): torch.zeros(3, 4),
    }
    scales = static_kv_scales(MemorySource(tensors), num_layers=2, num_kv_heads=4)
    assert scales is not None
    second = float(tensors[LAYER.format(1, "kv_scale")])
    expected = torch.tensor([[[0.3, 0.4], [0.5, 0.5]], [[second, second], [second, second]]])
    assert torch.equal(PageForm(FP8, "static", scales).scales_of(range(2, 4)), expected)


def test_a_checkpoint_without_scales_has_none() -> None:
    source = MemorySource({"model.layers.0.self_attn.k_proj.weight": torch.zeros(3, 4)})
    assert static_kv_scales(source, 1, 4) is None
    assert PageForm(FP8, "token").scales_of(range(4)) is None


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({(0, "k_scale"): 0.1, (0, "v_scale"): 0.1}, "of some layers only; fetch the model again"),
        ({(0, "kv_scale"): 0.1, (1, "kv_scale"): -1.0}, "not above 0; calibrate the model again"),
        ({(0, "kv_scale"): 0.1, (2, "kv_scale"): 0.1}, "the model 2 layers of 4 KV heads"),
        ({(0, "kv_scale"): [0.1, 0.2], (1, "kv_scale"): 0.1}, "has 2 scales, and the model"),
    ],
)
def test_unusable_scales_are_a_sentence(
    tensors: dict[tuple[int, str], float | list[float]], says: str
) -> None:
    source = MemorySource(
        {LAYER.format(*name): torch.tensor(values) for name, values in tensors.items()}
    )
    with pytest.raises(ModelDirectoryError, match=says):
        static_kv_scales(source, 2, 4)


def test_pages_of_other_scales_or_of_another_computation_are_not_shared() -> None:
    """Layouts are equal for these, so the fingerprint must not be."""
    scales = torch.ones(2, 2, 4)
    forms = [
        PageForm(FP8, "static", scales, "float32"),
        PageForm(FP8, "static", scales * 2, "float32"),
        PageForm(FP8, "static", scales, "bfloat16"),
        PageForm(FP8, "token", None, "bfloat16"),
    ]
    assert len({form.variant for form in forms}) == 4
    assert PageForm("bfloat16").variant == "", "the layout says it all"
    again = PageForm(FP8, "static", scales.clone(), "float32")
    assert again.variant == forms[0].variant
