"""`OwnAnswer`: what a node remembers of a request that it answers, besides the job. Pure."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from node.core.job import Job
from protocol.messages import Generate, PrefillDone
from protocol.timelines.node_spans import NodeTimes


@dataclass(eq=False)
class OwnAnswer:
    """The purpose of a job whose tokens go on as an answer."""

    request: Generate
    num_prompt_tokens: int
    num_expected_pages: int = 0
    """How many pages are to be received from a prefill node."""
    prefilled: PrefillDone | None = None
    """What the prefill node said at its end; None before."""

    prefill_times: NodeTimes | None = None
    """What the prefill node said of its time, until it is told on."""

    def take_prefill_times(self) -> NodeTimes | None:
        """Returns where the time of the prefill node went, once."""
        times, self.prefill_times = self.prefill_times, None
        return times

    def tokens_until_end(self, num_before: int, tokens: Seq[int]) -> tuple[list[int], str]:
        """Returns those leading `tokens` that belong to the answer, which has `num_before` already,
        and why it ends with them ("" if it goes on)."""
        limit = self.request.max_new_tokens
        if limit == 0:
            return [], "length"
        for count, token in enumerate(tokens, start=1):
            if token in self.request.end_token_ids:
                return list(tokens[:count]), "stop"
            if num_before + count == limit:
                return list(tokens[:count]), "length"
        return list(tokens), ""


AnswerJob = Job[OwnAnswer]
