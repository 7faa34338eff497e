"""Attacks a real cluster: `python -m tests.attack`. Ends with one JSON line; exit code 1 if one
attack had an effect."""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback

import pytest

from infra.models import EMBEDDED
from tests.attack.attacks import ATTACKS, outsiders_ask
from tests.attack.target import Target
from tests.support.processes.clusters import start_cluster


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="how often each attack is made")
    given = parser.parse_args()
    directories = pytest.TempPathFactory.from_config(
        pytest.Config.fromdictargs({}, []), _ispytest=True
    )
    return attack(directories, given.rounds)


def attack(directories: pytest.TempPathFactory, rounds: int) -> int:
    """Returns the exit status."""
    effects: dict[str, str] = {}
    began = time.monotonic()
    require_effect_without_a_secret(directories)
    cluster = start_cluster(directories, EMBEDDED, 1, 2, makes_secret=True, kv_backend="auto")
    try:
        target = Target(cluster)
        for _ in range(rounds):
            for each in ATTACKS:
                try:
                    with target.unharmed():
                        each(target)
                    print(f"no effect: {each.__doc__}")
                except Exception:
                    effects[each.__name__] = traceback.format_exc()
                    print(f"EFFECT: {each.__doc__}\n{effects[each.__name__]}")
        refusals = target.refusals()
    finally:
        cluster.local.stop()
    summary = {
        "attacks": len(ATTACKS),
        "rounds": rounds,
        "with_effect": sorted(effects),
        "refusals": refusals,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(summary))
    return 1 if effects else 0


def require_effect_without_a_secret(directories: pytest.TempPathFactory) -> None:
    """Shows that the attacker is one: a cluster without a secret tells it all that it asks for."""
    cluster = start_cluster(directories, EMBEDDED, 1, 1)
    try:
        outsiders_ask(Target(cluster))
    except AssertionError as error:
        print(f"without a secret: {error}")
    else:
        raise AssertionError("the attacker gets nothing from a cluster without a secret either")
    finally:
        cluster.local.stop()


if __name__ == "__main__":
    sys.exit(main())
