"""The random models that the checkpoints are made from, one a family.

They are as small as the odd cases allow: 96 feed-forward dimensions are three groups of 32, which
two ranks cannot share evenly; the blocks of 128 of `blocks` end within its dimensions.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

FIXTURES = Path(__file__).parents[1]
SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,  # wide, so that few logits are close to a tie
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
}
TIED = {"tie_word_embeddings": True}
BASES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SHAPE, **TIED),
    "llama-deep": LlamaConfig(**SHAPE | {"num_hidden_layers": 2}),
    "qwen2": Qwen2Config(**SHAPE, **TIED),
    "qwen3": Qwen3Config(**SHAPE, **TIED, head_dim=16),
    "phi3": Phi3Config(**SHAPE),
    "gemma3": Gemma3TextConfig(
        **SHAPE | {"num_hidden_layers": 2},
        head_dim=16,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=16,
    ),
    "gemma3-local": Gemma3TextConfig(
        **SHAPE,
        head_dim=16,
        sliding_window=16,
        layer_types=["sliding_attention"],
        query_pre_attn_scalar=16,
    ),
    "mixtral": MixtralConfig(**SHAPE, **TIED, num_local_experts=4, num_experts_per_tok=2),
    "qwen3-moe": Qwen3MoeConfig(**SHAPE, **EXPERTS, **TIED, head_dim=16),
    "blocks": Qwen3Config(
        **SHAPE | {"hidden_size": 136, "intermediate_size": 144}, **TIED, head_dim=16
    ),
    "rows-of-256": LlamaConfig(
        **SHAPE | {"hidden_size": 256, "intermediate_size": 256}, **TIED, head_dim=64
    ),
}
"""`gemma3-local` is for GGUF, which does not say which layers are sliding: of six all but the last.
`rows-of-256` is for its K-quants, whose blocks are as long."""


def random_model(base: str) -> PreTrainedModel:
    """Returns the model of `base` with float16 weights, computed in float32."""
    torch.manual_seed(7)
    config = BASES[base]
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    )
    counts_from_one = config.model_type.startswith("gemma")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(mean=0.0 if counts_from_one else 1.0, std=0.1)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
            elif "embed_tokens" in name and counts_from_one:
                # As long as in training: Gemma multiplies it by sqrt(hidden size).
                parameter.normal_(std=config.hidden_size**-0.5)
            parameter.copy_(parameter.half())
    return model.eval()


def save_base(base: str, path: Path) -> None:
    """Writes the model of `base` as a float16 checkpoint, with a tokenizer that producers ask
    for."""
    random_model(base).half().save_pretrained(path)
    tokenizer().save_pretrained(path)


def tokenizer() -> PreTrainedTokenizerFast:
    """Returns one with a word for each id."""
    words = {f"t{i}": i for i in range(SHAPE["vocab_size"])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="t0")),
        pad_token="t0",
        bos_token="t1",
        eos_token="t2",
    )


def prompt(length: int, seed: int) -> list[int]:
    """Returns as many random ids that are no special ones."""
    chance = random.Random(f"{length}/{seed}")
    return [chance.randrange(3, SHAPE["vocab_size"]) for _ in range(length)]


def calibration() -> list[dict[str, list[int]]]:
    """Returns what producers run a model on to choose its scales."""
    return [{"input_ids": prompt(64, seed), "attention_mask": [1] * 64} for seed in range(8)]


def keep(made: Path, name: str) -> None:
    """Copies what the engine reads of a checkpoint in `made` to the place of fixture `name`."""
    target = FIXTURES / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    shutil.copyfile(made / "model.safetensors", target / "model.safetensors")
    config = json.loads((made / "config.json").read_text())
    config["quantization_config"].pop("meta", None)  # gptqmodel: where and how it was made
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
