"""`ModelledTransport`: moves no pages, and says that they have come when they would have.

Pages of a prompt have come when its prefill node says that it is done. Pages that are fetched come
at their pace after they were asked for, unless their owner refuses. What this node sends is gone at
once. `TappedChannel` is where the transport learns of both.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.clusters.modelled_engine import Pace
from kvtransfer.transport import LinkStats, OnDone, OnProgress
from protocol.channel import Channel
from protocol.hashing import split_hashes
from protocol.ids import Attempt
from protocol.messages import AnyMessage, Fetch, Message, PrefillDone


class ModelledTransport:
    """The transport of the shell of a real node."""

    def __init__(self, fetch_pace: Pace, page_size: int) -> None:
        self._fetch_pace = fetch_pace
        self._page_size = page_size
        self._expected: dict[Attempt, OnDone] = {}
        self._streams: dict[Attempt, OnDone] = {}

    def expect(
        self, transfer: Attempt, pages: Sequence[int], on_progress: OnProgress, on_done: OnDone
    ) -> None:
        self._expected[transfer] = on_done

    def abort(self, transfer: Attempt) -> None:
        self._expected.pop(transfer, None)

    def send(
        self,
        peer: Sequence[str],
        transfer: Attempt,
        pages: Sequence[int],
        offset: int,
        on_done: OnDone,
    ) -> None:
        on_done("")

    def stream(
        self,
        peer: Sequence[str],
        transfer: Attempt,
        pages: Sequence[int],
        offset: int,
        on_done: OnDone,
    ) -> ModelledStream:
        self._streams[transfer] = on_done
        return ModelledStream(self, transfer)

    def cancel(self, transfer: Attempt) -> None:
        self.streamed(transfer, "cancelled")

    def links(self) -> list[LinkStats]:
        return []

    def streamed(self, transfer: Attempt, error: str) -> None:
        """Ends the stream of a transfer, if it has one."""
        on_done = self._streams.pop(transfer, None)
        if on_done is not None:
            on_done(error)

    def asked(self, fetch: Fetch) -> threading.Timer:
        """Lets the pages of a fetch come when their time is over; returns what waits for that."""
        num_pages = len(split_hashes(fetch.hashes)) - fetch.skip_pages
        seconds = self._fetch_pace.seconds(num_pages * self._page_size)
        timer = threading.Timer(seconds, self.arrived, (fetch.attempt,))
        timer.daemon = True
        timer.start()
        return timer

    def arrived(self, transfer: Attempt) -> None:
        """Says that the pages have come, if somebody still expects them. Any thread may call."""
        on_done = self._expected.pop(transfer, None)
        if on_done is not None:
            on_done("")


@dataclass(frozen=True)
class ModelledStream:
    """A `PageStream` that is over as soon as its step is."""

    transport: ModelledTransport
    transfer: Attempt

    def layers_ready(self, num_layers: int) -> None:
        pass

    def finish(self) -> None:
        self.transport.streamed(self.transfer, "")


@dataclass(frozen=True)
class TappedChannel:
    """The channel of a node, which tells its transport what is said about pages."""

    channel: Channel
    transport: ModelledTransport

    def send(self, address: str, message: Message) -> None:
        self.channel.send(address, message)
        if isinstance(message, Fetch):
            self.transport.asked(message)

    def drain(self, timeout_s: float) -> list[AnyMessage]:
        messages = self.channel.drain(timeout_s)
        for message in messages:
            if isinstance(message, PrefillDone):
                self.transport.arrived(message.attempt)
        return messages

    def forget(self, address: str) -> None:
        self.channel.forget(address)

    def wake(self) -> None:
        self.channel.wake()
