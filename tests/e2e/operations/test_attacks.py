"""What somebody tries who reaches the ports of a cluster; `make attack` tries it over and over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from tests.attack.attacks import ATTACKS, Attack
from tests.attack.target import Target
from tests.support.processes.clusters import start_cluster


@pytest.fixture(scope="module")
def target(
    tmp_path_factory: pytest.TempPathFactory, random_model: tuple[Path, PreTrainedModel]
) -> Iterator[Target]:
    """A cluster of its own: the attacker leaves its name among the peers of a node."""
    cluster = start_cluster(tmp_path_factory, random_model[0], 1, 1, makes_secret=True)
    yield Target(cluster)
    cluster.local.stop()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_an_attack_has_no_effect(target: Target, attack: Attack) -> None:
    with target.unharmed():
        attack(target)
