"""Instructor and LiteLLM, unchanged, in an environment of their own, which `make verify` makes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes.clusters import Cluster

ROOT = Path(__file__).resolve().parents[3]
APPLICATIONS = Path(os.environ.get("KVRELAY_APPLICATIONS", ROOT / ".venv-applications"))
PYTHON = APPLICATIONS / "bin" / "python"
PROGRAMS = Path(__file__).with_name("programs.py")
TIMEOUT_S = 120.0
QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
"""Keeps LiteLLM from asking the internet for prices."""

pytestmark = [
    pytest.mark.verify,
    pytest.mark.skipif(
        not PYTHON.exists(), reason="the packages are not installed; `make verify` installs them"
    ),
]


def run(cluster: Cluster, name: str) -> dict[str, Any]:
    """Runs one of the programs; what it printed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(
        [PYTHON, PROGRAMS, cluster.local.url, name],
        env=environment | QUIET,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    result = json.loads(ended.stdout.splitlines()[-1])
    assert isinstance(result, dict)
    return result


@pytest.mark.parametrize("mode", ["tools", "json_schema"])
def test_instructor_makes_objects_of_answers(tiny_cluster: Cluster, mode: str) -> None:
    given = run(tiny_cluster, f"instructor_{mode}")
    for person in (given["whole"], given["streamed"]):
        assert isinstance(person["name"], str) and 0 <= person["age"] <= 120


def test_litellm_answers_a_chat(tiny_cluster: Cluster) -> None:
    given = run(tiny_cluster, "litellm_chat")
    prompt, completion, total = given["tokens"]
    assert "Bramo" in given["text"] and given["finish_reason"] == "stop"
    assert total == prompt + completion and 0 <= given["cached"] < prompt


@pytest.mark.parametrize("name", ["stream", "event_loop"])
def test_a_stream_of_litellm_is_the_same_answer(tiny_cluster: Cluster, name: str) -> None:
    given = run(tiny_cluster, f"litellm_{name}")
    assert given["text"] == given["whole"] and "Bramo" in given["text"]


def test_litellm_forces_a_call(tiny_cluster: Cluster) -> None:
    given = run(tiny_cluster, "litellm_tools")
    assert given["name"] == "weather" and isinstance(given["arguments"]["place"], str)


def test_litellm_knows_a_chat_beyond_the_context(tiny_cluster: Cluster) -> None:
    given = run(tiny_cluster, "litellm_error")
    assert given["status"] == 400 and "at most" in given["message"]
