"""`ApiCall`: what is sent for each call of the API, and how its answer is read. Pure.

Both clients send these; neither knows more of HTTP than how bytes travel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from kvrelay.answers import ChatResult, Generated
from kvrelay.errors import ClientError, MalformedAnswer

T = TypeVar("T")
Prompt = str | Sequence[int]
"""A text, or token ids."""
TOP_LEVEL_KEYS = frozenset(
    (
        "rid",
        "cache_salt",
        "extra_key",
        "priority",
        "return_logprob",
        "logprob_start_len",
        "top_logprobs_num",
        "token_ids_logprob",
        "return_text_in_logprobs",
        "return_prompt_token_ids",
        "session_params",
        "session_id",
        "event_ids",
        "resume_token",
    )
)
"""The parameters of /generate that stand beside its `sampling_params`."""
SINGLE_USE_KEYS = frozenset(("rid", "session_params", "session_id"))
"""With one of these a request is not the same when it is sent a second time."""


@dataclass(frozen=True)
class ApiCall(Generic[T]):
    """One call of the API."""

    method: str
    path: str
    read: Callable[[bytes], T]
    """Makes the result of the body of an answer. Raises MalformedAnswer."""
    body: Mapping[str, Any] | None = None
    is_repeatable: bool = False
    """True if the call may be made again though the cluster may have begun with it."""
    last_event_id: int | None = None
    """How many tokens of the stream, which broke off, have been seen."""

    @property
    def is_admin(self) -> bool:
        """True if the call is one for operators."""
        return self.path.startswith("/admin/")


def generate(prompt: Prompt, params: Mapping[str, Any]) -> ApiCall[Generated]:
    """Returns the call that answers one prompt. `params` are those of /generate."""
    key = "text" if isinstance(prompt, str) else "input_ids"
    value = prompt if isinstance(prompt, str) else list(prompt)
    return _generate({key: value, **_split(params)}, _reader(Generated))


def generate_list(texts: Sequence[str], params: Mapping[str, Any]) -> ApiCall[list[Generated]]:
    """Returns the call that answers several texts in one request."""
    return _generate({"text": list(texts), **_split(params)}, _reader(list[Generated]))


def chat(
    messages: Sequence[Mapping[str, Any]], model: str, params: Mapping[str, Any]
) -> ApiCall[ChatResult]:
    """Returns the call that answers a chat. `params` are those of OpenAI's chat completions."""
    body = {"model": model, "messages": list(messages), **params}
    return ApiCall("POST", "/v1/chat/completions", _reader(ChatResult), body, is_repeatable=True)


def streamed(call: ApiCall[T]) -> ApiCall[T]:
    """Returns the call that streams what `call` would answer at once."""
    body = {**(call.body or {}), "stream": True}
    return ApiCall(call.method, call.path, call.read, body, call.is_repeatable)


def resumed(call: ApiCall[T], rid: str, token: str, num_seen: int) -> ApiCall[T]:
    """Returns the call that goes on with a stream of /generate after its first `num_seen`
    tokens."""
    body = {**(call.body or {}), "rid": rid, "resume_token": token}
    return replace(call, body=body, is_repeatable=False, last_event_id=num_seen)


def tokenize(**body: Any) -> ApiCall[list[int]]:
    """Returns the call for the token ids of a `prompt`, or of the chat `messages`."""
    return ApiCall(
        "POST",
        "/tokenize",
        lambda raw: _read(raw, _TokenizedPrompt).tokens,
        body,
        is_repeatable=True,
    )


def detokenize(ids: Sequence[int]) -> ApiCall[str]:
    """Returns the call for the text of token ids, special ones included."""
    body = {"tokens": list(ids), "skip_special_tokens": False}
    return ApiCall(
        "POST",
        "/detokenize",
        lambda raw: _read(raw, _DetokenizedText).text,
        body,
        is_repeatable=True,
    )


def abort(rid: str) -> ApiCall[None]:
    """Returns the call that ends a request, wherever it runs."""
    return ApiCall("POST", "/abort_request", lambda _: None, {"rid": rid}, is_repeatable=True)


def flush_cache() -> ApiCall[dict[str, Any]]:
    """Returns the call that makes every node forget its cached pages."""
    return ApiCall("POST", "/flush_cache", _flushed)


def cache_stats() -> ApiCall[dict[str, Any]]:
    """Returns the call for pages, hits and moved pages."""
    return _admin("GET", "cache/stats")


