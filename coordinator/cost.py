"""What a route would cost, term by term, in seconds. Pure.

    score(p, d) = queue(p) + OWN_WORK_WEIGHT * compute(uncached on p) + transfer(d lacks) + wait(d)

A request's own work counts more than its queue, because it also delays everybody behind it
(weights of 3 to 5 gave the most cache hits and the least mean latency on Mooncake's open trace).
"""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.registry import LiveNode

OWN_WORK_WEIGHT = 3.0
HOP_S = 0.001
"""One control message between two nodes."""
DEFAULT_PREFILL_TOKENS_PER_S = 5_000.0
"""Until a node has measured its own rate."""
DEFAULT_LINK_BYTES_PER_S = 1e9
DEFAULT_STEP_S = 0.02


@dataclass(frozen=True)
class Assigned:
    """Work that this coordinator has sent to a node and that is not done."""

    prompt_tokens: int = 0
    """Uncached prompt tokens without a first token yet."""
    requests: int = 0


@dataclass(frozen=True)
class Cost:
    """Terms of one candidate route, seconds."""

    queue_s: float
    compute_s: float
    transfer_s: float
    wait_s: float

    @property
    def first_token_s(self) -> float:
        """Estimated time to the first token."""
        return self.queue_s + self.compute_s + self.transfer_s + self.wait_s

    @property
    def score(self) -> float:
        return self.first_token_s + (OWN_WORK_WEIGHT - 1) * self.compute_s


def queue_s(live: LiveNode, assigned: Assigned) -> float:
    """Time until a node is done with the prompt tokens it has: the larger of what it said and
    what this coordinator knows it has sent."""
    tokens = max(live.load.queued_tokens, assigned.prompt_tokens)
    return tokens / prefill_tokens_per_s(live)


def compute_s(live: LiveNode, num_tokens: int) -> float:
    return num_tokens / prefill_tokens_per_s(live)


def transfer_s(num_bytes: int, live: LiveNode) -> float:
    return 2 * HOP_S + num_bytes / (live.load.link_bytes_per_s or DEFAULT_LINK_BYTES_PER_S)


def wait_s(live: LiveNode, assigned: Assigned, num_pages: int) -> float:
    """How long a request waits at a decode node before its tokens flow.

    A step for the running batch, and while pages or places are short, a step for each token that
    others must produce before they leave (taken as one answer of 64 tokens).
    """
    step_s = live.load.step_s or DEFAULT_STEP_S
    running = max(live.load.num_running + live.load.num_waiting, assigned.requests)
    free_pages = live.load.free_pages + live.load.cached_pages
    crowded = running / live.info.max_running_requests
    wait = step_s * (1 + crowded)
    if running >= live.info.max_running_requests or num_pages > free_pages:
        wait += step_s * 64 * (1 + live.load.num_waiting / live.info.max_running_requests)
    return wait


def prefill_tokens_per_s(live: LiveNode) -> float:
    return live.load.prefill_tokens_per_s or DEFAULT_PREFILL_TOKENS_PER_S
