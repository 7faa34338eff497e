"""`pieces_of` says where each tensor of a checkpoint goes: into a parameter as a whole, in part, or
into several places.

Published checkpoints have a tensor per projection and expert, Phi's fuses q with k and v and gate
with up; transformers 5 may write the experts of a layer as one tensor. A rank of a tensor-parallel
node takes its part of each.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from engine.model.config import ModelConfig
from engine.model.decoder import Attention, DecoderModel, Layer
from engine.model.families import UnsupportedModel
from engine.model.feed_forward import Experts, FeedForward
from engine.model.linear import Linear, vocabulary_share
from engine.model.linear_form import Axis, TensorForm
from engine.weights.source import Part

ALL = slice(None)
BIAS = TensorForm("bias", outputs=Axis(0), inputs=None)
STEMS = ("model", "language_model.model", "model.language_model")
"""What names of layers begin with. Models that see have their text part under one of the others."""


class Piece(NamedTuple):
    """`part` of a checkpoint's tensor of `shape` goes to `target`, with `offset` added."""

    target: Tensor
    shape: tuple[int, ...]
    part: Part = ()
    """The part of the tensor, in the form that `TensorSource.read` takes."""
    offset: float = 0.0


class Rows(NamedTuple):
    """One of the projections that share a weight: of its `total` outputs, this rank has `part`."""

    name: str
    total: int
    part: range


Table = dict[str, list[Piece]]


def pieces_of(model: DecoderModel, names: Collection[str]) -> Table:
    """Returns the pieces of `model` by the name of the checkpoint's tensor that they come from.

    `names` are the tensors that the checkpoint has; they tell which of several ways of naming it
    follows. Without any, the table follows published checkpoints.
    """
    config, table = model.config, Table()
    tokens = vocabulary_share(config.vocab_size, model.parallel)
    shape = (config.vocab_size, config.hidden_size)
    stem = next((one for one in STEMS if f"{one}.embed_tokens.weight" in names), STEMS[0])
    vocabulary = {f"{stem}.embed_tokens": model.embedding.weight}
    if not config.tie_word_embeddings:
        vocabulary["lm_head"] = model.head.weight
    for name, weight in vocabulary.items():
        table[f"{name}.weight"] = [Piece(weight[: len(tokens)], shape, (_slice(tokens),))]
    _norm(table, f"{stem}.norm", model.norm.weight, config)
    for i, layer in enumerate(model.layers):
        prefix = f"{stem}.layers.{i}"
        _norms(table, prefix, layer, config)
        _attention(table, f"{prefix}.self_attn", layer.attention, config)
        if isinstance(layer.feed_forward, FeedForward):
            _feed_forward(table, f"{prefix}.mlp", layer.feed_forward, config)
        else:
            _experts(table, prefix, layer.feed_forward, config, names)
    return table


def _norms(table: Table, prefix: str, layer: Layer, config: ModelConfig) -> None:
    norms: dict[str, nn.Module] = {"input_layernorm": layer.attention_norm}
    if config.has_output_norms:
        norms |= {
            "post_attention_layernorm": layer.attention_out_norm,
            "pre_feedforward_layernorm": layer.feed_forward_norm,
            "post_feedforward_layernorm": layer.feed_forward_out_norm,
        }
    else:
        norms["post_attention_layernorm"] = layer.feed_forward_norm
    for name, norm in norms.items():
        _norm(table, f"{prefix}.{name}", norm.get_parameter("weight"), config)


def _norm(table: Table, name: str, weight: Tensor, config: ModelConfig) -> None:
    piece = Piece(weight, tuple(weight.shape), offset=config.norm_offset)
    table[f"{name}.weight"] = [piece]


def _attention(table: Table, prefix: str, attention: Attention, config: ModelConfig) -> None:
    size = config.head_dim
    heads, kv_heads = _times(attention.heads, size), _times(attention.kv_heads, size)
    num_q, num_kv = config.num_heads * size, config.num_kv_heads * size
    parts = [
        Rows("q_proj", num_q, heads),
        Rows("k_proj", num_kv, kv_heads),
        Rows("v_proj", num_kv, kv_heads),
    ]
    fused_name = "qkv_proj" if config.has_fused_qkv else None
    _columns_parallel(table, prefix, attention.qkv, parts, fused_name)
    _rows_parallel(table, f"{prefix}.o_proj", attention.out, num_q, heads)
    if attention.q_norm is not None and attention.k_norm is not None:
        _norm(table, f"{prefix}.q_norm", attention.q_norm.weight, config)
        _norm(table, f"{prefix}.k_norm", attention.k_norm.weight, config)


