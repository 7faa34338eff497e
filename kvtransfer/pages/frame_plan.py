"""How what is sent is cut into frames: complete pages, and layers that are still computed. Pure.

A frame costs a header, some Python at both ends and, over NCCL, a send of 0.1 ms, whatever its
size: few large ones are cheap. But a receiver waits for the last one alone when all is computed,
and a transfer that is one message is copied, moved and copied again without any overlap.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvtransfer.pages.layout import FrameShape

OVERLAPPED_PARTS = 4
"""A short transfer is cut into so many frames, so that one is copied while others travel."""
MIN_PART = 2
"""But none is shorter than this part of a message: over NCCL half a one travels for as long as
Python needs to send it."""
TAPER = 4
"""A frame of a stream has at most so many times the layers that come after it. So a link that is
this much faster than computing has sent it before the next frame is computed."""


def frames_of_pages(
    num_pages: int,
    offset: int,
    num_layers: int,
    page_bytes: int,
    message_bytes: int,
    max_frame_bytes: int,
) -> Iterator[FrameShape]:
    """Cuts pages whose layers are all there into frames of at most `max_frame_bytes`, but at least
    one page. `page_bytes` is the size of one page over all layers.

    A frame is all layers of a few pages, so the leading pages arrive first and can be used; and
    the frames of other transfers get in between those of a long one. Pages that would be fewer
    than OVERLAPPED_PARTS messages get shorter frames, down to half a message.
    """
    per_frame = max(1, max_frame_bytes // page_bytes)
    if num_pages * page_bytes < OVERLAPPED_PARTS * message_bytes:
        shortest = -(-message_bytes // (MIN_PART * page_bytes))
        per_frame = min(per_frame, max(shortest, -(-num_pages // OVERLAPPED_PARTS)))
    for start in range(0, num_pages, per_frame):
        yield FrameShape(offset + start, min(per_frame, num_pages - start), 0, num_layers)


def layers_of_frames(num_layers: int, min_layers: int, max_layers: int) -> Iterator[int]:
    """Yields how many layers each frame of a stream has, in the order of the layers.

    Each frame has at least `min_layers`, but the last one at most; none has more than
    `max_layers`, unless `min_layers` is more. As long as the layers suffice, a frame leaves the
    part of them to later ones that `TAPER` says: long frames first, the last one short.
    """
    left = num_layers
    while left > 0:
        kept_back = -(-left // (1 + TAPER))
        frame = min(left, max(min_layers, min(max_layers, left - kept_back)))
        yield frame
        left -= frame
