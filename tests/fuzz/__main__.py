"""Generated requests and garbled bytes, as long as is asked: `python -m tests.fuzz --seconds 300`.

Each round runs the properties of what comes from outside with a new seed; the first failure ends
them, and tells the seed. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

FILES = (
    "tests/property/documents",
    "tests/property/records",
    "tests/property/coordinator/test_any_words.py",
    "tests/property/coordinator/test_bodies_of_v1.py",
    "tests/property/kvtransfer/test_any_link_bytes.py",
    "tests/property/node/ranks/test_any_rank_bytes.py",
    "tests/property/node/test_any_board.py",
    "tests/property/node/test_any_messages.py",
)
ROUND_LIMIT_S = 600
"""A round that takes longer hangs."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="no round begins later")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first round")
    given = parser.parse_args()
    began, num_rounds, has_failed = time.monotonic(), 0, False
    while not has_failed and time.monotonic() < began + given.seconds:
        has_failed = not passes(given.seed + num_rounds)
        num_rounds += 1
    figures = {
        "rounds": num_rounds,
        "seconds": round(time.monotonic() - began),
        "failed_seed": given.seed + num_rounds - 1 if has_failed else None,
    }
    print(json.dumps(figures))
    return int(has_failed)


def passes(seed: int) -> bool:
    """Runs one round, whose output is that of the tests."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--show-capture=no", *FILES]
    command += ["--hypothesis-profile", "full", f"--hypothesis-seed={seed}"]
    try:
        return subprocess.run(command, timeout=ROUND_LIMIT_S).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"the round hangs: seed {seed}")
        return False


if __name__ == "__main__":
    sys.exit(main())
