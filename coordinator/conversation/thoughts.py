"""How families of models mark their thoughts, which come before the answer. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.conversation import formats
from coordinator.conversation.formats import TextFormat
from coordinator.conversation.message import ReasoningDelta, Thinking
from coordinator.conversation.tape import Reading, Tape


@dataclass(frozen=True)
class ThoughtFormat:
    """The marks around a thought."""

    begin: str
    end: str
    is_forced: bool = False
    """Answers begin inside of a thought, also where the prompt does not show it."""

    def thinking(self, prompt: str) -> Thinking:
        """Returns how an answer to the prompt may begin: many templates open the thought, or write
        an empty one if the chat forbids it."""
        last = prompt.rstrip()
        if last.endswith(self.end):
            return "off"
        return "open" if self.is_forced or last.endswith(self.begin) else "free"

    def read(self, tape: Tape, thinking: Thinking) -> Reading[None]:
        """Reads the thought, if the answer begins with one."""
        if thinking == "off":
            return
        yield from tape.space()
        if not (yield from tape.take(self.begin)):
            tape.give_up(0)
            if thinking == "free":
                return
        tape.begin_thought()
        if (yield from tape.mark((self.end,), ReasoningDelta)):
            tape.skip()

    def grammar(self, thinking: Thinking, answer: TextFormat) -> TextFormat:
        """Returns the format of a thought, which is free, with the answer behind it."""
        if thinking == "off":
            return answer
        between = formats.regex(r"\n{0,2}")
        begin = self.begin if thinking == "free" else ""
        thought = formats.tag(begin, formats.ANY_TEXT, self.end)
        thoughtful = formats.sequence(thought, between, answer)
        return thoughtful if thinking == "open" else formats.any_of([thoughtful, answer])


TAGS = ThoughtFormat("<think>", "</think>")
FORCED_TAGS = ThoughtFormat("<think>", "</think>", is_forced=True)
MISTRAL = ThoughtFormat("[THINK]", "[/THINK]")
KIMI = ThoughtFormat("◁think▷", "◁/think▷")
