"""`Checkpoint`: a model as it lies on disk, whatever its files are, and in which form each of its
weights is loaded."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.model.families import UnsupportedModel, names_of
from engine.model.forms.fp8 import Fp8Form
from engine.model.forms.integer import IntegerForm
from engine.model.linear_form import PLAIN, LinearForm, always_plain
from engine.model.quantisation import (
    AT_LOAD,
    Fp8Scheme,
    Quantisation,
    Scheme,
    read_quantisation,
    require_method,
)
from engine.options import EngineOptions
from engine.weights.gguf.source import GgufSource
from engine.weights.module_names import is_projection
from engine.weights.packed_modules import forms_of_model, packed_modules, repacked
from engine.weights.quantised_at_load import group_size_of, quantised_modules
from engine.weights.renamed_source import RenamedSource
from engine.weights.safetensors_source import SafetensorsSource
from engine.weights.source import TensorSource
from protocol.model.files import open_model
from protocol.model.gguf.parts import is_gguf

log = logging.getLogger(__name__)

SIZES = ("hidden_size", "intermediate_size", "moe_intermediate_size")
"""Keys of config.json that are numbers of inputs of a model's layers."""


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
    config = open_model(path).config()
    if is_gguf(path):
        return _of_gguf(path, config, options)
    settings = read_quantisation(config)
    require_method(settings, options.quantization)
    stored = None if options.load_format == "dummy" else _stored(path, config)
    at_load = AT_LOAD.get(options.quantization) if settings is None else None
    if settings is None and at_load is None:
        return Checkpoint(config, stored, stored)
    arithmetic = _arithmetic(options.quantization, settings, at_load)
    log.info("the weights are packed: %s", arithmetic)
    if stored is None:
        form_of = _forms_of_settings(config, settings, at_load)
        return Checkpoint(config, None, None, form_of, arithmetic)
    if settings is not None:
        modules = packed_modules(stored, settings)
    else:
        assert at_load is not None
        modules = quantised_modules(stored, at_load)
    source, forms = repacked(stored, modules)
    by_name = forms_of_model(stored, forms)
    return Checkpoint(config, source, stored, lambda module: by_name.get(module, PLAIN), arithmetic)


def _stored(path: Path, config: Mapping[str, Any]) -> TensorSource:
    """Returns the tensors of *.safetensors, under Llama's names for the modules."""
    source, names = SafetensorsSource(path), names_of(config)
    return RenamedSource(source, names) if names else source


def _of_gguf(path: Path, config: Mapping[str, Any], options: EngineOptions) -> Checkpoint:
    """Returns a model in GGUF, whose inputs are never rounded. Random weights are plain."""
    if options.quantization not in ("none", "gguf"):
        raise UnsupportedModel(
            f"--quantization is {options.quantization}, and {path} is in GGUF, which has its own; "
            "leave the flag out to load it as it is"
        )
    if options.load_format == "dummy":
        return Checkpoint(config, None, None)
    source = GgufSource(path)
    return Checkpoint(config, source, source, source.form_of)


def _forms_of_settings(
    config: Mapping[str, Any], settings: Quantisation | None, at_load: Scheme | None
) -> Callable[[str], LinearForm]:
    """Returns what tells the forms of random weights, which no tensor can tell. Groups are so short
    that the inputs of all layers make whole ones."""

    def form_of(module: str) -> LinearForm:
        name = module.replace(".experts.", ".experts.0.")
        if not is_projection(name, "model") and (settings is None or module != "lm_head"):
            return PLAIN
        scheme = at_load if settings is None else settings.scheme_of(name)
        return PLAIN if scheme is None else _form_of_scheme(scheme, config)

    return form_of


def _form_of_scheme(scheme: Scheme, config: Mapping[str, Any]) -> LinearForm:
    if isinstance(scheme, Fp8Scheme):
        return Fp8Form(scheme.has_blocks, scheme.activations)
    size = scheme.group_size
    if size is not None:
        sizes = [config[key] for key in SIZES if isinstance(config.get(key), int)]
        if isinstance(config.get("head_dim"), int):
            sizes.append(config["head_dim"] * int(config.get("num_attention_heads") or 1))
        size = group_size_of("a layer", math.gcd(*sizes), size)
    return IntegerForm(scheme.num_bits, size, scheme.has_zeros, torch.float16)


def _arithmetic(quantization: str, settings: Quantisation | None, at_load: Scheme | None) -> str:
    """Returns what decides how packed weights are multiplied, in words for the fingerprint and the
    log."""
    schemes = [at_load] if settings is None else [rule.scheme for rule in settings.rules]
    rounds = any(isinstance(one, Fp8Scheme) and one.activations != "exact" for one in schemes)
    how = "inputs are rounded to FP8" if rounds else "inputs are not rounded"
    origin = f"{quantization} at load" if settings is None else settings.method
    return f"{origin}, {how}"
