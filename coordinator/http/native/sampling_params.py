"""The `sampling_params` of /generate: SGLang's names and defaults, every value checked. Pure."""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec

from coordinator.answers.stop_regex import BadStopRegex, StopRegexes
from coordinator.http.checking import checked
from coordinator.http.errors import BadRequest
from coordinator.http.native.keys import REFUSED_SAMPLING, SAMPLING, refuse_unsupported

WHERE = "sampling_params: "
MAX_STOPS = 32
MAX_STOP_LENGTH = 1024
MAX_BIASES = 1024
MAX_BIAS = 1e30
"""A larger one, divided by a small temperature, would leave float32."""
MAX_TEMPERATURE = 3.4e38
"""Just below the largest number of float32, in which logits are divided by it."""
MAX_COMPLETIONS = 64

TOKEN_ID = re.compile("0|[1-9][0-9]{0,9}", re.ASCII)
"""One way to write each id, so that none comes twice."""
KNOWN = {key.name for key in SAMPLING}

NonNegative = Annotated[int, msgspec.Meta(ge=0)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Int64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `sampling_params` of one prompt, with SGLang's names and defaults. `parse_sampling`
    checks the ranges; making this object does not."""

    max_new_tokens: NonNegative | None = 128
    min_new_tokens: NonNegative = 0
    temperature: Annotated[float, msgspec.Meta(ge=0, le=MAX_TEMPERATURE)] = 1.0
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, msgspec.Meta(ge=-1, lt=1 << 31)] = -1
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=2)] = 1.0
    logit_bias: dict[str, float] | None = None
    stop: str | list[str] | None = None
    stop_regex: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    no_stop_trim: bool = False
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_COMPLETIONS)] = 1
    stream_interval: Annotated[int, msgspec.Meta(ge=1)] = 1
    sampling_seed: Int64 | None = None
    custom_params: dict[str, Any] | None = None
    regex: str | None = None
    json_schema: str | dict[str, Any] | None = None
    ebnf: str | None = None
    structural_tag: str | dict[str, Any] | None = None

    @property
    def stops(self) -> list[str]:
        """`stop` as a list of strings that are not empty: clients may send one string."""
        return _listed(self.stop)

    @property
    def stop_patterns(self) -> list[str]:
        """`stop_regex` as a list of strings that are not empty: clients may send one string."""
        return _listed(self.stop_regex)

    @property
    def biases(self) -> list[tuple[int, float]]:
        """`logit_bias` as pairs of a token id and what is added to its logit."""
        return [(int(token), bias) for token, bias in (self.logit_bias or {}).items()]


DEFAULT_SAMPLING = SamplingParams()


def parse_sampling(raw: dict[str, Any]) -> SamplingParams:
    """Checks the `sampling_params` of one prompt. null stands for the default, but for
    max_new_tokens, where it means "up to the context". Raises BadRequest, which names the key."""
    refuse_unsupported(raw, REFUSED_SAMPLING, WHERE)
    if None in raw.values() or raw.keys() & REFUSED_SAMPLING.keys():
        raw = _without_neutral(raw)
    params = checked(raw, SamplingParams, WHERE)
    if params.top_k == 0:
        raise _bad("top_k", "is 0; it must be -1 (all tokens) or at least 1")
    if params.stop is not None:
        _check_strings("stop", params.stops)
    if params.stop_regex is not None:
        _check_patterns(params.stop_patterns)
    if params.logit_bias:
        _check_biases(params.logit_bias)
    return params


def _without_neutral(raw: dict[str, Any]) -> dict[str, Any]:
    """Returns `raw` without the keys that mean nothing: nulls, and neutral values of what is not
    supported."""
    for key in raw:
        if key not in KNOWN:
            raise _bad(key, "", f"unknown key {key}")
    return {
        key: value
        for key, value in raw.items()
        if key == "max_new_tokens" or not (value is None or key in REFUSED_SAMPLING)
    }


def _check_strings(key: str, strings: list[str]) -> None:
    if len(strings) > MAX_STOPS or max(map(len, strings), default=0) > MAX_STOP_LENGTH:
        raise _bad(
            key, f"takes at most {MAX_STOPS} strings of at most {MAX_STOP_LENGTH} characters"
        )


def _check_patterns(patterns: list[str]) -> None:
    _check_strings("stop_regex", patterns)
    try:
        StopRegexes(patterns)
    except BadStopRegex as error:
        raise _bad("stop_regex", "", f"stop_regex: {error}") from None


def _check_biases(biases: dict[str, float]) -> None:
    if len(biases) > MAX_BIASES:
        raise _bad("logit_bias", f"has {len(biases)} entries; at most {MAX_BIASES} go")
    for token, bias in biases.items():
        if not TOKEN_ID.fullmatch(token):
            raise _bad("logit_bias", "", f'logit_bias: {token!r} is no token id, as "123" is')
        if not abs(bias) <= MAX_BIAS:
            raise _bad(
                "logit_bias",
                "",
                f"logit_bias: {bias:g} for id {token} is too much; "
                f"it must be -{MAX_BIAS:g} to {MAX_BIAS:g}",
            )


def _bad(key: str, what: str, sentence: str = "") -> BadRequest:
    """Returns the error that `key` is wrong: `what` goes on from its name, `sentence` replaces
    both."""
    return BadRequest(WHERE + (sentence or f"{key} {what}"), f"sampling_params.{key}")


def _listed(value: str | list[str] | None) -> list[str]:
    values = [value] if isinstance(value, str) else value or []
    return [one for one in values if one]
