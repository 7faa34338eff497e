"""The body of POST /generate: SGLang's names and defaults, every value checked. Pure.

`keys.py` says what is done with each key; what is not supported is refused with a sentence.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from coordinator.grammars.kinds import GrammarKind
from coordinator.http.checking import checked, without_nulls
from coordinator.http.errors import BadRequest
from coordinator.http.native.keys import REFUSED_TOP_LEVEL, refuse_unsupported
from coordinator.http.native.sampling_params import (
    DEFAULT_SAMPLING,
    SamplingParams,
    parse_sampling,
)
from coordinator.http.sessions.params import MAX_NAME_LENGTH, parse_session
from coordinator.sessions.turns import TurnRequest

MAX_BATCH = 1024
MAX_TOP_LOGPROBS = 128
MAX_LOGPROB_IDS = 1024
GRAMMAR_KEYS: tuple[GrammarKind, ...] = ("regex", "json_schema", "ebnf", "structural_tag")


class GenerateBody(msgspec.Struct, frozen=True, kw_only=True):
    """The whole body. Unknown keys at the top are ignored, as SGLang does."""

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    """Ids of one prompt, or lists of ids for several."""
    sampling_params: dict[str, Any] | list[dict[str, Any] | None] | None = None
    stream: bool = False
    rid: str | list[str] | None = None
    request_id: str | list[str] | None = None
    cache_salt: str | list[str | None] = ""
    extra_key: str | list[str | None] = ""
    return_logprob: bool | list[bool | None] = False
    logprob_start_len: int | list[int | None] = -1
    top_logprobs_num: int | list[int | None] = 0
    token_ids_logprob: list[int | list[int] | None] | None = None
    """Ids for all prompts, or a list of ids (or null) for each."""
    return_text_in_logprobs: bool = False
    return_prompt_token_ids: bool = False
    priority: int = 0
    event_ids: bool = False
    resume_token: str | None = None
    session_params: dict[str, Any] | list[dict[str, Any] | None] | None = None
    session_id: str | None = None
    regex: str | None = None
    json_schema: str | dict[str, Any] | None = None
    ebnf: str | None = None
    structural_tag: str | dict[str, Any] | None = None


class LogprobParams(msgspec.Struct, frozen=True, kw_only=True):
    """What logprobs are wanted of every token of an answer, besides its own."""

    start: int = -1
    """The first position of the prompt whose logprobs are wanted, too; -1 if none is."""
    num_top: int = 0
    """How many of the likeliest tokens are shown at each position."""
    token_ids: tuple[int, ...] = ()
    with_text: bool = False
    """True if each id is to have its text beside it."""


class GrammarSource(msgspec.Struct, frozen=True):
    """A grammar as the client wrote it."""

    kind: GrammarKind
    text: str
    key: str = ""
    """The key of the body that it follows from, which errors name; "": that of its kind."""


class GeneratePrompt(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt of a body, with its own parameters. Exactly one of text and input_ids is set."""

    text: str | None
    input_ids: list[int] | None
    sampling: SamplingParams
    rid: str | None
    cache_salt: str
    priority: int = 0
    """Of those that wait, prompts of a higher priority go first."""
    logprobs: LogprobParams | None = None
    """None if no logprobs are asked for."""
    grammar: GrammarSource | None = None
    """What the answer must follow, if anything."""
    ends_with_context: bool = False
    """An answer for which the context has no room gets what room there is, and is not refused."""


class ParsedBody(msgspec.Struct, frozen=True, kw_only=True):
    """A checked body, split into prompts. `is_batch` says that the client sent lists, and so gets a
    list."""

    prompts: list[GeneratePrompt]
    is_batch: bool
    stream: bool
    with_prompt_ids: bool
    """True if the answer is to have the token ids of its prompt."""
    turn: TurnRequest | None = None
    """What is asked of a session, if the one prompt is a turn of one."""
    event_ids: bool = False
    """True if each event of the stream is to have an `id:`, the number of tokens so far."""
    resume_token: str | None = None
    """The token of a stream that broke off, which is to go on."""

    @property
    def is_resumable(self) -> bool:
        """True if it asks for a stream of one answer, which another coordinator could take over.
        Not so a turn, which its session waits for."""
        has_one = not self.is_batch and self.prompts[0].sampling.n == 1
        return self.stream and has_one and self.turn is None


