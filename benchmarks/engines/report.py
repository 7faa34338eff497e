"""The rows of the engine benchmark: ratios, the table for people, the JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.engines.cells import LLAMA_CPP, OURS, PEERS, TRANSFORMERS, Cell, Timing
from benchmarks.engines.loop import Overhead


@dataclass(frozen=True)
class Row:
    cell: Cell
    timings: Mapping[str, Timing]
    """Timings by the name of the engine; ours is among them."""
    step_floor_s: float
    prefill_floor_s: float
    overhead: Overhead | None = None

    @property
    def ours(self) -> Timing:
        return self.timings[OURS]

    def decode_vs(self, peer: str) -> float | None:
        """How many times the peer's tokens per second ours are; None: it was not measured."""
        other = self.timings.get(peer)
        return other.step_s / self.ours.step_s if other is not None else None

    def prefill_vs(self, peer: str) -> float | None:
        other = self.timings.get(peer)
        if other is None or other.prefill_s is None or self.ours.prefill_s is None:
            return None
        return other.prefill_s / self.ours.prefill_s

    @property
    def step_vs_floor(self) -> float:
        return self.ours.step_s / self.step_floor_s

    @property
    def prefill_vs_floor(self) -> float | None:
        return self.ours.prefill_s / self.prefill_floor_s if self.ours.prefill_s else None

    def decode_tok_s(self, engine: str) -> float | None:
        timing = self.timings.get(engine)
        return self.cell.batch / timing.step_s if timing is not None else None

    def prefill_tok_s(self, engine: str) -> float | None:
        timing = self.timings.get(engine)
        if timing is None or timing.prefill_s is None:
            return None
        return self.cell.num_tokens / timing.prefill_s

    def as_json(self) -> dict[str, Any]:
        overhead = self.overhead
        return {
            "batch": self.cell.batch,
            "context": self.cell.context,
            "decode_tok_s": rounded(self.decode_tok_s(OURS)),
            "decode_vs_transformers": rounded(self.decode_vs(TRANSFORMERS)),
            "decode_vs_llamacpp": rounded(self.decode_vs(LLAMA_CPP)),
            "prefill_vs_transformers": rounded(self.prefill_vs(TRANSFORMERS)),
            "prefill_vs_llamacpp": rounded(self.prefill_vs(LLAMA_CPP)),
            "step_vs_floor": rounded(self.step_vs_floor),
            "overhead_share": rounded(overhead.share) if overhead else None,
            "overhead_share_sampled": rounded(overhead.sampled_share) if overhead else None,
            "overhead_share_penalised": rounded(overhead.penalised_share) if overhead else None,
            "step_ms": rounded(self.ours.step_s * 1e3),
            "step_floor_ms": rounded(self.step_floor_s * 1e3),
            "prefill_tok_s": rounded(self.prefill_tok_s(OURS)),
            "prefill_vs_floor": rounded(self.prefill_vs_floor),
            "decode_tok_s_of": {e: rounded(self.decode_tok_s(e)) for e in self.timings},
            "prefill_tok_s_of": {e: rounded(self.prefill_tok_s(e)) for e in self.timings},
        }


@dataclass(frozen=True)
class DeterministicCost:
    """What --deterministic costs in one cell: times with it over times without."""

    cell: Cell
    plain: Timing
    deterministic: Timing

    @property
    def step_ratio(self) -> float:
        return self.deterministic.step_s / self.plain.step_s

    @property
    def prefill_ratio(self) -> float | None:
        if self.plain.prefill_s is None or self.deterministic.prefill_s is None:
            return None
        return self.deterministic.prefill_s / self.plain.prefill_s

    def as_json(self) -> dict[str, Any]:
        return {
            "batch": self.cell.batch,
            "context": self.cell.context,
            "step_ms": rounded(self.deterministic.step_s * 1e3),
            "step_vs_plain": rounded(self.step_ratio),
            "prefill_vs_plain": rounded(self.prefill_ratio),
        }


@dataclass(frozen=True)
class EngineReport:
    rows: Sequence[Row]
    costs: Sequence[DeterministicCost] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the JSON line that describe the whole run."""

    def as_json(self) -> dict[str, Any]:
        return {
            "bench": "engine",
            **self.notes,
            "rows": [row.as_json() for row in self.rows],
            "deterministic": [cost.as_json() for cost in self.costs],
        }

    def tables(self) -> list[Table]:
        tables = [_decode_table(self.rows), _prefill_table(self.rows)]
        return tables + ([_cost_table(self.costs)] if self.costs else [])


def rounded(value: float | None, digits: int = 4) -> float | None:
    """To significant digits, which serve ratios and rates alike."""
    return None if value is None else float(f"{value:.{digits}g}")


def shown(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None else format(value, form)


def _decode_table(rows: Sequence[Row]) -> Table:
    table = Table(title="decode", box=box.SIMPLE)
    headings = ("batch", "context", "tok/s", "step ms", "floor ms", "÷ floor", "overhead")
    for heading in (*headings, "tok/s ÷ transformers", "÷ llama.cpp"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            str(row.cell.batch),
            str(row.cell.context),
            shown(row.decode_tok_s(OURS), ".0f"),
            shown(row.ours.step_s * 1e3, ".1f"),
            shown(row.step_floor_s * 1e3, ".1f"),
            shown(row.step_vs_floor),
            shown(row.overhead.share if row.overhead else None, ".1%"),
            *(shown(row.decode_vs(peer)) for peer in PEERS),
        )
    return table


def _prefill_table(rows: Sequence[Row]) -> Table:
    table = Table(title="prefill", box=box.SIMPLE)
    headings = ("batch", "context", "tok/s", "÷ floor")
    for heading in (*headings, "tok/s ÷ transformers", "÷ llama.cpp"):
        table.add_column(heading, justify="right")
    for row in rows:
        if row.ours.prefill_s is not None:
            table.add_row(
                str(row.cell.batch),
                str(row.cell.context),
                shown(row.prefill_tok_s(OURS), ".0f"),
                shown(row.prefill_vs_floor),
                *(shown(row.prefill_vs(peer)) for peer in PEERS),
            )
    return table


def _cost_table(costs: Sequence[DeterministicCost]) -> Table:
    table = Table(
        title="what --deterministic costs: times with it over times without", box=box.SIMPLE
    )
    for heading in ("batch", "context", "decode step", "prefill"):
        table.add_column(heading, justify="right")
    for cost in costs:
        table.add_row(
            str(cost.cell.batch),
            str(cost.cell.context),
            shown(cost.step_ratio),
            shown(cost.prefill_ratio),
        )
    return table
