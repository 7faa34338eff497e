"""Files of pairs: kvrelay in one layout, and the peer that was measured beside it in one run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving.figures import ratios
from benchmarks.serving.measuring import Measured

Pair = dict[str, Any]


def pair_of(
    layout: str, ours: Measured, theirs: Measured | None, circumstances: Mapping[str, Any]
) -> Pair:
    """Returns the document of a pair; without a peer it has kvrelay's part alone."""
    return {
        "bench": "serve-gpu",
        "layout": layout,
        "peer": theirs.name if theirs else None,
        **circumstances,
        "ratios": ratios(ours.rows, theirs.rows) if theirs else {},
        "kvrelay": ours.as_json(),
        "peer_measured": theirs.as_json() if theirs else None,
    }


class PairFiles:
    """Writes every pair as soon as both halves are measured, so that it outlives an
    interruption."""

    def __init__(self, circumstances: Mapping[str, Any], directory: Path) -> None:
        self._circumstances = circumstances
        self._directory = directory
        self._layouts: dict[str, Measured] = {}
        self._peers: list[Measured] = []

    @property
    def pairs(self) -> list[Pair]:
        """Each layout with each peer; without peers, each layout alone."""
        peers: Sequence[Measured | None] = self._peers or [None]
        return [
            pair_of(layout, ours, theirs, self._circumstances)
            for layout, ours in self._layouts.items()
            for theirs in peers
        ]

    def add_layout(self, layout: str, ours: Measured) -> None:
        """Writes a layout alone."""
        self._layouts[layout] = ours
        self._save(pair_of(layout, ours, None, self._circumstances))

    def add_peer(self, theirs: Measured) -> None:
        """Writes every layout with this peer, in place of the layout alone."""
        self._peers.append(theirs)
        for layout, ours in self._layouts.items():
            self._save(pair_of(layout, ours, theirs, self._circumstances))
            (self._directory / file_name(layout)).unlink(missing_ok=True)

    def _save(self, pair: Pair) -> None:
        print(f"wrote {save_pair(pair, self._directory)}", flush=True)


def save_pair(pair: Pair, directory: Path) -> Path:
    """Writes a pair to the file that is named after it, and returns that."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / file_name(pair["layout"], pair["peer"])
    path.write_text(json.dumps(pair, indent=1) + "\n", encoding="utf-8")
    return path


def file_name(layout: str, peer: str | None = None) -> str:
    """Returns the name of the file of a pair, or of a layout alone."""
    return f"{path_word('-'.join(filter(None, (layout, peer))))}.json"


def path_word(name: str) -> str:
    """Returns the name of a layout or a peer without a sign that is awkward in a path."""
    return name.replace("+", "-")


def read_pairs(directory: Path) -> list[Pair]:
    """Returns the pairs of a directory, by the names of their files."""
    return [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(directory.glob("*.json"))
    ]


def summary_of(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Returns the line that the command prints last: what went wrong, and the ratios."""
    return {
        "bench": "serve-gpu",
        "pairs": [
            {
                "layout": pair["layout"],
                "peer": pair["peer"],
                "errors": _sum_of(pair["kvrelay"], "errors"),
                "retried": _sum_of(pair["kvrelay"], "retried"),
                "peer_errors": _sum_of(pair["peer_measured"], "errors")
                if pair["peer_measured"]
                else None,
                "compiles_while_serving": pair["kvrelay"]["compiles_while_serving"],
                "failed_steps": pair["kvrelay"]["failed_steps"],
                "lost_leases": pair["kvrelay"]["lost_leases"],
                "missing_nodes": pair["kvrelay"]["missing_nodes"],
                "ratios": pair["ratios"],
            }
            for pair in pairs
        ],
    }


def _sum_of(measured: Mapping[str, Any], name: str) -> int:
    return sum(figures[name] for repeats in measured["rows"].values() for figures in repeats)
