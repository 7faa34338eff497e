"""The body of POST /generate: SGLang's names and defaults, every value checked.

What the contract names and this version cannot do is refused with a sentence, never ignored.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar, cast

import msgspec

MAX_BATCH = 1024
MAX_STOPS = 32
MAX_STOP_LENGTH = 1024


Checked = TypeVar("Checked")
UNKNOWN_KEY = re.compile("unknown field `(.*)`")


class BadRequest(Exception):
    """400: what is wrong with the request, for the client to read."""


NonNegative = Annotated[int, msgspec.Meta(ge=0)]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`sampling_params` of one prompt. Only `parse_generate` checks the ranges."""

    max_new_tokens: NonNegative | None = 128
    temperature: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, msgspec.Meta(ge=-1, lt=1 << 31)] = -1
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    no_stop_trim: bool = False
    n: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    stream_interval: Annotated[int, msgspec.Meta(ge=1)] | None = None
    sampling_seed: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] | None = None
    # Named by the contract, accepted at their neutral value only:
    min_new_tokens: int = 0
    stop_regex: str | list[str] | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    spaces_between_special_tokens: bool = True
    logit_bias: dict[str, float] | None = None
    regex: str | None = None
    json_schema: str | None = None
    ebnf: str | None = None
    structural_tag: str | None = None
    custom_params: dict[str, Any] | None = None

    @property
    def stops(self) -> list[str]:
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop


DEFAULT_SAMPLING = SamplingParams()
NOT_YET_SAMPLING: dict[str, tuple[Any, ...]] = {
    "min_new_tokens": (0,),
    "stop_regex": (None, "", []),
    "frequency_penalty": (0.0,),
    "presence_penalty": (0.0,),
    "repetition_penalty": (1.0,),
    "spaces_between_special_tokens": (True,),
    "logit_bias": (None, {}),
    "regex": (None, ""),
    "json_schema": (None, ""),
    "ebnf": (None, ""),
    "structural_tag": (None, ""),
    "custom_params": (None, {}),
}
NOT_YET_TOP_LEVEL: dict[str, tuple[Any, ...]] = {
    "return_logprob": (False, None),
    "top_logprobs_num": (0, None),
    "token_ids_logprob": (None, []),
    "logprob_start_len": (-1, None),
    "return_text_in_logprobs": (False, None),
    "priority": (0, None),
    "session_params": (None,),
    "session_id": (None,),
    "regex": (None, ""),
    "json_schema": (None, ""),
    "ebnf": (None, ""),
    "structural_tag": (None, ""),
    "lora_path": (None,),
    "image_data": (None,),
    "input_embeds": (None,),
}


