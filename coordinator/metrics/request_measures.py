"""`RequestMeasures`: what a coordinator measures of its requests as they go on and end. Pure."""

from __future__ import annotations

from typing import Literal

from coordinator.answers.answer import Answer
from coordinator.metrics import table
from coordinator.metrics.stages import stages_of
from coordinator.routing.route import Route
from protocol.telemetry.metric import Measures

Path = Literal["remote", "fetched", "local"]
"""remote: a prefill node computes the prompt. fetched: pages of it come from their owner first.
local: the node that answers computes it."""
Loss = Literal["node_lost", "failed", "busy", "paused"]


def path_of(route: Route) -> Path:
    """Returns how the prompt of a request is computed along `route`."""
    if route.fetch_from is not None:
        return "fetched"
    return "local" if route.prefill is None else "remote"


class RequestMeasures:
    """Counts and measures requests. All series are in `measures`."""

    def __init__(self) -> None:
        self.measures = Measures()
        # Asked once: every token of every answer comes by.
        self._gaps = self.measures.histogram(table.TOKEN_GAP)

    def attempt_sent(self, route: Route, is_resumed: bool) -> None:
        """Counts an attempt. `is_resumed`: the answer had begun at another node."""
        self.measures.count(table.ROUTES, path_of(route))
        if is_resumed:
            self.measures.count(table.RESUMED)

    def attempt_lost(self, reason: Loss) -> None:
        """Counts an attempt that ended before its request did."""
        self.measures.count(table.ATTEMPTS_LOST, reason)

    def tokens_came(self, num_tokens: int, after_s: float) -> None:
        """Measures the gap before tokens that came at once, `after_s` behind those before."""
        gap_s = max(0.0, after_s) / num_tokens
        self._gaps.observe(table.GAP_SECONDS, gap_s, num_tokens)

    def ended(self, answer: Answer, outcome: str, now: float) -> None:
        """Counts a request that has ended, and measures its stages."""
        measures, timeline = self.measures, answer.timeline
        measures.count(table.REQUESTS, outcome)
        ended_at = now if timeline.ended_at is None else timeline.ended_at
        measures.observe(table.END_TO_END, ended_at - timeline.received_at, outcome)
        stages = stages_of(timeline, now)
        for metric, seconds in (
            (table.QUEUE, stages.queue_s),
            (table.PREFILL, stages.prefill_s),
            (table.TRANSFER_EXPOSED, stages.exposed_s),
            (table.FIRST_STEP, stages.first_step_s),
        ):
            if seconds is not None:
                measures.observe(metric, seconds)
        self._route(answer, stages.routed_to_first_token_s)
        self._count_tokens(answer)

    def _route(self, answer: Answer, routed_to_first_token_s: float | None) -> None:
        route, timeline = answer.route, answer.timeline
        if route is None or timeline.first_token_at is None:
            return
        first_token_s = timeline.first_token_at - timeline.received_at
        self.measures.observe(table.FIRST_TOKEN, first_token_s, path_of(route))
        if routed_to_first_token_s is not None and answer.num_attempts == 1:
            error_s = routed_to_first_token_s - route.cost.first_token_s
            self.measures.observe(table.FORECAST_ERROR, error_s)

    def _count_tokens(self, answer: Answer) -> None:
        measures = self.measures
        num_prompt, num_answer = len(answer.request.tokens), len(answer.output_ids)
        measures.observe(table.PROMPT_LENGTH, num_prompt)
        measures.observe(table.ANSWER_LENGTH, num_answer)
        measures.count(table.PROMPT_TOKENS, by=num_prompt)
        measures.count(table.GENERATION_TOKENS, by=num_answer)
        num_local = answer.cached_tokens - answer.fetched_tokens
        measures.count(table.CACHED_TOKENS, "local", by=num_local)
        measures.count(table.CACHED_TOKENS, "fetched", by=answer.fetched_tokens)
        measures.count(table.TRANSFERRED_PAGES, by=answer.transferred_pages)
