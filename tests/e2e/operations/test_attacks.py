"""What somebody tries who reaches the ports of a cluster; `make attack` tries it over and over."""

from __future__ import annotations

import pytest

from tests.attack.attacks import ATTACKS, Attack
from tests.attack.target import Target
from tests.support.processes.clusters import Cluster


@pytest.fixture(scope="module")
def target(pair_cluster: Cluster) -> Target:
    return Target(pair_cluster)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_an_attack_has_no_effect(target: Target, attack: Attack) -> None:
    with target.unharmed():
        attack(target)
