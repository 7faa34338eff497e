"""What nodes say, but for how long they took."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from node.core.instructions import Instruction, SendMessage
from protocol.messages import Message, PrefillDone


def untimed(message: Message) -> Message:
    """Returns the message without the times in it, which must be there in a `PrefillDone`."""
    if not isinstance(message, PrefillDone):
        return message
    assert message.times is not None
    return msgspec.structs.replace(message, times=None)


def without_times(instructions: Iterable[Instruction]) -> list[Instruction]:
    """Returns the same instructions, whose messages have no times."""
    return [
        SendMessage(one.address, untimed(one.message)) if isinstance(one, SendMessage) else one
        for one in instructions
    ]
