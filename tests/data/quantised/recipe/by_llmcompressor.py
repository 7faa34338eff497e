"""compressed-tensors by llm-compressor: integers, FP8, several schemes in one file, KV scales.

python by_llmcompressor.py
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bases import calibration, keep, save_base, tokenizer
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import AutoModelForCausalLM

Settings = dict[str, Any]


def integers(bits: int, group_size: int = 0, symmetric: bool = True) -> Settings:
    """Returns the scheme of weights of so many bits, by row if there is no `group_size`."""
    scheme: Settings = {"num_bits": bits, "type": "int", "symmetric": symmetric}
    if group_size:
        return scheme | {"strategy": "group", "group_size": group_size}
    return scheme | {"strategy": "channel"}


def everywhere(weights: Settings) -> Settings:
    """Returns the groups of a file in which all linear layers have one scheme of weights."""
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


def preset(scheme: str) -> Settings:
    """Returns the settings of a scheme that llm-compressor has a name for."""
    return {"scheme": scheme, "targets": "Linear"}


FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
CHANNELS = FP8 | {"strategy": "channel"}
TOKENS = FP8 | {"strategy": "token", "dynamic": True}
TWO_SCHEMES = {
    "config_groups": {
        "integers": {"targets": ["re:.*mlp.*"], "weights": integers(4, 32)},
        "floats": {
            "targets": ["re:.*self_attn.*"],
            "weights": CHANNELS,
            "input_activations": TOKENS,
        },
    },
    "ignore": ["lm_head", r"re:.*layers\.1\.self_attn\.o_proj$", "model.layers.0.mlp.down_proj"],
}
KV_SCALES = {
    **preset("FP8_DYNAMIC"),
    "kv_cache_scheme": FP8 | {"strategy": "tensor", "dynamic": False},
}
CASES: dict[str, tuple[str, Settings]] = {
    "ct-w4a16-llama": ("llama", everywhere(integers(4, 32))),
    "ct-w4a16-asym-qwen2": ("qwen2", everywhere(integers(4, 32, symmetric=False))),
    "ct-w4a16-mixtral": ("mixtral", everywhere(integers(4, 32)) | {"ignore": ["re:.*gate$"]}),
    "ct-w8a16-llama": ("llama", everywhere(integers(8))),
    "ct-w8a16-groups-qwen3": ("qwen3", everywhere(integers(8, 32))),
    "ct-fp8-static-llama": ("llama", preset("FP8")),
    "ct-fp8-dynamic-qwen3": ("qwen3", preset("FP8_DYNAMIC")),
    "ct-fp8-block-qwen3": ("blocks", preset("FP8_BLOCK")),
    "ct-fp8-dynamic-qwen3-moe": (
        "qwen3-moe",
        preset("FP8_DYNAMIC") | {"ignore": [r"re:.*mlp\.gate$"]},
    ),
    "ct-int4-and-fp8-llama": ("llama-deep", TWO_SCHEMES),
    "ct-fp8-kv-scales-llama": ("llama", KV_SCALES),
}
"""Of each fixture: the base and the settings. lm_head is left as it is in all."""
CALIBRATED = ("ct-fp8-static-llama", "ct-fp8-kv-scales-llama")


def make(name: str) -> None:
    """Writes one fixture."""
    base, settings = CASES[name]
    settings = settings | {"ignore": ["lm_head", *settings.get("ignore", [])]}
    data = {"dataset": Dataset.from_list(calibration()), "num_calibration_samples": 8}
    with TemporaryDirectory() as folder:
        source, made = Path(folder) / "base", Path(folder) / "made"
        save_base(base, source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float16)
        oneshot(
            model=model,
            recipe=QuantizationModifier(**settings),
            tokenizer=tokenizer(),
            **(data if name in CALIBRATED else {}),
        )
        model.save_pretrained(made, save_compressed=True)
        keep(made, name)


if __name__ == "__main__":
    for name in CASES:
        make(name)
