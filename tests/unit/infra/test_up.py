"""What `kvrelay up` starts, from its flags."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from coordinator.key_file import read_keys
from infra.cluster import ClusterPlan, LocalCluster
from infra.models import EMBEDDED
from infra.up import plan
from protocol.errors import UserError


def sizes(
    monkeypatch: pytest.MonkeyPatch, flags: Mapping[str, str], environment: Mapping[str, str]
) -> dict[str, str]:
    """The size that each node is told; "" if it is not."""
    started: dict[str, str] = {}
    cluster = LocalCluster(plan(flags, environment))

    def start_process(role: str, name: str, flags: Mapping[str, str]) -> None:
        started[name] = flags.get("tensor_parallel_size", "")

    monkeypatch.setattr(cluster, "start_process", start_process)
    cluster.start_node("prefill", "p0")
    cluster.start_node("decode", "d0")
    return started


def test_prefill_and_decode_nodes_may_have_sizes_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert sizes(monkeypatch, {}, {}) == {"p0": "", "d0": ""}
    both = {"tensor_parallel_size": "2"}
    assert sizes(monkeypatch, both, {}) == {"p0": "2", "d0": "2"}
    decode = both | {"decode_tensor_parallel_size": "1"}
    assert sizes(monkeypatch, decode, {}) == {"p0": "2", "d0": "1"}
    variable = {"KVRELAY_PREFILL_TENSOR_PARALLEL_SIZE": "1"}
    assert sizes(monkeypatch, both, variable) == {"p0": "1", "d0": "2"}


def test_a_local_cluster_shares_its_memory_out(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Mapping[str, str]] = []
    cluster = LocalCluster(ClusterPlan(2, 2, "127.0.0.1", 1))
    monkeypatch.setattr(cluster, "start_process", lambda role, name, flags: started.append(flags))
    cluster.start_node("prefill", "p0")
    monkeypatch.setenv("KVRELAY_MEMORY_SHARE", "0.9")
    cluster.start_node("prefill", "p1")
    assert float(started[0]["memory_share"]) == 0.25
    assert "memory_share" not in started[1], "the variable counts"


@pytest.mark.parametrize(
    ("flags", "config", "words"),
    [
        ({}, {"architectures": ["GPTNeoXForCausalLM"]}, ["GPTNeoXForCausalLM", "LlamaForCausalLM"]),
        ({}, {"quantization_config": {"quant_method": "awq"}}, ["quantised", "bfloat16"]),
        ({"tensor_parallel_size": "4"}, {}, ["6 attention heads", "4 ranks"]),
        ({"tensor_parallel_size": "3"}, {}, ["2 KV heads", "3 ranks"]),
        ({"decode_tensor_parallel_size": "4"}, {}, ["6 attention heads", "4 ranks"]),
        ({"context_length": "1000000"}, {}, ["--context-length is 1000000", "at most"]),
        (
            {"trust_remote_code": "true"},
            {"architectures": ["NewForCausalLM"], "auto_map": {"AutoModel": "modeling.New"}},
            ["NewForCausalLM", "--trust-remote-code does not help"],
        ),
    ],
)
def test_what_config_json_rules_out_is_refused_before_any_process_starts(
    flags: Mapping[str, str], config: Mapping[str, Any], words: list[str], tmp_path: Path
) -> None:
    """The directory has no weights and no tokenizer: nothing but its config.json was looked at."""
    written = json.loads((EMBEDDED / "config.json").read_text()) | config
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(UserError) as refused:
        plan({"model_path": str(tmp_path), **flags}, {})
    for word in words:
        assert word in str(refused.value)


def test_trust_remote_code_is_answered_with_one_line() -> None:
    (note,) = plan({"trust_remote_code": "true"}, {}, lambda _: 0).notes
    assert "no code that comes with a model is ever run" in note and "LlamaForCausalLM" in note
    assert plan({}, {}, lambda _: 0).notes == ()


def test_a_file_of_api_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    flags = {"api_key_file": str(file)}
    with pytest.raises(UserError, match="cannot be read"):
        plan(flags, {})
    file.write_text("# nobody's\n\n")
    with pytest.raises(UserError, match="has no key"):
        plan(flags, {})
    file.write_text("# team a\nfirst\n second \n")
    planned = plan(flags, {})
    assert planned.api_key == "first", "the launcher asks its coordinator with it"
    assert "first" not in str(planned.coordinator_flags), "no key is on a command line"
    assert read_keys(str(file)) == ("first", "second")
