"""AWQ, and GPTQ of version 1, by auto-round: rounded to the nearest, without calibration.

python by_autoround.py
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from auto_round import AutoRound
from bases import keep, save_base, tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

CASES = {
    "awq-llama": ("llama-deep", "auto_awq", False, 32),
    "awq-qwen2": ("qwen2", "auto_awq", False, 32),
    "awq-mixtral": ("mixtral", "auto_awq", False, 32),
    "gptq-sym-llama": ("llama", "auto_gptq", True, 32),
}
"""Of each fixture: the base, the format, whether it is symmetric, the inputs of a group."""


def make(name: str) -> None:
    """Writes one fixture."""
    base, format_name, is_symmetric, group_size = CASES[name]
    with TemporaryDirectory() as folder:
        source, made = Path(folder) / "base", Path(folder) / "made"
        save_base(base, source)
        # In memory: from a path it cannot read a mixture of experts.
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float16)
        rounding = AutoRound(
            model,
            tokenizer(),
            bits=4,
            group_size=group_size,
            sym=is_symmetric,
            iters=0,
            disable_opt_rtn=True,
            device_map="cpu",
        )
        rounding.quantize_and_save(str(made), format=format_name)
        [config] = made.rglob("config.json")
        if base == "mixtral":
            write_as_published(config.parent)
        keep(config.parent, name)


def write_as_published(path: Path) -> None:
    """Gives the experts of Mixtral the names that published checkpoints have for them, in which
    auto-round follows the newest transformers instead."""
    file = path / "model.safetensors"
    names = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
    tensors = load_file(file)
    for name in [name for name in tensors if ".experts." in name]:
        kind = name.split(".")[-2]
        tensors[name.replace(kind, names[kind])] = tensors.pop(name)
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"]["modules_to_not_convert"] = ["gate"]
    (path / "config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    for name in CASES:
        make(name)
