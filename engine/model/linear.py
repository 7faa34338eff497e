"""The layers that are split over tensor-parallel ranks: linear layers, the embedding, the head.

    column-parallel   a rank has some outputs of the weight: its heads, its part of gate and up
    row-parallel      a rank has some inputs; the results of all ranks are summed

Which outputs and inputs those are is decided here, how a weight is stored in `linear_form.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.kernels.base import Kernels
from engine.model.linear_form import PLAIN, LinearForm
from engine.model.split import part, shares_kv_heads
from engine.parallel import TensorParallel


@dataclass(frozen=True)
class Build:
    """The settings that every part of a model is made with."""

    dtype: torch.dtype
    device: torch.device
    kernels: Kernels
    parallel: TensorParallel
    form: LinearForm = PLAIN
    """The form of the projections in layers. Embedding, head, router and experts are plain."""
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


class Linear(nn.Module):
    """A weight of `num_out` outputs and `num_in` inputs in some form, and perhaps a bias [out].

    A rank that has a part of the outputs makes it with their number; the others have the rest.
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        has_bias: bool,
        build: Build,
        form: LinearForm | None = None,
    ) -> None:
        super().__init__()
        self.num_in, self.num_out = num_in, num_out
        self.form = form or build.form
        self.kernels, self.parallel = build.kernels, build.parallel
        for tensor in self.form.tensors:
            shape = tensor.shape(num_out, num_in)
            self.register_parameter(tensor.name, build.parameter(*shape, dtype=tensor.dtype))
        self.bias = build.parameter(num_out) if has_bias else None
        # nn.Module looks parameters up by name, which is slow for a call of each step and layer.
        self._tensors = tuple(self.get_parameter(tensor.name) for tensor in self.form.tensors)

    def forward(self, x: Tensor) -> Tensor:
        """Takes [tokens, num_in]; returns [tokens, num_out], the outputs that this rank has."""
        return self.form.apply(x, self._tensors, self.bias, self.kernels)


class RowParallelLinear(Linear):
    """A linear layer of which each rank has `num_in` of the inputs. The ranks' results are summed,
    so rank 0 alone adds the bias."""

    def forward(self, x: Tensor) -> Tensor:
        """Takes [tokens, num_in], the inputs that this rank has; returns [tokens, num_out], summed
        over all ranks."""
        bias = self.bias if self.parallel.rank == 0 else None
        return self.parallel.all_reduce(self.form.apply(x, self._tensors, bias, self.kernels))


class VocabularyEmbedding(nn.Module):
    """The embedding, of which each rank has the rows of some tokens. A token's vector comes from
    the rank that has it."""

    def __init__(self, vocab_size: int, hidden_size: int, build: Build) -> None:
        super().__init__()
        self.weight = build.parameter(vocabulary_rows(vocab_size, build.parallel), hidden_size)
        self.parallel = build.parallel

    def forward(self, ids: Tensor) -> Tensor:
        """Takes ids [tokens]; returns [tokens, hidden]."""
        if self.parallel.size == 1:
            return nn.functional.embedding(ids, self.weight)
        num_rows = self.weight.shape[0]
        rows = ids - self.parallel.rank * num_rows
        is_elsewhere = (rows < 0) | (rows >= num_rows)
        vectors = nn.functional.embedding(rows.clamp_(0, num_rows - 1), self.weight)
        return self.parallel.all_reduce(vectors.masked_fill_(is_elsewhere[:, None], 0.0))


class VocabularyHead(nn.Module):
    """The output layer. Each rank computes the logits of some tokens, and all ranks end with
    all."""

    def __init__(self, vocab_size: int, hidden_size: int, build: Build) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.weight = build.parameter(vocabulary_rows(vocab_size, build.parallel), hidden_size)
        self.kernels, self.parallel = build.kernels, build.parallel

    def forward(self, hidden: Tensor) -> Tensor:
        """Takes [rows, hidden]; returns [rows, vocab]."""
        logits = self.parallel.all_gather(self.kernels.linear(hidden, self.weight, None))
        return logits[:, : self.vocab_size]