def prefixes(limit: int) -> ApiCall[list[dict[str, Any]]]:
    """Returns the call for the prefixes with the most hits."""
    return ApiCall(
        "GET",
        f"/admin/cache/prefixes?limit={limit}",
        lambda raw: _read(raw, _Prefixes).prefixes,
        is_repeatable=True,
    )


def flush(node: str | None, cache_salt: str | None) -> ApiCall[dict[str, Any]]:
    """Returns the call that makes nodes forget cached pages that no request holds."""
    given = {"node": node, "cache_salt": cache_salt}
    body = {name: value for name, value in given.items() if value is not None}
    return _admin("POST", "cache/flush", body)


def audit(repair: bool) -> ApiCall[dict[str, Any]]:
    """Returns the call that compares the pages of nodes with the records of them."""
    return _admin("POST", f"cache/audit?repair={'true' if repair else 'false'}")


def nodes() -> ApiCall[list[dict[str, Any]]]:
    """Returns the call for every live node with its load."""
    return ApiCall("GET", "/admin/nodes", _reader(list[dict[str, Any]]), is_repeatable=True)


def requests(
    limit: int, state: str, node: str, older_than_s: float
) -> ApiCall[list[dict[str, Any]]]:
    """Returns the call for the requests that run, and those that ended lately."""
    wanted = {"limit": limit, "state": state, "node": node, "older_than_s": older_than_s}
    return ApiCall(
        "GET",
        f"/admin/requests?{urlencode(wanted)}",
        lambda raw: _read(raw, _Requests).requests,
        is_repeatable=True,
    )


def timeline(rid: str) -> ApiCall[dict[str, Any]]:
    """Returns the call for where the time of one request went."""
    return _admin("GET", f"requests/{quote(rid, safe='')}")


def drain(node: str, keep: bool) -> ApiCall[dict[str, Any]]:
    """Returns the call that keeps new requests from a node, with `keep` also when it restarts."""
    return _admin("POST", f"nodes/{quote(node, safe='')}/drain{'?keep=true' if keep else ''}")


def undrain(node: str) -> ApiCall[dict[str, Any]]:
    """Returns the call that lets a node get requests again."""
    return _admin("POST", f"nodes/{quote(node, safe='')}/undrain")


def explain(
    prompt: Prompt, cache_salt: str, sampling_params: Mapping[str, Any]
) -> ApiCall[dict[str, Any]]:
    """Returns the call that tells where a prompt would go now, and why."""
    body = {
        "text" if isinstance(prompt, str) else "input_ids": prompt,
        "cache_salt": cache_salt,
        "sampling_params": sampling_params,
    }
    return _admin("POST", "route/explain", body)


def _generate(body: dict[str, Any], read: Callable[[bytes], T]) -> ApiCall[T]:
    is_repeatable = not body.keys() & SINGLE_USE_KEYS
    return ApiCall("POST", "/generate", read, body, is_repeatable)


def _admin(
    method: str, path: str, body: Mapping[str, Any] | None = None
) -> ApiCall[dict[str, Any]]:
    read = _reader(dict[str, Any])
    return ApiCall(method, f"/admin/{path}", read, body, is_repeatable=method == "GET")


def _split(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters of /generate as its body has them. A json_schema may be an object."""
    if params.get("n", 1) not in (None, 1):
        raise ClientError(
            f"n is {params['n']}; a call gives one answer: ask several times, as with `batch`"
        )
    body = {name: value for name, value in params.items() if name in TOP_LEVEL_KEYS}
    sampling = {name: value for name, value in params.items() if name not in TOP_LEVEL_KEYS}
    schema = sampling.get("json_schema")
    if schema is not None and not isinstance(schema, str):
        sampling["json_schema"] = msgspec.json.encode(schema).decode()
    return {**body, "sampling_params": sampling}


class _TokenizedPrompt(msgspec.Struct):
    tokens: list[int]


class _DetokenizedText(msgspec.Struct):
    text: str


class _Requests(msgspec.Struct):
    requests: list[dict[str, Any]]


class _Prefixes(msgspec.Struct):
    prefixes: list[dict[str, Any]]


def _flushed(raw: bytes) -> dict[str, Any]:
    """Reads the answer of /flush_cache, which is plain text at SGLang's servers."""
    return _read(raw, dict[str, Any]) if raw.startswith(b"{") else {"message": raw.decode()}


def _reader(kind: type[T]) -> Callable[[bytes], T]:
    return lambda raw: _read(raw, kind)


def _read(raw: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedAnswer(
            f"the answer is not what the endpoint promises ({error}); is the URL that of a cluster?"
        ) from error
