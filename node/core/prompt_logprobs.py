"""`PromptLogprobsSoFar`: the logprobs of one prompt as they become known to a node. Pure."""

from __future__ import annotations

from protocol.prompt_logprobs import PromptLogprobs, first_position, joined, num_positions
from protocol.sampling import Sampling


class PromptLogprobsSoFar:
    """Collects what steps or a prefill node tell, position after position, until it is taken.

    A job that gives way in the midst of its prompt keeps what it has, and needs only the rest.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._parts: list[PromptLogprobs] = []
        self._next = first_position(sampling)
        self._num_lacking = num_positions(sampling)

    @property
    def lacking_from(self) -> int | None:
        """The first position whose logprob is wanted and not known yet; None: all are known."""
        return self._next if self._num_lacking else None

    def add(self, part: PromptLogprobs) -> None:
        """Takes the logprobs that follow those known."""
        assert part.start == self._next and part.num_positions <= self._num_lacking, "a gap"
        self._parts.append(part)
        self._next = part.end
        self._num_lacking -= part.num_positions

    def take(self) -> PromptLogprobs | None:
        """Returns all of them, which are complete, the first time; None if there are none."""
        assert not self._num_lacking, "logprobs of the prompt are lacking"
        parts, self._parts = self._parts, []
        return joined(parts) if parts else None