class GenerateBody(msgspec.Struct, frozen=True, kw_only=True):
    """The whole body; unknown top-level keys are ignored, as SGLang does."""

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    """Of one kind only."""
    sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None
    stream: bool = False
    rid: str | list[str] | None = None
    request_id: str | list[str] | None = None
    cache_salt: str | list[str] | None = None
    extra_key: str | list[str] | None = None


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt of a body, with its own parameters. Exactly one of text and input_ids is set."""

    text: str | None
    input_ids: list[int] | None
    sampling: SamplingParams
    rid: str | None
    cache_salt: str


class ParsedBody(msgspec.Struct, frozen=True, kw_only=True):
    """`is_batch`: the client sent lists and wants a list back."""

    prompts: list[Prompt]
    is_batch: bool
    stream: bool


def parse_object(raw: bytes | bytearray) -> dict[str, Any]:
    """A body that must be a JSON object; raises BadRequest."""
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    return body


def parse_generate(raw: dict[str, Any]) -> ParsedBody:
    """Checks a body and splits it into prompts; raises BadRequest."""
    for key in raw.keys() & NOT_YET_TOP_LEVEL.keys():
        if raw[key] not in NOT_YET_TOP_LEVEL[key]:
            raise BadRequest(f"{key} is not supported by this version of kvrelay")
    body = _checked(raw, GenerateBody)
    texts, ids, is_batch = _inputs(body)
    count = len(texts or ids or [])
    if not 0 < count <= MAX_BATCH:
        raise BadRequest(f"a batch must have 1 to {MAX_BATCH} prompts; this one has {count}")
    params = _spread(_sampling_params(body.sampling_params), count, "sampling_params")
    rids = _rids(body, count, is_batch)
    salts = _spread(body.cache_salt or "", count, "cache_salt")
    extra_keys = _spread(body.extra_key or "", count, "extra_key")
    prompts = [
        Prompt(
            text=texts[i] if texts else None,
            input_ids=ids[i] if ids else None,
            sampling=params[i],
            rid=rids[i],
            cache_salt=tenant(salts[i], extra_keys[i]),
        )
        for i in range(count)
    ]
    return ParsedBody(prompts=prompts, is_batch=is_batch, stream=body.stream)


def tenant(cache_salt: str, extra_key: str) -> str:
    """Two tenants share a cache only if they have both in common."""
    return f"{len(cache_salt)}:{cache_salt}{extra_key}" if cache_salt or extra_key else ""


def _inputs(body: GenerateBody) -> tuple[list[str] | None, list[list[int]] | None, bool]:
    if (body.text is None) == (body.input_ids is None):
        raise BadRequest("give exactly one of text and input_ids")
    if body.text is not None:
        if isinstance(body.text, str):
            return [body.text], None, False
        return body.text, None, True
    ids = body.input_ids or []
    kinds = set(map(type, ids))
    if len(kinds) > 1:
        raise BadRequest("input_ids: give either ids or lists of ids")
    if kinds == {list}:
        return None, cast("list[list[int]]", ids), True
    return None, [cast("list[int]", ids)], False


def _rids(body: GenerateBody, count: int, is_batch: bool) -> list[str | None]:
    rid = body.rid if body.rid is not None else body.request_id
    if isinstance(rid, str):
        return [f"{rid}_{i}" for i in range(count)] if is_batch else [rid]
    if rid is None:
        return [None] * count
    spread: list[str | None] = [*_spread(rid, count, "rid")]
    if len(set(spread)) < count:
        raise BadRequest("rid names the same request twice")
    return spread


def _spread(value: Any, count: int, name: str) -> list[Any]:
    """One value for all prompts, or a list with one for each."""
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise BadRequest(f"{name} has {len(value)} entries for {count} prompts")
    return value


def _sampling_params(
    raw: dict[str, Any] | list[dict[str, Any]] | None,
) -> SamplingParams | list[SamplingParams]:
    if isinstance(raw, list):
        return [_sampling(one) for one in raw]
    return _sampling(raw) if raw else DEFAULT_SAMPLING


def _sampling(raw: dict[str, Any]) -> SamplingParams:
    params = _checked(raw, SamplingParams, "sampling_params: ")
    for key in raw.keys() & NOT_YET_SAMPLING.keys():
        if getattr(params, key) not in NOT_YET_SAMPLING[key]:
            raise BadRequest(
                f"sampling_params: {key} is not supported by this version of kvrelay; leave it out"
            )
    if params.top_k == 0:
        raise BadRequest("sampling_params: top_k is 0; it must be -1 (all tokens) or at least 1")
    if len(params.stops) > MAX_STOPS or max(map(len, params.stops), default=0) > MAX_STOP_LENGTH:
        raise BadRequest(
            f"sampling_params: stop takes at most {MAX_STOPS} strings of at most "
            f"{MAX_STOP_LENGTH} characters"
        )
    return params


def _checked(raw: dict[str, Any], kind: type[Checked], where: str = "") -> Checked:
    """`raw` as a `kind`; raises BadRequest, which names the key after `where`."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise BadRequest(where + _sentence(str(error))) from None


def _sentence(error: str) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.key[0]`", with the key first."""
    if unknown := UNKNOWN_KEY.search(error):
        return f"unknown key {unknown[1]}"
    what, _, path = error.partition(" - at `$.")
    return f"{path.rstrip('`') or 'body'}: {what[0].lower()}{what[1:].replace('`', '')}"
