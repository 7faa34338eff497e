"""A steady load of conversations whose answers are known, and what its clients see.

A conversation begins every `1 / rate` seconds, whether or not others have ended. Each has a
`cache_salt` of its own, so its first prompt is computed and travels as a whole; later turns find
the pages of earlier ones on whichever nodes have them. A client asks once: what fails, has failed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from benchmarks.serving.systems.events import KvrelayReader
from kvrelay.bench.http_post import Target, post

Tokens = tuple[int, ...]
HANGS_AFTER_S = 60.0
"""A request that has no end by then counts as hung."""
PAUSE_S = 0.3
"""How long a user thinks between an answer and the next turn."""


@dataclass(frozen=True)
class LoadShape:
    """How much is asked."""

    rate: float
    """Conversations that begin in a second."""
    num_turns: int
    first_tokens: int
    """The length of the first turn; later ones have an eighth of it."""
    answer_tokens: int
    vocabulary: range
    """The ids that turns are made of."""
    num_conversations: int = 8
    """Different ones; they are held again and again."""


@dataclass(frozen=True)
class Conversation:
    """What a user says, turn by turn."""

    turns: tuple[Tokens, ...]


@dataclass(frozen=True)
class Seen:
    """What a client saw of one request. Times are seconds since the start of the load."""

    began_s: float
    ended_s: float
    first_token_s: float | None
    """How long it waited for its first token; None if none came."""
    gaps_s: tuple[float, ...]
    """The times between two events of its stream."""
    num_tokens: int
    num_attempts: int
    """How often the request was given to nodes."""
    failure: str = ""
    is_wrong: bool = False
    """True if its tokens are others than those of the quiet cluster."""
    is_hung: bool = False


def conversations_of(shape: LoadShape, seed: int) -> tuple[Conversation, ...]:
    """Returns the conversations of a load, the same ones for the same seed."""
    chance = random.Random(seed)
    lengths = [shape.first_tokens, *[shape.first_tokens // 8] * (shape.num_turns - 1)]
    return tuple(
        Conversation(
            tuple(
                tuple(chance.choice(shape.vocabulary) for _ in range(length)) for length in lengths
            )
        )
        for _ in range(shape.num_conversations)
    )


@dataclass
class _Stream:
    """The events of one answer so far."""

    reader: KvrelayReader = field(default_factory=KvrelayReader)
    first_at: float | None = None
    last_at: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    num_tokens: int = 0
    num_attempts: int = 1
    output_ids: Tokens = ()
    failure: str = ""

    def on_event(self, event: bytes) -> None:
        now = time.monotonic()
        try:
            part = self.reader.read(event)
        except msgspec.MsgspecError as error:
            self.failure = self.failure or f"an event cannot be read: {error}"
            return
        self.failure = self.failure or part.failure
        self.num_attempts = part.num_attempts or self.num_attempts
        self.output_ids = part.output_ids or self.output_ids
        if (part.num_tokens or 0) <= self.num_tokens:
            return
        self.num_tokens = part.num_tokens or 0
        if self.first_at is None:
            self.first_at = now
        else:
            self.gaps_s.append(now - self.last_at)
        self.last_at = now


class Clients:
    """Hold conversations with one cluster."""

    def __init__(self, url: str, shape: LoadShape, conversations: Sequence[Conversation]) -> None:
        self._target = Target.parse(url, "")
        self._shape = shape
        self._conversations = conversations
        self._answers: list[tuple[Tokens, ...]] = []
        """The right answers of each conversation, turn by turn."""

    async def learn(self) -> None:
        """Has each conversation once; its answers are the right ones from now on. Raises
        AssertionError if one fails."""
        self._answers = await asyncio.gather(*map(self._learn, self._conversations))

    async def _learn(self, conversation: Conversation) -> tuple[Tokens, ...]:
        history, answers = Tokens(), []
        for turn in conversation.turns:
            seen, answer = await self._ask(history + turn, "", None, time.monotonic())
            assert not seen.failure, f"an answer of the quiet cluster failed: {seen.failure}"
            answers.append(answer)
            history += turn + answer
        return tuple(answers)

    async def keep_up(self, seconds: float, seed: int, patience_s: float) -> list[Seen]:
        """Begins conversations at the steady rate, and turns of them, until `seconds` are over.
        Returns what was seen when all answers have ended, or have not for `patience_s` since."""
        chance = random.Random(seed)
        began = time.monotonic()
        seen: list[Seen] = []
        talks = []
        for number in range(max(1, int(seconds * self._shape.rate))):
            await asyncio.sleep(max(0.0, began + number / self._shape.rate - time.monotonic()))
            which = chance.randrange(len(self._conversations))
            talking = self._talk(which, f"talk-{seed}-{number}", began, began + seconds, seen)
            talks.append(asyncio.create_task(talking))
        ended, late = await asyncio.wait(talks, timeout=patience_s)
        for talk in late:
            talk.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for talk in ended:
            talk.result()  # raises what ended it, which would be a fault of this program
        return seen

    async def _talk(
        self, which: int, salt: str, began: float, until: float, seen: list[Seen]
    ) -> None:
        """Has one conversation. It goes on with the right answers whatever the cluster said."""
        history = Tokens()
        turns = self._conversations[which].turns
        for turn, right in zip(turns, self._answers[which], strict=True):
            if history and time.monotonic() > until:
                return
            seen.append((await self._ask(history + turn, salt, right, began))[0])
            if seen[-1].is_hung:
                return
            history += turn + right
            await asyncio.sleep(PAUSE_S)

    async def _ask(
        self, prompt: Tokens, salt: str, right: Tokens | None, began: float
    ) -> tuple[Seen, Tokens]:
        """Asks once and reads the answer to its end, which is compared with the `right` one."""
        body = {
            "input_ids": prompt,
            "cache_salt": salt,
            "stream": True,
            "sampling_params": {
                "max_new_tokens": self._shape.answer_tokens,
                "temperature": 0.0,
                "ignore_eos": True,
            },
        }
        stream, sent_at, is_hung = _Stream(), time.monotonic(), False
        asking = post(self._target, "/generate", msgspec.json.encode(body), stream.on_event)
        try:
            status, refusal = await asyncio.wait_for(asking, HANGS_AFTER_S)
            failure = (
                "" if status == 200 else f"status {status}: {refusal.decode(errors='replace')}"
            )
        except (asyncio.TimeoutError, asyncio.CancelledError):
            failure, is_hung = f"no end within {time.monotonic() - sent_at:.0f} s", True
        except OSError as error:
            failure = f"{type(error).__name__}: {error}"
        failure = failure or stream.failure
        seen = Seen(
            sent_at - began,
            time.monotonic() - began,
            None if stream.first_at is None else stream.first_at - sent_at,
            tuple(stream.gaps_s),
            stream.num_tokens,
            stream.num_attempts,
            failure,
            not failure and right is not None and stream.output_ids != right,
            is_hung,
        )
        return seen, stream.output_ids
