"""`Checkpoint`: a model as it lies on disk, whatever its files are, and in which form each of its
weights is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.model.linear_form import LinearForm, always_plain
from engine.options import EngineOptions
from engine.weights.safetensors_source import SafetensorsSource
from engine.weights.source import TensorSource
from protocol.model.directory import read_config


@dataclass(frozen=True)
class Checkpoint:
    """What the engine knows of a model before it loads it."""

    config: Mapping[str, Any]
    """The keys of config.json."""
    source: TensorSource | None
    """The tensors under the names of Hugging Face; those of packed weights are the tensors of their
    form, as `model.layers.0.self_attn.q_proj.values`. None: weights are random."""
    stored: TensorSource | None
    """The tensors as the files have them, of which the fingerprint is made."""
    form_of: Callable[[str], LinearForm] = always_plain
    """Tells the form of a module by its canonical name, as `engine/model/linear.py` has it."""
    arithmetic: str = ""
    """Says how packed weights are multiplied; nodes that do it differently share no KV."""


def open_checkpoint(path: Path, options: EngineOptions) -> Checkpoint:
    """Reads what the files at `path` say of themselves; weights are read later.

    Raises ModelDirectoryError or UnsupportedModel.
    """
    config = read_config(path)
    source = None if options.load_format == "dummy" else SafetensorsSource(path)
    return Checkpoint(config, source, source)
