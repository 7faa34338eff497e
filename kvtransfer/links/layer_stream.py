"""`LayerStream`: pages that are sent layer after layer, while the next layers are computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from kvtransfer.links.outgoing import OutgoingLink
from kvtransfer.links.sending import Frame, PageSend
from kvtransfer.pages.frame_plan import layers_of_frames
from kvtransfer.pages.layout import FrameShape
from kvtransfer.pages.transfer_rows import TransferRows
from protocol.ids import Attempt


class LayerStream:
    """A `PageStream` to one or several ranks of a peer. Not thread-safe.

    Its links are held by its maker; the stream lets them go when it ends.
    """

    def __init__(
        self,
        links: Sequence[OutgoingLink],
        sending: PageSend,
        pool: Tensor,
        pages: Sequence[int],
        offset: int,
        min_layers: int,
        max_layers: int,
    ) -> None:
        """`pages` of `pool` become the pages from number `offset` of the transfer.

        `layers_of_frames` says which layers go together, with these bounds: a layer of a few pages
        alone would be too small a message to travel fast.
        """
        self._links = links
        self._sending = sending
        self._pool = pool
        self._rows = TransferRows(pages, offset)
        self._offset = offset
        sizes = layers_of_frames(pool.shape[0], min_layers, max_layers)
        self._ends = deque(accumulate(sizes))
        """For each frame that has not been pushed: the number of layers up to its end."""
        self._num_sent = 0
        self.ended = False

    @property
    def transfer(self) -> Attempt:
        """The transfer that the pages belong to."""
        return self._sending.transfer

    def layers_ready(self, num_layers: int) -> None:
        """Sends the frames whose layers are all among the first `num_layers`, as one."""
        end = 0
        while self._ends and self._ends[0] <= num_layers:
            end = self._ends.popleft()
        if end:
            self._send_up_to(end)

    def finish(self) -> None:
        """Sends the layers that are left, and ends the stream."""
        self._send_up_to(self._pool.shape[0])
        self._end("")

    def give_up(self, reason: str) -> None:
        """Ends the stream with an error, unless it has ended. Layers that were pushed may still be
        sent; the links' `cancel` drops those that are not announced."""
        self._end(reason)

    def _send_up_to(self, num_layers: int) -> None:
        """Pushes the layers up to `num_layers` that have not been pushed, as one frame."""
        first, self._num_sent = self._num_sent, num_layers
        if not self.ended and first < num_layers:
            shape = FrameShape(self._offset, self._rows.num_pages, first, num_layers - first)
            frame = Frame(self._sending, shape, self._rows, event_after(self._pool))
            push_to_all(self._links, frame)

    def _end(self, error: str) -> None:
        if not self.ended:
            self.ended = True
            self._sending.complete(error)
            let_go(self._links)


def push_to_all(links: Sequence[OutgoingLink], frame: Frame) -> None:
    """Queues a frame on each of `links`; each link sends its peer rank's own KV heads of it."""
    for link in links:
        frame.sending.add_frame()
        link.push(frame)


def let_go(links: Sequence[OutgoingLink]) -> None:
    """Ends one hold on each of `links`."""
    for link in links:
        link.let_go()


def event_after(pool: Tensor) -> torch.cuda.Event | None:
    """Returns an event that happens when all work is done that the current CUDA stream of the
    pool's device has been given so far. None for a pool on the CPU, where the work is done."""
    return torch.cuda.current_stream(pool.device).record_event() if pool.is_cuda else None
