"""A cluster secret is replaced while the cluster serves: process after process starts again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from protocol.channel import Channel, PeerUnreachable
from protocol.ids import Attempt
from protocol.messages import Cancel
from protocol.trust.secrets import ClusterSecrets
from tests.support.processes.clusters import Cluster, start_cluster, wait_until

pytestmark = pytest.mark.verify
NEW = "the secret that comes after the first one"
PROMPT = list(range(20, 60))


@pytest.fixture
def cluster(
    tmp_path_factory: pytest.TempPathFactory, random_model: tuple[Path, PreTrainedModel]
) -> Iterator[Cluster]:
    cluster = start_cluster(tmp_path_factory, random_model[0], 1, 2, makes_secret=True)
    yield cluster
    cluster.local.stop()


def restart_coordinator(cluster: Cluster) -> None:
    """Ends the coordinator in order, and starts another one in its place."""
    cluster.local.children["coordinator"].terminate()
    cluster.local.children["coordinator"].wait()
    plan = cluster.local.plan
    flags = {**plan.coordinator_flags, "host": plan.host, "port": str(plan.port)}
    cluster.local.start_process("coordinator", "coordinator", flags)
    cluster.local.wait_for_nodes()


def test_a_secret_is_replaced_and_everybody_goes_on(cluster: Cluster) -> None:
    expected = cluster.generate(PROMPT)["output_ids"]
    file = cluster.local.secret_file
    assert file is not None
    old = file.read_text().strip()
    file.write_text(f"{NEW}\n{old}\n")
    for name in ("d0", "p0", "d1"):
        cluster.kill(name)
        cluster.restart_killed_nodes()
        assert cluster.generate(PROMPT)["output_ids"] == expected, f"after {name}"
    restart_coordinator(cluster)
    assert cluster.generate(PROMPT)["output_ids"] == expected
    file.write_text(f"{NEW}\n")
    assert cluster.generate(PROMPT)["output_ids"] == expected
    addresses = [node["control_address"] for node in cluster.nodes().values()]
    assert len(addresses) == 3
    late = Channel("127.0.0.1", secrets=ClusterSecrets((old,)))
    try:
        for address in addresses:
            with pytest.raises(PeerUnreachable, match="another cluster secret"):
                late.send(address, Cancel(Attempt("r", 1)))
    finally:
        late.close()
    wait_until(lambda: cluster.stats()["refusals"] == 0, "a coordinator that refused nobody")
