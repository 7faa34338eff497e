"""The part of a layer that follows attention: a gated feed-forward, or a mixture of such
experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.model.config import ExpertsConfig, ModelConfig
from engine.model.linear import Build, Linear, RowParallelLinear, share
from engine.model.linear_form import PLAIN


class FeedForward(nn.Module):
    """A gated feed-forward. Each rank has some of the inner dimensions: outputs of gate and up,
    inputs of down."""

    def __init__(self, config: ModelConfig, build: Build) -> None:
        super().__init__()
        self.inner = share(config.intermediate_size, build.parallel, "feed-forward dimensions")
        size = len(self.inner)
        self.gate_up = Linear(config.hidden_size, 2 * size, config.mlp_bias, build)
        self.down = RowParallelLinear(size, config.hidden_size, config.mlp_bias, build)
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

    def __init__(self, config: ModelConfig, experts: ExpertsConfig, build: Build) -> None:
        super().__init__()
        self.config = experts
        self.inner = share(experts.intermediate_size, build.parallel, "dimensions of an expert")
        size, count = len(self.inner), experts.num_experts
        self.router = Linear(config.hidden_size, count, False, build, form=PLAIN)
        self.gate_up = build.parameter(count, 2 * size, config.hidden_size)
        self.down = build.parameter(count, config.hidden_size, size)
        self.activation, self.kernels = config.activation, build.kernels
        self.parallel = build.parallel

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
        gate_up = self.kernels.grouped_linear(rows, self.gate_up, ends)
        inner = self.kernels.activate_and_mul(gate_up, self.activation)
        output = self.kernels.grouped_linear(inner, self.down, ends)
        by_token = torch.empty_like(output).index_copy_(0, order, output)
        by_token = by_token.unflatten(0, (-1, num_per_token)).mul_(weights[..., None])
        return self.parallel.all_reduce(by_token.sum(dim=1))
