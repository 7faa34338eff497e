"""The part of a layer that follows attention: a gated feed-forward, or a mixture of such
experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.model.config import ExpertsConfig, ModelConfig
from engine.model.grouped_linear import grouped_column_parallel, grouped_row_parallel
from engine.model.linear import Build, Linear, column_parallel, row_parallel, share
from engine.model.linear_form import PLAIN


class FeedForward(nn.Module):
    """A gated feed-forward. Each rank has some of the inner dimensions: outputs of gate and up,
    inputs of down."""

    def __init__(self, config: ModelConfig, layer: int, build: Build) -> None:
        super().__init__()
        self.inner = share(config.intermediate_size, build.parallel, "feed-forward dimensions")
        size, name = len(self.inner), f"model.layers.{layer}.mlp"
        parts = [(f"{name}.gate_proj", size), (f"{name}.up_proj", size)]
        if config.has_fused_gate_up:
            parts = [(f"{name}.gate_up_proj", 2 * size)]
        hidden, has_bias = config.hidden_size, config.mlp_bias
        self.gate_up = column_parallel(hidden, parts, has_bias, build)
        self.down = row_parallel(f"{name}.down_proj", size, hidden, has_bias, build)
        self.activation, self.kernels = config.activation, build.kernels

    def forward(self, hidden: Tensor) -> Tensor:
        """Takes [tokens, hidden]; returns the same shape, summed over all ranks."""
        gate_up = self.gate_up(hidden)
        return self.down(self.kernels.activate_and_mul(gate_up, self.activation))


class Experts(nn.Module):
    """A mixture of experts: a token goes to those that a router gives the highest scores. Each rank
    has some inner dimensions of every expert.

    There is no loop over tokens, and shapes do not depend on the router's choice: each token has a
    row for each expert that it goes to, rows are sorted by expert, and a grouped product takes them
    all at once.
    """

    def __init__(
        self, config: ModelConfig, experts: ExpertsConfig, layer: int, build: Build
    ) -> None:
        super().__init__()
        self.config = experts
        self.inner = share(experts.intermediate_size, build.parallel, "dimensions of an expert")
        size, hidden, count = len(self.inner), config.hidden_size, experts.num_experts
        name = f"model.layers.{layer}.mlp.experts"
        self.router = Linear(hidden, count, False, PLAIN, build)
        parts = [(f"{name}.gate_proj", size), (f"{name}.up_proj", size)]
        self.gate_up = grouped_column_parallel(count, hidden, parts, build)
        self.down = grouped_row_parallel(f"{name}.down_proj", count, size, hidden, build)
        self.activation, self.kernels = config.activation, build.kernels

    def forward(self, hidden: Tensor) -> Tensor:
        """Takes [tokens, hidden]; returns the same shape, summed over all ranks."""
        num_per_token = self.config.num_per_token
        scores = self.router(hidden).softmax(dim=-1, dtype=torch.float32)
        weights, experts = scores.topk(num_per_token, dim=-1)  # [tokens, num_per_token]
        if self.config.is_normalised:
            weights /= weights.sum(dim=-1, keepdim=True)
        experts, order = experts.flatten().sort(stable=True)
        all_experts = torch.arange(self.config.num_experts, device=hidden.device)
        ends = torch.searchsorted(experts, all_experts, right=True, out_int32=True)
        rows = hidden[order // num_per_token]  # [tokens * num_per_token, hidden], by expert
        gate_up = self.gate_up(rows, ends)
        inner = self.kernels.activate_and_mul(gate_up, self.activation)
        output = self.down(inner, ends)
        by_token = torch.empty_like(output).index_copy_(0, order, output)
        by_token = by_token.unflatten(0, (-1, num_per_token)).mul_(weights[..., None])
        return self.down.of_all_ranks(by_token.sum(dim=1))
