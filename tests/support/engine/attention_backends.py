"""The attention back ends that a CPU has, by name."""

from __future__ import annotations

from collections.abc import Callable

from engine.attention.backend import AttentionBackend
from engine.attention.deterministic_attention import DeterministicAttention
from engine.attention.native_attention import NativeAttention
from engine.attention.torch_attention import TorchAttention
from tests.support.engine.native import compiled

BACKENDS: dict[str, Callable[[], AttentionBackend]] = {
    "torch": TorchAttention,
    "deterministic": DeterministicAttention,
    "native": lambda: NativeAttention(compiled()),
}
