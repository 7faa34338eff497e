"""`TrackedRequest`: the one record that the coordinator keeps of a request. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import msgspec

from coordinator.answers.answer import Answer
from coordinator.core.patience import Patience
from coordinator.core.poison import Suspicion
from coordinator.routing.route import Route
from coordinator.routing.routed_request import RoutedRequest
from protocol.hashing import PageHash, PageHasher
from protocol.ids import Attempt
from protocol.messages import Finish, TokenOut
from protocol.prompt_logprobs import first_position, is_all_of, num_positions
from protocol.sampling import Sampling


@dataclass(eq=False)
class TrackedRequest:
    """A request from its arrival to its end, over all of its attempts."""

    answer: Answer
    routed: RoutedRequest | None = None
    """Its place in the queue, or its booking; None while no node could take it."""
    route: Route | None = None
    """Where its current attempt runs; None while it waits."""
    attempt_number: int = 0
    answered: list[int] = field(default_factory=list)
    """Tokens that nodes have produced; the prompt of the next attempt ends with them."""
    num_answered_before: int = 0
    """How many of `answered` earlier attempts have produced."""
    hashes: list[PageHash] = field(default_factory=list)
    """Page hashes of the prompt, as far as they were computed."""
    hasher: PageHasher | None = None
    """The hasher that made `hashes`. When the model changes, they are worth nothing any more."""
    patience: Patience = field(default_factory=Patience)
    """What went wrong with it, and when it ends for that."""
    suspicion: Suspicion = field(default_factory=Suspicion)
    """What speaks for it being the reason why nodes have died."""
    held_s: float = 0.0
    """How long it was held by pauses of the cluster; this time does not count for its limits."""
    longest_wait_s: float = math.inf
    """How long it may wait for its turn before a node is given it for the first time."""
    diverges_early: bool = False
    """Its prompt began as something that is cached, and soon went its own way."""
    last_tokens_at: float = 0.0
    """When its newest tokens came."""
    is_answering: bool = False
    """True once a token of the current attempt has arrived: its prompt is computed then."""

    @property
    def request_id(self) -> str:
        """The coordinator's own id of the request, which no other request ever has."""
        return self.answer.request_id

    @property
    def current(self) -> Attempt:
        """The newest attempt. Only messages about it count."""
        return Attempt(self.request_id, self.attempt_number)

    @property
    def tokens(self) -> list[int]:
        """The tokens of the prompt and of the answer so far."""
        tokens = self.answer.request.tokens
        return tokens + self.answered if self.answered else tokens

    @property
    def num_tokens_left(self) -> int:
        """The number of tokens that the answer may still get."""
        return self.answer.request.max_new_tokens - len(self.answered)

    @property
    def known_end(self) -> Finish:
        """Why the answer ends with the tokens so far; "" if more follow.

        The node that computed the prompt tells the first token, and not whether it is the last one:
        the node that answers says so, and may be lost before it does.
        """
        if not self.answered:
            return ""
        if self.answered[-1] in self.answer.request.end_token_ids:
            return "stop"
        return "length" if self.num_tokens_left == 0 else ""

    @property
    def sampling(self) -> Sampling:
        """What the next attempt is asked for: logprobs of the prompt only as long as none came."""
        sampling = self.answer.request.sampling
        if self._lacks_prompt_logprobs or sampling.prompt_logprobs_from < 0:
            return sampling
        return msgspec.structs.replace(sampling, prompt_logprobs_from=-1)

    @property
    def logprobs_from(self) -> int | None:
        """The first position of the prompt whose logprob the next attempt has to compute."""
        if not self._lacks_prompt_logprobs:
            return None
        return first_position(self.answer.request.sampling)

    @property
    def _lacks_prompt_logprobs(self) -> bool:
        answer = self.answer
        return answer.prompt_logprobs is None and num_positions(answer.request.sampling) > 0

    def problem_with(self, out: TokenOut) -> str:
        """Returns why these tokens cannot be used; "" if they can."""
        first = self.num_answered_before + out.start
        num_known = len(self.answered) - first
        if num_known < 0:
            return "tokens were lost on the way"
        if num_known and out.tokens[:num_known] != self.answered[first : first + len(out.tokens)]:
            return "a node told other tokens than the one before it"
        sampling = self.answer.request.sampling
        if not sampling.wants_logprobs:
            return ""
        if len(out.logprobs) != len(out.tokens):
            return "tokens came without their logprobs"
        if self._lacks_prompt_logprobs and not is_all_of(out.prompt_logprobs, sampling):
            return "tokens came without the logprobs of the prompt"
        return ""

    def news_in(self, out: TokenOut) -> TokenOut:
        """Returns `out` without the tokens that have come before: the first one of an attempt comes
        from the node that computed the prompt, and again from the one that answers."""
        num_known = len(self.answered) - self.num_answered_before - out.start
        if not num_known:
            return out
        return msgspec.structs.replace(
            out,
            start=out.start + num_known,
            tokens=out.tokens[num_known:],
            logprobs=out.logprobs[num_known:],
        )
