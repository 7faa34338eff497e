"""The layers that are split over tensor-parallel ranks: linear layers, the embedding, the head.

    column-parallel   a rank has some outputs of the weight: its heads, its part of gate and up
    row-parallel      a rank has some inputs; the results of all ranks are summed

Which outputs and inputs those are is decided here, how a weight is stored in `linear_form.py`.

Modules are asked for their form by a canonical name, whatever the checkpoint calls them:
`model.embed_tokens`, `model.layers.3.self_attn.q_proj`, `model.layers.3.mlp.experts.down_proj` (all
experts have one form), `lm_head`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from engine.kernels.base import Kernels
from engine.kernels.dequantise import scales_of_largest
from engine.model.forms.fp8 import Fp8Form
from engine.model.linear_form import LinearForm, always_plain
from engine.model.split import part, shares_kv_heads
from engine.parallel import TensorParallel


@dataclass(frozen=True)
class Build:
    """The settings that every part of a model is made with."""

    dtype: torch.dtype
    device: torch.device
    kernels: Kernels
    parallel: TensorParallel
    form_of: Callable[[str], LinearForm] = always_plain
    """Tells the form of a module by its canonical name."""
    weight_dtype: torch.dtype | None = None
    """What plain weights lie in, if not in `dtype`: 16 bits that the kernels widen exactly."""

    def parameter(self, *shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
        """Makes a parameter that is not filled yet."""
        is_weight = len(shape) > 1
        dtype = dtype or (self.weight_dtype if is_weight else None) or self.dtype
        values = torch.empty(shape, dtype=dtype, device=self.device)
        return nn.Parameter(values, requires_grad=False)


def share(total: int, parallel: TensorParallel, what: str) -> range:
    """Returns this rank's part of `total` things. Raises UnsupportedModel if they cannot be
    split."""
    each = part(total, parallel.size, what)
    return range(parallel.rank * each, (parallel.rank + 1) * each)


def kv_head_share(num_kv_heads: int, parallel: TensorParallel) -> range:
    """Returns this rank's KV heads. With more ranks than heads, several ranks have the same one."""
    if shares_kv_heads(num_kv_heads, parallel.size):
        first = parallel.rank * num_kv_heads // parallel.size
        return range(first, first + 1)
    return share(num_kv_heads, parallel, "KV heads")


def vocabulary_share(vocab_size: int, parallel: TensorParallel) -> range:
    """Returns this rank's part of the vocabulary. All ranks have equally many rows; those of the
    last ranks may end in padding, which the range leaves out."""
    each = vocabulary_rows(vocab_size, parallel)
    first = min(parallel.rank * each, vocab_size)
    return range(first, min(first + each, vocab_size))


def vocabulary_rows(vocab_size: int, parallel: TensorParallel) -> int:
    """Returns how many rows of the vocabulary each rank has, padding included."""
    return -(-vocab_size // parallel.size)


class Weight(nn.Module):
    """The parameters of a weight [out, in] in some form, or of several in dimensions in front.

    `tied` is another weight whose parameters these are.
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        form: LinearForm,
        build: Build,
        *leading: int,
        tied: Weight | None = None,
    ) -> None:
        super().__init__()
        self.num_in, self.num_out, self.form = num_in, num_out, form
        self.stored_form = form  # differs where a rank's part needs shorter groups
        self.kernels, self.parallel = build.kernels, build.parallel
        for tensor in form.tensors:
            shape = (*leading, *tensor.shape(num_out, num_in))
            if tied is None:
                parameter = build.parameter(*shape, dtype=tensor.dtype)
            else:
                parameter = tied.get_parameter(tensor.name)
            self.register_parameter(tensor.name, parameter)
        # nn.Module looks parameters up by name, which is slow for a call of each step and layer.
        self._tensors = tuple(self.get_parameter(tensor.name) for tensor in form.tensors)


class Linear(Weight):
    """A weight of `num_out` outputs and `num_in` inputs, and perhaps a bias [out].

    A rank that has a part of the outputs makes it with their number; the others have the rest. It
    may hold the outputs of `num_parts` projections, one after the other.
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        has_bias: bool,
        form: LinearForm,
        build: Build,
        num_parts: int = 1,
    ) -> None:
        super().__init__(num_in, num_out, form, build)
        self.num_parts = num_parts
        self.bias = build.parameter(num_out) if has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Takes [tokens, num_in]; returns [tokens, num_out], the outputs that this rank has."""
        return self.form.apply(x, self._tensors, self.bias, self.kernels)


class LinearRuns(nn.Module):
    """Projections of the same inputs, of which only neighbours of equal form are one layer."""

    def __init__(self, runs: Sequence[Linear]) -> None:
        super().__init__()
        self.runs: Sequence[Linear] = nn.ModuleList(runs)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """Takes [tokens, num_in]; returns the outputs of all projections, [tokens, num_out]."""
        return torch.cat([run(x) for run in self.runs], dim=-1)


def column_parallel(
    num_in: int, parts: Sequence[tuple[str, int]], has_bias: bool, build: Build
) -> Linear | LinearRuns:
    """Makes the layer that computes several projections of the same inputs: one product, if all
    have the same form. `parts` are the canonical names and this rank's outputs of each."""
    runs = []
    for form, group in groupby(parts, key=lambda part: build.form_of(part[0])):
        sizes = [size for _, size in group]
        runs.append(Linear(num_in, sum(sizes), has_bias, form, build, len(sizes)))
    return runs[0] if len(runs) == 1 else LinearRuns(runs)


