"""The rows of the benchmark on a GPU: ratios, the tables for people, the JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.engines.report import rounded, shown
from benchmarks.gpu.peer_process import MissingPeer, PeerTimes
from benchmarks.gpu.plan import DecodeCell

Peers = Mapping[str, PeerTimes | MissingPeer]


@dataclass(frozen=True)
class DecodeRow:
    """Our steps in one cell; seconds are medians."""

    cell: DecodeCell
    step_s: float
    """With one step under way."""
    strict_step_s: float
    """One step after the other."""
    floor_s: float


@dataclass(frozen=True)
class PrefillRow:
    """Our prompts of one length."""

    num_tokens: int
    prefill_s: float
    """Seconds from one prompt alone to its first token."""
    floor_s: float

    @property
    def matmul_share(self) -> float:
        """The rate at which the prompt is computed, over that of one large product."""
        return self.floor_s / self.prefill_s


@dataclass(frozen=True)
class GpuReport:
    """What one run measured on one card, ours and its peers'."""

    decodes: Sequence[DecodeRow]
    prefills: Sequence[PrefillRow]
    peers: Peers = field(default_factory=dict)
    """Times in the order of our rows."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the JSON line that describe the whole run."""

    def as_json(self) -> dict[str, Any]:
        """Returns the line for programs."""
        return {
            "bench": "engine-gpu",
            **self.notes,
            "peers": {name: _peer_json(peer) for name, peer in self.peers.items()},
            "decode": [self._decode_json(i, row) for i, row in enumerate(self.decodes)],
            "prefill": [self._prefill_json(i, row) for i, row in enumerate(self.prefills)],
        }

    def tables(self) -> list[Table]:
        """Returns the tables for people."""
        return [self._decode_table(), self._prefill_table()]

    def _decode_json(self, index: int, row: DecodeRow) -> dict[str, Any]:
        return {
            "batch": row.cell.batch,
            "context": row.cell.label,
            "decode_tok_s": rounded(row.cell.batch / row.step_s),
            "step_ms": rounded(row.step_s * 1e3),
            "strict_step_ms": rounded(row.strict_step_s * 1e3),
            "step_floor_ms": rounded(row.floor_s * 1e3),
            "step_vs_floor": rounded(row.step_s / row.floor_s),
            "peer_step_vs_ours": {
                name: rounded(peer.step_s[index] / row.step_s) for name, peer in self._measured()
            },
        }

    def _prefill_json(self, index: int, row: PrefillRow) -> dict[str, Any]:
        return {
            "tokens": row.num_tokens,
            "prefill_tok_s": rounded(row.num_tokens / row.prefill_s),
            "prefill_ms": rounded(row.prefill_s * 1e3),
            "share_of_matmul_rate": rounded(row.matmul_share),
            "peer_prefill_vs_ours": {
                name: rounded(peer.prefill_s[index] / row.prefill_s)
                for name, peer in self._measured()
            },
        }

    def _decode_table(self) -> Table:
        headings = ("batch", "context", "tok/s", "step ms", "strictly ms", "floor ms", "÷ floor")
        table = self._table("decode", headings)
        for index, row in enumerate(self.decodes):
            table.add_row(
                str(row.cell.batch),
                row.cell.label,
                f"{row.cell.batch / row.step_s:.0f}",
                f"{row.step_s * 1e3:.2f}",
                f"{row.strict_step_s * 1e3:.2f}",
                f"{row.floor_s * 1e3:.2f}",
                f"{row.step_s / row.floor_s:.2f}",
                *self._ratios({n: peer.step_s[index] / row.step_s for n, peer in self._measured()}),
            )
        return table

    def _prefill_table(self) -> Table:
        table = self._table("prefill", ("tokens", "tok/s", "ms", "of matmul rate"))
        for index, row in enumerate(self.prefills):
            table.add_row(
                str(row.num_tokens),
                f"{row.num_tokens / row.prefill_s:.0f}",
                f"{row.prefill_s * 1e3:.1f}",
                f"{row.matmul_share:.2f}",
                *self._ratios(
                    {n: peer.prefill_s[index] / row.prefill_s for n, peer in self._measured()}
                ),
            )
        return table

    def _table(self, title: str, headings: Sequence[str]) -> Table:
        missing = [f"{n}: {p.reason}" for n, p in self.peers.items() if isinstance(p, MissingPeer)]
        caption = "; ".join(missing) or None
        table = Table(title=title, box=box.SIMPLE, caption=caption)
        for heading in (*headings, *(f"{name} ÷ ours" for name in self.peers)):
            table.add_column(heading, justify="right")
        return table

    def _ratios(self, ratios: Mapping[str, float]) -> list[str]:
        """Returns a cell for each peer; a dash for one that is missing."""
        return [shown(ratios.get(name)) for name in self.peers]

    def _measured(self) -> list[tuple[str, PeerTimes]]:
        return [(name, peer) for name, peer in self.peers.items() if isinstance(peer, PeerTimes)]


def _peer_json(peer: PeerTimes | MissingPeer) -> dict[str, Any]:
    if isinstance(peer, MissingPeer):
        return {"missing": peer.reason}
    return {
        "version": peer.version,
        "step_ms": [rounded(seconds * 1e3) for seconds in peer.step_s],
        "prefill_ms": [rounded(seconds * 1e3) for seconds in peer.prefill_s],
    }
