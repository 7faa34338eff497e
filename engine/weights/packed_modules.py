"""Finds the packed modules of a checkpoint, and says which form each module of the model has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from hashlib import blake2b

import torch
from torch import Tensor

from engine.model.families import UnsupportedModel
from engine.model.forms.fp8 import Fp8Form
from engine.model.forms.integer import IntegerForm
from engine.model.linear_form import PLAIN, LinearForm
from engine.model.quantisation import Fp8Scheme, IntegerScheme, Quantisation
from engine.weights.formats.awq import AwqModule
from engine.weights.formats.compressed_integers import CompressedIntegers
from engine.weights.formats.fp8 import Fp8Module
from engine.weights.formats.gptq import GptqModule
from engine.weights.formats.module import PackedModule
from engine.weights.module_names import canonical, stem_of
from engine.weights.repacked_source import ReorderedSource, RepackedSource
from engine.weights.source import TensorSource
from protocol.model.directory import ModelDirectoryError

Open = Callable[[str, TensorSource, Quantisation], PackedModule]


def _awq(name: str, source: TensorSource, settings: Quantisation) -> PackedModule:
    return AwqModule(name, source)


def _compressed_integers(name: str, source: TensorSource, settings: Quantisation) -> PackedModule:
    scheme = settings.scheme_of(name)
    if not isinstance(scheme, IntegerScheme):
        raise _contradiction(name, source)
    return CompressedIntegers(name, source, scheme)


def _fp8(name: str, source: TensorSource, settings: Quantisation) -> PackedModule:
    scheme = settings.scheme_of(name)
    if not isinstance(scheme, Fp8Scheme):
        raise _contradiction(name, source)
    return Fp8Module(name, source, scheme)


FORMATS: dict[tuple[str, str], Open] = {
    ("awq", "qweight"): _awq,
    ("gptq", "qweight"): GptqModule,
    ("compressed-tensors", "weight_packed"): _compressed_integers,
    ("compressed-tensors", "weight"): _fp8,
    ("fp8", "weight"): _fp8,
}
"""What opens a module, by the method of its checkpoint and the tensor that holds its values."""


def packed_modules(source: TensorSource, settings: Quantisation) -> dict[str, PackedModule]:
    """Opens every packed module of a checkpoint. Raises ModelDirectoryError or
    UnsupportedModel."""
    modules: dict[str, PackedModule] = {}
    for tensor, info in source.tensors.items():
        name, _, last = tensor.rpartition(".")
        opener = FORMATS.get((settings.method, last))
        if opener is not None and (last != "weight" or info.dtype == "F8_E4M3"):
            modules[name] = opener(name, source, settings)
    if not modules:
        raise ModelDirectoryError(
            f"{source.name} hold no weight of {settings.method}, which config.json says they are; "
            "config and weights are of different models"
        )
    return modules


def repacked(
    source: TensorSource, modules: Mapping[str, PackedModule]
) -> tuple[TensorSource, dict[str, LinearForm]]:
    """Returns the checkpoint under the names of internal forms, and the form of each packed module
    by its name in the checkpoint.

    Where a feed-forward's last projection has its inputs in an order of its own, the projections
    before it are read with their outputs in that order, so that nothing is reordered while the
    model computes, and ranks have whole groups.
    """
    forms = {name: module.form for name, module in modules.items()}
    names = {tensor.rpartition(".")[0] for tensor in source.tensors}
    outputs: dict[str, Tensor] = {}
    hidden = set()
    for name, module in modules.items():
        form, before = forms[name], _projections_before(name, names)
        if not before or not isinstance(form, IntegerForm) or not form.order:
            continue
        order = module.read("order")
        for other, num_parts in before.items():
            outputs[other] = torch.cat([order + i * len(order) for i in range(num_parts)])
        forms[name] = replace(form, order="")
        hidden.add(f"{name}.order")
    repacked = RepackedSource(source, modules, hidden)
    return (ReorderedSource(repacked, outputs) if outputs else repacked), forms


def forms_of_model(source: TensorSource, forms: Mapping[str, LinearForm]) -> dict[str, LinearForm]:
    """Returns the forms of packed modules by canonical name. Raises UnsupportedModel if experts of
    a layer have different ones."""
    stem = stem_of(source.tensors)
    by_name: dict[str, list[LinearForm]] = defaultdict(list)
    for module in dict.fromkeys(tensor.rpartition(".")[0] for tensor in source.tensors):
        by_name[canonical(module, stem).name].append(forms.get(module, PLAIN))
    return {name: _common(name, found) for name, found in by_name.items() if set(found) != {PLAIN}}


def _common(name: str, forms: list[LinearForm]) -> LinearForm:
    """Returns the form of all experts of a layer. What they share with the projections beside them
    is each expert's own, so it is named anew for all."""
    if len(forms) == 1:
        return forms[0]
    if len({_without_names(form) for form in forms}) > 1:
        raise UnsupportedModel(
            f"the experts of {name} are quantised in different ways, which this engine cannot "
            "compute at once; choose another checkpoint of the model"
        )
    first = forms[0]
    named = "".join(_name_of(form) for form in forms)
    digest = blake2b(named.encode(), digest_size=8).hexdigest() if named else ""
    if isinstance(first, IntegerForm):
        return replace(first, order=digest)
    return replace(first, input_scale=digest) if isinstance(first, Fp8Form) else first


def _without_names(form: LinearForm) -> LinearForm:
    if isinstance(form, IntegerForm):
        return replace(form, order="-" if form.order else "")
    return replace(form, input_scale="") if isinstance(form, Fp8Form) else form


def _name_of(form: LinearForm) -> str:
    if isinstance(form, IntegerForm):
        return form.order
    return form.input_scale if isinstance(form, Fp8Form) else ""


BEFORE = {"down_proj": {"gate_proj": 1, "up_proj": 1, "gate_up_proj": 2}, "w2": {"w1": 1, "w3": 1}}
"""The projections whose outputs, multiplied one by one, are the inputs of another; and how many of
them lie behind one another in each."""


def _projections_before(name: str, names: Collection[str]) -> dict[str, int]:
    prefix, _, last = name.rpartition(".")
    before = {f"{prefix}.{one}": count for one, count in BEFORE.get(last, {}).items()}
    return {one: count for one, count in before.items() if one in names}


def _contradiction(name: str, source: TensorSource) -> ModelDirectoryError:
    return ModelDirectoryError(
        f"{name} in {source.name} is packed in a way that config.json does not say; config and "
        "weights are of different models"
    )
