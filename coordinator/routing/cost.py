"""`Cost`: what a route would cost, term by term, in seconds. Pure.

    score = max(queue, fetch) + compute + transfer + wait       time to the first token
          + (OWN_WORK_WEIGHT - 1) * compute + evict             what it costs requests to come
          + DELAY_WEIGHT * delay                                what it costs answers beside it

`queue` is what comes first in the order of the node (`chunk_sizes`): shorter prompts, and the share
of the oldest. `wait` is for steps: that with longer prompts which is under way, and the one in
which the answer begins. `queue` and `fetch` overlap: the node computes others' prompts while
pages travel. A request's own work counts more than its queue, because it also delays everybody
behind it (weights of 3 to 5 gave the most cache hits and the least mean latency on Mooncake's open
trace). `evict`: pages that come to a full node push out others, and a share of those, the share of
pages that are hits at present, will have to be computed again. `delay`: a node that computes a
prompt beside answers lengthens its steps, and each answer there waits so much longer. The steps
themselves run anyway for these answers: the prompt waits for them, and only what its tokens add to
them is work. Where `max_itl_s` bounds a step, the prompt is spread over more of them.

The terms of the prefill node (queue, fetch, compute, its evictions) and those of the decode node
(transfer, wait, its evictions) add up, so each is chosen by itself. Rates are measured by the
nodes and come with their heartbeats.
"""

from __future__ import annotations

from typing import TypeAlias, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from coordinator.routing.registry import LiveNode
from protocol.admission import chunk_time_s

OWN_WORK_WEIGHT = 3.0
DELAY_WEIGHT = 0.1
"""What a second that an answer is delayed counts, compared with one until a first token. Its reader
has tokens to read, and the bound of a step keeps each gap short."""
EVICTED_REUSE = 0.5
"""How often evicted pages are asked for again, compared with all pages."""
HOP_S = 0.001
"""One control message between two nodes."""
DEFAULT_LINK_BYTES_PER_S = 1e9
DEFAULT_STEP_S = 0.02
ANSWER_STEPS = 64
"""Steps after which a place or pages become free on a full node: one answer."""

Floats = NDArray[np.float64]
"""A number for each of many nodes. Counts are floats too: they are exact up to 2^53."""
Number = TypeVar("Number", float, Floats)
Terms: TypeAlias = "Floats | float"
"""A term of the costs of many nodes; one number if it is the same for all."""


class Cost(msgspec.Struct, frozen=True, gc=False):
    """The terms of what a candidate would cost, in seconds; those that do not apply to it are 0."""

    queue_s: float = 0.0
    fetch_s: float = 0.0
    compute_s: float = 0.0
    transfer_s: float = 0.0
    wait_s: float = 0.0
    evict_s: float = 0.0
    delay_s: float = 0.0
    """The time that all answers beside the prompt together lose to it."""
    passing_s: float = 0.0
    """The time that all longer prompts together lose to it, which it passes."""

    @property
    def first_token_s(self) -> float:
        """The estimated time to the first token."""
        start_s = self.queue_s if self.queue_s > self.fetch_s else self.fetch_s
        return start_s + self.compute_s + self.transfer_s + self.wait_s

    @property
    def score(self) -> float:
        """The weighted sum of the terms; a policy that weighs costs takes the candidate with the
        least."""
        return float(weighted(*msgspec.structs.astuple(self)))

    def __add__(self, other: Cost) -> Cost:
        """Returns the sum, term by term: the cost of a route is that of its prefill node and of its
        decode node."""
        return Cost(
            self.queue_s + other.queue_s,
            self.fetch_s + other.fetch_s,
            self.compute_s + other.compute_s,
            self.transfer_s + other.transfer_s,
            self.wait_s + other.wait_s,
            self.evict_s + other.evict_s,
            self.delay_s + other.delay_s,
            self.passing_s + other.passing_s,
        )


def step_under_way_s(live: LiveNode, longer_s: float) -> float:
    """Returns how long a prompt waits, on average, for the end of the step that is under way when
    it comes, at a node which has `longer_s` of longer prompts to compute."""
    chunk_s = live.info.chunk_tokens / live.prefill_tokens_per_s
    max_itl_s = live.info.max_itl_s
    if max_itl_s and live.load.num_running:
        bounded_s = chunk_time_s(max_itl_s, live.step_s, live.prefill_tokens_per_s)
        chunk_s = min(chunk_s, bounded_s)
    return 0.5 * min(chunk_s, longer_s)


def spread(live: LiveNode) -> float:
    """Returns how many times longer a prompt takes beside answers at the node than it adds to their
    steps: a bounded step has only so much time for a chunk, and the next one follows."""
    max_itl_s = live.info.max_itl_s
    if not max_itl_s:
        return 1.0
    return 1.0 + live.step_s / chunk_time_s(max_itl_s, live.step_s, live.prefill_tokens_per_s)


class Costs(msgspec.Struct, frozen=True, gc=False):
    """The costs of many candidates: each term is an array, or 0.0 if it is that for all."""

    queue_s: Terms = 0.0
    fetch_s: Terms = 0.0
    compute_s: Terms = 0.0
    transfer_s: Terms = 0.0
    wait_s: Terms = 0.0
    evict_s: Terms = 0.0
    delay_s: Terms = 0.0
    passing_s: Terms = 0.0

    @property
    def scores(self) -> Floats:
        """The score of each candidate, as `Cost.score` says."""
        return np.asarray(weighted(*msgspec.structs.astuple(self)))

    def at(self, place: int) -> Cost:
        """Returns the cost of one candidate."""
        terms = msgspec.structs.astuple(self)
        return Cost(*(t if isinstance(t, float) else t.item(place) for t in terms))


def weighted(
    queue_s: Terms,
    fetch_s: Terms,
    compute_s: Terms,
    transfer_s: Terms,
    wait_s: Terms,
    evict_s: Terms,
    delay_s: Terms,
    passing_s: Terms,
) -> Terms:
    """Returns the score for the terms of a cost, or those for the terms of many."""
    score = weigh(queue_s, fetch_s, compute_s)
    for term in (transfer_s, wait_s, evict_s, DELAY_WEIGHT * delay_s, passing_s):
        # Most terms are 0.0 for all nodes, and adding that to an array costs as much as any sum.
        if not isinstance(term, float) or term:
            score = score + term
    return score


def weigh(queue_s: Terms, fetch_s: Terms, compute_s: Terms) -> Terms:
    """Returns the part of a score that depends on the computing node, without evictions."""
    # Pages are fetched while the request waits in the queue, so only the longer one counts.
    start_s: Terms = queue_s
    if not isinstance(fetch_s, float) or fetch_s:
        start_s = np.maximum(queue_s, fetch_s)
    return start_s + OWN_WORK_WEIGHT * compute_s
