"""The body of POST /generate: SGLang's names and defaults, every value checked.

What the contract names and this version cannot do is refused with a sentence, never ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast

import msgspec

from coordinator.answers.grammars import GrammarKind

MAX_BATCH = 1024
MAX_STOPS = 32
MAX_STOP_LENGTH = 1024
MAX_BIASES = 1024
MAX_BIAS = 1e30
"""A larger one, divided by a small temperature, would leave float32."""
MAX_TOP_LOGPROBS = 128
MAX_LOGPROB_IDS = 1024


Checked = TypeVar("Checked")
UNKNOWN_KEY = re.compile("unknown field `(.*)`")
TOKEN_ID = re.compile("0|[1-9][0-9]{0,9}", re.ASCII)
"""One way to write each id, so that none comes twice."""


class BadRequest(Exception):
    """400: what is wrong with the request, for the client to read."""


NonNegative = Annotated[int, msgspec.Meta(ge=0)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`sampling_params` of one prompt. Only `parse_generate` checks the ranges."""

    max_new_tokens: NonNegative | None = 128
    min_new_tokens: NonNegative = 0
    temperature: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, msgspec.Meta(ge=-1, lt=1 << 31)] = -1
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=2)] = 1.0
    logit_bias: dict[str, float] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    no_stop_trim: bool = False
    n: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    stream_interval: Annotated[int, msgspec.Meta(ge=1)] | None = None
    sampling_seed: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] | None = None
    # At most one of these; json_schema and structural_tag are JSON, as a string or as it is.
    regex: str | None = None
    json_schema: str | dict[str, Any] | None = None
    ebnf: str | None = None
    structural_tag: str | dict[str, Any] | None = None
    # Named by the contract, accepted at their neutral value only:
    stop_regex: str | list[str] | None = None
    spaces_between_special_tokens: bool = True
    custom_params: dict[str, Any] | None = None

    @property
    def stops(self) -> list[str]:
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def biases(self) -> list[tuple[int, float]]:
        """`logit_bias` as (token id, what is added to its logit)."""
        return [(int(token), bias) for token, bias in (self.logit_bias or {}).items()]


DEFAULT_SAMPLING = SamplingParams()
NOT_YET_SAMPLING: dict[str, tuple[Any, ...]] = {
    "stop_regex": (None, "", []),
    "spaces_between_special_tokens": (True,),
    "custom_params": (None, {}),
}
NOT_YET_TOP_LEVEL: dict[str, tuple[Any, ...]] = {
    "priority": (0, None),
    "session_params": (None,),
    "session_id": (None,),
    "lora_path": (None,),
    "image_data": (None,),
    "input_embeds": (None,),
}


GRAMMAR_KEYS: tuple[GrammarKind, ...] = ("regex", "json_schema", "ebnf", "structural_tag")


class GenerateBody(msgspec.Struct, frozen=True, kw_only=True):
    """The whole body; unknown top-level keys are ignored, as SGLang does."""

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    """Ids of one prompt, or lists of ids for several."""
    sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None
    stream: bool = False
    rid: str | list[str] | None = None
    request_id: str | list[str] | None = None
    cache_salt: str | list[str] | None = None
    extra_key: str | list[str] | None = None
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: int | list[int] | None = None
    top_logprobs_num: int | list[int] | None = None
    token_ids_logprob: list[int | list[int] | None] | None = None
    """Ids for all prompts, or a list of ids (or null) for each."""
    return_text_in_logprobs: bool | None = None
    regex: str | None = None
    json_schema: str | dict[str, Any] | None = None
    ebnf: str | None = None
    structural_tag: str | dict[str, Any] | None = None


class LogprobParams(msgspec.Struct, frozen=True, kw_only=True):
    """Logprobs wanted of every token of an answer, besides its own."""

    num_top: int = 0
    """So many of the likeliest tokens are shown at each position."""
    token_ids: tuple[int, ...] = ()
    with_text: bool = False
    """Ids are to have their texts beside them."""


@dataclass(frozen=True)
class GrammarSource:
    """A grammar as the client wrote it."""

    kind: GrammarKind
    text: str


