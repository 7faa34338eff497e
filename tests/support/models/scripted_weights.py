"""Weights that follow scripts: a Llama of one layer, in which nothing was trained.

A token is written as the bits of its id, each 1 or -1. The residual stream has these parts:

    own      the bits of the token itself
    place    the bits again, if the token marks a place in a script; else they are in `filler`,
             so that all rows are equally long and the norms change no number
    flags    1, whether the token is a place, whether it stands in scripts without being a place
    seen     the bits of the last place before, which the one head of attention finds
    next     the bits of the token to come, which the MLP looks up by `seen` and `own`

Later places have larger scores, by the angle of the slowest rotation; the head reads the last one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BITS = 12
HIDDEN, HEAD_DIM = 64, 32
OWN, PLACE, FILLER, SEEN, NEXT = (slice(i * BITS, (i + 1) * BITS) for i in range(5))
ONE, IS_PLACE, IS_SHARED = 60, 61, 62
MAX_POSITION = 16384
FIRST_ANGLE, LAST_ANGLE = 0.5, 1.4
"""Of the slowest rotation between a token and a place: beside it, and as far away as can be."""
SCORE_PER_TOKEN = 12.0
"""How much more the last place scores than one that is a token before it."""
SURE = 20.0
"""Of a gate: silu(-20) is nothing."""


@dataclass(frozen=True)
class Transition:
    """Behind the place `seen`, `own` is followed by `next`. `own` None: any token that is not
    shared."""

    seen: int
    own: int | None
    next: int


def config(transitions: Sequence[Transition], vocab_size: int) -> dict[str, Any]:
    slowest = (LAST_ANGLE - FIRST_ANGLE) / MAX_POSITION
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": HIDDEN,
        "intermediate_size": _inner(transitions),
        "num_hidden_layers": 1,
        "num_attention_heads": HIDDEN // HEAD_DIM,
        "num_key_value_heads": HIDDEN // HEAD_DIM,
        "head_dim": HEAD_DIM,
        "rope_theta": slowest ** -(HEAD_DIM / (HEAD_DIM - 2)),
        "rms_norm_eps": 1e-9,
        "max_position_embeddings": MAX_POSITION,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def weights(
    transitions: Sequence[Transition],
    places: Sequence[int],
    shared: Sequence[int],
    preferred: Mapping[int, float],
    vocab_size: int,
) -> dict[str, Tensor]:
    """`shared` are the tokens of scripts that mark no place, as they come more than once.
    `preferred` has small logits for where no script says what comes."""
    assert vocab_size <= 1 << BITS
    bits = _bits(vocab_size)
    layer = "model.layers.0."
    return {
        "model.embed_tokens.weight": _embeddings(bits, places, shared),
        f"{layer}input_layernorm.weight": _norm(2 * BITS + 3),
        **{f"{layer}self_attn.{name}.weight": w for name, w in _attention().items()},
        f"{layer}post_attention_layernorm.weight": _norm(3 * BITS + 3),
        **{f"{layer}mlp.{name}.weight": w for name, w in _mlp(transitions, bits).items()},
        "model.norm.weight": _norm(4 * BITS + 3),
        "lm_head.weight": _head(bits, preferred),
    }


def _inner(transitions: Sequence[Transition]) -> int:
    return max(64, 64 * math.ceil(len(transitions) / 64))


def _norm(num_ones: int) -> Tensor:
    """Undoes the norm of a row in which so many numbers are 1 or -1 and the others 0."""
    return torch.full((HIDDEN,), math.sqrt(num_ones / HIDDEN))


def _bits(vocab_size: int) -> Tensor:
    """[vocab, bits]"""
    ids = torch.arange(vocab_size)[:, None]
    return ((ids >> torch.arange(BITS)) & 1) * 2.0 - 1.0


def _embeddings(bits: Tensor, places: Sequence[int], shared: Sequence[int]) -> Tensor:
    rows = torch.zeros(len(bits), HIDDEN)
    rows[:, OWN] = rows[:, FILLER] = bits
    rows[:, ONE] = 1.0
    rows[:, [IS_PLACE, IS_SHARED]] = -1.0
    rows[places, PLACE] = bits[places]
    rows[places, FILLER] = 0.0
    rows[places, IS_PLACE] = 1.0
    rows[shared, IS_SHARED] = 1.0
    return rows


def _attention() -> dict[str, Tensor]:
    """The first head; the others see nothing."""
    shape = HIDDEN, HIDDEN
    q, k, v, o = (torch.zeros(shape) for _ in range(4))
    slowest = (LAST_ANGLE - FIRST_ANGLE) / MAX_POSITION
    slope = slowest * math.sin(FIRST_ANGLE)  # of cos, where it is flattest
    size = math.sqrt(SCORE_PER_TOKEN / slope * math.sqrt(HEAD_DIM))
    slow, partner = HEAD_DIM // 2 - 1, HEAD_DIM - 1  # the pair of the slowest rotation
    q[slow, ONE] = size * math.cos(FIRST_ANGLE)
    q[partner, ONE] = size * math.sin(FIRST_ANGLE)
    k[slow, ONE] = k[slow, IS_PLACE] = size / 2  # 0 for what is no place
    v[:BITS, PLACE] = torch.eye(BITS)
    o[SEEN, :BITS] = torch.eye(BITS)
    return {"q_proj": q, "k_proj": k, "v_proj": v, "o_proj": o}


def _mlp(transitions: Sequence[Transition], bits: Tensor) -> dict[str, Tensor]:
    """A row for each transition: its gate is SURE where all bits are right, else at most -SURE."""
    inner = _inner(transitions)
    gate, up, down = (torch.zeros(inner, HIDDEN) for _ in range(3))
    for row, transition in enumerate(transitions):
        gate[row, SEEN] = bits[transition.seen]
        if transition.own is None:
            gate[row, IS_SHARED] = -1.0
            gate[row, ONE] = -float(BITS)
        else:
            gate[row, OWN] = bits[transition.own]
            gate[row, ONE] = -(2.0 * BITS - 1)
        up[row, ONE] = 1.0
        down[row, NEXT] = bits[transition.next] / SURE
    return {"gate_proj": gate * SURE, "up_proj": up, "down_proj": down.T.contiguous()}


def _head(bits: Tensor, preferred: Mapping[int, float]) -> Tensor:
    rows = torch.zeros(len(bits), HIDDEN)
    rows[:, NEXT] = bits * 10.0
    for token, logit in preferred.items():
        rows[token, ONE] = logit
    return rows