def _feed_forward(table: Table, prefix: str, layer: FeedForward, config: ModelConfig) -> None:
    total = config.intermediate_size
    parts = [Rows("gate_proj", total, layer.inner), Rows("up_proj", total, layer.inner)]
    fused_name = "gate_up_proj" if config.has_fused_gate_up else None
    _columns_parallel(table, prefix, layer.gate_up, parts, fused_name)
    _rows_parallel(table, f"{prefix}.down_proj", layer.down, total, layer.inner)


def _experts(
    table: Table, prefix: str, experts: Experts, config: ModelConfig, names: Collection[str]
) -> None:
    count, size = experts.config.num_experts, experts.config.intermediate_size
    inner, hidden = experts.inner, config.hidden_size
    is_old_mixtral = (
        config.architecture == "MixtralForCausalLM" and f"{prefix}.mlp.gate.weight" not in names
    )
    block = f"{prefix}.block_sparse_moe" if is_old_mixtral else f"{prefix}.mlp"
    table[f"{block}.gate.weight"] = [Piece(experts.router.get_parameter("weight"), (count, hidden))]
    gate, up = experts.gate_up.split(len(inner), dim=1)  # [experts, inner, hidden] each
    if f"{block}.experts.gate_up_proj" in names:
        shape = (count, 2 * size, hidden)
        table[f"{block}.experts.gate_up_proj"] = [
            Piece(gate, shape, (ALL, _slice(inner))),
            Piece(up, shape, (ALL, _slice(inner, size))),
        ]
        shape = (count, hidden, size)
        table[f"{block}.experts.down_proj"] = [
            Piece(experts.down, shape, (ALL, ALL, _slice(inner)))
        ]
        return
    is_mixtral = config.architecture == "MixtralForCausalLM"
    w1, w3, w2 = ("w1", "w3", "w2") if is_mixtral else ("gate_proj", "up_proj", "down_proj")
    for i in range(count):
        expert = f"{block}.experts.{i}"
        table[f"{expert}.{w1}.weight"] = [Piece(gate[i], (size, hidden), (_slice(inner),))]
        table[f"{expert}.{w3}.weight"] = [Piece(up[i], (size, hidden), (_slice(inner),))]
        down = Piece(experts.down[i], (hidden, size), (ALL, _slice(inner)))
        table[f"{expert}.{w2}.weight"] = [down]


def _columns_parallel(
    table: Table, prefix: str, linear: Linear, parts: Sequence[Rows], fused_name: str | None
) -> None:
    """Adds the pieces of `linear`, which holds this rank's outputs of each part, one part after the
    other. The checkpoint has tensors for each part, or those named `fused_name` for all of them."""
    total = sum(rows.total for rows in parts)
    for tensor, target in _tensors(linear):
        if tensor.outputs is None and fused_name is None:
            raise UnsupportedModel(
                f"each projection of {prefix} has a {tensor.name} for all of its outputs, which "
                "this engine cannot keep apart where it computes several of them at once"
            )
        begin = first = 0  # of a part: among this rank's outputs, and in a fused tensor
        for rows in parts:
            here = range(begin, begin + len(rows.part))
            there, size = rows.part, rows.total
            if fused_name is not None:
                there, size = range(first + there.start, first + there.stop), total
            piece = Piece(
                target[tensor.part_of_outputs(here, linear.num_out)],
                tensor.shape(size, linear.num_in),
                tensor.part_of_outputs(there, size),
            )
            table.setdefault(f"{prefix}.{fused_name or rows.name}.{tensor.name}", []).append(piece)
            begin, first = here.stop, first + rows.total


def _rows_parallel(table: Table, name: str, linear: Linear, total: int, part: range) -> None:
    """Adds the pieces of `linear`, which holds this rank's part of `total` inputs."""
    for tensor, target in _tensors(linear):
        shape = tensor.shape(linear.num_out, total)
        table[f"{name}.{tensor.name}"] = [Piece(target, shape, tensor.part_of_inputs(part, total))]


def _tensors(linear: Linear) -> list[tuple[TensorForm, Tensor]]:
    forms = [*linear.form.tensors, *([] if linear.bias is None else [BIAS])]
    return [(form, linear.get_parameter(form.name)) for form in forms]


def _times(part: range, size: int) -> range:
    return range(part.start * size, part.stop * size)


def _slice(part: range, offset: int = 0) -> slice:
    return slice(part.start + offset, part.stop + offset)
