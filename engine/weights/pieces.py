"""`pieces_of` says where each tensor of a checkpoint goes: into a parameter as a whole, in part, or
into several places.

Published checkpoints have a tensor per projection and expert, Phi's fuses q with k and v and gate
with up; transformers 5 may write the experts of a layer as one tensor. A rank of a tensor-parallel
node takes its part of each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from torch import Tensor, nn

from engine.model.config import ModelConfig
from engine.model.decoder import Attention, DecoderModel, Layer
from engine.model.feed_forward import Experts, FeedForward
from engine.model.grouped_linear import GroupedGathering, GroupedLinear, GroupedRuns
from engine.model.linear import GatheringLinear, Linear, LinearRuns, Weight, vocabulary_share
from engine.model.linear_form import Axis, TensorForm
from engine.weights.module_names import stem_of
from engine.weights.source import Part

ALL = slice(None)
BIAS = TensorForm("bias", outputs=Axis(0), inputs=None)


class Piece(NamedTuple):
    """`part` of a checkpoint's tensor of `shape` goes to `target`, with `offset` added."""

    target: Tensor
    shape: tuple[int, ...]
    part: Part = ()
    """The part of the tensor, in the form that `TensorSource.read` takes."""
    offset: float = 0.0
    picks: tuple[int, ...] = ()
    """Where groups are shorter than those of the file: which of the elements that were read, along
    the last dimension, each element of `target` is. Empty: they are the same."""


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
    stem = stem_of(names)
    vocabulary: dict[str, Weight] = {f"{stem}.embed_tokens": model.embedding}
    if not config.tie_word_embeddings:
        vocabulary["lm_head"] = model.head
    for name, weight in vocabulary.items():
        here = range(len(tokens))
        _add(table, name, _of_outputs(weight, here, tokens, config.vocab_size))
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
    if f"{block}.experts.gate_up_proj" in names:
        _stacked_experts(table, f"{block}.experts", experts, config)
        return
    w1, w3, w2 = "gate_proj", "up_proj", "down_proj"
    tensors = (f"{block}.experts.0.{w2}.{tensor.name}" for tensor in experts.down.form.tensors)
    if config.architecture == "MixtralForCausalLM" and not any(name in names for name in tensors):
        w1, w3, w2 = "w1", "w3", "w2"  # some producers of packed weights write the other names
    parts = [Rows(w1, size, inner), Rows(w3, size, inner)]
    for i in range(count):
        expert = f"{block}.experts.{i}"
        _columns_parallel(table, expert, experts.gate_up, parts, None, expert=i)
        _rows_parallel(table, f"{expert}.{w2}", experts.down, size, inner, expert=i)


def _stacked_experts(table: Table, prefix: str, experts: Experts, config: ModelConfig) -> None:
    """Adds the pieces of plain experts that are one tensor for a whole layer."""
    count, size = experts.config.num_experts, experts.config.intermediate_size
    inner, hidden = experts.inner, config.hidden_size
    gate, up = experts.gate_up.get_parameter("weight").split(len(inner), dim=1)
    down = experts.down.get_parameter("weight")
    shape = (count, 2 * size, hidden)
    table[f"{prefix}.gate_up_proj"] = [
        Piece(gate, shape, (ALL, _slice(inner))),
        Piece(up, shape, (ALL, _slice(inner, size))),
    ]
    shape = (count, hidden, size)
    table[f"{prefix}.down_proj"] = [Piece(down, shape, (ALL, ALL, _slice(inner)))]


def _columns_parallel(
    table: Table,
    prefix: str,
    layer: Linear | LinearRuns | GroupedLinear | GroupedRuns,
    parts: Sequence[Rows],
    fused_name: str | None,
    expert: int | None = None,
) -> None:
    """Adds the pieces of `layer`, which holds this rank's outputs of each part, one part after the
    other. The checkpoint has tensors for each part, or those named `fused_name` for all of them."""
    runs = layer.runs if isinstance(layer, LinearRuns | GroupedRuns) else [layer]
    rest = iter(parts)
    for run in runs:
        parts_of_run = list(rest) if fused_name else list(islice(rest, run.num_parts))
        total = sum(rows.total for rows in parts_of_run)
        begin = first = 0  # of a part: among this rank's outputs, and in a fused tensor
        for rows in parts_of_run:
            here = range(begin, begin + len(rows.part))
            name, there, size = rows.name, rows.part, rows.total
            if fused_name is not None:
                name, there = fused_name, range(first + there.start, first + there.stop)
                size = total
            _add(table, f"{prefix}.{name}", _of_outputs(run, here, there, size, expert))
            begin, first = here.stop, first + rows.total


def _rows_parallel(
    table: Table, name: str, layer: Weight, total: int, part: range, expert: int | None = None
) -> None:
    """Adds the pieces of `layer`, which holds this rank's part of `total` inputs; or some outputs
    of all inputs, if it gathers them."""
    if isinstance(layer, GatheringLinear | GroupedGathering):
        here, begin = range(layer.num_out), layer.parallel.rank * layer.num_out
        there = range(begin, begin + layer.num_out)
        num_out = layer.num_out * layer.parallel.size
        _add(table, name, _of_outputs(layer, here, there, num_out, expert))
    else:
        _add(table, name, _of_inputs(layer, part, total, expert))


def _add(table: Table, module: str, pieces: Iterator[tuple[str, Piece]]) -> None:
    for tensor, piece in pieces:
        table.setdefault(f"{module}.{tensor}", []).append(piece)


def _of_outputs(
    weight: Weight, here: range, there: range, total: int, expert: int | None = None
) -> Iterator[tuple[str, Piece]]:
    """Yields the pieces that put the outputs `there`, of `total` in the checkpoint, `here` in
    `weight`, each with the name of its tensor."""
    for tensor in _tensors(weight):
        target = _target(weight, tensor, expert)[tensor.part_of_outputs(here, weight.num_out)]
        shape = tensor.shape(total, weight.num_in)
        yield tensor.name, Piece(target, shape, tensor.part_of_outputs(there, total))


def _of_inputs(
    weight: Weight, part: range, total: int, expert: int | None = None
) -> Iterator[tuple[str, Piece]]:
    """Yields the pieces that put the inputs `part`, of `total` in the checkpoint, into `weight`,
    which holds them alone."""
    stored = {tensor.name: tensor for tensor in weight.stored_form.tensors}
    for tensor in _tensors(weight):
        target, file = _target(weight, tensor, expert), stored.get(tensor.name, tensor)
        shape = file.shape(weight.num_out, total)
        if file == tensor:
            yield tensor.name, Piece(target, shape, tensor.part_of_inputs(part, total))
        else:
            read, picks = file.cover_of_inputs(part, tensor)
            yield tensor.name, Piece(target, shape, read, picks=picks)


def _target(weight: Weight, tensor: TensorForm, expert: int | None) -> Tensor:
    parameter = weight.get_parameter(tensor.name)
    return parameter if expert is None else parameter[expert]


def _tensors(weight: Weight) -> list[TensorForm]:
    has_bias = isinstance(weight, Linear) and weight.bias is not None
    return [*weight.form.tensors, *([BIAS] if has_bias else [])]


def _times(part: range, size: int) -> range:
    return range(part.start * size, part.stop * size)


def _slice(part: range, offset: int = 0) -> slice:
    return slice(part.start + offset, part.stop + offset)