def parse_generate(raw: dict[str, Any]) -> ParsedBody:
    """Checks a body and splits it into prompts. null stands for a key's default. Raises
    BadRequest."""
    refuse_unsupported(raw, REFUSED_TOP_LEVEL)
    if None in raw.values():
        raw = without_nulls(raw)
    body = checked(raw, GenerateBody)
    texts, ids, is_batch = _inputs(body)
    count = len(texts if texts is not None else ids or [])
    if not 0 < count <= MAX_BATCH:
        raise BadRequest(
            f"a batch must have 1 to {MAX_BATCH} prompts; this one has {count}",
            "input_ids" if body.text is None else "text",
        )
    params = _sampling_params(body.sampling_params, count)
    rids = _rids(body, count, is_batch)
    salts = _spread(body.cache_salt, count, "cache_salt", "")
    extra_keys = _spread(body.extra_key, count, "extra_key", "")
    logprobs = _logprobs(body, params, count)
    prompts = [
        GeneratePrompt(
            text=None if texts is None or ids is not None else texts[i],
            input_ids=None if ids is None else ids[i],
            sampling=params[i],
            rid=rids[i],
            cache_salt=tenant(salts[i], extra_keys[i]),
            priority=body.priority,
            logprobs=logprobs[i],
            grammar=_grammar(body, params[i]),
        )
        for i in range(count)
    ]
    return ParsedBody(
        prompts=prompts,
        is_batch=is_batch,
        stream=body.stream,
        with_prompt_ids=body.return_prompt_token_ids,
        turn=parse_session(body.session_params, body.session_id, sum(one.n for one in params)),
        event_ids=body.event_ids,
        resume_token=body.resume_token or None,
    )


def tenant(cache_salt: str, extra_key: str) -> str:
    """Returns one salt for both parameters; "" if both are empty. Two pairs have the same salt only
    if they are equal."""
    return f"{len(cache_salt)}:{cache_salt}{extra_key}" if cache_salt or extra_key else ""


def _inputs(body: GenerateBody) -> tuple[list[str] | None, list[list[int]] | None, bool]:
    """Returns the texts, the lists of ids, and whether they came as a batch. If both came, the text
    says whether it is one, and the ids are what is read."""
    if body.text is None and body.input_ids is None:
        raise BadRequest("give text or input_ids")
    texts = [body.text] if isinstance(body.text, str) else body.text
    if body.input_ids is None:
        return texts, None, isinstance(body.text, list)
    kinds = set(map(type, body.input_ids))
    if len(kinds) > 1:
        raise BadRequest("input_ids: give either ids or lists of ids", "input_ids")
    is_batch = isinstance(body.text, list) if texts is not None else kinds == {list}
    if body.input_ids and is_batch != (kinds == {list}):
        given = "a list of texts" if is_batch else "one text"
        wanted = "lists of ids" if is_batch else "ids"
        raise BadRequest(f"input_ids: give {wanted} beside {given}", "input_ids")
    ids = body.input_ids if is_batch else [body.input_ids]
    if texts is not None and len(ids) != len(texts):
        raise BadRequest(f"input_ids has {len(ids)} entries for {len(texts)} prompts", "input_ids")
    return texts, cast("list[list[int]]", ids), is_batch


