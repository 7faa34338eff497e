"""GPTQ by gptqmodel, with calibration: four and eight bits, version 2, inputs in the order of their
weight in the error (desc_act).

    GPTQMODEL_CPU_WORKERS=2 python by_gptqmodel.py [name …]
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bases import calibration, keep, save_base
from gptqmodel import GPTQModel, QuantizeConfig
from safetensors.torch import load_file, save_file

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gptq-order-llama": ("llama-deep", {"bits": 4, "sym": False, "desc_act": True}),
    "gptq-asym-llama": ("llama", {"bits": 4, "sym": False}),
    "gptq-v2-qwen3": ("qwen3", {"bits": 4, "sym": False, "format": "gptq_v2"}),
    "gptq-8-llama": ("llama", {"bits": 8, "sym": True}),
    "gptq-8-asym-qwen2": ("qwen2", {"bits": 8, "sym": False, "group_size": -1}),
    "gptq-rows-phi3": ("phi3", {"bits": 4, "sym": True, "group_size": -1}),
    "gptq-order-qwen3-moe": ("qwen3-moe", {"bits": 4, "sym": True, "desc_act": True}),
    "gptq-gemma3": ("gemma3", {"bits": 4, "sym": True}),
}
"""Of each fixture: the base and the settings. A group of -1 inputs is a whole row."""
DEFAULTS = {"group_size": 32, "desc_act": False, "act_group_aware": False, "device": "cpu"}


def make(name: str) -> None:
    """Writes one fixture."""
    base, settings = CASES[name]
    with TemporaryDirectory() as folder:
        source, made = Path(folder) / "base", Path(folder) / "made"
        save_base(base, source)
        model = GPTQModel.load(str(source), QuantizeConfig(**{**DEFAULTS, **settings}))
        model.quantize(calibration(), batch_size=1)
        model.save(str(made))
        if base == "phi3":
            fuse(made / "model.safetensors")
        keep(made, name)


def fuse(file: Path) -> None:
    """Joins the gate and up projections, which gptqmodel has torn apart, along their outputs."""
    tensors = load_file(file)
    for name in [name for name in tensors if ".gate_proj." in name]:
        gate, up = tensors.pop(name), tensors.pop(name.replace("gate_proj", "up_proj"))
        is_of_inputs = name.endswith("g_idx")
        fused = gate if is_of_inputs else torch.cat((gate, up), dim=-1)
        assert torch.equal(gate, up) or not is_of_inputs
        tensors[name.replace("gate_proj", "gate_up_proj")] = fused
    save_file(tensors, file, metadata={"format": "pt"})


if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        make(name)
