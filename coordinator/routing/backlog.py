"""`Backlog`: how long the prompts that a node has will keep it busy. Pure.

Two sources are put together: what this coordinator has sent and knows to be unfinished, and what
the node's heartbeats say beyond that, which other coordinators have sent. Between heartbeats, time
passes for both. Without heartbeats the second part runs out, and what is left is the least-loaded
rule over this coordinator's own requests.
"""

from __future__ import annotations

SETTLING_S = 0.1
"""A prompt sent so recently may not be counted in a heartbeat yet."""


class Backlog:
    """Prompts of one node, computed in the order they were sent; seconds of its work."""

    def __init__(self, total_s: float = 0.0) -> None:
        self.num_requests = 0
        """Unfinished requests sent to this node, whatever they wait for."""
        self.num_unheard = 0
        """Requests to be answered that came, less those that went, since the last heartbeat."""
        self.total_s = total_s
        """Work ever sent, from where a node that joins later begins; tells apart nodes that are
        equally free."""
        self.promised_pages = 0
        """Pages that requests were promised which no heartbeat can show as held yet."""
        self._promised: dict[str, tuple[int, float]] = {}  # request → pages, sent at
        self._ours: dict[str, tuple[float, float]] = {}  # request → seconds of work, sent at
        self._ours_s = 0.0
        self._head_s = 0.0
        """Work of the first of ours, which is computed now; since `_head_began`."""
        self._head_began = 0.0
        self._heard_s = 0.0
        self._others_s = 0.0
        self._heard_at = 0.0

    def sent(self, request_id: str, work_s: float, now: float) -> None:
        """A prompt of `work_s` was sent to the node."""
        if not self._ours:
            self._head_s, self._head_began = work_s, now
        self._ours[request_id] = (work_s, now)
        self._ours_s += work_s
        self.total_s += work_s

    def promise(self, request_id: str, num_pages: int, now: float) -> None:
        """A request was sent that will take `num_pages` more pages of the node."""
        self._promised[request_id] = (num_pages, now)
        self.promised_pages += num_pages

    def ended(self, request_id: str) -> None:
        """It takes no more. Harmless twice."""
        num_pages, _ = self._promised.pop(request_id, (0, 0.0))
        self.promised_pages -= num_pages

    def computed(self, request_id: str, now: float) -> None:
        """Its first token is here, or it was given up. Harmless twice."""
        if request_id not in self._ours:
            return
        was_head = request_id == next(iter(self._ours))
        work_s, _ = self._ours.pop(request_id)
        self._ours_s = self._ours_s - work_s if self._ours else 0.0
        if was_head and self._ours:
            self._head_s, self._head_began = next(iter(self._ours.values()))[0], now

    def heard(self, queued_s: float, now: float) -> None:
        """A heartbeat: the node has prompts of `queued_s` to compute."""
        self.num_unheard = 0
        for request_id, (_, at) in list(self._promised.items()):
            if now - at >= SETTLING_S:
                self.ended(request_id)
        known_s = sum(work_s for work_s, at in self._ours.values() if now - at >= SETTLING_S)
        self._heard_s = queued_s
        self._others_s = max(0.0, queued_s - known_s)
        self._heard_at = now

    def seconds(self, now: float) -> float:
        """Estimated time until a prompt that is sent now would begin to be computed."""
        elapsed_s = now - self._heard_at
        others_s = self._others_s - elapsed_s if self._others_s > elapsed_s else 0.0
        if not self._ours:
            return others_s
        done_s = now - self._head_began
        ours_s = self._ours_s - (done_s if done_s < self._head_s else self._head_s)
        # A head that takes longer than was thought is still there, says the node.
        overdue_s = self._heard_s - elapsed_s
        if overdue_s > ours_s:
            ours_s = overdue_s if overdue_s < self._ours_s else self._ours_s
        return ours_s + others_s if ours_s > 0 else others_s
