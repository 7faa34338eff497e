"""Requests of which nodes die: they are found, and nobody else is taken for one of them."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from coordinator.answers.request import Request
from coordinator.core.core import CoordinatorCore
from coordinator.core.errors import EndsNodes
from coordinator.core.instructions import AnswerEnded, Instruction, Send, TellCoordinators
from coordinator.core.poison import (
    HOLD_S,
    MAX_REFUSED,
    REFUSED_FOR_S,
    RefusedContents,
    content_digest,
)
from protocol.ids import Node
from protocol.messages import Generate, Goodbye, RefuseContent, TokenOut, TokensOut
from protocol.namespace import Namespace
from protocol.sampling import Sampling
from tests.support.coordinator.cores import core_of, hear
from tests.support.coordinator.nodes import LEASE_S

STEP_S = 0.05
POISON = [13] * 20


def request(rid: str, tokens: Iterable[int] = range(20), seed: int = 7) -> Request:
    return Request(list(tokens), Sampling(seed=seed), 8, rid=rid)


class Nodes:
    """Nodes of one coordinator, of which each dies that computes POISON. All others answer when
    they are told to."""

    def __init__(self, *names: str) -> None:
        self.core: CoordinatorCore = core_of(*names)
        self.lives = dict.fromkeys(names, 1)
        self.attempts: dict[str, list[Generate]] = {name: [] for name in names}
        self.ends: dict[str, AnswerEnded] = {}
        self.told: list[RefuseContent] = []
        self.answered: list[Generate] = []
        self.num_dead = 0
        self.now = 0.0

    def take(self, instructions: list[Instruction]) -> None:
        for one in instructions:
            if isinstance(one, AnswerEnded):
                self.ends[one.answer.rid] = one
            elif isinstance(one, TellCoordinators) and isinstance(one.message, RefuseContent):
                self.told.append(one.message)
            elif isinstance(one, Send) and isinstance(one.message, Generate):
                name = one.address.removeprefix("tcp://").removesuffix(":1")
                self.attempts[name].append(one.message)

    def submit(self, asked: Request) -> None:
        self.take(self.core.submit(asked, self.now))

    def die(self, name: str, is_planned: bool = False) -> None:
        """Ends a node, which is there again a moment later under its name."""
        self.attempts[name].clear()
        self.num_dead += 1
        self.take(self.core.handle(Goodbye(Node(name, self.lives[name]), is_planned), self.now))
        self.lives[name] += 1

    def pass_time(self, seconds: float) -> None:
        """Lets nodes live, restart, and die of what they compute."""
        end = self.now + seconds
        while self.now < end:
            self.now += STEP_S
            for name, life in self.lives.items():
                self.take(hear(self.core, name, self.now, incarnation=life))
            self.take(self.core.tick(self.now))
            for name, attempts in self.attempts.items():
                if any(is_poison(one) for one in attempts):
                    self.die(name)

    def answer_all(self) -> None:
        """Lets each node answer the first token of each request that it has."""
        for name, attempts in self.attempts.items():
            outs = [TokenOut(one.attempt, 0, [5]) for one in attempts if one not in self.answered]
            self.answered += attempts
            node = Node(name, self.lives[name])
            self.take(self.core.handle(TokensOut(outs, node), self.now))


def is_poison(generate: Generate) -> bool:
    return generate.tokens[:4] == bytes([13, 0, 0, 0])


def test_a_request_that_kills_two_nodes_is_refused_from_then_on() -> None:
    nodes = Nodes("d0", "d1", "d2", "d3")
    nodes.submit(request("poison", POISON))
    nodes.pass_time(5.0)
    assert nodes.num_dead == 2
    error = nodes.ends["poison"].answer.error
    assert error is not None and error.kind == "ends_nodes"
    assert "is not tried again" in error.message
    for again in (request("again", POISON, seed=8), request("poison", POISON)):
        with pytest.raises(EndsNodes, match="refused for an hour"):
            nodes.core.submit(again, nodes.now)
    other = core_of("d0")
    other.handle(nodes.told[0], 0.0)
    with pytest.raises(EndsNodes):
        other.submit(request("elsewhere", POISON), 1.0)
    nodes.submit(request("harmless"))


def test_of_several_that_were_there_each_time_only_the_one_is_refused() -> None:
    nodes = Nodes("d0")
    for rid in ("a", "poison", "b"):
        nodes.submit(request(rid, POISON if rid == "poison" else range(20)))
    for _ in range(20):
        nodes.pass_time(0.5)
        if "poison" in nodes.ends or nodes.num_dead >= 2:
            nodes.answer_all()  # what a node has that did not die
    assert nodes.ends.keys() == {"poison"} and nodes.num_dead <= 3
    assert nodes.core.num_unfinished == 2


def test_nodes_that_die_together_or_stop_as_told_convict_nobody() -> None:
    nodes = Nodes("d0", "d1", "d2")
    nodes.submit(request("a"))
    for name in ("d0", "d1", "d2"):
        nodes.die(name)
    nodes.pass_time(2 * HOLD_S)
    for _ in range(2):
        name = next(name for name, attempts in nodes.attempts.items() if attempts)
        nodes.die(name, is_planned=True)
        nodes.pass_time(2 * HOLD_S)
    assert not nodes.ends


def test_nodes_that_are_only_silent_convict_nobody() -> None:
    """They may be cut off, or stopped, and come back."""
    nodes = Nodes("d0", "d1", "d2")
    nodes.submit(request("a"))
    for _ in range(2):
        name = next(name for name, attempts in nodes.attempts.items() if attempts)
        nodes.attempts[name].clear()
        del nodes.lives[name]  # it is not heard any more
        nodes.pass_time(3 * LEASE_S)
    assert not nodes.ends
    assert sum(map(len, nodes.attempts.values())) == 1, "the last node has it"
    nodes.core.submit(request("b"), nodes.now)


def test_who_gets_on_is_not_suspected_any_more() -> None:
    nodes = Nodes("d0", "d1")
    nodes.submit(request("a"))
    for _ in range(3):
        nodes.pass_time(2 * HOLD_S)
        nodes.answer_all()
        name = next(name for name, attempts in nodes.attempts.items() if attempts)
        nodes.die(name)
    assert not nodes.ends


def test_what_is_refused_is_the_same_for_all_tenants_and_bounded() -> None:
    refused, one = RefusedContents(), request("a", POISON)
    tenant = Request(one.tokens, one.sampling, 8, namespace=Namespace("acme"), rid="b")
    refused.add(content_digest(one), 0.0)
    assert refused.has(one, 1.0) and refused.has(tenant, 1.0)
    assert not refused.has(request("c"), 1.0)
    assert not refused.has(one, REFUSED_FOR_S)
    for number in range(2 * MAX_REFUSED):
        refused.add(number.to_bytes(16, "big"), 0.0)
    assert len(refused._until) == MAX_REFUSED
