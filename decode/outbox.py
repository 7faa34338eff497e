"""`Outbox`: collects the tokens of one step into one message per coordinator. Pure.

Logprobs of a prompt are long: an answer that brings some has a message of its own, so that messages
are no longer than the logprobs of one prompt.
"""

from __future__ import annotations

from node.core.instructions import Instruction, SendMessage
from protocol.ids import Node
from protocol.messages import TokenOut, TokensOut


class Outbox:
    """Collects new tokens by the coordinator that waits for them."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._outs: dict[str, list[TokenOut]] = {}

    def add(self, address: str, out: TokenOut) -> None:
        """Adds tokens for the coordinator at `address`."""
        self._outs.setdefault(address, []).append(out)

    def flush(self) -> list[Instruction]:
        """Returns everything added since the last flush, in as few messages as may be."""
        outs, self._outs = self._outs, {}
        instructions: list[Instruction] = []
        for address, batch in outs.items():
            long = [out for out in batch if out.prompt_logprobs is not None]
            short = [out for out in batch if out.prompt_logprobs is None]
            batches = [*([short] if short else []), *([out] for out in long)]
            instructions += [SendMessage(address, TokensOut(b, self._node)) for b in batches]
        return instructions
