"""Breaks a real cluster while clients stream: `python -m tests.chaos`. Ends with one JSON line;
exit code 1 if a promise was broken. The same `--seed` has the same faults."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.machine import machine
from tests.chaos.report import (
    broken_promises,
    failed_with_their_coordinator,
    figures,
    longest_waits,
    table,
)
from tests.chaos.run import Plan, run
from tests.chaos.ties import is_tie
from tests.support.processes.clusters import save_servable_model

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "chaos.json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of faults and of questions")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long clients ask")
    parser.add_argument("--streams", type=int, default=64, help="clients at once")
    parser.add_argument("--every", type=float, default=5.0, help="seconds from fault to fault")
    parser.add_argument("--pause", type=float, default=3.0, help="seconds between two requests")
    parser.add_argument("--deterministic", action="store_true", help="every token must be equal")
    parser.add_argument("--logs", type=Path, help="a directory for the logs, which are kept")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    given = parser.parse_args()
    plan = Plan(
        given.seed, given.seconds, given.streams, given.every, given.pause, given.deterministic
    )
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary) / "model"
        model.mkdir()
        reference = save_servable_model("llama3", model)
        course = run(plan, model, given.logs or Path(temporary) / "logs")
    tie = None if plan.is_deterministic else partial(is_tie, reference)
    broken = broken_promises(course, tie)
    print(table(course))
    for sentence in longest_waits(course):
        print(sentence)
    for sentence in failed_with_their_coordinator(course):
        print(f"not resumable: {sentence}")
    for sentence in broken:
        print(f"BROKEN: {sentence}")
    summary = {
        "seed": plan.seed,
        "seconds": plan.seconds,
        "streams": plan.num_streams,
        "deterministic": plan.is_deterministic,
        **figures(course),
        "broken_promises": len(broken),
        "machine": machine("torch", "transformers", "redis", "pyzmq", "httpx"),
    }
    print(json.dumps(summary))
    if given.save:
        RESULTS.write_text(json.dumps(summary, indent=1) + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
