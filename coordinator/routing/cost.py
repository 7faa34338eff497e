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

import msgspec

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
        return (
            weigh(self.queue_s, self.fetch_s, self.compute_s)
            + self.transfer_s
            + self.wait_s
            + self.evict_s
            + DELAY_WEIGHT * self.delay_s
            + self.passing_s
        )

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


def weigh(queue_s: float, fetch_s: float, compute_s: float) -> float:
    """Returns the part of a score that depends on the computing node, without evictions."""
    # Pages are fetched while the request waits in the queue, so only the longer one counts. A
    # comparison, as in `chunk_s`: `max` costs several times as much, and this runs for every
    # candidate.
    return (queue_s if queue_s > fetch_s else fetch_s) + OWN_WORK_WEIGHT * compute_s


def compute_s(live: LiveNode, num_tokens: int) -> float:
    """Returns how long the node takes for `num_tokens` of a prompt (at least one) in a step of
    their own."""
    return live.step_s + chunk_s(live, num_tokens)


def chunk_s(live: LiveNode, num_tokens: int) -> float:
    """Returns how much longer a step of the node takes with `num_tokens` (at least one) of a prompt
    in it."""
    return (num_tokens if num_tokens > 1 else 1) / live.prefill_tokens_per_s


def spread(live: LiveNode) -> float:
    """Returns how many times longer a prompt takes beside answers at the node than it adds to their
    steps: a bounded step has only so much time for a chunk, and the next one follows."""
    max_itl_s = live.info.max_itl_s
    if not max_itl_s:
        return 1.0
    return 1.0 + live.step_s / chunk_time_s(max_itl_s, live.step_s, live.prefill_tokens_per_s)


def step_under_way_s(live: LiveNode, longer_s: float) -> float:
    """Returns how long a prompt waits, on average, for the end of the step that is under way when
    it comes, at a node which has `longer_s` of longer prompts to compute."""
    chunk_s = live.info.chunk_tokens / live.prefill_tokens_per_s
    max_itl_s = live.info.max_itl_s
    if max_itl_s and live.load.num_running:
        bounded_s = chunk_time_s(max_itl_s, live.step_s, live.prefill_tokens_per_s)
        chunk_s = min(chunk_s, bounded_s)
    return 0.5 * min(chunk_s, longer_s)


def move_s(num_bytes: int, link_bytes_per_s: float) -> float:
    """Returns how long it takes to ask another node for `num_bytes` of pages and to get them."""
    return 2 * HOP_S + num_bytes / link_bytes_per_s


def evict_s(live: LiveNode, num_new_pages: int, hit_share: float) -> float:
    """Returns the work that will have to be done again because `num_new_pages` push other pages out
    of the cache, weighed as a request's own work is.

    A node without room for all of them counts as full: what is free on a busy node is spoken for.
    `hit_share` is the share of pages that were found, of those that prompts asked for lately. The
    pages that go are those used longest ago, so they would be asked for more rarely than the
    average.
    """
    if num_new_pages <= live.load.free_pages:
        return 0.0
    evicted_tokens = num_new_pages * live.info.layout.page_size
    reuse = hit_share * EVICTED_REUSE
    return OWN_WORK_WEIGHT * reuse * evicted_tokens / live.prefill_tokens_per_s


def wait_s(live: LiveNode, num_requests: int, num_pages: int, num_before: float = 0.0) -> float:
    """Returns how long a request waits at a decode node before its tokens flow.

    It waits one step of the running batch, and for as long as one answer takes while places or
    pages are short. `num_requests` of this coordinator are at the node already and `num_before`
    will come first; the request needs `num_pages` more.
    """
    max_running = live.info.max_running_requests
    step_s = live.step_s or DEFAULT_STEP_S
    running = _num_running(live, num_requests)
    wait = step_s * (1 + running / max_running)
    if is_full(live, num_requests, num_pages):
        num_ahead = max(0, running - max_running) + num_before
        wait += step_s * ANSWER_STEPS * (1 + num_ahead / max_running)
    return wait


def is_full(live: LiveNode, num_requests: int, num_pages: int) -> bool:
    """Returns True if the node has no place for one more request, or less than `num_pages` to give
    it; `num_requests` of this coordinator are there already."""
    has_place = _num_running(live, num_requests) < live.info.max_running_requests
    return not has_place or num_pages > live.load.room_pages


def _num_running(live: LiveNode, num_requests: int) -> int:
    told = live.load.num_running + live.load.num_waiting
    return num_requests if num_requests > told else told
