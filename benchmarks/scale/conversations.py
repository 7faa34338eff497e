"""The load: conversations that share their first pages with others, from a seed.

A prompt begins with one of 64 texts of 1,024 tokens, the k-th of which is asked for 1 / k as often
as the first, and goes on with 256 to 1,792 tokens of its own. Four turns follow each other; each
adds 256 tokens and the answer before it, of 32 tokens. A conversation begins every four seconds per
node, so a node has one request a second.

Mooncake's open trace is no load for a thousand nodes: its 12,031 requests would last three seconds
there, and the turns of a conversation would come before the answers to which they reply.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from protocol.hashing import PageHash, PageHasher

NUM_HEADS = 64
HEAD_TOKENS = 1_024
MIN_OWN_TOKENS, MAX_OWN_TOKENS = 256, 1_792
QUESTION_TOKENS = 256
ANSWER_TOKENS = 32
TURNS = 4
CONVERSATIONS_PER_NODE_S = 0.25
MIN_PAUSE_S, MAX_PAUSE_S = 0.3, 0.7
"""Between an answer and the next turn."""


@dataclass(frozen=True)
class Conversation:
    """The tokens of all turns and answers of one conversation, in a row."""

    begins_s: float
    tokens: list[int]
    hashes: list[PageHash]
    """One for each full page of `tokens`."""
    pauses_s: tuple[float, ...]
    """The pause before each turn."""

    def prompt_tokens(self, turn: int) -> int:
        """Returns the length of the prompt of a turn, counted from 0."""
        after_turns = TURNS - turn
        return len(self.tokens) - after_turns * (QUESTION_TOKENS + ANSWER_TOKENS) + QUESTION_TOKENS


@dataclass(eq=False)
class Asked:
    """One turn of a conversation that was asked for."""

    conversation: Conversation
    turn: int
    sent_at: float = 0.0
    """When the coordinator gave it to a node."""

    @property
    def num_tokens(self) -> int:
        return self.conversation.prompt_tokens(self.turn)

    @property
    def prompt(self) -> list[int]:
        return self.conversation.tokens[: self.num_tokens]


def conversations(
    num_nodes: int, seconds: float, hasher: PageHasher, seed: int
) -> list[Conversation]:
    """Returns the conversations that begin within `seconds`, in the order of their beginnings."""
    chance = random.Random(seed)
    heads = [list(chance.randbytes(HEAD_TOKENS)) for _ in range(NUM_HEADS)]
    weights = [1 / (1 + number) for number in range(NUM_HEADS)]
    found = []
    begins_s = chance.expovariate(CONVERSATIONS_PER_NODE_S * num_nodes)
    while begins_s < seconds:
        num_own = chance.randint(MIN_OWN_TOKENS, MAX_OWN_TOKENS)
        num_own += TURNS * (QUESTION_TOKENS + ANSWER_TOKENS)
        tokens = chance.choices(heads, weights)[0] + list(chance.randbytes(num_own))
        pauses_s = tuple(chance.uniform(MIN_PAUSE_S, MAX_PAUSE_S) for _ in range(TURNS))
        found.append(Conversation(begins_s, tokens, hasher.hashes(tokens), pauses_s))
        begins_s += chance.expovariate(CONVERSATIONS_PER_NODE_S * num_nodes)
    return found