class GeneratePrompt(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt of a body, with its own parameters. Exactly one of text and input_ids is set."""

    text: str | None
    input_ids: list[int] | None
    sampling: SamplingParams
    rid: str | None
    cache_salt: str
    logprobs: LogprobParams | None = None
    """None: not asked for."""
    grammar: GrammarSource | None = None
    """What the answer must follow, if anything."""


class ParsedBody(msgspec.Struct, frozen=True, kw_only=True):
    """`is_batch`: the client sent lists and wants a list back."""

    prompts: list[GeneratePrompt]
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
    logprobs = _logprobs(body, params, count)
    prompts = [
        GeneratePrompt(
            text=texts[i] if texts else None,
            input_ids=ids[i] if ids else None,
            sampling=params[i],
            rid=rids[i],
            cache_salt=tenant(salts[i], extra_keys[i]),
            logprobs=logprobs[i],
            grammar=_grammar(body, params[i]),
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


def _logprobs(
    body: GenerateBody, params: list[SamplingParams], count: int
) -> list[LogprobParams | None]:
    asked = _spread(body.return_logprob or False, count, "return_logprob")
    starts = _spread(
        -1 if body.logprob_start_len is None else body.logprob_start_len, count, "logprob_start_len"
    )
    nums = _spread(body.top_logprobs_num or 0, count, "top_logprobs_num")
    ids = _logprob_ids(body, count)
    for i in range(count):
        if asked[i]:
            _check_logprobs(params[i], starts[i], nums[i], ids[i])
    with_text = body.return_text_in_logprobs or False
    return [
        LogprobParams(num_top=nums[i], token_ids=tuple(ids[i]), with_text=with_text)
        if asked[i]
        else None
        for i in range(count)
    ]


def _logprob_ids(body: GenerateBody, count: int) -> list[list[int]]:
    """Returns the ids that each prompt asks for."""
    given = body.token_ids_logprob or []
    kinds = set(map(type, given))
    if int in kinds and len(kinds) > 1:
        raise BadRequest("token_ids_logprob: give either ids or lists of ids")
    if int in kinds or not given:
        return [cast("list[int]", given)] * count
    lists = _spread(cast("list[list[int] | None]", given), count, "token_ids_logprob")
    return [ids or [] for ids in lists]


def _check_logprobs(params: SamplingParams, start: int, num_top: int, ids: list[int]) -> None:
    if start != -1 or params.max_new_tokens == 0:
        asks = f"logprob_start_len is {start}" if start != -1 else "max_new_tokens is 0"
        raise BadRequest(
            f"{asks}, which asks for logprobs of the prompt; this version of kvrelay has only "
            "those of the answer: give logprob_start_len -1 and max_new_tokens of at least 1"
        )
    if not 0 <= num_top <= MAX_TOP_LOGPROBS:
        raise BadRequest(f"top_logprobs_num is {num_top}; it must be 0 to {MAX_TOP_LOGPROBS}")
    if len(ids) > MAX_LOGPROB_IDS:
        raise BadRequest(f"token_ids_logprob has {len(ids)} ids; at most {MAX_LOGPROB_IDS} go")


def _spread(value: Any, count: int, name: str) -> list[Any]:
    """One value for all prompts, or a list with one for each."""
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise BadRequest(f"{name} has {len(value)} entries for {count} prompts")
    return value


def _grammar(body: GenerateBody, params: SamplingParams) -> GrammarSource | None:
    """Returns the one grammar that a prompt has, here or there; "" is none."""
    given = [
        (key, value) for at in (params, body) for key in GRAMMAR_KEYS if (value := getattr(at, key))
    ]
    if not given:
        return None
    if len(given) > 1:
        raise BadRequest(
            f"{' and '.join(key for key, _ in given)} are given; an answer follows one grammar: "
            f"give one of {', '.join(GRAMMAR_KEYS)}"
        )
    ((kind, source),) = given
    return GrammarSource(
        kind, source if isinstance(source, str) else msgspec.json.encode(source).decode()
    )


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
    _check_biases(params.logit_bias or {})
    return params


def _check_biases(biases: dict[str, float]) -> None:
    if len(biases) > MAX_BIASES:
        raise BadRequest(
            f"sampling_params: logit_bias has {len(biases)} entries; at most {MAX_BIASES} go"
        )
    for token, bias in biases.items():
        if not TOKEN_ID.fullmatch(token):
            raise BadRequest(f'sampling_params: logit_bias: {token!r} is no token id, as "123" is')
        if not abs(bias) <= MAX_BIAS:
            raise BadRequest(
                f"sampling_params: logit_bias: {bias:g} for id {token} is too much; "
                f"it must be -{MAX_BIAS:g} to {MAX_BIAS:g}"
            )


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
