"""What several ranks say of a transfer reads as if one had said it."""

from __future__ import annotations

from kvtransfer.transport import LinkStats
from node.ranks.merging import MergedArrivals, MergedSend, merge_links


def test_after_a_failure_nothing_is_news_and_the_end_waits_for_every_writer() -> None:
    arrivals = MergedArrivals(4, 3)
    arrivals.arrived(0, 2)
    assert arrivals.ended(1, "cut") == 0
    assert arrivals.ended(2, "cut too") == 0
    assert arrivals.arrived(0, 3) == 0
    assert not arrivals.is_over, "rank 0 may still write"
    arrivals.aborted(0)
    assert arrivals.is_over and arrivals.error == "cut"


def test_a_send_is_over_when_no_rank_needs_its_pages() -> None:
    send = MergedSend(2)
    send.ended(1, "lost")
    assert not send.is_over
    send.ended(0, "")
    assert send.is_over and send.error == "lost"


def link(direction: str, num_bytes: int, **changes: object) -> LinkStats:
    values: dict[str, object] = {
        "peer": "p0",
        "direction": direction,
        "transport": "shm",
        "is_open": True,
        "bytes_moved": num_bytes,
        "pages_moved": 0,
        "busy_s": 1.0,
        "bytes_per_s": 10.0,
        "failures": 0,
    }
    return LinkStats(**(values | changes))  # type: ignore[arg-type]


def test_links_of_all_ranks_to_a_peer_are_one() -> None:
    """Four ranks hold each of two heads twice: they take in twice what a page has."""
    ranks = [[link("in", 50), link("out", 25, is_open=False, busy_s=3.0)] for _ in range(4)]
    ranks[1].append(link("in", 7, peer="p1", transport="", failures=2))
    merged = {
        (stats.peer, stats.direction): stats
        for stats in merge_links(ranks, page_bytes=50, received_page_bytes=100)
    }
    assert merged["p0", "in"] == link("in", 200, pages_moved=2, bytes_per_s=40.0)
    out = merged["p0", "out"]
    assert (out.bytes_moved, out.pages_moved, out.is_open, out.busy_s) == (100, 2, False, 3.0)
    assert merged["p1", "in"].failures == 2


def test_ranks_that_reach_a_peer_in_several_ways_name_all_of_them() -> None:
    ranks = [[link("in", 9, transport=name)] for name in ("shm", "nccl", "", "nccl")]
    (merged,) = merge_links(ranks, page_bytes=50, received_page_bytes=100)
    assert merged.transport == "nccl+shm"
