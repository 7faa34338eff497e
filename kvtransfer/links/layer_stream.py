"""`LayerStream`: pages that are sent layer after layer, while the next layers are computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvtransfer.links.outgoing import OutgoingLink
from kvtransfer.links.sending import Frame, PageSend
from kvtransfer.pages.layout import FrameShape
from protocol.ids import Attempt


class LayerStream:
    """A `PageStream` to one or several ranks of a peer. Not thread-safe. Its links are held for it,
    and let go when it ends.

    Layers of a few pages are little: at least `min_layers` go together, but for the last ones.
    """

    def __init__(
        self,
        links: Sequence[OutgoingLink],
        sending: PageSend,
        pool: Tensor,
        pages: Sequence[int],
        offset: int,
        min_layers: int,
    ) -> None:
        self._links = links
        self._sending = sending
        self._pool = pool
        self._pages = pages
        self._offset = offset
        self._min_layers = min_layers
        self._num_sent = 0
        self.ended = False

    @property
    def transfer(self) -> Attempt:
        return self._sending.transfer

    def layers_ready(self, num_layers: int) -> None:
        if num_layers - self._num_sent >= self._min_layers:
            self._send_up_to(num_layers)

    def finish(self) -> None:
        self._send_up_to(self._pool.shape[0])
        self._end("")

    def give_up(self, reason: str) -> None:
        """Harmless after the end."""
        self._end(reason)

    def _send_up_to(self, num_layers: int) -> None:
        first, self._num_sent = self._num_sent, num_layers
        if not self.ended and first < num_layers:
            shape = FrameShape(self._offset, len(self._pages), first, num_layers - first)
            frame = Frame(self._sending, shape, self._pages, event_after(self._pool))
            push_to_all(self._links, frame)

    def _end(self, error: str) -> None:
        if not self.ended:
            self.ended = True
            self._sending.complete(error)
            let_go(self._links)


def push_to_all(links: Sequence[OutgoingLink], frame: Frame) -> None:
    for link in links:
        frame.sending.add_frame()
        link.push(frame)


def let_go(links: Sequence[OutgoingLink]) -> None:
    for link in links:
        link.let_go()


def event_after(pool: Tensor) -> torch.cuda.Event | None:
    """Happens when the work is done that the current CUDA stream has been given so far; None on a
    CPU, where it is done."""
    return torch.cuda.current_stream(pool.device).record_event() if pool.is_cuda else None
