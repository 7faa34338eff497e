"""The activations of feed-forward layers. Pure."""

from __future__ import annotations

from typing import Literal

Activation = Literal["silu", "gelu_tanh"]
"""What a feed-forward layer applies to its gate."""
