"""What is split over tensor-parallel ranks: linear layers, the embedding, the head.

    column-parallel   a rank has some output rows of the weight: its heads, its part of gate and up
    row-parallel      a rank has some input columns; the results of all ranks are summed

Which rows and columns those are is written down here; the loader fills them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.kernels import Kernels
from engine.model_config import UnsupportedModel
from engine.parallel import TensorParallel


def share(total: int, parallel: TensorParallel, what: str) -> range:
    """This rank's part of `total` things. Raises UnsupportedModel if they cannot be split."""
    if total % parallel.size:
        raise UnsupportedModel(
            f"the model's {total} {what} cannot be split over {parallel.size} ranks; choose a "
            f"--tensor-parallel-size that divides {total}"
        )
    each = total // parallel.size
    return range(parallel.rank * each, (parallel.rank + 1) * each)


def kv_head_share(num_kv_heads: int, parallel: TensorParallel) -> range:
    """This rank's KV heads; with more ranks than heads, several have the same one."""
    if parallel.size > num_kv_heads and parallel.size % num_kv_heads == 0:
        first = parallel.rank * num_kv_heads // parallel.size
        return range(first, first + 1)
    return share(num_kv_heads, parallel, "KV heads")


def vocabulary_share(vocab_size: int, parallel: TensorParallel) -> range:
    """This rank's tokens. All ranks have equally many rows; the last ones' may end in padding,
    which the range leaves out."""
    each = vocabulary_rows(vocab_size, parallel)
    first = min(parallel.rank * each, vocab_size)
    return range(first, min(first + each, vocab_size))


def vocabulary_rows(vocab_size: int, parallel: TensorParallel) -> int:
    return -(-vocab_size // parallel.size)


class Linear(nn.Module):
    """A weight [out, in] and perhaps a bias [out]; whole, or column-parallel if `num_out` is this
    rank's part."""

    def __init__(self, num_in: int, num_out: int, has_bias: bool, kernels: Kernels) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_out, num_in), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(num_out), requires_grad=False) if has_bias else None
        self.kernels = kernels

    def forward(self, x: Tensor) -> Tensor:
        return self.kernels.linear(x, self.weight, self.bias)


class RowParallelLinear(Linear):
    """`num_in` is this rank's part. Rank 0 alone adds the bias."""

    def __init__(
        self,
        num_in: int,
        num_out: int,
        has_bias: bool,
        kernels: Kernels,
        parallel: TensorParallel,
    ) -> None:
        super().__init__(num_in, num_out, has_bias, kernels)
        self.parallel = parallel

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias if self.parallel.rank == 0 else None
        return self.parallel.all_reduce(self.kernels.linear(x, self.weight, bias))


class VocabularyEmbedding(nn.Module):
    """Rows of this rank's tokens; a token's vector comes from the rank that has it."""

    def __init__(self, vocab_size: int, hidden_size: int, parallel: TensorParallel) -> None:
        super().__init__()
        rows = vocabulary_rows(vocab_size, parallel)
        self.weight = nn.Parameter(torch.empty(rows, hidden_size), requires_grad=False)
        self.parallel = parallel

    def forward(self, ids: Tensor) -> Tensor:
        """[tokens] → [tokens, hidden]."""
        if self.parallel.size == 1:
            return nn.functional.embedding(ids, self.weight)
        num_rows = self.weight.shape[0]
        rows = ids - self.parallel.rank * num_rows
        is_elsewhere = (rows < 0) | (rows >= num_rows)
        vectors = nn.functional.embedding(rows.clamp(0, num_rows - 1), self.weight)
        return self.parallel.all_reduce(vectors.masked_fill_(is_elsewhere[:, None], 0.0))


class VocabularyHead(nn.Module):
    """Logits of this rank's tokens, gathered; shares `embedding.weight` if the two are tied."""

    def __init__(
        self, vocab_size: int, hidden_size: int, kernels: Kernels, parallel: TensorParallel
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        rows = vocabulary_rows(vocab_size, parallel)
        self.weight = nn.Parameter(torch.empty(rows, hidden_size), requires_grad=False)
        self.kernels, self.parallel = kernels, parallel

    def forward(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] → [rows, vocab]."""
        logits = self.parallel.all_gather(self.kernels.linear(hidden, self.weight, None))
        return logits[:, : self.vocab_size]