def _rids(body: GenerateBody, count: int, is_batch: bool) -> list[str | None]:
    key = "rid" if body.rid is not None else "request_id"
    rid = body.rid if body.rid is not None else body.request_id
    if rid is None:
        return [None] * count
    rids = rid if isinstance(rid, list) else [f"{rid}_{i}" for i in range(count)]
    if not is_batch and isinstance(rid, str):
        rids = [rid]
    spread: list[str | None] = [*_spread(rids, count, key, "")]
    if len(set(spread)) < count:
        twice = next(name for name in spread if spread.count(name) > 1)
        raise BadRequest(f"{key} names the same request twice: {twice!r}", key)
    if max(map(len, rids)) > MAX_NAME_LENGTH or not all(map(str.isprintable, rids)):
        raise BadRequest(
            f"{key} is one printable line of at most {MAX_NAME_LENGTH} characters", key
        )
    return spread


def _sampling_params(
    raw: dict[str, Any] | list[dict[str, Any] | None] | None, count: int
) -> list[SamplingParams]:
    if isinstance(raw, list):
        return [parse_sampling(one or {}) for one in _spread(raw, count, "sampling_params", None)]
    return [parse_sampling(raw) if raw else DEFAULT_SAMPLING] * count


def _logprobs(
    body: GenerateBody, params: list[SamplingParams], count: int
) -> list[LogprobParams | None]:
    asked = _spread(body.return_logprob, count, "return_logprob", False)
    starts = _spread(body.logprob_start_len, count, "logprob_start_len", -1)
    nums = _spread(body.top_logprobs_num, count, "top_logprobs_num", 0)
    ids = _logprob_ids(body, count)
    for i in range(count):
        if asked[i]:
            _check_logprobs(starts[i], nums[i], ids[i])
    with_text = body.return_text_in_logprobs
    return [
        LogprobParams(
            start=_logprob_start(params[i], starts[i]),
            num_top=nums[i],
            token_ids=tuple(ids[i]),
            with_text=with_text,
        )
        if asked[i]
        else None
        for i in range(count)
    ]


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
            f"give one of {', '.join(GRAMMAR_KEYS)}",
            given[1][0],
        )
    ((kind, source),) = given
    text = source if isinstance(source, str) else msgspec.json.encode(source).decode()
    return GrammarSource(kind, text)


def _logprob_ids(body: GenerateBody, count: int) -> list[list[int]]:
    """Returns the ids that each prompt asks for."""
    given = body.token_ids_logprob or []
    kinds = set(map(type, given))
    if int in kinds and len(kinds) > 1:
        raise BadRequest("token_ids_logprob: give either ids or lists of ids", "token_ids_logprob")
    if int in kinds or not given:
        return [cast("list[int]", given)] * count
    return _spread(cast("list[list[int] | None]", given), count, "token_ids_logprob", [])


def _logprob_start(params: SamplingParams, start: int) -> int:
    """Returns the start, which is 0 if none is given and no answer is wanted: a request for
    logprobs of no token at all makes no sense."""
    return 0 if start == -1 and params.max_new_tokens == 0 else start


def _check_logprobs(start: int, num_top: int, ids: list[int]) -> None:
    if start < -1:
        raise BadRequest(
            f"logprob_start_len is {start}; it must be -1 (none of the prompt) or a position in it",
            "logprob_start_len",
        )
    if not 0 <= num_top <= MAX_TOP_LOGPROBS:
        raise BadRequest(
            f"top_logprobs_num is {num_top}; it must be 0 to {MAX_TOP_LOGPROBS}",
            "top_logprobs_num",
        )
    if len(ids) > MAX_LOGPROB_IDS:
        raise BadRequest(
            f"token_ids_logprob has {len(ids)} ids; at most {MAX_LOGPROB_IDS} go",
            "token_ids_logprob",
        )


def _spread(value: Any, count: int, name: str, default: Any) -> list[Any]:
    """Returns `count` values: `value` itself if it is a list of so many, with `default` for null,
    else the one value for each."""
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise BadRequest(f"{name} has {len(value)} entries for {count} prompts", name)
    return [default if one is None else one for one in value] if None in value else value
