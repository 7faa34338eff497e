"""The first Qwen's checkpoints: names of its own, and q with k and v in one tensor."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.kernels.base import TorchKernels
from engine.model.config import ModelConfig
from engine.model.decoder import DecoderModel
from engine.model.families import FIRST_QWEN, UnsupportedModel
from engine.model.linear import Build
from engine.parallel import TensorParallel
from engine.weights.loader import load_model
from engine.weights.renamed_source import RenamedSource, renamed
from protocol.errors import UserError
from protocol.model.directory import ModelDirectoryError
from tests.support.checkpoints.first_qwen import PUBLISHED
from tests.support.engine.driving import CPU
from tests.support.models.sources import MemorySource

HIDDEN, INNER, VOCAB = 16, 12, 11
CONFIG: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * INNER,
    "kv_channels": 4,
    "layer_norm_epsilon": 1e-6,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "seq_length": 128,
    "vocab_size": VOCAB,
}
SHAPES = {
    "transformer.wte.weight": (VOCAB, HIDDEN),
    "transformer.h.0.ln_1.weight": (HIDDEN,),
    "transformer.h.0.attn.c_attn.weight": (3 * HIDDEN, HIDDEN),
    "transformer.h.0.attn.c_attn.bias": (3 * HIDDEN,),
    "transformer.h.0.attn.c_proj.weight": (HIDDEN, HIDDEN),
    "transformer.h.0.ln_2.weight": (HIDDEN,),
    "transformer.h.0.mlp.w1.weight": (INNER, HIDDEN),
    "transformer.h.0.mlp.w2.weight": (INNER, HIDDEN),
    "transformer.h.0.mlp.c_proj.weight": (HIDDEN, INNER),
    "transformer.ln_f.weight": (HIDDEN,),
    "lm_head.weight": (VOCAB, HIDDEN),
}


class NoGroup:
    """A process group that nobody uses here."""

    def allreduce(self, tensors: Sequence[Tensor]) -> NoGroup:
        raise AssertionError

    def wait(self) -> None:
        raise AssertionError


def checkpoint() -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=chance) for name, shape in SHAPES.items()}


def config_of(path: Path, context_length: int = 0, **changes: Any) -> ModelConfig:
    (path / "config.json").write_text(json.dumps(PUBLISHED | CONFIG | changes))
    return ModelConfig.from_directory(path, context_length)


def load(path: Path, tensors: dict[str, Tensor], rank: int = 0, size: int = 1) -> DecoderModel:
    build = Build(torch.float32, CPU, TorchKernels(), TensorParallel(rank, size, NoGroup()))
    source = RenamedSource(MemorySource(tensors), FIRST_QWEN.names)
    return load_model(source, config_of(path), build)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_each_rank_has_its_part_of_every_projection(tmp_path: Path, size: int) -> None:
    tensors = checkpoint()
    for rank in range(size):
        layer = load(tmp_path, tensors, rank, size).layers[0]
        for kind in ("weight", "bias"):
            fused = tensors[f"transformer.h.0.attn.c_attn.{kind}"]
            parts = [part.chunk(size)[rank] for part in fused.chunk(3)]  # of q, of k, of v
            assert torch.equal(layer.attention.qkv.get_parameter(kind), torch.cat(parts))
        up, gate = (tensors[f"transformer.h.0.mlp.{name}.weight"] for name in ("w1", "w2"))
        gate_up = layer.feed_forward.get_submodule("gate_up").get_parameter("weight")
        assert torch.equal(gate_up, torch.cat([gate.chunk(size)[rank], up.chunk(size)[rank]]))


def test_biases_of_zero_are_no_biases(tmp_path: Path) -> None:
    """AutoGPTQ wrote them for every projection that it made, whatever the model had."""
    extra = "transformer.h.0.attn.c_proj.bias"
    model = load(tmp_path, checkpoint() | {extra: torch.zeros(HIDDEN)})
    assert model.layers[0].attention.out.bias is None
    name = r"model\.layers\.0\.self_attn\.o_proj\.bias"
    with pytest.raises(ModelDirectoryError, match=f"under Llama's names, hold {name}"):
        load(tmp_path, checkpoint() | {extra: torch.ones(HIDDEN)})


def test_names_of_modules_and_tensors() -> None:
    names = {name: renamed(name, FIRST_QWEN.names) for name in SHAPES}
    assert len(set(names.values())) == len(SHAPES)
    assert renamed("lm_head.weight", FIRST_QWEN.names) == "lm_head.weight"
    packed = renamed("transformer.h.31.mlp.w2.qzeros", FIRST_QWEN.names)
    assert packed == "model.layers.31.mlp.gate_proj.qzeros"
    assert renamed("transformer.h.7.mlp.w1", FIRST_QWEN.names) == "model.layers.7.mlp.up_proj"


def test_it_serves_what_it_was_trained_for(tmp_path: Path) -> None:
    config = config_of(tmp_path, context_length=128)
    assert config.context_length == 128
    assert config.intermediate_size == INNER
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == (True, False, False)
    with pytest.raises(UnsupportedModel, match=r"at most 128 .*seq_length.* no page .*shared"):
        config_of(tmp_path, context_length=129)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rotary_pct": 0.5}, "rotary_pct 0.5"),
        ({"no_bias": False}, "no_bias False"),
        ({"scale_attn_weights": False}, "scale_attn_weights"),
        ({"use_cache_quantization": True}, "use_cache_quantization"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling"),
        ({"visual": {"heads": 16}}, "visual"),
        ({"intermediate_size": 23}, "intermediate_size 11.5"),
        ({"intermediate_size": "many"}, "intermediate_size 'many'"),
        ({"seq_length": "long"}, "max_position_embeddings 'long'"),
        ({"kv_channels": 3}, "must be even"),
    ],
)
def test_what_it_does_not_compute_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        config_of(tmp_path, **changes)
