"""`RankTransport`: carries out transport commands on one rank's own transport, rank 0's as well as
a worker's.
"""

from __future__ import annotations

from collections.abc import Callable

from kvtransfer.transport import OnDone, PageStream, Transport
from node.ranks.wire.commands import (
    AbortCommand,
    Aborted,
    Arrived,
    CancelCommand,
    ExpectCommand,
    Expecting,
    FinishStreamCommand,
    Links,
    Received,
    SendCommand,
    Sent,
    TransportCommand,
    TransportReport,
)
from protocol.ids import Attempt


class RankTransport:
    """Carries out commands on this rank's transport, and calls `report` with what comes of them, on
    threads of the transport as well.

    All methods are called on one thread, except that an `AbortCommand` may come on another.
    """

    def __init__(self, transport: Transport, report: Callable[[TransportReport], None]) -> None:
        self._transport = transport
        self._report = report
        self._streams: dict[int, tuple[Attempt, PageStream]] = {}

    def do(self, command: TransportCommand) -> None:
        """Carries out one command."""
        if isinstance(command, ExpectCommand):
            self._expect(command)
        elif isinstance(command, AbortCommand):
            self._transport.abort(command.transfer)
            self._report(Aborted(command.number))
        elif isinstance(command, SendCommand):
            self._send(command)
        elif isinstance(command, FinishStreamCommand):
            if command.number in self._streams:
                self._streams.pop(command.number)[1].finish()
        elif isinstance(command, CancelCommand):
            self._transport.cancel(command.transfer)
            self._streams = {n: s for n, s in self._streams.items() if s[0] != command.transfer}

    def layers_ready(self, num_layers: int) -> None:
        """Tells every open stream that the first `num_layers` layers of its pages may be sent."""
        for _, stream in self._streams.values():
            stream.layers_ready(num_layers)

    def stream_layers_ready(self, number: int, num_layers: int) -> None:
        """Tells the stream `number`, if it is open, that the first `num_layers` layers of its pages
        may be sent."""
        if number in self._streams:
            self._streams[number][1].layers_ready(num_layers)

    def look_at_links(self) -> Links:
        """Returns a report with the links as they stand now."""
        return Links(self._transport.links())

    def close(self) -> None:
        """Closes the transport."""
        self._transport.close()

    def _expect(self, command: ExpectCommand) -> None:
        number = command.number
        self._transport.expect(
            command.transfer,
            command.pages,
            lambda num_pages: self._report(Arrived(number, num_pages)),
            lambda error: self._report(Received(number, error)),
        )
        self._report(Expecting(number))

    def _send(self, command: SendCommand) -> None:
        on_done: OnDone = lambda error: self._report(Sent(command.number, error))  # noqa: E731
        arguments = (command.peer, command.transfer, command.pages, command.offset, on_done)
        if command.kind == "send":
            self._transport.send(*arguments)
        else:
            stream = self._transport.stream(*arguments)
            self._streams[command.number] = (command.transfer, stream)
