"""Small checkpoints whose projections are packed, each beside the same model in float32."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.build import load_model_runner
from engine.options import EngineOptions
from engine.parallel import SOLO, TensorParallel
from tests.support.engine.driving import CPU, PAGE_SIZE, Sequences, prompt_of
from tests.support.engine.ranks import on_ranks

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCAB, EXPERTS = 128, 192, 4, 2, 32, 50, 3
CONFIG: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "moe_intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
}
ATTENTION = {
    "q_proj": (HEADS * HEAD_DIM, HIDDEN),
    "k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
}
FUSED_ATTENTION = {"qkv_proj": ((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN)}
GATED = {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
OF_MIXTRAL = {"w1": (INNER, HIDDEN), "w3": (INNER, HIDDEN), "w2": (HIDDEN, INNER)}
FEED_FORWARDS: dict[str, dict[str, tuple[int, int]]] = {
    "LlamaForCausalLM": {f"mlp.{name}": shape for name, shape in GATED.items()},
    "Phi3ForCausalLM": {
        "mlp.gate_up_proj": (2 * INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    },
    "MixtralForCausalLM": {
        f"block_sparse_moe.experts.{i}.{name}": shape
        for i in range(EXPERTS)
        for name, shape in OF_MIXTRAL.items()
    },
    "Qwen3MoeForCausalLM": {
        f"mlp.experts.{i}.{name}": shape for i in range(EXPERTS) for name, shape in GATED.items()
    },
}
FAMILIES = tuple(FEED_FORWARDS)
Pack = Callable[[int, int, torch.Generator], tuple[dict[str, Tensor], Tensor]]
"""Takes the numbers of outputs and inputs; returns packed tensors, and the weight in float32."""


def projections(family: str) -> dict[str, tuple[int, int]]:
    """Returns the shape of each projection by its name in the checkpoint."""
    attention = FUSED_ATTENTION if family == "Phi3ForCausalLM" else ATTENTION
    shapes = {f"self_attn.{name}": shape for name, shape in attention.items()}
    shapes["self_attn.o_proj"] = (HIDDEN, HEADS * HEAD_DIM)
    shapes |= FEED_FORWARDS[family]
    return {f"model.layers.0.{name}": shape for name, shape in shapes.items()}


def unpacked_tensors(family: str, chance: torch.Generator) -> dict[str, Tensor]:
    """Returns the tensors that no checkpoint packs."""
    tensors = {
        "model.embed_tokens.weight": torch.randn(VOCAB, HIDDEN, generator=chance),
        "lm_head.weight": torch.randn(VOCAB, HIDDEN, generator=chance),
        "model.norm.weight": torch.ones(HIDDEN),
        "model.layers.0.input_layernorm.weight": torch.ones(HIDDEN),
        "model.layers.0.post_attention_layernorm.weight": torch.ones(HIDDEN),
    }
    block = {"MixtralForCausalLM": "block_sparse_moe", "Qwen3MoeForCausalLM": "mlp"}.get(family)
    if block is not None:
        router = torch.randn(EXPERTS, HIDDEN, generator=chance)
        tensors[f"model.layers.0.{block}.gate.weight"] = router
    if family == "Qwen3MoeForCausalLM":
        names = [f"model.layers.0.self_attn.{name}_norm.weight" for name in "qk"]
        tensors |= {name: torch.ones(HEAD_DIM) for name in names}
    return tensors


def config_of(family: str, **changes: Any) -> dict[str, Any]:
    config = CONFIG | {"architectures": [family]}
    if family in ("MixtralForCausalLM", "Qwen3MoeForCausalLM"):
        config["num_local_experts"] = EXPERTS
    return config | changes


def save(path: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    save_file(tensors, path / "model.safetensors")
    return path


def save_packed(path: Path, family: str, settings: dict[str, Any], pack: Pack) -> tuple[Path, Path]:
    """Saves a random model twice, with packed projections and with plain ones."""
    chance = torch.Generator().manual_seed(7)
    packed = unpacked_tensors(family, chance)
    plain = dict(packed)
    for name, shape in projections(family).items():
        tensors, weight = pack(*shape, chance)
        packed |= {f"{name}.{kind}": tensor for kind, tensor in tensors.items()}
        plain[f"{name}.weight"] = weight
    config = config_of(family)
    return (
        save(path / "packed", packed, config | {"quantization_config": settings}),
        save(path / "plain", plain, config),
    )


def logits_of(path: Path, size: int = 1, **options: Any) -> Tensor:
    """Returns the logits of the token after a prompt, as each of `size` ranks has them."""
    engine_options = EngineOptions("float32", PAGE_SIZE, **options)

    def of_rank(parallel: TensorParallel) -> Tensor:
        runner = load_model_runner(path, engine_options, lambda _: 8, CPU, parallel)
        return Sequences(runner).logits(prompt_of(40, VOCAB))

    if size == 1:
        return of_rank(SOLO)
    first, *others = on_ranks(size, of_rank)
    for other in others:
        torch.testing.assert_close(other, first)
    return first
