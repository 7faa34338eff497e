"""What the first generation of Qwen (Qwen-7B-Chat, and what was quantised or tuned from it) says in
words of its own, in those of Llama: config.json, special tokens, end tokens. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ARCHITECTURE = "QWenLMHeadModel"
RANKS_FILE = "qwen.tiktoken"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Cuts a text into the pieces that tokens are made of."""
END_OF_TEXT, MESSAGE_BEGIN, MESSAGE_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (
    *(END_OF_TEXT, MESSAGE_BEGIN, MESSAGE_END),
    *(f"<|extra_{number}|>" for number in range(205)),
)
"""In the order of their ids, which follow those of the file of ranks."""
NAMED_TOKENS = {"eos_token": END_OF_TEXT}
"""What a tokenizer_config.json of the family leaves out."""
OLDER_NAMES = {
    "hidden_size": "n_embd",
    "intermediate_size": "ffn_hidden_size",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "max_position_embeddings": "n_positions",
}
"""Keys of config.json by their names in its first version."""
OTHER_NAMES = {
    "head_dim": "kv_channels",
    "rms_norm_eps": "layer_norm_epsilon",
    "rope_theta": "rotary_emb_base",
}
"""Llama's keys by the names that they have here."""
FLAGS_OF_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def is_first_qwen(config: Mapping[str, Any]) -> bool:
    """Returns True if this config.json is of the family."""
    names = config.get("architectures")
    return isinstance(names, list) and ARCHITECTURE in names


def canonical_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config.json of the family with Llama's keys beside its own. A value of the wrong
    kind goes on as it is, for whoever reads it to refuse.

    `intermediate_size` counts gate and up together. The longest sequence is the trained one,
    `seq_length`: up to there rotations are plain, and attention has no other scale than its own.
    """
    config = dict(raw)
    for key, older in OLDER_NAMES.items():
        if config.get(key) is None and older in raw:
            config[key] = raw[older]
    config |= {key: raw[name] for key, name in OTHER_NAMES.items() if raw.get(name) is not None}
    both = config.get("intermediate_size")
    if isinstance(both, int) and not isinstance(both, bool):
        config["intermediate_size"] = both // 2 if both % 2 == 0 else both / 2
    trained = raw.get("seq_length")
    if trained is not None:
        most = config.get("max_position_embeddings")
        is_shorter = isinstance(trained, int) and isinstance(most, int) and most < trained
        config["max_position_embeddings"] = most if is_shorter else trained
    config["torch_dtype"] = raw.get("torch_dtype") or _dtype(raw)
    return config


def chat_end_tokens(config: Mapping[str, Any], generation: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the tokens that end an answer beside those which generation_config.json gives by id:
    for models that were trained to chat, both marks of a message."""
    return (MESSAGE_BEGIN, MESSAGE_END) if is_chat_model(config, generation) else ()


def is_chat_model(config: Mapping[str, Any], generation: Mapping[str, Any]) -> bool:
    """Returns True for a model of the family whose generation_config.json says that it chats."""
    return is_first_qwen(config) and generation.get("chat_format") == "chatml"


def _dtype(raw: Mapping[str, Any]) -> str:
    """Returns the dtype of the weights where config.json has no torch_dtype."""
    flagged = [dtype for flag, dtype in FLAGS_OF_DTYPES.items() if raw.get(flag)]
    return flagged[0] if flagged else str(raw.get("params_dtype") or "bfloat16")
