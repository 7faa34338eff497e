"""What a step cannot be faster than, on what was measured of the machine in the same run.

A decode step reads every weight once, however many sequences share it, and the K and V of every
sequence; a prompt multiplies every weight with every token. So

    step    ≥ max((weights + K and V) bytes / copy rate, FLOPs / matmul rate)
    prefill ≥ FLOPs / matmul rate

The copy rate counts what is read and what is written. It is the rate at which memory gives what a
program both loads and stores; where loads alone are faster (as on most CPUs, whose stores first
fetch the line that they overwrite), a step can come below this floor. Activations, norms and the
sampler's logits are left out: they are small beside the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from engine.model.config import ModelConfig
from protocol.layout import DTYPE_BYTES

COPY_BYTES = (64 << 20, 256 << 20)
GPU_COPY_BYTES = (1 << 30, 4 << 30)
"""Far beyond the caches."""
MATMULS = ((512, 512, 512), (512, 2048, 512), (1024, 1024, 1024), (2048, 2048, 2048))
GPU_MATMULS = ((4096, 4096, 4096), (8192, 8192, 8192), (2048, 28_672, 4096))
"""(rows, columns, inner): the best of them counts."""
REPEATS = 7


@dataclass(frozen=True)
class MachineRates:
    """What one machine does with the threads of this run."""

    copy_bytes_s: float
    matmul_flop_s: float


@dataclass(frozen=True)
class StepWork:
    """What a step must move and compute."""

    weight_bytes: int
    kv_bytes: int
    flops: int

    def floor_s(self, rates: MachineRates) -> float:
        read_s = (self.weight_bytes + self.kv_bytes) / rates.copy_bytes_s
        return max(read_s, self.flops / rates.matmul_flop_s)


def decode_work(config: ModelConfig, dtype: str, batch: int, context: float) -> StepWork:
    """One step of `batch` sequences, each attending to `context` tokens, its own included.

    `dtype` is that of weights, K and V.
    """
    weights = layer_weights(config) + config.vocab_size * config.hidden_size
    kv_elements = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return StepWork(
        weight_bytes=weights * DTYPE_BYTES[dtype],
        kv_bytes=round(batch * context * kv_elements) * DTYPE_BYTES[dtype],
        flops=round(batch * (2 * weights + context * _attention_flops(config))),
    )


def prefill_work(config: ModelConfig, dtype: str, batch: int, context: int) -> StepWork:
    """`batch` prompts of `context` tokens; the head computes the last row of each only.

    A token attends to half of its prompt on average. K and V are written, but of that nothing is
    counted: what is computed takes far longer.
    """
    weights, head = layer_weights(config), config.vocab_size * config.hidden_size
    attention = context * (context + 1) // 2 * _attention_flops(config)
    return StepWork(
        weight_bytes=(weights + head) * DTYPE_BYTES[dtype],
        kv_bytes=0,
        flops=batch * (2 * (context * weights + head) + attention),
    )


def layer_weights(config: ModelConfig) -> int:
    """Counts the weights in the matrices of all layers, without embedding and head."""
    attention_rows = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim
    per_layer = config.hidden_size * (attention_rows + 3 * config.intermediate_size)
    return config.num_layers * per_layer


def _attention_flops(config: ModelConfig) -> int:
    """Returns what one token costs with one token of context: q·k, and its share of summing v."""
    return 4 * config.num_layers * config.num_heads * config.head_dim


def measure_rates(
    dtype: torch.dtype,
    device: torch.device,
    copy_bytes: Sequence[int] = (),
    matmuls: Sequence[tuple[int, int, int]] = (),
) -> MachineRates:
    """The best of the sizes, by default of those above; takes a second or two."""
    on_gpu = device.type == "cuda"
    copy_bytes = copy_bytes or (GPU_COPY_BYTES if on_gpu else COPY_BYTES)
    matmuls = matmuls or (GPU_MATMULS if on_gpu else MATMULS)
    return MachineRates(
        copy_bytes_s=max(_copy(num_bytes, device) for num_bytes in copy_bytes),
        matmul_flop_s=max(_matmul(shape, dtype, device) for shape in matmuls),
    )


def _copy(num_bytes: int, device: torch.device) -> float:
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / _least_s(lambda: target.copy_(source), device)


def _matmul(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> float:
    rows, columns, inner = shape
    left = torch.randn(rows, inner, device=device).to(dtype)
    right = torch.randn(columns, inner, device=device).to(dtype)  # as weights lie
    return 2 * rows * columns * inner / _least_s(lambda: left @ right.T, device)


def _least_s(work: Callable[[], object], device: torch.device) -> float:
    """The best of some tries after one that warms up."""
    seconds = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
