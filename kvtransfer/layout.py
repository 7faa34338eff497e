"""How a page list is cut into frames, and a frame into messages. Pure.

A frame is what is gathered, announced, sent, received and scattered as one; its size bounds the
staging memory. A message is what the backend sends at once: over gloo at most 1 MiB, because a
longer one hangs to its timeout when the peer dies in the middle of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

MAX_FRAME_BYTES = 16 << 20


def frames(
    pages: Sequence[int], offset: int, page_bytes: int, max_frame_bytes: int = MAX_FRAME_BYTES
) -> Iterator[tuple[int, Sequence[int]]]:
    """(offset in the transfer, pages) of each frame; at least one page each."""
    per_frame = max(1, max_frame_bytes // page_bytes)
    for start in range(0, len(pages), per_frame):
        yield offset + start, pages[start : start + per_frame]


def messages(num_bytes: int, max_message_bytes: int) -> Iterator[slice]:
    """Byte ranges of a frame's messages, in order."""
    for start in range(0, num_bytes, max_message_bytes):
        yield slice(start, min(start + max_message_bytes, num_bytes))
