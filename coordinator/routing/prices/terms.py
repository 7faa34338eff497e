"""The terms of what a request costs, each for many nodes at once. Pure.

`figures` has the numbers of the nodes, in arrays. What is said of the request is the same number
for all of them, or an array with one for each.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coordinator.routing.cost import EVICTED_REUSE, HOP_S, OWN_WORK_WEIGHT, Floats, Terms
from coordinator.routing.prices.figures import Figures

Bools = NDArray[np.bool_]


def compute_s(figures: Figures[Floats], num_tokens: Terms) -> Floats:
    """Returns how long the nodes take for `num_tokens` of a prompt, at least one, in a step of
    their own."""
    return figures.step_s + chunk_s(figures, num_tokens)


def chunk_s(figures: Figures[Floats], num_tokens: Terms) -> Floats:
    """Returns how much longer steps of the nodes take with `num_tokens` of a prompt, at least one,
    in them."""
    return num_tokens / figures.prefill_tokens_per_s


def move_s(num_bytes: Floats, link_bytes_per_s: float) -> Floats:
    """Returns how long it takes to ask another node for `num_bytes` of pages and to get them."""
    return 2 * HOP_S + num_bytes / link_bytes_per_s


def evict_s(
    figures: Figures[Floats], num_new_pages: Floats, page_size: int, hit_share: float
) -> Terms:
    """Returns the work that will have to be done again because `num_new_pages` push other pages out
    of the caches, weighed as a request's own work is; 0.0 if no node has to push any out.

    A node without room for all of them counts as full: what is free on a busy node is spoken for.
    `hit_share` is the share of pages that were found, of those that prompts asked for lately. The
    pages that go are those used longest ago, so they would be asked for more rarely than the
    average.
    """
    is_short: Bools = num_new_pages > figures.free_pages
    if not np.count_nonzero(is_short):
        return 0.0
    reuse = hit_share * EVICTED_REUSE
    again_s = OWN_WORK_WEIGHT * reuse * (num_new_pages * page_size) / figures.prefill_tokens_per_s
    return np.where(is_short, again_s, 0.0)


def wait_s(figures: Figures[Floats], is_full: Bools, num_before: Terms) -> Floats:
    """Returns how long a request waits at the nodes before its tokens flow.

    It waits one step of the running batch, and for as long as one answer takes while places or
    pages are short. `num_before` requests that are not at the nodes yet will come first.
    """
    if not np.count_nonzero(is_full):
        return figures.begin_s
    num_ahead = np.maximum(0.0, figures.num_requests - figures.max_running) + num_before
    for_room_s = figures.answer_s * (1 + num_ahead / figures.max_running)
    waits_s: Floats = figures.begin_s + np.where(is_full, for_room_s, 0.0)
    return waits_s


def is_full(figures: Figures[Floats], num_pages: Floats) -> Bools:
    """Returns which nodes have no place for one more request, or less than `num_pages` to give
    it."""
    full: Bools = figures.num_requests >= figures.max_running
    full |= num_pages > figures.room_pages
    return full
