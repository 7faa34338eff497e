"""The names that Hugging Face has for the tensors of a GGUF file, as llama.cpp's converter
(gguf-py/gguf/tensor_mapping.py) maps them the other way."""

from __future__ import annotations

import re
from typing import NamedTuple

from protocol.model.gguf.rope import ROPE_TENSORS

OF_MODEL = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
OF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
OF_GEMMA = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
OF_PHI = {"ffn_up": "mlp.gate_up_proj"}
OF_MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
}
BY_MODEL_TYPE = {
    "gemma2": OF_GEMMA,
    "gemma3_text": OF_GEMMA,
    "phi3": OF_PHI,
    "mixtral": OF_MIXTRAL,
}
"""By the `model_type` of config.json: names that differ from those of `OF_LAYER`."""
NAME = re.compile(
    r"(?:blk\.(?P<layer>\d+)\.)?(?P<stem>\w+?)(?:\.(?P<expert>\d+))?\.(?P<kind>weight|bias)"
)
UNUSED = (*ROPE_TENSORS, "rope_freqs")
"""The names, behind that of a layer, of tensors that are read as a part of the configuration."""


class ModuleName(NamedTuple):
    """The module that a tensor belongs to."""

    module: str
    """Its name; one for all experts has {} in place of their numbers."""
    kind: str
    """weight or bias."""

    @property
    def is_of_experts(self) -> bool:
        """True if the tensor holds the weights of all experts."""
        return "{}" in self.module


def module_of(name: str, model_type: str) -> ModuleName | None:
    """Returns the module that a tensor belongs to; None for one that belongs to none. A tensor that
    is unknown is a module of its own name, so that the loader can tell about it."""
    match = NAME.fullmatch(name)
    if match is None or f"{match['stem']}.{match['kind']}" in UNUSED:
        return None if match else ModuleName(name, "weight")
    if match["layer"] is None:
        return ModuleName(OF_MODEL.get(match["stem"], match["stem"]), match["kind"])
    names = OF_LAYER | BY_MODEL_TYPE.get(model_type, {})
    stem = match["stem"]
    if match["expert"] is not None:  # files of 2023 have a tensor for each expert
        stem = f"{stem}_exps"
    module = f"model.layers.{match['layer']}.{names.get(stem, stem)}"
    if match["expert"] is not None:
        module = module.format(match["expert"])
    return ModuleName(module, match["kind"])
