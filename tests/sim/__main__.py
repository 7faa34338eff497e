"""Many lives, or one in detail: `python -m tests.sim --seeds 10000`, `--seed 7 --trace`.

Prints what failed, shrunk to the faults that it needs, and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import traceback
from collections import Counter

from tests.sim.checks import Wrong
from tests.sim.life import live, plan_of
from tests.sim.shrink import failure_of, shrunk


def main() -> int:
    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many lives")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="only this life")
    parser.add_argument("--trace", action="store_true", help="print the timeline of the life")
    given = parser.parse_args()
    if given.seed is not None:
        return _one(given.seed, given.trace)
    return _many(range(given.first, given.first + given.seeds))


def _many(seeds: range) -> int:
    began = time.process_time()
    failures: dict[int, str] = {}
    totals: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    for seed in seeds:
        plan = plan_of(seed)
        try:
            outcome = live(plan)
        except (Exception, Wrong) as error:
            failures[seed] = f"{type(error).__name__}: {error}"
            continue
        totals.update(requests=outcome.num_requests, faults=outcome.num_faults)
        totals.update(answered=outcome.num_answered, pages=outcome.num_pages_moved)
        totals.update(forced=outcome.num_forced_tokens, copied=outcome.num_copied_pages)
        ends.update(outcome.ends)
    seconds = time.process_time() - began
    for seed, failure in list(failures.items())[:10]:
        print(f"seed {seed}: {failure}")
        for fault in shrunk(plan_of(seed)).faults:
            print(f"    {fault}")
    lives = len(seeds)
    figures = {
        "lives": lives,
        "failed": sorted(failures),
        "lives_per_s": round(lives / seconds, 1),
        "requests_per_life": round(totals["requests"] / lives, 1),
        "faults_per_life": round(totals["faults"] / lives, 2),
        "answered": totals["answered"],
        "pages_moved": totals["pages"],
        "forced_tokens": totals["forced"],
        "ends": dict(ends.most_common()),
    }
    print(json.dumps(figures))
    return 1 if failures else 0


def _one(seed: int, trace: bool) -> int:
    plan = plan_of(seed)
    print(plan.settings)
    if not failure_of(plan):
        print("nothing goes wrong")
    else:
        plan = shrunk(plan)
        print(f"needs {len(plan.faults)} faults")

    def tell(now: float, line: str) -> None:
        if trace:
            print(f"{now:9.4f}  {line}")

    try:
        print(live(plan, tell=tell))
    except (Exception, Wrong):
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
