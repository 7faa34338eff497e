"""A cluster of the last release is replaced by this one, process by process, under load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from protocol.trust.versions import PROTOCOL_VERSION
from tests.support.processes.clusters import start_cluster
from tests.support.processes.coordinators import NUM_STREAMS, Pair, restart_under_streams
from tests.support.processes.ready_proxies import tiny_proxy
from tests.support.processes.releases import ReleaseStart, last_release

pytestmark = pytest.mark.verify


@pytest.fixture
def start(tmp_path: Path) -> ReleaseStart:
    """How processes of the last release are started."""
    return last_release(tmp_path)


@pytest.fixture
def pair(
    start: ReleaseStart,
    tmp_path_factory: pytest.TempPathFactory,
    random_model: tuple[Path, PreTrainedModel],
) -> Iterator[Pair]:
    """Two prefill and two decode nodes and two coordinators, all of the last release."""
    cluster = start_cluster(
        tmp_path_factory,
        random_model[0],
        2,
        2,
        start=start,
        makes_secret=True,
        max_total_tokens="16384",
    )
    try:
        yield Pair(cluster, random_model)
    finally:
        cluster.local.stop()


def test_every_process_is_upgraded_and_no_stream_fails(pair: Pair, start: ReleaseStart) -> None:
    def spoken() -> dict[str, int | None]:
        return {name: node.get("protocol") for name, node in pair.cluster.nodes().items()}

    def upgrade() -> None:
        start.is_upgraded = True
        pair.roll_nodes("p0", "d0")
        assert spoken().keys() == {"p0", "p1", "d0", "d1"}, "older coordinators take newer nodes"
        pair.roll_coordinators()
        assert spoken().keys() == {"p0", "p1", "d0", "d1"}, "newer coordinators take older nodes"
        pair.roll_nodes("p1", "d1")

    assert start.num_old == 6, "two coordinators and four nodes of the last release"
    old = {name: node["incarnation"] for name, node in pair.cluster.nodes().items()}
    with tiny_proxy(pair.ports) as url:
        assert restart_under_streams(pair, url, upgrade) > NUM_STREAMS
    assert set(spoken().values()) == {PROTOCOL_VERSION}
    new = {name: node["incarnation"] for name, node in pair.cluster.nodes().items()}
    assert all(new[name] > old[name] for name in old)
    assert pair.cluster.stats()["refused_nodes"] == []
    pair.cluster.wait_until_idle()
