"""`Quantisation`: what config.json says of how a model's weights are packed. Pure.

It refuses, before anything is loaded, whatever this engine does not read. Which modules of a
checkpoint are packed is told by its tensors; the settings here say what these do not: how inputs
are rounded, and, for random weights, everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from engine.model.families import UnsupportedModel

Method = Literal["awq", "gptq", "compressed-tensors", "fp8"]
METHODS: tuple[Method, ...] = ("awq", "gptq", "compressed-tensors", "fp8")
SUPPORTED_METHODS = (
    "AWQ (gemm, 4 bits), GPTQ (4 and 8 bits), compressed-tensors (integers of 4 and 8 bits, FP8), "
    "FP8, and GGUF files"
)
KEYS = ("quantization_config", "compression_config", "quantization")
"""Keys of config.json that have the settings; the last one is that of MLX, which is refused."""
CT_INTEGERS, CT_FP8 = ("pack-quantized",), ("float-quantized", "naive-quantized")
"""Formats of compressed-tensors, by what they hold."""
RUN, BLOCK = 32, 128
"""Inputs that groups of integers are multiples of, and inputs that a block of FP8 has."""


@dataclass(frozen=True)
class IntegerScheme:
    """Weights are integers with a scale for each group of inputs."""

    num_bits: Literal[4, 8]
    group_size: int | None
    """None: one group has all inputs of an output."""
    has_zeros: bool


@dataclass(frozen=True)
class Fp8Scheme:
    """Weights are FP8, scaled by tensor, output or block."""

    has_blocks: bool
    activations: Literal["exact", "static", "token", "block"]
    """How inputs are rounded, as `engine/kernels/packed_weights.py` has it."""


Scheme = IntegerScheme | Fp8Scheme


@dataclass(frozen=True)
class Rule:
    """The scheme of the modules that `targets` name; None leaves them plain."""

    targets: tuple[str, ...]
    scheme: Scheme | None


@dataclass(frozen=True)
class Quantisation:
    """The settings of a quantised checkpoint."""

    method: Method
    rules: tuple[Rule, ...]
    """The first rule that names a module counts; a module without one is plain."""
    is_gptq_v2: bool = False
    """True if zero points are stored as they are; else, as in the first version, less one."""

    def scheme_of(self, module: str) -> Scheme | None:
        """Returns how the linear layer of this name is packed; None: it is plain."""
        for rule in self.rules:
            if any(_names(target, module) for target in rule.targets):
                return rule.scheme
        return None


AT_LOAD: dict[str, Scheme] = {
    "int4": IntegerScheme(4, 128, has_zeros=True),
    "int8": IntegerScheme(8, None, has_zeros=False),
    "fp8": Fp8Scheme(has_blocks=False, activations="token"),
}
"""What `--quantization` makes of plain weights, by its value."""


def require_method(settings: Quantisation | None, quantization: str) -> None:
    """Raises UnsupportedModel if `--quantization` contradicts a checkpoint with these settings."""
    method = "not quantised" if settings is None else f"quantised with {settings.method}"
    if quantization == "none" or (settings is not None and settings.method == quantization):
        return
    if settings is None and quantization in AT_LOAD:
        return
    raise UnsupportedModel(
        f"--quantization is {quantization}, and the checkpoint is {method}; leave the flag out to "
        "load it as it is"
    )


def read_quantisation(config: Mapping[str, Any]) -> Quantisation | None:
    """Returns what the keys of config.json say of quantisation; None for a plain model. Raises
    UnsupportedModel for what this engine does not read."""
    raw = next((config[key] for key in KEYS if config.get(key)), None)
    if not raw:
        return None
    if not isinstance(raw, Mapping):
        raise _unsupported(f"has a quantization_config that is no object ({raw!r})")
    method = str(raw.get("quant_method") or "").lower().replace("_", "-")
    if not method and "config_groups" in raw:
        method = "compressed-tensors"
    if method not in READERS:
        shown = f"quantised with {method}" if method else "quantised in a way that it does not name"
        raise _unsupported(f"is {shown}")
    settings = READERS[method](raw)
    _require_patterns(settings.rules)
    return settings


def _awq(raw: Mapping[str, Any]) -> Quantisation:
    version = str(raw.get("version") or "gemm").lower()
    if version != "gemm":
        raise _unsupported(f"is quantised with AWQ in its version {version!r}")
    if raw.get("zero_point") is False:
        raise _unsupported("is quantised with AWQ without zero points")
    num_bits = raw.get("bits", raw.get("w_bit"))
    if num_bits != 4:
        raise _unsupported(f"is quantised with AWQ in {num_bits} bits")
    group_size = _group_size(raw.get("group_size", raw.get("q_group_size")))
    scheme = IntegerScheme(4, group_size, has_zeros=True)
    return Quantisation("awq", (*_exclusions(raw), _plain("lm_head"), Rule(("*",), scheme)))


def _gptq(raw: Mapping[str, Any]) -> Quantisation:
    versions = {str(raw[key]).lower() for key in ("checkpoint_format", "format") if raw.get(key)}
    version = " and ".join(sorted(versions)) or "gptq"
    if raw.get("is_marlin_format"):
        version = "marlin"
    if version not in ("gptq", "gptq_v2"):
        raise _unsupported(f"is quantised with GPTQ in the format {version!r}")
    if raw.get("pack_dtype") not in (None, "int32"):
        raise _unsupported(f"is quantised with GPTQ in words of {raw['pack_dtype']!r}")
    num_bits, group_size = _num_bits(raw.get("bits"), "GPTQ"), _group_size(raw.get("group_size"))
    scheme = IntegerScheme(num_bits, group_size, has_zeros=raw.get("sym") is not True)
    rules = [_dynamic(str(pattern), change, scheme) for pattern, change in _dynamic_of(raw)]
    if raw.get("lm_head") is not True:
        rules.append(_plain("lm_head"))
    rules = [*_exclusions(raw), *rules, Rule(("*",), scheme)]
    return Quantisation("gptq", tuple(rules), version == "gptq_v2")


def _dynamic_of(raw: Mapping[str, Any]) -> list[tuple[str, Any]]:
    rules = raw.get("dynamic") or {}
    if not isinstance(rules, Mapping):
        raise _unsupported(f"has dynamic GPTQ rules that are no object ({rules!r})")
    return list(rules.items())


def _dynamic(pattern: str, change: Any, scheme: IntegerScheme) -> Rule:
    """Returns what one of GPTQ's dynamic rules says: "-:" excludes modules, anything else changes
    their settings."""
    kind, _, rest = pattern.partition(":") if pattern[:2] in ("-:", "+:") else ("+", "", pattern)
    if kind == "-":
        return _plain(f"re:{rest}")
    change = change if isinstance(change, Mapping) else {}
    if "bits" in change:
        scheme = replace(scheme, num_bits=_num_bits(change["bits"], "GPTQ"))
    if "group_size" in change:
        scheme = replace(scheme, group_size=_group_size(change["group_size"]))
    if "sym" in change:
        scheme = replace(scheme, has_zeros=change["sym"] is not True)
    return Rule((f"re:{rest}",), scheme)


def _fp8(raw: Mapping[str, Any]) -> Quantisation:
    block = raw.get("weight_block_size")
    if block is not None and block != [BLOCK, BLOCK]:
        raise _unsupported(f"is FP8 in blocks of {block}; blocks must be [{BLOCK}, {BLOCK}]")
    if raw.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        raise _unsupported(f"is FP8 in the format {raw['fmt']!r}")
    if raw.get("expert_dtype", "fp8") != "fp8":
        raise _unsupported(f"has experts in {raw['expert_dtype']!r}")
    scheme = str(raw.get("activation_scheme") or "dynamic").lower()
    if scheme not in ("dynamic", "static"):
        raise _unsupported(f"is FP8 with the activation_scheme {scheme!r}")
    activations: Any = scheme
    if scheme == "dynamic":
        activations = "token" if block is None else "block"
    packed = Fp8Scheme(block is not None, activations)
    return Quantisation("fp8", (*_exclusions(raw), _plain("lm_head"), Rule(("*",), packed)))


def _compressed_tensors(raw: Mapping[str, Any]) -> Quantisation:
    groups = raw.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise _unsupported("is quantised with compressed-tensors, and has no config_groups")
    sparsity = raw.get("sparsity_config") or {}
    if not isinstance(sparsity, Mapping) or sparsity.get("format") not in (None, "dense"):
        raise _unsupported(f"has sparse weights ({sparsity!r:.80})")
    if raw.get("transform_config"):
        raise _unsupported("transforms activations (transform_config)")
    rules = _exclusions(raw)
    for group in groups.values():
        targets = group.get("targets") if isinstance(group, Mapping) else None
        if not isinstance(targets, list):
            raise _unsupported("is quantised with compressed-tensors, for no targets")
        names = ("*" if target == "Linear" else str(target) for target in targets)
        rules.append(Rule(tuple(names), _scheme_of_group(group, _format_of(group, raw))))
    return Quantisation("compressed-tensors", tuple(rules))


def _format_of(group: Mapping[str, Any], raw: Mapping[str, Any]) -> str | None:
    """Returns how a group is packed; None if neither it nor the whole says so."""
    name = group.get("format") or raw.get("format")
    return None if name in (None, "mixed-precision") else str(name)


def _scheme_of_group(group: Mapping[str, Any], form: str | None) -> Scheme:
    weights, inputs = group.get("weights"), group.get("input_activations") or {}
    if not isinstance(weights, Mapping) or group.get("output_activations"):
        raise _unsupported("quantises the outputs of layers")
    if not isinstance(inputs, Mapping):
        raise _unsupported(f"has input_activations that are no object ({inputs!r:.80})")
    kind, num_bits = weights.get("type", "int"), weights.get("num_bits")
    strategy = weights.get("strategy") or ("group" if weights.get("group_size") else "tensor")
    known = CT_INTEGERS if kind == "int" else CT_FP8
    if form is not None and form not in known:
        raise _unsupported(f"is quantised with compressed-tensors in the format {form!r}")
    if kind == "float" and num_bits == 8:
        return _fp8_of_group(strategy, weights, inputs)
    if kind != "int":
        raise _unsupported(f"is quantised with compressed-tensors to {kind} of {num_bits} bits")
    if inputs:
        raise _unsupported("computes with integers for activations (input_activations)")
    if weights.get("actorder") in ("group", "dynamic", True):
        raise _unsupported("has weights with the actorder 'group'")
    if strategy not in ("group", "channel"):
        raise _unsupported(f"has integers that are scaled by {strategy}")
    group_size = _group_size(weights.get("group_size")) if strategy == "group" else None
    is_symmetric = weights.get("symmetric", True) is True
    return IntegerScheme(_num_bits(num_bits, "compressed-tensors"), group_size, not is_symmetric)


def _fp8_of_group(
    strategy: str, weights: Mapping[str, Any], inputs: Mapping[str, Any]
) -> Fp8Scheme:
    if strategy not in ("tensor", "channel", "block"):
        raise _unsupported(f"has FP8 weights that are scaled by {strategy}")
    block = weights.get("block_structure")
    if strategy == "block" and block != [BLOCK, BLOCK]:
        raise _unsupported(f"is FP8 in blocks of {block}; blocks must be [{BLOCK}, {BLOCK}]")
    has_blocks = strategy == "block"
    if not inputs:
        return Fp8Scheme(has_blocks, "exact")
    if inputs.get("type", "float") != "float" or inputs.get("num_bits") != 8:
        raise _unsupported("rounds activations to something else than FP8")
    if not inputs.get("dynamic"):  # which is false where it is left out
        if inputs.get("strategy") not in (None, "tensor"):
            raise _unsupported(f"has static scales of activations by {inputs.get('strategy')}")
        return Fp8Scheme(has_blocks, "static")
    if inputs.get("strategy") == "token":
        return Fp8Scheme(has_blocks, "token")
    if inputs.get("strategy") == "group" and inputs.get("group_size") == BLOCK:
        return Fp8Scheme(has_blocks, "block")
    raise _unsupported(f"rounds activations by {inputs.get('strategy')}")


READERS = {
    "awq": _awq,
    "gptq": _gptq,
    "fp8": _fp8,
    "compressed-tensors": _compressed_tensors,
}


def _num_bits(value: Any, method: str) -> Literal[4, 8]:
    if value == 4:
        return 4
    if value == 8:
        return 8
    raise _unsupported(f"is quantised with {method} in {value} bits; 4 and 8 are supported")


def _group_size(value: Any) -> int | None:
    if value is None or value == -1:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or value % RUN:
        raise _unsupported(f"is quantised in groups of {value!r}; they must be multiples of {RUN}")
    return value


def _exclusions(raw: Mapping[str, Any]) -> list[Rule]:
    """Returns the rules of modules that config.json leaves plain, under any name it has for
    them."""
    keys = ("modules_to_not_convert", "ignored_layers", "ignore")
    found = {key: raw[key] for key in keys if raw.get(key)}
    if wrong := [key for key, value in found.items() if not isinstance(value, list)]:
        raise _unsupported(f"has {wrong[0]} that is no list ({found[wrong[0]]!r:.80})")
    return [Rule(tuple(map(str, value)), None) for value in found.values()]


def _require_patterns(rules: Iterable[Rule]) -> None:
    """Raises UnsupportedModel for a target that is no regular expression, though it says so."""
    for target in (target for rule in rules for target in rule.targets):
        try:
            re.compile(target.removeprefix("re:") if target.startswith("re:") else "")
        except re.error as error:
            raise _unsupported(
                f"names modules by {target!r}, which is no regular expression ({error})"
            ) from error


def _plain(*targets: str) -> Rule:
    return Rule(targets, None)


def _names(target: str, module: str) -> bool:
    """Says whether `target` names `module`: by a pattern, as a whole, or by some of its dotted
    parts, as "mlp.gate" does, and "lm_head"."""
    if target == "*":
        return True
    if target.startswith("re:"):
        return re.match(target[3:], module) is not None
    return f".{target}." in f".{module}."


def _unsupported(what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"the model {what}; this engine reads {SUPPORTED_METHODS}; choose one of those, or the "
        "model's own weights in bfloat16 or float16"
    )
