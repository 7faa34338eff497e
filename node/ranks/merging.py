"""What the ranks of a node say of one transfer, made into what one transport would say. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from kvtransfer.transport import LinkStats


class MergedArrivals:
    """One transfer that all ranks of a node expect.

    A page has arrived when every rank has it. The transfer is over when no rank writes any more.
    """

    def __init__(self, num_pages: int, num_ranks: int) -> None:
        self._num_pages = num_pages
        self._num_arrived = [0] * num_ranks
        self._num_told = 0
        self.error = ""
        self.writing = set(range(num_ranks))
        """Ranks that may still write."""

    @property
    def is_over(self) -> bool:
        """True once no rank will write for it any more."""
        return not self.writing

    def arrived(self, rank: int, num_pages: int) -> int:
        """Notes that `rank` has its share of the first `num_pages` pages. Returns how many leading
        pages have arrived at all ranks, or 0 if these are no more than at the last call."""
        self._num_arrived[rank] = num_pages
        return self._news()

    def ended(self, rank: int, error: str) -> int:
        """Notes that the transfer has ended at `rank`: with all pages, or with an error. Returns as
        `arrived` does; after a first error always 0."""
        self.writing.discard(rank)
        self.error = self.error or error
        self._num_arrived[rank] = self._num_pages
        return self._news()

    def aborted(self, rank: int) -> None:
        """Notes that `rank` has aborted the transfer."""
        self.writing.discard(rank)

    def _news(self) -> int:
        """Returns how many leading pages have arrived if that is more than was told, else 0. The
        end of the transfer is told otherwise, and says itself that all pages are here."""
        least = min(self._num_arrived)
        if self.error or self.is_over or least <= self._num_told:
            return 0
        self._num_told = least
        return least


class MergedSend:
    """One send or stream of all ranks of a node. It is over when no rank needs its pages any
    more."""

    def __init__(self, num_ranks: int) -> None:
        self.sending = set(range(num_ranks))
        self.error = ""

    @property
    def is_over(self) -> bool:
        """True once every rank has ended its part."""
        return not self.sending

    def ended(self, rank: int, error: str) -> None:
        """Notes that `rank` has ended its part, with an error or ""."""
        self.sending.discard(rank)
        self.error = self.error or error


def merge_links(
    of_ranks: Sequence[Sequence[LinkStats]], page_bytes: int, received_page_bytes: int
) -> list[LinkStats]:
    """Returns one link per peer and direction, out of those of all ranks, which move their parts
    side by side. Where they use several transports, it names all, as nccl+shm.

    `page_bytes` is the size of a page of the whole model; `received_page_bytes` is the size of all
    that the ranks keep of it, which is more if several have the same heads.
    """
    groups: dict[tuple[str, str], list[LinkStats]] = defaultdict(list)
    for stats in of_ranks:
        for link in stats:
            groups[link.peer, link.direction].append(link)
    return [
        _merge(links, page_bytes if direction == "out" else received_page_bytes)
        for (_, direction), links in groups.items()
    ]


def _merge(links: Sequence[LinkStats], page_bytes: int) -> LinkStats:
    bytes_moved = sum(link.bytes_moved for link in links)
    return LinkStats(
        peer=links[0].peer,
        direction=links[0].direction,
        transport="+".join(sorted({link.transport for link in links if link.transport})),
        is_open=any(link.is_open for link in links),
        bytes_moved=bytes_moved,
        pages_moved=bytes_moved // page_bytes,
        busy_s=max(link.busy_s for link in links),
        bytes_per_s=sum(link.bytes_per_s for link in links),
        failures=sum(link.failures for link in links),
        num_opened=sum(link.num_opened for link in links),
    )
