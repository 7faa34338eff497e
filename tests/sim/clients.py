"""What clients of a simulated cluster ask, and what they got. Pure but for the dice."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import msgspec

from protocol.namespace import Namespace
from protocol.sampling import Sampling
from tests.sim.world.oracle import STOP, VOCABULARY, answer_of

MAX_NEW_TOKENS = 12
CROWDING_ANSWER = 150
"""Tokens of an answer that is admitted with fewer pages than it will have."""
LONG_ANSWER = 250
"""Tokens of an answer that is still given when the lease of a dead coordinator ends."""


@dataclass(eq=False)
class Asked:
    """One request of one client, with the answer that is right for it."""

    name: str
    at: float
    tokens: list[int]
    namespace: Namespace
    sampling: Sampling
    max_new_tokens: int
    end_token_ids: list[int]
    cancel_at: float | None = None
    """When the client leaves."""
    next_turn: Asked | None = None
    """Asked as soon as this one is answered; its prompt begins with this prompt and answer."""
    tenant: str = ""
    may_be_aborted: bool = False
    """Somebody has asked that it ends."""
    right_answer: list[int] = field(init=False)
    got: list[int] = field(default_factory=list)
    end: str = ""
    """How it ended: an answer's finish, "error …", "left", or "its coordinator died"."""
    coordinator: str = ""
    resume_key: str = ""
    """The secret by which the answer may be taken over from the newest coordinator that the client
    has seen tokens of, and that one's address; "" before."""
    owner: str = ""
    broke_off_at: float = 0.0
    """When the client lost its coordinator last."""

    def __post_init__(self) -> None:
        self.right_answer = answer_of(
            self.tokens, self.sampling, self.max_new_tokens, self.end_token_ids
        )


def some_requests(chance: random.Random, page_size: int, until: float) -> list[Asked]:
    """Returns 14 requests or more; many share a prefix, some are turns of a conversation."""
    heads = [_tokens(chance, chance.randint(1, 5) * page_size) for _ in range(3)]
    count = chance.randint(14, 24)
    asked = [_asked(chance, f"r{i}", heads, page_size, until) for i in range(count)]
    if chance.random() < 0.1:
        asked.append(_long_one(chance))
    if chance.random() < 0.1:
        asked += _crowd(chance)
    return asked


def some_rush(chance: random.Random) -> list[Asked]:
    """Returns what several tenants ask at once, one of them ten times as much as the others; in
    most lives nothing."""
    if chance.random() < 0.8:
        return []
    at = chance.uniform(0.0, 1.5)
    tenants = ["greedy"] * chance.choice((20, 60)) + ["modest", "small"] * chance.choice((2, 6))
    chance.shuffle(tenants)
    length, answer = chance.choice((4, 40)), chance.choice((1, 8))
    rush = []
    for number, tenant in enumerate(tenants):
        tokens = _tokens(chance, length)
        one = Asked(
            name=f"{tenant}{number}",
            at=at + chance.uniform(0.0, 0.4),
            tokens=tokens,
            namespace=Namespace(),
            sampling=_sampling(chance, len(tokens)),
            max_new_tokens=answer,
            end_token_ids=[],
            tenant=tenant,
        )
        rush.append(one)
    return rush


def _long_one(chance: random.Random) -> Asked:
    return Asked(
        name="long",
        at=chance.uniform(0.0, 1.0),
        tokens=_tokens(chance, 3),
        namespace=Namespace(),
        sampling=Sampling(seed=chance.randrange(1 << 20), prompt_length=3),
        max_new_tokens=LONG_ANSWER,
        end_token_ids=[],
    )


def _crowd(chance: random.Random) -> list[Asked]:
    """Requests that come together and whose answers exceed most pools: some have to give way."""
    at = chance.uniform(0.0, 1.0)
    prompts = [_tokens(chance, chance.randint(1, 6)) for _ in range(4)]
    return [
        Asked(
            name=f"crowd{i}",
            at=at,
            tokens=tokens,
            namespace=Namespace(),
            sampling=_sampling(chance, len(tokens)),
            max_new_tokens=CROWDING_ANSWER,
            end_token_ids=[],
        )
        for i, tokens in enumerate(prompts)
    ]


def _asked(
    chance: random.Random, name: str, heads: list[list[int]], page_size: int, until: float
) -> Asked:
    head = chance.choice(heads) if chance.random() < 0.7 else []
    head = head[: chance.randint(0, len(head))] if chance.random() < 0.2 else head
    at = chance.choice((0.05, chance.uniform(0.02, until)))
    tokens = head + _tokens(chance, chance.randint(1, 3 * page_size))
    asked = Asked(
        name=name,
        at=at,
        tokens=tokens,
        namespace=Namespace(chance.choice(("", "", "", "acme"))),
        sampling=_sampling(chance, len(tokens)),
        max_new_tokens=chance.choice((1, 2, chance.randint(1, MAX_NEW_TOKENS), MAX_NEW_TOKENS)),
        end_token_ids=[STOP] if chance.random() < 0.7 else [],
    )
    if chance.random() < 0.12:
        asked.cancel_at = at + chance.uniform(0.0, 0.3)
    elif chance.random() < 0.2:
        tokens = asked.tokens + asked.right_answer + _tokens(chance, 3)
        asked.next_turn = Asked(
            name=f"{name}+",
            at=0.0,
            tokens=tokens,
            namespace=asked.namespace,
            sampling=msgspec.structs.replace(
                asked.sampling, prompt_length=len(tokens), prompt_logprobs_from=-1
            ),
            max_new_tokens=3,
            end_token_ids=asked.end_token_ids,
        )
    return asked


def _sampling(chance: random.Random, prompt_length: int) -> Sampling:
    penalty = 0.5 if chance.random() < 0.25 else 0.0
    scores_from = chance.randrange(prompt_length) if chance.random() < 0.2 else -1
    seed = chance.randrange(1 << 20)
    return Sampling(
        seed=seed,
        frequency_penalty=penalty,
        prompt_length=prompt_length,
        num_top_logprobs=0 if scores_from >= 0 or chance.random() < 0.1 else -1,
        prompt_logprobs_from=scores_from,
        grammar="the one there is" if seed % 5 == 3 else "",
    )


def _tokens(chance: random.Random, count: int) -> list[int]:
    return [chance.randrange(1, VOCABULARY) for _ in range(count)]
