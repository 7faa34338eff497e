"""GGUF files, written with the package `gguf` under the names that llama.cpp gives tensors;
K-quants by llama.cpp's own quantiser.

    python by_gguf.py [path of llama-quantize]

Without that path the K-quants are left as they are.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
from bases import BASES, FIXTURES, random_model
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate": "ffn_gate_exps",
    "mlp.experts.up": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
NAMES_OF_GEMMA3 = NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
ENDS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
WORDS = [chr(code) for code in range(ord("!"), ord("~") + 1)]


@dataclass(frozen=True)
class Case:
    """One file: its base, the architecture that GGUF calls it, and the types of its tensors."""

    base: str
    architecture: str
    kinds: dict[str, Kind]
    """By the end of a tensor's name without `.weight`; "" is for those that are not named."""
    quantise: tuple[str, ...] = ()
    """Arguments of llama-quantize, which then makes the file from the one that is written here."""


CASES = {
    "gguf-every-block-llama": Case(
        "llama-deep",
        "llama",
        {
            "": Kind.Q8_0,
            "token_embd": Kind.F16,
            "output": Kind.Q8_0,
            "0.attn_q": Kind.Q4_0,
            "0.attn_k": Kind.Q4_1,
            "0.attn_v": Kind.Q5_0,
            "0.attn_output": Kind.Q5_1,
            "0.ffn_gate": Kind.Q4_0,
            "0.ffn_up": Kind.Q5_1,
            "0.ffn_down": Kind.Q4_1,
            "1.attn_q": Kind.F16,
            "1.attn_k": Kind.BF16,
            "1.attn_v": Kind.F32,
            "1.ffn_gate": Kind.BF16,
            "1.ffn_up": Kind.Q5_0,
        },
    ),
    "gguf-q4_0-qwen2": Case("qwen2", "qwen2", {"": Kind.Q4_0, "token_embd": Kind.Q8_0}),
    "gguf-q8_0-qwen3": Case("qwen3", "qwen3", {"": Kind.Q8_0}),
    "gguf-q5_0-gemma3": Case("gemma3-local", "gemma3", {"": Kind.Q5_0, "token_embd": Kind.Q8_0}),
    "gguf-q5_1-phi3": Case("phi3", "phi3", {"": Kind.Q5_1, "output": Kind.F16}),
    "gguf-q4_1-mixtral": Case("mixtral", "llama", {"": Kind.Q4_1, "ffn_gate_inp": Kind.F32}),
    "gguf-q4_0-qwen3-moe": Case("qwen3-moe", "qwen3moe", {"": Kind.Q4_0, "ffn_gate_inp": Kind.F32}),
    "gguf-k-llama": Case(
        "rows-of-256",
        "llama",
        {"": Kind.F16},
        ("--tensor-type", "attn_q=q5_k", "--tensor-type", "ffn_gate=q5_k", "Q4_K_M"),
    ),
}


def make(name: str, quantiser: str) -> None:
    """Writes one fixture."""
    case = CASES[name]
    if case.quantise and not quantiser:
        return
    target = FIXTURES / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.gguf"
        write(file, case)
        if case.quantise:
            *flags, kind = case.quantise
            command = [quantiser, *flags, str(file), str(target / "model.gguf"), kind, "1"]
            subprocess.run(command, check=True)
        else:
            shutil.copyfile(file, target / "model.gguf")


def write(file: Path, case: Case) -> None:
    """Writes the model of `case` with the types that it names."""
    model = random_model(case.base)
    writer = gguf.GGUFWriter(file, case.architecture)
    describe(writer, model.config, case.architecture)
    add_vocabulary(writer, model.config.vocab_size)
    for name, tensor in tensors_of(model, case.architecture).items():
        stem = name.removesuffix(".weight")
        kind = Kind.F32
        if tensor.dim() > 1:
            ends = [end for end in case.kinds if stem.endswith(end)]
            kind = case.kinds[max(ends, key=len)]
        add(writer, name, tensor.numpy(), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add(writer: gguf.GGUFWriter, name: str, values: NDArray[np.float32], kind: Kind) -> None:
    """Adds a tensor of float32 in the type `kind`."""
    writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)


def describe(writer: gguf.GGUFWriter, config: PretrainedConfig, architecture: str) -> None:
    """Adds what config.json says."""
    head_dim = getattr(config, "head_dim", None)
    head_dim = head_dim or config.hidden_size // config.num_attention_heads
    ropes = config.rope_parameters
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(ropes.get("full_attention", ropes).get("rope_theta"))
    writer.add_vocab_size(config.vocab_size)
    if architecture == "gemma3":
        writer.add_sliding_window(config.sliding_window)
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if architecture == "qwen3moe":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """Adds a sentencepiece vocabulary of single characters, as a file cannot be without one."""
    tokens = ["<unk>", "<s>", "</s>", *WORDS][:size]
    tokens += [f"<extra_{i}>" for i in range(size - len(tokens))]
    types = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(size)])
    writer.add_token_types([*types, *[gguf.TokenType.NORMAL] * (size - len(types))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)


def tensors_of(model: Any, architecture: str) -> dict[str, Tensor]:
    """Returns the weights under llama.cpp's names. As its converter does, it permutes the rows of
    queries and keys of `llama`, and adds 1 to the norms of Gemma."""
    config = model.config
    result = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        tensor = tensor.float()
        if is_permuted(name, architecture):
            is_query = "q_proj" in name
            heads = config.num_attention_heads if is_query else config.num_key_value_heads
            tensor = permuted(tensor, heads)
        if architecture == "gemma3" and "norm" in name:
            tensor = tensor + 1
        if name.endswith("experts.gate_up_proj"):
            gate, up = tensor.chunk(2, 1)
            result[named(name.replace("gate_up_proj", "gate"), architecture)] = gate.contiguous()
            result[named(name.replace("gate_up_proj", "up"), architecture)] = up.contiguous()
            continue
        result[named(name, architecture)] = tensor
    return result


def is_permuted(name: str, architecture: str) -> bool:
    """Says whether llama.cpp has the rows of a tensor of transformers in another order."""
    return architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight"))


def permuted(rows: Tensor, heads: int) -> Tensor:
    """Returns rows [out, in] in llama.cpp's order: the halves of a head interleaved."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def named(name: str, architecture: str) -> str:
    """Returns llama.cpp's name of a tensor of transformers."""
    names = NAMES_OF_GEMMA3 if architecture == "gemma3" else NAMES
    ending = ".bias" if name.endswith(".bias") else ".weight"
    stem = name.removesuffix(ending)
    if stem in ENDS:
        return ENDS[stem] + ending
    layer, rest = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", stem).groups()
    return f"blk.{layer}.{names[rest]}{ending}"


if __name__ == "__main__":
    assert all(case.base in BASES for case in CASES.values())
    for name in CASES:
        make(name, sys.argv[1] if len(sys.argv) > 1 else "")
