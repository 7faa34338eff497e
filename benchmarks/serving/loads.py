"""The loads of the benchmark: who asks what, and when. Pure: equal seeds give equal loads.

A load is a list of users. The same users, with the same prompts and the same arrivals, ask every
system that is compared.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kvrelay.bench.workloads.dialogue import Passage
from protocol.config import ConfigError

ALONE_TOKENS, ALONE_TIMES, ALONE_ANSWER = (512, 2048, 8192), 4, 16
RANDOM_TOKENS, RANDOM_ANSWER = 2000, 128
NUM_HEADS, HEAD_TOKENS, OWN_TOKENS, SHARED_ANSWER = 8, 6000, 500, 128
NUM_CONVERSATIONS, NUM_TURNS, FIRST_TOKENS, LATER_TOKENS, TURN_ANSWER = 32, 8, 2000, 300, 128
READING_S = (0.2, 0.8)
"""Between these times a person reads an answer before the next turn."""
NUM_CHATS, CHAT_TOKENS, CHAT_ANSWER, LONG_TOKENS, LONG_ANSWER = 32, 300, 256, 12_000, 16
NUM_CLIENTS, FULL_TOKENS, FULL_ANSWER = 128, 1000, 256
DEFAULT_LOADS = ("alone", "random@8", "random@14", "shared@20", "turns", "mixed", "full")


@dataclass(frozen=True)
class Scale:
    """Tells how much larger or smaller a load is than it is written here, for two large GPUs."""

    traffic: float = 1.0
    """Rates, and numbers of users."""
    prompts: float = 1.0
    answers: float = 1.0

    def count(self, number: int) -> int:
        """Returns how many users there are in place of `number`."""
        return max(1, round(number * self.traffic))

    def prompt(self, num_tokens: int) -> int:
        """Returns the length of a prompt in place of `num_tokens`."""
        return max(4, round(num_tokens * self.prompts))

    def answer(self, num_tokens: int) -> int:
        """Returns the length of an answer in place of `num_tokens`."""
        return max(4, round(num_tokens * self.answers))


@dataclass(frozen=True)
class Ask:
    """One request of a user."""

    row: str
    """The row of the table that it counts in."""
    passages: tuple[Passage, ...]
    """What it adds to the dialogue so far."""
    num_output_tokens: int
    pause_s: float = 0.0
    """How long its user waits after the last answer."""


@dataclass(frozen=True)
class User:
    """Asks one request after the other, from `begins_s` on and never after `ends_s`."""

    key: int
    """Users with the same key are best served by the same server: they have pages in common."""
    asks: Iterable[Ask]
    begins_s: float = 0.0
    ends_s: float = float("inf")
    is_dialogue: bool = False
    """Whether a prompt begins with all earlier prompts and answers of its user."""


@dataclass(frozen=True)
class Load:
    """One of the loads by name, as `random@8`."""

    name: str
    rate: float
    """Requests a second; 0 where users wait for their answers."""

    @classmethod
    def parse(cls, text: str) -> Load:
        """Reads a name, with its rate after an @ where it needs one. Raises ConfigError."""
        name, _, rate = text.partition("@")
        known = f"--loads has {text!r}; there are {', '.join(sorted(_LOADS))}"
        if name not in _LOADS:
            raise ConfigError(known)
        if (name in OPEN) != bool(rate):
            raise ConfigError(f"{known}, of which {' and '.join(OPEN)} need a rate, as random@8")
        try:
            number = float(rate or 0)
        except ValueError:
            raise ConfigError(f"--loads has {text!r}; {rate!r} is no number") from None
        if rate and not 0 < number < 10_000:
            raise ConfigError(f"--loads has {text!r}; a rate is above 0 and below 10000")
        return cls(name, number)

    @property
    def label(self) -> str:
        """The name with its rate."""
        return f"{self.name}@{self.rate:g}" if self.rate else self.name

    def users(self, seconds: float, scale: Scale, seed: int) -> list[User]:
        """Returns the users of a run that lasts about so many seconds."""
        return _LOADS[self.name](self, seconds, scale, f"{seed}/{self.label}")


OPEN = ("random", "shared")
"""The loads whose requests begin at a rate, whether or not answers come."""


def _alone(load: Load, seconds: float, scale: Scale, seed: str) -> list[User]:
    """A quiet cluster: one request after the other."""
    answer = scale.answer(ALONE_ANSWER)
    asks = [
        Ask(f"alone {length}", (Passage(f"{seed}/{length}/{i}", scale.prompt(length)),), answer)
        for length in ALONE_TOKENS
        for i in range(ALONE_TIMES)
    ]
    return [User(0, asks)]


def _random(load: Load, seconds: float, scale: Scale, seed: str) -> list[User]:
    """Prompts that have nothing in common."""
    length, answer = scale.prompt(RANDOM_TOKENS), scale.answer(RANDOM_ANSWER)
    return [
        User(i, [Ask(load.label, (Passage(f"{seed}/{i}", length),), answer)], at_s)
        for i, at_s in enumerate(_arrivals(load.rate * scale.traffic, seconds, seed))
    ]


def _shared(load: Load, seconds: float, scale: Scale, seed: str) -> list[User]:
    """Prompts that each begin with one of a few long heads, as those of applications do."""
    chance = random.Random(f"{seed}/heads")
    own, answer = scale.prompt(OWN_TOKENS), scale.answer(SHARED_ANSWER)
    users = []
    for i, at_s in enumerate(_arrivals(load.rate * scale.traffic, seconds, seed)):
        head = chance.randrange(NUM_HEADS)
        shared = Passage(f"{seed}/head/{head}", scale.prompt(HEAD_TOKENS))
        ask = Ask(load.label, (shared, Passage(f"{seed}/{i}", own)), answer)
        users.append(User(head, [ask], at_s))
    return users


def _turns(load: Load, seconds: float, scale: Scale, seed: str) -> list[User]:
    """Conversations of several turns; they have twice the time, as they take a while to grow."""

    def turn(chance: random.Random, user: int, number: int) -> Ask:
        length = scale.prompt(LATER_TOKENS if number else FIRST_TOKENS)
        passage = Passage(f"{seed}/{user}/{number}", length)
        pause_s = chance.uniform(*READING_S) if number else 0.0
        row = "turns later" if number else "turns first"
        return Ask(row, (passage,), scale.answer(TURN_ANSWER), pause_s)

    users = []
    for user in range(scale.count(NUM_CONVERSATIONS)):
        chance = random.Random(f"{seed}/{user}/reading")
        asks = [turn(chance, user, number) for number in range(NUM_TURNS)]
        users.append(User(user, asks, ends_s=2 * seconds, is_dialogue=True))
    return users


def _mixed(load: Load, seconds: float, scale: Scale, seed: str) -> list[User]:
    """Short chats beside a very long prompt each second: what disaggregation is for."""
    chats = [
        _endless(user, "mixed chats", CHAT_TOKENS, CHAT_ANSWER, seconds, scale, seed)
        for user in range(scale.count(NUM_CHATS))
    ]
    apart_s = 1 / max(1.0, scale.traffic)
    length, answer = scale.prompt(LONG_TOKENS), scale.answer(LONG_ANSWER)
    longs = [
        User(i, [Ask("mixed long", (Passage(f"{seed}/long/{i}", length),), answer)], i * apart_s)
        for i in range(max(1, int(seconds / apart_s)))
    ]
    return [*chats, *longs]


def _full(load: Load, seconds: float, scale: Scale, seed: str) -> list[User]:
    """As much as it takes: many users, each with the next request as soon as it has its answer."""
    return [
        _endless(user, "full", FULL_TOKENS, FULL_ANSWER, seconds, scale, seed)
        for user in range(scale.count(NUM_CLIENTS))
    ]


def _endless(
    user: int, row: str, length: int, answer: int, ends_s: float, scale: Scale, seed: str
) -> User:
    """Returns a user who asks one new thing after the other until `ends_s`."""
    asks = (
        Ask(
            row,
            (Passage(f"{seed}/{row}/{user}/{i}", scale.prompt(length)),),
            scale.answer(answer),
        )
        for i in itertools.count()
    )
    return User(user, asks, ends_s=ends_s)


def _arrivals(rate: float, seconds: float, seed: str) -> list[float]:
    """Returns the times of a Poisson process."""
    chance = random.Random(f"{seed}/arrivals")
    gaps = (chance.expovariate(rate) for _ in itertools.count())
    return list(itertools.takewhile(lambda at_s: at_s < seconds, itertools.accumulate(gaps)))


_LOADS: dict[str, Callable[[Load, float, Scale, str], list[User]]] = {
    "alone": _alone,
    "random": _random,
    "shared": _shared,
    "turns": _turns,
    "mixed": _mixed,
    "full": _full,
}