class RowParallelLinear(Linear):
    """A linear layer of which each rank has `num_in` of the inputs. The ranks' results are summed,
    so rank 0 alone adds the bias."""

    def forward(self, x: Tensor) -> Tensor:
        """Takes [tokens, num_in], the inputs that this rank has; returns [tokens, num_out], summed
        over all ranks."""
        bias = self.bias if self.parallel.rank == 0 else None
        return self.parallel.all_reduce(self.form.apply(x, self._tensors, bias, self.kernels))


class JointlyRoundedLinear(RowParallelLinear):
    """A row-parallel layer in FP8 for which all inputs of a token are rounded with one scale,
    though each rank has some of them: the ranks first tell each other the largest. No GPU has run
    it yet."""

    form: Fp8Form

    def forward(self, x: Tensor) -> Tensor:
        """Takes [tokens, num_in], the inputs that this rank has; returns [tokens, num_out], summed
        over all ranks."""
        largest = self.parallel.all_max(x.abs().amax(dim=-1, keepdim=True))
        weight = self.form.weight(self._tensors)._replace(
            activations="static", input_scale=scales_of_largest(largest)
        )
        bias = self.bias if self.parallel.rank == 0 else None
        return self.parallel.all_reduce(self.kernels.packed_linear(x, weight, bias))


class GatheringLinear(Linear):
    """A linear layer in place of a row-parallel one whose form cannot be cut between a rank's
    inputs and the next one's. Each rank has some outputs, and all inputs are gathered for it."""

    def forward(self, x: Tensor) -> Tensor:
        """Takes the inputs that this rank has, [tokens, num_in / ranks]; returns [tokens, out], the
        outputs of all ranks."""
        return self.parallel.all_gather(super().forward(self.parallel.all_gather(x)))


def row_parallel(
    name: str, num_in: int, num_out: int, has_bias: bool, build: Build
) -> RowParallelLinear | GatheringLinear:
    """Makes the layer called `name`, which takes this rank's `num_in` inputs."""
    form, size = build.form_of(name), build.parallel.size
    if size == 1:
        return RowParallelLinear(num_in, num_out, has_bias, form, build)
    if isinstance(form, Fp8Form) and form.activations == "token" and not form.has_blocks:
        return JointlyRoundedLinear(num_in, num_out, has_bias, form, build)
    part_form = form.of_part(num_in)
    if part_form is None:
        outputs = part(num_out, size, f"outputs of {name}")
        return GatheringLinear(num_in * size, outputs, has_bias, form, build)
    linear = RowParallelLinear(num_in, num_out, has_bias, part_form, build)
    linear.stored_form = form
    return linear


class VocabularyEmbedding(Weight):
    """The embedding, of which each rank has the rows of some tokens. A token's vector comes from
    the rank that has it."""

    def __init__(self, vocab_size: int, hidden_size: int, build: Build) -> None:
        num_rows = vocabulary_rows(vocab_size, build.parallel)
        super().__init__(hidden_size, num_rows, build.form_of("model.embed_tokens"), build)
        self.dtype = build.dtype

    def forward(self, ids: Tensor) -> Tensor:
        """Takes ids [tokens]; returns [tokens, hidden]."""
        if self.parallel.size == 1:
            return self.form.rows(ids, self._tensors, self.dtype)
        rows = ids - self.parallel.rank * self.num_out
        is_elsewhere = (rows < 0) | (rows >= self.num_out)
        vectors = self.form.rows(rows.clamp_(0, self.num_out - 1), self._tensors, self.dtype)
        return self.parallel.all_reduce(vectors.masked_fill_(is_elsewhere[:, None], 0.0))


class VocabularyHead(Weight):
    """The output layer. Each rank computes the logits of some tokens, and all ranks end with
    all."""

    def __init__(
        self, vocab_size: int, hidden_size: int, tied: VocabularyEmbedding | None, build: Build
    ) -> None:
        """`tied` is the embedding, if its weight is that of the head too."""
        form = build.form_of("lm_head") if tied is None else tied.form
        num_rows = vocabulary_rows(vocab_size, build.parallel)
        super().__init__(hidden_size, num_rows, form, build, tied=tied)
        self.vocab_size = vocab_size

    def forward(self, hidden: Tensor) -> Tensor:
        """Takes [rows, hidden]; returns [rows, vocab]."""
        logits = self.form.apply(hidden, self._tensors, None, self.kernels)
        return self.parallel.all_gather(logits)[:, : self.vocab_size]
