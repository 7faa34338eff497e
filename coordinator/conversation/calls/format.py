"""`CallFormat`: how a family of models writes calls. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from coordinator.conversation.formats import TextFormat
from coordinator.conversation.message import Tool
from coordinator.conversation.tape import Reading, Tape


class CallFormat(Protocol):
    """One way to write calls as text, for reading and for grammars. What `grammar` and
    `free_grammar` describe, `read` reads as calls."""

    @property
    def marks(self) -> Sequence[str]:
        """Texts that begin and end calls; in many tokenizers they are tokens."""
        ...

    def read(self, tape: Tape) -> Reading[None]:
        """Reads the answer to its end; tells its calls, and as text what is none."""
        ...

    def grammar(self, tools: Sequence[Tool], is_parallel: bool) -> TextFormat:
        """Returns the format of a text that is a call, or several, and nothing else."""
        ...

    def free_grammar(self, tools: Sequence[Tool], is_parallel: bool) -> TextFormat:
        """Returns the format of any text whose calls, if it has some, are calls of the tools. Only
        those of strict tools have to follow their schemas."""
        ...
