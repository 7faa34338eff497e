"""`LoneNodes`: the simulator's nodes without coordinators and clients; a test asks the nodes."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from protocol.hashing import token_bytes
from protocol.ids import Attempt, Node
from protocol.messages import Cancel, CoordinatorAlive, Failed, Generate, Load, TokensOut
from protocol.namespace import SHARED
from protocol.sampling import Sampling
from tests.sim.checks import Wrong
from tests.sim.cluster import SimCluster, SimSettings
from tests.sim.life import check_at_rest
from tests.sim.world.oracle import answer_of

COORDINATOR = "the test"
GREEDY = Sampling(temperature=0.0)
PAGE = 16
LIMIT_S = 300.0
"""Nodes that have not answered by then hang."""
QUIET_S = 8.0
"""After the last end: every deadline of a node is shorter."""
SETTINGS = SimSettings(
    num_prefill=1,
    num_decode=1,
    num_coordinators=0,
    page_size=PAGE,
    num_pages=64,
    chunk_tokens=32,
    max_running=4,
    max_waiting=8,
    policy="cost",
)


@dataclass
class Answer:
    """What a node has said of one request, and what it has to say."""

    expected: list[int]
    is_cancelled: bool = False
    tokens: list[int] = field(default_factory=list)
    reused: tuple[int, int, int] | None = None
    """Tokens that were cached, pages that were transferred, tokens that were fetched."""
    end: str = ""


class LoneNodes:
    """Nodes p0, p1, … and d0, d1, … on a virtual clock; `seed` decides all delays.

    Everything that the simulator checks is checked here: what a page holds when it is hit, sent or
    overwritten, every token against the oracle, and that nothing is left when all have ended.
    """

    def __init__(self, seed: int = 1, **settings: Any) -> None:
        """`settings` are those of SimSettings that differ from SETTINGS."""
        self.chance = random.Random(seed)
        self.cluster = SimCluster(replace(SETTINGS, **settings), self.chance, None)
        self.cluster.network.listen(COORDINATOR, COORDINATOR, self._hear)
        for name in self.cluster.nodes:
            self._say(name, CoordinatorAlive(COORDINATOR, lease_s=1e9))
        self.answers: dict[str, Answer] = {}

    def load(self, name: str) -> Load:
        return self.cluster.nodes[name].core.load()

    def ask(
        self,
        where: str,
        name: str,
        prompt: Sequence[int],
        max_new_tokens: int = 4,
        prefill: str = "",
        owner: str = "",
        owned_pages: int = 0,
        sampling: Sampling = GREEDY,
        stops: Collection[int] = (),
        after_s: float = 0.0,
    ) -> None:
        """Asks node `where` for an answer; `owner` is said to own leading pages of the prompt."""
        expected = answer_of(prompt, sampling, max_new_tokens, stops)
        self.answers[name] = Answer(expected)
        self.cluster.shadow.learn([*prompt, *expected], SHARED)
        asked = Generate(
            attempt=Attempt(name, 1),
            tokens=token_bytes(prompt),
            namespace=SHARED,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            end_token_ids=list(stops),
            prefill_node=self._node(prefill) if prefill else None,
            prefill_address=self._address(prefill) if prefill else "",
            reply_address=COORDINATOR,
            fetch_node=self._node(owner or where),
            fetch_address=self._address(owner) if owner else "",
            fetch_pages=owned_pages,
        )
        self.cluster.clock.after(after_s, self._say, where, asked)

    def cancel(self, where: str, name: str, after_s: float = 0.0) -> None:
        self.answers[name].is_cancelled = True
        self.cluster.clock.after(after_s, self._say, where, Cancel(Attempt(name, 1)))

    def run(self) -> None:
        """Lets time pass until all have ended that were not cancelled, and some time more."""
        clock, answers = self.cluster.clock, self.answers
        clock.run(
            clock.now + LIMIT_S, lambda: all(a.end or a.is_cancelled for a in answers.values())
        )
        for name, answer in answers.items():
            if not answer.end and not answer.is_cancelled:
                raise Wrong(f"{name} never ended")
        clock.run(clock.now + QUIET_S, lambda: False)
        check_at_rest(self.cluster)

    def _node(self, name: str) -> Node:
        return self.cluster.nodes[name].node

    def _address(self, name: str) -> str:
        return self.cluster.nodes[name].info.control_address

    def _say(self, where: str, message: CoordinatorAlive | Generate | Cancel) -> None:
        self.cluster.network.send(COORDINATOR, self._address(where), message)

    def _hear(self, message: TokensOut | Failed) -> None:
        if isinstance(message, Failed):
            self._end(message.attempt.request_id, message.reason)
            return
        for out in message.outs:
            name = out.attempt.request_id
            answer = self.answers[name]
            num_known = len(answer.tokens) - out.start
            # The first token may come from the node that computed the prompt, too.
            if num_known < 0 or (num_known and (out.start or len(out.tokens) < num_known)):
                raise Wrong(f"tokens of {name} are lost, or told twice")
            if out.tokens[:num_known] != answer.tokens[out.start :]:
                raise Wrong(f"nodes tell different first tokens of {name}")
            answer.tokens += out.tokens[num_known:]
            if answer.tokens != answer.expected[: len(answer.tokens)]:
                raise Wrong(f"{name} got {answer.tokens}, the oracle says {answer.expected}")
            reused = out.cached_tokens, out.transferred_pages, out.fetched_tokens
            if answer.reused not in (None, reused):
                raise Wrong(f"{name} is told of other pages than before")
            answer.reused = reused
            if out.finish:
                self._end(name, out.finish)

    def _end(self, name: str, end: str) -> None:
        answer = self.answers[name]
        if answer.end:
            raise Wrong(f"{name} ended twice: {answer.end}, then {end}")
        if end in ("stop", "length") and answer.tokens != answer.expected:
            raise Wrong(f"{name} ended ({end}) with {answer.tokens} of {answer.expected}")
        answer.end = end
