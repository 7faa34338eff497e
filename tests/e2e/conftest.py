"""The clusters that tests share: one with a random small model, one with the embedded model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from infra.models import EMBEDDED
from tests.support.processes.clusters import Cluster, save_servable_model, start_cluster


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    """A Llama with random weights, served from its directory, and the reference of its tokens."""
    path = tmp_path_factory.mktemp("random-llama")
    return path, save_servable_model("llama3", path)


@pytest.fixture(scope="session")
def pair_cluster(
    tmp_path_factory: pytest.TempPathFactory, random_model: tuple[Path, PreTrainedModel]
) -> Iterator[Cluster]:
    """One prefill and one decode node with the random model: what moves can be counted. They have a
    cluster secret, so that all that they say goes that way."""
    cluster = start_cluster(
        tmp_path_factory,
        random_model[0],
        1,
        1,
        chunked_prefill_size="256",
        max_total_tokens="32768",
        makes_secret=True,
    )
    yield cluster
    cluster.local.stop()


@pytest.fixture(scope="session")
def tiny_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two prefill and two decode nodes with the embedded model, in the dtype of its reference."""
    cluster = start_cluster(tmp_path_factory, EMBEDDED, 2, 2, dtype="float32")
    yield cluster
    cluster.local.stop()
