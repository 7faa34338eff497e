"""`python -m benchmarks.serving.table`: the files of pairs as a Markdown table and as a picture.

Both show ratios of kvrelay to the peer that was measured beside it on the same machine in the same
run. No figure of one pair stands against that of another.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving.figures import median_of
from benchmarks.serving.markdown import number_cell, table_line
from benchmarks.serving.pairs import Pair, read_pairs
from benchmarks.serving.picture import picture_of

HEADINGS = ("load", "TTFT mean", "TTFT p99", "ITL p50", "ITL p99", "tokens/s", "errors")
SHOWN = ("ttft_mean_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms", "tokens_per_s")


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    results = Path(__file__).resolve().parent.parent / "results" / "serve-gpu"
    parser.add_argument("--results", type=Path, default=results, help="default: %(default)s")
    parser.add_argument("--picture", type=Path, help="an .svg file for the picture")
    options = parser.parse_args()
    pairs = read_pairs(options.results)
    if not pairs:
        raise SystemExit(f"{options.results} has no results; `make bench-serve-gpu` makes them")
    print("\n\n".join(map(table_of, pairs)))
    if options.picture:
        options.picture.write_text(picture_of(pairs), encoding="utf-8")


def table_of(pair: Pair) -> str:
    """Returns one pair as Markdown: kvrelay's figure, the peer's, and the ratio in each cell."""
    lines = [_heading(pair), "", table_line(HEADINGS), table_line(["---"] * len(HEADINGS))]
    theirs = (pair["peer_measured"] or {"rows": {}})["rows"]
    for row, ours in pair["kvrelay"]["rows"].items():
        beside, ratios = theirs.get(row, []), pair["ratios"].get(row, {})
        cells = [_cell(ours, beside, ratios, name) for name in SHOWN]
        lines.append(table_line([row, *cells, _errors(ours, beside)]))
    return "\n".join(lines)


def title_of(pair: Pair) -> str:
    """Returns what was measured beside what."""
    return f"kvrelay {pair['layout']}" + (f" ÷ {pair['peer']}" if pair["peer"] else "")


def _heading(pair: Pair) -> str:
    machine, ours = pair["machine"], pair["kvrelay"]
    cards = ", ".join(machine["gpus"]) or machine["cpu"]
    notes = [
        f"{pair['model']} on {cards}",
        f"{pair['seconds']:g} s a load",
        f"kvrelay {ours['version']}",
        f"compiles while serving {ours['compiles_while_serving']}",
        f"lost leases {ours['lost_leases']}",
    ]
    if pair["peer_measured"]:
        notes.insert(3, f"{pair['peer']} {pair['peer_measured']['version']}")
    return f"**{title_of(pair)}**: {'; '.join(notes)}"


def _cell(ours: Sequence[Any], theirs: Sequence[Any], ratios: dict[str, float], name: str) -> str:
    numbers = [number_cell(median_of(ours, name))]
    if theirs:
        numbers.append(number_cell(median_of(theirs, name)))
    ratio = f" (**{ratios[name]:.2f}**)" if name in ratios else ""
    return " / ".join(numbers) + ratio


def _errors(ours: Sequence[Any], theirs: Sequence[Any]) -> str:
    return " / ".join(str(sum(one["errors"] for one in side)) for side in (ours, theirs) if side)


if __name__ == "__main__":
    main()
