"""What several coordinators have counted, together."""

from __future__ import annotations

from coordinator.core.instructions import Send
from coordinator.peers.counts import ClusterCounts
from protocol.counters import RequestCounters
from protocol.messages import AskCounts, CountsReply, decode, encode
from tests.support.coordinator.cores import core_of

OTHER = "tcp://other:1"


def test_sums_and_those_who_did_not_answer() -> None:
    replies = [
        CountsReply("q", f"host:{i}", RequestCounters(requests=i), RequestCounters(retries=i), i, 1)
        for i in (1, 2)
    ]
    counts = ClusterCounts.sum(replies, unanswered={"host:3"})
    assert counts.lifetime == RequestCounters(requests=3)
    assert counts.recent == RequestCounters(retries=3)
    assert (counts.num_running, counts.num_waiting, counts.num_unfinished) == (3, 2, 5)
    assert counts.num_coordinators == 2 and counts.unanswered == {"host:3"}
    assert replies[0].lifetime == RequestCounters(requests=1), "what was told is not changed"


def test_a_coordinator_tells_another_what_it_has_counted() -> None:
    core = core_of()
    core.statistics.totals.finished(RequestCounters(requests=1, prompt_tokens=7), 1.0)
    (reply,) = core.handle(AskCounts(OTHER, "q"), 2.0)
    assert isinstance(reply, Send) and reply.address == OTHER
    told = reply.message
    assert isinstance(told, CountsReply) and told.question_id == "q"
    assert told.lifetime == told.recent == RequestCounters(requests=1, prompt_tokens=7)
    assert decode(encode(told)) == told
