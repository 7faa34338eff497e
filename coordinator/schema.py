"""The body of POST /generate: SGLang's names and defaults, every value checked.

What the contract names and this version cannot do is refused with a sentence, never ignored.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError

MAX_BATCH = 1024
MAX_STOPS = 32
MAX_STOP_LENGTH = 1024


class BadRequest(Exception):
    """400: what is wrong with the request, for the client to read."""


class SamplingParams(BaseModel):
    """`sampling_params` of one prompt."""

    model_config = ConfigDict(extra="forbid")

    max_new_tokens: StrictInt | None = Field(default=128, ge=0)
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False, strict=True)
    top_p: float = Field(default=1.0, gt=0, le=1, strict=True)
    top_k: StrictInt = Field(default=-1, ge=-1, lt=1 << 31)
    min_p: float = Field(default=0.0, ge=0, le=1, strict=True)
    stop: str | list[str] | None = None
    stop_token_ids: list[StrictInt] | None = None
    ignore_eos: StrictBool = False
    skip_special_tokens: StrictBool = True
    no_stop_trim: StrictBool = False
    n: StrictInt = Field(default=1, ge=1, le=64)
    stream_interval: StrictInt | None = Field(default=None, ge=1)
    sampling_seed: StrictInt | None = Field(default=None, ge=0, lt=1 << 63)
    # Named by the contract, accepted at their neutral value only:
    min_new_tokens: StrictInt = 0
    stop_regex: str | list[str] | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    spaces_between_special_tokens: StrictBool = True
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


class GenerateBody(BaseModel):
    """The whole body; unknown top-level keys are ignored, as SGLang does."""

    model_config = ConfigDict(extra="ignore")

    text: str | list[str] | None = None
    input_ids: list[StrictInt] | list[list[StrictInt]] | None = None
    sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None
    stream: StrictBool = False
    rid: str | list[str] | None = None
    request_id: str | list[str] | None = None
    cache_salt: str | list[str] | None = None
    extra_key: str | list[str] | None = None


class Prompt(BaseModel):
    """One prompt of a body, with its own parameters. Exactly one of text and input_ids is set."""

    text: str | None
    input_ids: list[int] | None
    sampling: SamplingParams
    rid: str | None
    cache_salt: str


class ParsedBody(BaseModel):
    """`is_batch`: the client sent lists and wants a list back."""

    prompts: list[Prompt]
    is_batch: bool
    stream: bool


def parse_generate(raw: dict[str, Any]) -> ParsedBody:
    """Checks a body and splits it into prompts; raises BadRequest."""
    for key, neutral in NOT_YET_TOP_LEVEL.items():
        if raw.get(key) not in neutral:
            raise BadRequest(f"{key} is not supported by this version of kvrelay")
    try:
        body = GenerateBody.model_validate(raw)
    except ValidationError as error:
        raise BadRequest(_sentence(error)) from None
    texts, ids, is_batch = _inputs(body)
    count = len(texts or ids or [])
    if not 0 < count <= MAX_BATCH:
        raise BadRequest(f"a batch must have 1 to {MAX_BATCH} prompts; this one has {count}")
    params = _spread(body.sampling_params or {}, count, "sampling_params")
    rids = _rids(body, count, is_batch)
    salts = _spread(body.cache_salt or "", count, "cache_salt")
    extra_keys = _spread(body.extra_key or "", count, "extra_key")
    prompts = [
        Prompt(
            text=texts[i] if texts else None,
            input_ids=ids[i] if ids else None,
            sampling=_sampling(params[i]),
            rid=rids[i],
            cache_salt=_namespace(salts[i], extra_keys[i]),
        )
        for i in range(count)
    ]
    return ParsedBody(prompts=prompts, is_batch=is_batch, stream=body.stream)


def _namespace(cache_salt: str, extra_key: str) -> str:
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
    if ids and isinstance(ids[0], list):
        return None, [list(one) for one in ids if isinstance(one, list)], True
    return None, [[one for one in ids if isinstance(one, int)]], False


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


def _sampling(raw: dict[str, Any]) -> SamplingParams:
    try:
        params = SamplingParams.model_validate(raw)
    except ValidationError as error:
        raise BadRequest("sampling_params: " + _sentence(error)) from None
    for key, neutral in NOT_YET_SAMPLING.items():
        if getattr(params, key) not in neutral:
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


def _sentence(error: ValidationError) -> str:
    """The first problem, with the key it is about."""
    first = error.errors(include_url=False, include_context=False)[0]
    key = ".".join(str(part) for part in first["loc"][:1]) or "body"
    if first["type"] == "extra_forbidden":
        return f"unknown key {key}"
    return f"{key}: {first['msg']}"
