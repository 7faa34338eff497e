"""The links of a node in its heartbeat. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from kvtransfer.transport import LinkStats
from protocol.messages import MAX_LINKS, LinkLoad


def link_loads(stats: Sequence[LinkStats], waits: Sequence[LinkLoad]) -> tuple[LinkLoad, ...]:
    """Returns the links as a heartbeat tells them: what the transport counted (`stats`), with how
    long the scheduler waited for their pages (`waits`).

    There are at most MAX_LINKS: the open ones first, then those that moved most bytes.
    """
    exposed_s = {(wait.peer, wait.direction): wait.exposed_s_total for wait in waits}
    loads = [
        LinkLoad(
            peer=link.peer,
            direction=link.direction,
            transport=link.transport,
            is_open=link.is_open,
            bytes_total=link.bytes_moved,
            pages_total=link.pages_moved,
            busy_s_total=link.busy_s,
            exposed_s_total=exposed_s.pop((link.peer, link.direction), 0.0),
            failures_total=link.failures,
            opened_total=link.num_opened,
        )
        for link in stats
    ]
    loads += [wait for wait in waits if (wait.peer, wait.direction) in exposed_s]
    loads.sort(key=lambda link: (link.is_open, link.bytes_total), reverse=True)
    return tuple(loads[:MAX_LINKS])
