"""Whom a process lets in, by its settings: this host alone, unless there is a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.config import CoordinatorConfig
from infra.up import plan
from node.config import NodeConfig
from protocol.config import ConfigError, describe, resolve
from protocol.trust.options import is_loopback
from protocol.trust.secrets import ClusterSecrets, make_secret_file

SECRET = "0123456789abcdef"
CONFIGS = pytest.mark.parametrize("config", [NodeConfig, CoordinatorConfig])


@CONFIGS
def test_without_a_secret_only_this_host_is_listened_to(config: type) -> None:
    for host in ("127.0.0.1", "127.3.4.5", "::1", "localhost"):
        assert resolve(config, {"host": host}, {}).host == host
    for host in ("0.0.0.0", "::", "10.0.0.7", "node.example"):
        with pytest.raises(ConfigError, match=r"--host .*--cluster-secret-file .*--insecure"):
            resolve(config, {"host": host}, {})


@CONFIGS
def test_a_secret_or_a_word_opens_others(config: type) -> None:
    open_to_all = {"host": "0.0.0.0"}
    for more in ({"cluster_secret": SECRET}, {"cluster_secret_file": "/x"}, {"insecure": "true"}):
        assert resolve(config, open_to_all | more, {}).host == "0.0.0.0"
    by_variable = resolve(config, open_to_all, {"KVRELAY_CLUSTER_SECRET": SECRET})
    assert by_variable.cluster_secret == (SECRET,)
    assert by_variable.insecure_warning("0.0.0.0") == ""
    assert "--cluster-secret-file" in resolve(
        config, open_to_all | {"insecure": "true"}, {}
    ).insecure_warning("0.0.0.0")


@CONFIGS
def test_the_secret_is_not_shown(config: type) -> None:
    assert SECRET not in describe(resolve(config, {"cluster_secret": SECRET}, {}))


def test_gloo_is_for_this_host_alone() -> None:
    gloo = {"kv_backend": "gloo", "cluster_secret": SECRET}
    assert resolve(NodeConfig, gloo, {}).kv_backend == "gloo"
    with pytest.raises(ConfigError, match="choose tcp"):
        resolve(NodeConfig, gloo | {"host": "0.0.0.0"}, {})


def test_kvrelay_up_makes_a_secret_unless_it_has_one() -> None:
    assert plan({"host": "0.0.0.0"}, {}).makes_secret
    assert not plan({"cluster_secret": SECRET}, {}).makes_secret
    assert not plan({"insecure": "true"}, {}).makes_secret


def test_a_secret_that_is_made_is_good_and_private(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    make_secret_file(file)
    assert file.stat().st_mode & 0o077 == 0
    assert len(ClusterSecrets((), str(file)).keys) == 1
    with pytest.raises(FileExistsError):
        make_secret_file(file)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "localhost.example", "128.0.0.1"])
def test_what_is_no_loopback(host: str) -> None:
    assert not is_loopback(host)
