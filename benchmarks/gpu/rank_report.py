"""The figures of a tensor-parallel model: tables for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.engines.report import rounded
from benchmarks.gpu.rank_steps import RankFigures, RankRow

HEADINGS = (
    "",
    "batch",
    "context",
    "ms",
    "strictly ms",
    "floor ms",
    "÷ floor",
    "sums ms",
    "rest ms",
)


@dataclass(frozen=True)
class RanksReport:
    """What rank 0 measured of one model, for each form of its weights."""

    figures: Mapping[str, RankFigures]
    """By --quantization."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the JSON line that describe the whole run."""

    def as_json(self) -> dict[str, Any]:
        """Returns the line for programs."""
        forms = {name: _form_json(figures) for name, figures in self.figures.items()}
        return {"bench": "engine-ranks", **self.notes, "forms": forms}

    def tables(self) -> list[Table]:
        """Returns a table for each form."""
        return [_table(name, figures) for name, figures in self.figures.items()]


def rest_s(row: RankRow) -> float:
    """Returns what neither the floor nor the waiting for sums explains."""
    return row.seconds - row.floor_s - row.collectives_s


def _form_json(figures: RankFigures) -> dict[str, Any]:
    return {
        "copy_bytes_s": round(figures.rates.copy_bytes_s),
        "matmul_flop_s": round(figures.rates.matmul_flop_s),
        "attention": figures.attention,
        "load_s": rounded(figures.load_s),
        "rank_weights_mib": round(figures.weight_bytes / 2**20, 1),
        "rows": [_row_json(row) for row in figures.rows],
    }


def _row_json(row: RankRow) -> dict[str, Any]:
    return {
        "what": row.what,
        "batch": row.batch,
        "context": row.context,
        "ms": rounded(row.seconds * 1e3),
        "strict_ms": None if row.strict_s is None else rounded(row.strict_s * 1e3),
        "floor_ms": rounded(row.floor_s * 1e3),
        "vs_floor": rounded(row.seconds / row.floor_s),
        "collectives_ms": rounded(row.collectives_s * 1e3),
        "rest_ms": rounded(rest_s(row) * 1e3),
    }


def _table(name: str, figures: RankFigures) -> Table:
    caption = (
        f"{figures.weight_bytes / 2**30:.1f} GiB of weights a rank, loaded in "
        f"{figures.load_s:.1f} s; copy {figures.rates.copy_bytes_s / 1e9:.0f} GB/s; "
        f"attention: {figures.attention}"
    )
    table = Table(title=f"--quantization {name}", box=box.SIMPLE, caption=caption)
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for row in figures.rows:
        table.add_row(
            row.what,
            str(row.batch),
            row.context,
            f"{row.seconds * 1e3:.2f}",
            "–" if row.strict_s is None else f"{row.strict_s * 1e3:.2f}",
            f"{row.floor_s * 1e3:.2f}",
            f"{row.seconds / row.floor_s:.2f}",
            f"{row.collectives_s * 1e3:.2f}",
            f"{rest_s(row) * 1e3:.2f}",
        )
    return table
