"""`python -m benchmarks.serving.growth FILE FILE …`: how each system grows with its GPUs.

Each file is one that `make bench-serve-gpu` wrote; kvrelay's part and the peer's are read. Layouts
that are the same but for their number of servers are one system: 1p1d, 2p2d and 4p4d, or 2d and 4d,
or sglang-dp on any number of GPUs. The load has to have grown with the GPUs, as it does by itself.
A system's share of linear growth is its tokens a second, divided by those of its smallest
measurement and by how many times more GPUs it has; its latencies should have stayed. Files are of
different runs: a difference of some per cent is none.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.figures import Figures, median_of
from benchmarks.serving.markdown import number_cell, table_line
from benchmarks.serving.pairs import Pair
from benchmarks.serving.systems.layouts import Layout
from benchmarks.serving.systems.peer_names import Peer
from protocol.config import ConfigError

HEADINGS = ("load", "system", "GPUs", "tokens/s", "of linear", "TTFT mean", "TTFT p99", "ITL p99")
LATENCIES = ("ttft_mean_ms", "ttft_p99_ms", "itl_p99_ms")
Rows = Mapping[str, Sequence[Figures]]


@dataclass(frozen=True)
class Measurement:
    """One system of one file."""

    system: str
    num_gpus: int
    traffic: float
    """How many times larger the load was than it is for two GPUs."""
    circumstances: tuple[object, ...]
    """Figures are compared only where these are equal."""
    rows: Rows


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    files = parser.parse_args().files
    try:
        pairs = [json.loads(path.read_text(encoding="utf-8")) for path in files]
        print(table_of([found for pair in pairs for found in measurements_of(pair)]))
    except (ConfigError, OSError) as error:
        raise SystemExit(f"growth: {error}") from None


def measurements_of(pair: Pair) -> list[Measurement]:
    """Returns what a file has: kvrelay's layout, and the peer if there is one. Raises
    ConfigError."""
    cards = [card.partition(",")[0] for card in pair["machine"]["gpus"]]
    layout = Layout.parse(pair["layout"], len(cards))
    ranks = tuple(layout.sizes.values())
    name = _system("kvrelay", layout.num_prefill, ranks)
    name += " mixed" if layout.num_prefill and layout.policy == "cost" else ""
    found = [_measurement(pair, cards, name, sum(ranks), pair["kvrelay"])]
    if pair["peer_measured"]:
        peer = Peer.parse(pair["peer"], len(cards))
        name = _system(peer.package, peer.num_prefill, peer.ranks)
        behind = " behind its router" if peer.has_router else ""
        theirs = pair["peer_measured"]
        found.append(_measurement(pair, cards, name + behind, sum(peer.ranks), theirs))
    return found


def table_of(measurements: Iterable[Measurement]) -> str:
    """Returns the systems that were measured on several numbers of GPUs, as Markdown: for each load
    and system a line for each number. Raises ConfigError if there is none, or if measurements of a
    system cannot be compared."""
    by_system: dict[str, dict[int, Measurement]] = {}
    for one in measurements:
        by_system.setdefault(one.system, {}).setdefault(one.num_gpus, one)
    growing = [list(found.values()) for found in by_system.values() if len(found) > 1]
    if not growing:
        raise ConfigError("no system of these files was measured on several numbers of GPUs")
    lines: dict[str, list[str]] = {}
    for found in growing:
        found.sort(key=lambda one: one.num_gpus)
        _check_alike(found)
        for row in (row for row in found[0].rows if all(row in one.rows for one in found)):
            lines.setdefault(row, []).extend(_lines(row, found))
    heading = [table_line(HEADINGS), table_line(["---"] * len(HEADINGS))]
    return "\n".join([*heading, *(line for of_row in lines.values() for line in of_row)])


def share_of_linear(small: Measurement, large: Measurement, row: str) -> float | None:
    """Returns the growth in tokens a second, divided by that in GPUs; None where there is none to
    be expected, as one request after the other keeps one server busy at most."""
    if row.startswith("alone"):
        return None
    first, last = (median_of(one.rows.get(row, ()), "tokens_per_s") for one in (small, large))
    return last / first * small.num_gpus / large.num_gpus if first and last else None


def _measurement(
    pair: Pair, cards: Sequence[str], system: str, num_gpus: int, measured: Mapping[str, Any]
) -> Measurement:
    circumstances = (pair["model"], pair["seconds"], measured["version"], *sorted(set(cards)))
    traffic = float(pair["scale"]["traffic"])
    return Measurement(system, num_gpus, traffic, circumstances, measured["rows"])


def _system(product: str, num_prefill: int, ranks: Sequence[int]) -> str:
    """Returns the name of a system whatever its size, as `kvrelay 1p1d`."""
    kinds = sorted(set(ranks))
    if len(kinds) > 1:
        return f"{product} of {'+'.join(map(str, ranks))} ranks"
    num_decode = len(ranks) - num_prefill
    alike = math.gcd(num_prefill, num_decode)
    shape = f"{num_prefill // alike}p{num_decode // alike}d" if num_prefill else "replicas"
    return f"{product} {shape}" + (f" of {kinds[0]} ranks" if kinds[0] > 1 else "")


def _check_alike(found: Sequence[Measurement]) -> None:
    """Raises ConfigError unless all measurements of a system differ in their size alone."""
    small, *larger = found
    for one in larger:
        if one.circumstances != small.circumstances:
            raise ConfigError(
                f"{small.system} was measured as {small.circumstances} and as {one.circumstances}; "
                "give files of the same model, length, version and cards"
            )
        if one.traffic * small.num_gpus != small.traffic * one.num_gpus:
            raise ConfigError(
                f"{small.system} had {small.traffic:g} times the load on {small.num_gpus} GPUs and "
                f"{one.traffic:g} times on {one.num_gpus}; the load has to grow with the GPUs"
            )


def _lines(row: str, found: Sequence[Measurement]) -> list[str]:
    lines = []
    for one in found:
        share = share_of_linear(found[0], one, row)
        names = ("tokens_per_s", *LATENCIES)
        rate, *latencies = (number_cell(median_of(one.rows.get(row, ()), name)) for name in names)
        shown = "–" if share is None else f"{share:.2f}"
        lines.append(table_line([row, one.system, str(one.num_gpus), rate, shown, *latencies]))
    return lines


if __name__ == "__main__":
    main()
