"""The figures of a run, and the table of them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.elastic.load import Seen
from benchmarks.elastic.run import Course, num_open
from benchmarks.elastic.watching import NodeLife
from kvrelay.bench.results.percentiles import percentile

LOST_IN_S = 15.0
"""For so long after a node was struck its lease may end; later it is a loss that nobody caused."""

SHOWN_WAITS = 8


@dataclass(frozen=True)
class WindowFigures:
    """What the clients of one load saw."""

    requests: int
    failed: int
    wrong: int
    hung: int
    retried: int
    """Requests that were given to nodes more than once."""
    tokens: int
    gap_p50_ms: float
    gap_p99_ms: float
    gap_max_ms: float
    ttft_p50_ms: float
    ttft_p99_ms: float


@dataclass(frozen=True)
class NodeFigures:
    """One life of a node. `None` stands for what was not seen."""

    node: str
    ended: str
    """kill or rejoin if it was struck, else "" """
    serves_after_s: float | None
    """From the start of the process until the coordinator listed it."""
    first_request_after_s: float | None
    """From the start of the process until it had been given a request."""
    pairs_opened: int
    pairs_closed: int
    pairs_open: int | None
    """When the load ended; None if the node had ended by then."""
    pairs_open_idle: int | None
    """When pairs that nobody uses had had the time to be closed."""
    pairs_by_transport: dict[str, int]
    memory_first_mib: float | None
    memory_peak_mib: float | None
    memory_last_mib: float | None


def window_figures(seen: Sequence[Seen]) -> WindowFigures:
    """Returns the figures of one load."""
    gaps_s = sorted(gap for one in seen for gap in one.gaps_s)
    first_s = sorted(one.first_token_s for one in seen if one.first_token_s is not None)
    return WindowFigures(
        requests=len(seen),
        failed=sum(bool(one.failure) for one in seen),
        wrong=sum(one.is_wrong for one in seen),
        hung=sum(one.is_hung for one in seen),
        retried=sum(one.num_attempts > 1 for one in seen),
        tokens=sum(one.num_tokens for one in seen),
        gap_p50_ms=_ms(gaps_s, 0.5),
        gap_p99_ms=_ms(gaps_s, 0.99),
        gap_max_ms=_ms(gaps_s, 1.0),
        ttft_p50_ms=_ms(first_s, 0.5),
        ttft_p99_ms=_ms(first_s, 0.99),
    )


def lost_leases(course: Course) -> list[str]:
    """Returns the nodes whose lease was lost though nobody had struck them."""
    return [
        name
        for name, at in course.lost
        if not any(
            one.change.node == name
            and one.change.kind != "join"
            and one.at <= at <= one.at + LOST_IN_S
            for one in course.happened
        )
    ]


def gone_unstruck(course: Course) -> list[str]:
    """Returns the nodes that are listed no longer though nobody had struck them."""
    last_look = max((life.last_at for life in course.lives), default=0.0)
    return [
        life.name for life in course.lives if life.last_at < last_look and not _end(course, life)
    ]


def streams_at_changes(course: Course) -> list[int]:
    """Returns how many requests were under way at each change."""
    return [
        sum(one.began_s <= happened.at - course.changed_at <= one.ended_s for one in course.changed)
        for happened in course.happened
    ]


def node_figures(course: Course) -> list[NodeFigures]:
    """Returns the figures of every life that the coordinator knew of, in the order of joining."""
    return [_node_figures(course, life) for life in course.lives]


def _node_figures(course: Course, life: NodeLife) -> NodeFigures:
    started_at = max(
        (one.at for one in course.starts if one.name == life.name and one.at < life.seen_at),
        default=None,
    )
    outgoing = [link for link in life.links if link["direction"] == "out"]
    transports: Counter[str] = Counter()
    for link in outgoing:
        if link["opened"]:
            transports[link["transport"]] += link["opened"]
    opened, readings = transports.total(), [mebibytes for _, mebibytes in life.readings]
    end = _end(course, life)

    def after(at: float | None) -> float | None:
        return None if at is None or started_at is None else round(at - started_at, 2)

    return NodeFigures(
        node=life.name,
        ended=end,
        serves_after_s=after(life.seen_at),
        first_request_after_s=after(life.request_at),
        pairs_opened=opened,
        pairs_closed=opened - num_open(life),
        pairs_open=None if end else course.open_pairs.get((life.name, life.incarnation), 0),
        pairs_open_idle=None if end else num_open(life),
        pairs_by_transport=dict(transports),
        memory_first_mib=readings[0] if readings else None,
        memory_peak_mib=max(readings, default=None),
        memory_last_mib=readings[-1] if readings else None,
    )


def _end(course: Course, life: NodeLife) -> str:
    """Returns what struck a life of a node; "" if nothing did."""
    # Another life of the same name begins only after the stroke, so the first one counts.
    return next(
        (
            one.change.kind
            for one in course.happened
            if one.change.node == life.name and one.change.kind != "join" and one.at > life.seen_at
        ),
        "",
    )


def summary(course: Course) -> dict[str, Any]:
    """Returns the figures of a run, as they go into its JSON line."""
    quiet, changed = window_figures(course.quiet), window_figures(course.changed)
    nodes = node_figures(course)
    joined = [one for one in nodes[_num_founders(course) :] if one.first_request_after_s]
    waits_s = sorted(one.first_request_after_s or 0.0 for one in joined)
    transports: Counter[str] = Counter()
    for node in nodes:
        transports.update(node.pairs_by_transport)
    return {
        "seconds": round(course.loaded_until - course.changed_at, 1),
        "ready_after_s": round(course.ready_after_s, 1),
        "changes": dict(Counter(one.change.kind for one in course.happened)),
        "streams_at_changes": streams_at_changes(course),
        "lost_leases": len(lost_leases(course)),
        "gone_unstruck": len(gone_unstruck(course)),
        "quiet": asdict(quiet),
        "changed": asdict(changed),
        "changed_to_quiet": _ratios(quiet, changed),
        "joined": len(nodes) - _num_founders(course),
        "joined_with_requests": len(joined),
        "first_request_after_p50_s": round(percentile(waits_s, 0.5), 2) if waits_s else None,
        "first_request_after_max_s": max(waits_s, default=None),
        "pairs_opened": sum(one.pairs_opened for one in nodes),
        "pairs_opened_by_transport": dict(transports),
        "most_pairs_open_on_a_node": max((one.pairs_open or 0 for one in nodes), default=0),
        "pairs_open_when_idle": sum(one.pairs_open_idle or 0 for one in nodes),
        "gpus_first_mib": course.gpus[0][1] if course.gpus else {},
        "gpus_peak_mib": _peaks(course),
        "gpus_idle_mib": course.gpus[-1][1] if course.gpus else {},
        "nodes": [asdict(one) for one in nodes],
    }


def longest_waits(course: Course) -> list[str]:
    """Returns a sentence for each of the longest waits with changes, so that logs can be read
    there."""
    waits = [(one.first_token_s or 0.0, "first token", one) for one in course.changed]
    waits += [(max(one.gaps_s, default=0.0), "token gap", one) for one in course.changed]
    longest = sorted(waits, key=lambda wait: wait[0], reverse=True)[:SHOWN_WAITS]
    return [
        f"{what} of {seconds * 1e3:.0f} ms in a request from {one.began_s:.1f} to "
        f"{one.ended_s:.1f} s, attempts {one.num_attempts}; {_changes_during(course, one)}"
        for seconds, what, one in longest
    ]


def failures(course: Course) -> list[str]:
    """Returns a sentence for each request that failed or had wrong tokens."""
    return [
        f"a request from {one.began_s:.1f} to {one.ended_s:.1f} s, attempts {one.num_attempts}: "
        f"{one.failure or 'wrong tokens'}; {_changes_during(course, one)}"
        for one in (*course.quiet, *course.changed)
        if one.failure or one.is_wrong
    ]


def _changes_during(course: Course, seen: Seen) -> str:
    told = [
        f"{one.change.kind} {one.change.node} at {at_s:.1f} s"
        for one in course.happened
        for at_s in [one.at - course.changed_at]
        if seen.began_s - 1.0 <= at_s <= seen.ended_s
    ]
    return ", ".join(told) or "no change"


def _num_founders(course: Course) -> int:
    """Returns how many nodes there were before the first change."""
    return sum(one.at < course.changed_at for one in course.starts)


def _ratios(quiet: WindowFigures, changed: WindowFigures) -> dict[str, float]:
    """Returns what changes cost: each time with them over that without."""
    names = ("gap_p50_ms", "gap_p99_ms", "gap_max_ms", "ttft_p50_ms", "ttft_p99_ms")
    return {
        name.removesuffix("_ms"): round(getattr(changed, name) / getattr(quiet, name), 2)
        for name in names
        if getattr(quiet, name)
    }


def _peaks(course: Course) -> dict[str, float]:
    """Returns the most memory of each GPU."""
    names = course.gpus[0][1] if course.gpus else {}
    return {name: max(gpus.get(name, 0.0) for _, gpus in course.gpus) for name in names}


def tables(course: Course) -> list[Table]:
    """Returns the figures for people."""
    windows = Table(title="what clients saw", box=box.SIMPLE)
    windows.add_column("")
    for heading in ("without changes", "with changes"):
        windows.add_column(heading, justify="right")
    columns = [asdict(window_figures(seen)) for seen in (course.quiet, course.changed)]
    for name in columns[0]:
        windows.add_row(name.replace("_", " "), *(f"{column[name]:g}" for column in columns))
    nodes = Table(title="lives of nodes", box=box.SIMPLE)
    nodes.add_column("node")
    for heading in ("ended by", "serves s", "request s", "opened", "closed", "open", "idle"):
        nodes.add_column(heading, justify="right")
    for heading in ("over", "first MiB", "peak MiB", "last MiB"):
        nodes.add_column(heading, justify="right")
    for node in node_figures(course):
        nodes.add_row(*map(_shown, asdict(node).values()))
    return [windows, nodes]


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return " ".join(f"{name} {count}" for name, count in value.items())
    return str(value)


def _ms(ordered_s: Sequence[float], share: float) -> float:
    return round(percentile(ordered_s, share) * 1e3, 2) if ordered_s else 0.0
