"""`Outbox`: collects the tokens of one step into one message per coordinator. Pure."""

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
        """Returns one `TokensOut` per coordinator with everything added since the last flush."""
        outs, self._outs = self._outs, {}
        return [
            SendMessage(address, TokensOut(batch, self._node)) for address, batch in outs.items()
        ]
