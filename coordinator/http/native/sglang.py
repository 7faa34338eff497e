"""Answers in SGLang's dialect: the response object of /generate, and its errors. Pure."""

from __future__ import annotations

from typing import Any

from coordinator.answers.answer import Answer, AnswerError
from coordinator.answers.request import DecodeFunction
from coordinator.http.errors import STATUS_CODES, error_type, event_error_object
from coordinator.http.native.input_logprobs import InputLogprobs, LogprobEntries, LogprobEntry
from protocol.sampling import TokenLogprobs

WEIGHT_VERSION = "default"
"""The name that SGLang gives to weights that nobody has named."""


class SGLangFormatter:
    """Makes the response object of one answer, as it stands at any moment."""

    def __init__(
        self,
        answer: Answer,
        decode_token: DecodeFunction | None = None,
        with_prompt_ids: bool = False,
    ) -> None:
        """`decode_token` makes the texts beside logprobs; without it they have none."""
        self._answer = answer
        self._with_prompt_ids = with_prompt_ids
        self._logprobs = None
        if answer.request.sampling.wants_logprobs:
            self._logprobs = _LogprobLists(answer, decode_token)

    def prepare(self) -> bool:
        """Does a part of what `result` has to do once for a long prompt; returns whether there is
        more to do. Whoever waits between such parts holds up nobody."""
        return self._logprobs is not None and self._logprobs.inputs.encode_piece()

    def result(self, now: float) -> dict[str, Any]:
        """Returns the response object of /generate. `now` ends the latency of an answer that goes
        on."""
        answer = self._answer
        ended_at = answer.ended_at if answer.ended_at is not None else now
        first_token_at = answer.first_token_at
        meta: dict[str, Any] = {
            "id": answer.rid,
            "finish_reason": _finish_reason(answer),
            "prompt_tokens": len(answer.request.tokens),
            "completion_tokens": len(answer.output_ids),
            "cached_tokens": answer.cached_tokens,
            "cached_tokens_details": {"device": answer.cached_tokens, "host": 0},
            "e2e_latency": ended_at - answer.started_at,
            "weight_version": WEIGHT_VERSION,
            "num_retractions": max(0, answer.num_attempts - 1),
            "ttft": None if first_token_at is None else first_token_at - answer.started_at,
            "attempts": answer.num_attempts,
            "fetched_tokens": answer.fetched_tokens,
            "transferred_pages": answer.transferred_pages,
            **_route_fields(answer),
        }
        if self._logprobs is not None:
            meta |= self._logprobs.fields()
        result = {
            "text": answer.text,
            "output_ids": list(answer.output_ids),
            "meta_info": meta,
            "error": None,
        }
        if self._with_prompt_ids:
            result["prompt_token_ids"] = answer.request.tokens
        return result


def stream_error(error: AnswerError) -> dict[str, Any]:
    """Returns an error as the object that an event of a stream carries."""
    return event_error_object(STATUS_CODES[error.kind], error.message)


def _finish_reason(answer: Answer) -> dict[str, Any] | None:
    reason, error = answer.finish_reason, answer.error
    if reason is None:
        return None
    if reason.kind == "stop":
        return {"type": "stop", "matched": reason.matched}
    if reason.kind == "length":
        return {"type": "length", "length": len(answer.output_ids)}
    if error is None:  # its client has aborted it
        return {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}
    code = STATUS_CODES[error.kind]
    return {
        "type": "abort",
        "message": error.message,
        "status_code": code,
        "err_type": error_type(code),
    }


def _route_fields(answer: Answer) -> dict[str, Any]:
    route = answer.route
    prefill = route.prefill if route is not None else None
    fetched_from = route.fetch_from if route is not None else None
    return {
        "prefill_node": prefill.name if prefill is not None else None,
        "decode_node": route.decode.name if route is not None else None,
        "route_reason": route.reason if route is not None else None,
        "route_runner_up": route.runner_up if route is not None else None,
        "fetched_from": fetched_from.name if fetched_from is not None else None,
    }


class _LogprobLists:
    """The lists of logprobs in meta_info. They are kept and appended to: making them anew for every
    event of a stream would take time that grows with the square of its length. Those of the prompt
    do not change any more once they are there."""

    def __init__(self, answer: Answer, decode_token: DecodeFunction | None) -> None:
        self._answer = answer
        self._entries = LogprobEntries(decode_token)
        self.inputs = InputLogprobs(answer, self._entries)
        self._chosen: list[LogprobEntry] = []
        self._top: list[list[LogprobEntry]] = []
        self._wanted: list[list[LogprobEntry]] = []

    def fields(self) -> dict[str, Any]:
        """Returns all lists as they stand now, by their names in meta_info; those of the prompt are
        encoded."""
        answer, sampling = self._answer, self._answer.request.sampling
        for i in range(len(self._chosen), len(answer.logprobs)):
            self._append(answer.output_ids[i], answer.logprobs[i])
        lists: dict[str, list[Any]] = {"token": self._chosen}
        if sampling.num_top_logprobs > 0:
            lists["top"] = self._top
        if sampling.logprob_token_ids:
            lists["token_ids"] = self._wanted
        inputs = dict(zip(("token", "top", "token_ids"), self.inputs.lists(), strict=True))
        fields: dict[str, Any] = {}
        for name, entries in lists.items():
            fields[f"input_{name}_logprobs"] = inputs[name]
            fields[f"output_{name}_logprobs"] = list(entries)
        return fields

    def _append(self, token: int, logprobs: TokenLogprobs) -> None:
        entry = self._entries.one
        self._chosen.append(entry(logprobs.chosen, token))
        self._top.append([entry(logprob, top) for top, logprob in logprobs.top])
        wanted_ids = self._answer.request.sampling.logprob_token_ids
        self._wanted.append(self._entries.many(logprobs.wanted, wanted_ids))
