"""What the data plane costs: pages against raw sends, and requests against one node alone.

    .venv/bin/python -m benchmarks.transfer [--transports shm,gloo | nccl] [--quick] [--pages-only]
                                            [--out FILE]

`benchmarks.clusters.page_stream` and `benchmarks.clusters.transfer_cluster` say what is measured
and why it should come out as it does. Over nccl, which needs two GPUs, only the pages are measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.clusters import page_stream, transfer_cluster
from benchmarks.clusters.page_stream import SHAPES, Stream
from benchmarks.machine import machine

TRANSPORTS = ("shm", "gloo", "nccl")


def main() -> None:
    parser = argparse.ArgumentParser(description="What the data plane costs.")
    parser.add_argument("--transports", default="shm,gloo", help="of " + ", ".join(TRANSPORTS))
    parser.add_argument("--quick", action="store_true", help="small sizes, some three minutes")
    parser.add_argument("--pages-only", action="store_true", help="no clusters, some two minutes")
    parser.add_argument("--out", type=Path, help="write the JSON line here, too")
    given = parser.parse_args()
    transports = str(given.transports).split(",")
    if unknown := set(transports) - set(TRANSPORTS):
        parser.error(f"no transport {', '.join(sorted(unknown))}; choose from {TRANSPORTS}")
    console = Console(width=110)
    streams = [
        stream
        for transport in transports
        for shape in SHAPES
        for stream in page_stream.measure(transport, shape, *((1, 8), 3) if given.quick else ())
    ]
    console.print(page_stream.table(streams))
    report = {"bench": "transfer", "machine": machine("torch"), **_streams_json(streams)}
    if transports != ["nccl"] and not given.pages_only:
        scale = transfer_cluster.QUICK if given.quick else transfer_cluster.FULL
        figures = transfer_cluster.measure(scale)
        for table in transfer_cluster.tables(figures):
            console.print(table)
        report |= transfer_cluster.as_json(figures) | {"figures": asdict(figures)}
    line = json.dumps(report)
    if given.out is not None:
        given.out.write_text(line + "\n", encoding="utf-8")
    print(line)


def _streams_json(streams: Sequence[Stream]) -> dict[str, Any]:
    """Returns the least and the greatest ratio of each transport, and every row."""
    transports = list(dict.fromkeys(stream.transport for stream in streams))
    return {
        "transport": ",".join(transports),
        "stream_vs_raw": {
            name: [
                round(pick(s.vs_raw for s in streams if s.transport == name), 3)
                for pick in (min, max)
            ]
            for name in transports
        },
        "streams": [asdict(s) | {"vs_raw": round(s.vs_raw, 3)} for s in streams],
    }


if __name__ == "__main__":
    main()
