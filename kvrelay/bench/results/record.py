"""What was seen of a request: `AnswerWatch` while it runs, `AnswerRecord` when it has ended. Pure.

Times are seconds since the start of the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

WRONG_LENGTH = "wrong length"
NO_TOKEN = "no token"


@dataclass(frozen=True)
class AnswerPart:
    """What one event of a stream tells, in no dialect."""

    has_content: bool = False
    """Whether it brings text or tokens."""
    num_tokens: int | None = None
    """Tokens of the answer so far, None where the event does not tell."""
    new_text: str = ""
    all_text: str | None = None
    """The whole answer so far, from servers that repeat it in each event."""
    output_ids: tuple[int, ...] = ()
    num_prompt_tokens: int | None = None
    num_cached_tokens: int | None = None
    num_attempts: int | None = None
    """How often the request was given to nodes so far, None where the event does not tell."""
    failure: str = ""
    message: str = ""
    """What a failure says of itself."""


@dataclass(frozen=True)
class AnswerRecord:
    """One request that has ended. `failure` says how it failed, and is "" if it did not."""

    sent_s: float
    ended_s: float
    first_s: float | None
    """When the first event with content came."""
    gaps_s: tuple[float, ...]
    """Seconds before each token but the first; tokens of one event share its gap evenly."""
    num_tokens: int
    num_prompt_tokens: int | None
    num_cached_tokens: int | None
    late_s: float
    """By how much the generator itself sent it later than planned."""
    failure: str = ""
    message: str = ""
    num_attempts: int = 1
    """How often the request was given to nodes; 1 where the server does not tell."""

    @property
    def ttft_s(self) -> float | None:
        """The time to the first event with content."""
        return None if self.first_s is None else self.first_s - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """The mean time per token after the first; None where there are none."""
        return sum(self.gaps_s) / len(self.gaps_s) if self.gaps_s else None

    @property
    def e2e_s(self) -> float:
        """The time to the end of the answer."""
        return self.ended_s - self.sent_s


@dataclass
class AnswerWatch:
    """Gathers the events of one answer with the time at which each came."""

    sent_s: float
    late_s: float = 0.0
    text: str = ""
    output_ids: tuple[int, ...] = ()
    failure: str = ""
    message: str = ""
    _first_s: float | None = None
    _last_s: float = 0.0
    _num_counted: int = 0
    _told_tokens: int | None = None
    _num_prompt_tokens: int | None = None
    _num_cached_tokens: int | None = None
    _num_attempts: int | None = None
    _gaps_s: list[float] = field(default_factory=list)

    def add(self, part: AnswerPart, now_s: float) -> None:
        """Notes an event that came at `now_s`."""
        self.failure = self.failure or part.failure
        self.message = self.message or part.message
        self.text = self.text + part.new_text if part.all_text is None else part.all_text
        self.output_ids = part.output_ids or self.output_ids
        for name in ("num_prompt_tokens", "num_cached_tokens", "num_attempts"):
            if (value := getattr(part, name)) is not None:
                setattr(self, f"_{name}", value)
        if part.num_tokens is not None:
            self._told_tokens = part.num_tokens
        if part.has_content:
            self._count_tokens(part.num_tokens, now_s)

    def _count_tokens(self, num_tokens: int | None, now_s: float) -> None:
        """Notes the gap before the tokens of an event, which is one where it tells no number."""
        total = self._num_counted + 1 if num_tokens is None else num_tokens
        num_new = total - self._num_counted
        if num_new <= 0:
            return
        if self._first_s is None:
            self._first_s = now_s
        else:
            self._gaps_s += [(now_s - self._last_s) / num_new] * num_new
        self._num_counted, self._last_s = total, now_s

    def end(
        self, now_s: float, num_wanted_tokens: int | None, failure: str = "", message: str = ""
    ) -> AnswerRecord:
        """Returns the record. An answer that was not refused fails without a token, or with another
        number of them than `num_wanted_tokens` (None: any)."""
        told = self._told_tokens
        num_tokens = self._num_counted if told is None else told
        failure, message = failure or self.failure, message or self.message
        if not failure and self._first_s is None:
            failure = NO_TOKEN
        if not failure and num_wanted_tokens not in (None, num_tokens):
            failure = WRONG_LENGTH
            message = f"{num_tokens} tokens instead of {num_wanted_tokens}"
        return AnswerRecord(
            self.sent_s,
            now_s,
            self._first_s,
            tuple(self._gaps_s),
            num_tokens,
            self._num_prompt_tokens,
            self._num_cached_tokens,
            self.late_s,
            failure,
            message,
            self._num_attempts or 1,
        )
