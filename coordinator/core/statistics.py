"""`Statistics`: what operators are told about the requests of this coordinator. Pure."""

from __future__ import annotations

import logging

from coordinator.answers.answer import Answer
from coordinator.answers.totals import Totals
from coordinator.core.hot_prefixes import HotPrefixes
from coordinator.core.request_reports import reportable
from coordinator.core.tracked_request import TrackedRequest
from coordinator.metrics import table
from coordinator.metrics.request_measures import RequestMeasures
from coordinator.routing.registry import Registry
from coordinator.timelines.ended_requests import EndedRequests
from protocol.counters import RequestCounters

log = logging.getLogger(__name__)


class Statistics:
    """Counts requests as they end, and notes which prefixes they had in common."""

    def __init__(self, registry: Registry) -> None:
        self.totals = Totals()
        self.hot_prefixes = HotPrefixes()
        self.ended_requests = EndedRequests()
        self.requests = RequestMeasures()
        self._registry = registry

    def answer_began(self, tracked: TrackedRequest, now: float) -> None:
        """Counts a use of the cached prefix, in whole pages, that the answer reports, for the list
        of the hottest prefixes."""
        answer, model = tracked.answer, self._registry.model
        if model is None or not answer.cached_tokens:
            return
        last_page = answer.cached_tokens // model.layout.page_size - 1
        if 0 <= last_page < len(tracked.hashes):
            request = answer.request
            tokens = request.tokens[: (last_page + 1) * model.layout.page_size]
            is_salted = bool(request.namespace.salt)
            self.hot_prefixes.hit(tracked.hashes[last_page], tokens, is_salted, now)

    def request_refused(self, now: float) -> None:
        """Counts a request that is refused because the cluster is busy."""
        self.totals.finished(RequestCounters(refused_requests=1), now)
        self.requests.measures.count(table.REFUSED)

    def client_stalled(self, now: float) -> None:
        """Counts a connection that was given up because its client did not read."""
        self.totals.finished(RequestCounters(stalled_clients=1), now)
        self.requests.measures.count(table.STALLED_CLIENTS)

    def answer_ended(self, tracked: TrackedRequest, now: float) -> None:
        """Counts the request, keeps its timeline for a while, and writes its line into the log."""
        answer = tracked.answer
        report = reportable(tracked)
        self.ended_requests.add(report, now)
        self.requests.ended(answer, report.facts.outcome, now)
        if tracked.diverges_early:
            self.requests.measures.count(table.EARLY_DIVERGENCES)
        counters = answer.counters()
        counters.early_divergences = int(tracked.diverges_early)
        self.totals.finished(counters, now)
        route = answer.route
        log.info(
            "request %s ended: %s, %d + %d tokens, %d cached, attempts %d, %s; runner-up %s",
            _name(answer),
            answer.error or answer.finish_reason,
            len(answer.request.tokens),
            len(answer.output_ids),
            answer.cached_tokens,
            answer.num_attempts,
            route.reason if route else "not routed",
            route.runner_up if route else "none",
            extra={"x_request_id": answer.request.arrival.http_id},
        )


def _name(answer: Answer) -> str:
    """Returns what the log calls a request: its rid, and the X-Request-Id that it came with."""
    http_id = answer.request.arrival.http_id
    return answer.rid if http_id in ("", answer.rid) else f"{answer.rid} of {http_id}"
