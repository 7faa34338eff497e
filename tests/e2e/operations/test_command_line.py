"""The `kvrelay` command as people meet it: sentences, exit codes, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from infra.cluster import LocalCluster
from infra.demo.steps import Demo, StepFailed
from infra.models import EMBEDDED
from infra.ports import free_port
from infra.up import plan
from kvrelay.answers import Generated
from kvrelay.calls import Prompt
from kvrelay.client import Client
from protocol.errors import UserError
from tests.support.processes.clusters import Cluster, body_of
from tests.support.processes.commands import (
    TIMEOUT_S,
    assert_refused,
    kvrelay,
    start_kvrelay,
    start_program_of_sglang,
    started_kvrelay,
)
from tests.support.processes.forked import start_forked


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the embedded model, to spoil."""
    copy = tmp_path / "model"
    copy.mkdir()
    for path in EMBEDDED.iterdir():
        if path.suffix in (".json", ".safetensors"):
            shutil.copy(path, copy)
    return copy


def refusal_of(model: Path) -> str:
    """Returns what `kvrelay up` says when it cannot serve this model. Its processes are forked
    ones."""
    flags = {"model_path": str(model), "port": str(free_port())}
    with pytest.raises(UserError) as refused, LocalCluster(plan(flags, {}), start=start_forked):
        pass
    return str(refused.value)


def test_model_directory_missing(tmp_path: Path) -> None:
    result = kvrelay("up", "--model-path", str(tmp_path / "none"), "--port", str(free_port()))
    assert_refused(result, "no model directory", "--model-path")


def test_no_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    assert_said(refusal_of(model), "no tokenizer.json", "save_pretrained")


def test_files_that_are_no_files_of_a_model(model: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1"
    (model / "tokenizer.json").write_text(pointer)
    assert_said(refusal_of(model), "tokenizer.json cannot be read", "git lfs pull")
    (model / "config.json").write_text("[]")
    assert_said(refusal_of(model), "config.json is no JSON object")


def test_no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert_said(refusal_of(model), "safetensors")


def test_unsupported_architecture_names_what_is_supported(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["architectures"] = ["GPTNeoXForCausalLM"]
    (model / "config.json").write_text(json.dumps(config))
    assert_said(
        refusal_of(model),
        "GPTNeoXForCausalLM",
        "LlamaForCausalLM",
        "Qwen3ForCausalLM",
    )


@pytest.mark.verify
def test_a_child_that_dies_at_start_leaves_nothing_running(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    assert_refused(
        started_kvrelay("up", "--model-path", str(model), "--port", str(free_port())),
        "its last lines",
        "cannot be read",
    )
    assert not [p for p in psutil.process_iter() if str(model) in " ".join(command_of(p))]


def test_port_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert_refused(kvrelay("up", "--port", port), f"port {port}", "taken by process", "--port")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--quantization", "hqq"], ["--quantization is 'hqq'; it must be one of none, fp8"]),
        (["--page-size", "17"], ["--page-size", "power of two"]),
        (["--port", "http"], ["--port", "whole number"]),
        (["--dtype", "int8"], ["--dtype", "bfloat16"]),
        (["--mem-fraction-static", "1.5"], ["--mem-fraction-static", "between 0 and 1"]),
        (["--chunked-prefill-size", "-1"], ["--chunked-prefill-size", "0 or more"]),
        (["--kv-min-send-bytes", "-1"], ["--kv-min-send-bytes", "0 or more"]),
        (["--decode", "0"], ["--decode", "at least 1"]),
        (["--tensor-parallel-size", "0"], ["--tensor-parallel-size", "at least 1"]),
        (["--decode-tensor-parallel-size", "-1"], ["--decode-tensor-parallel-size", "0 or more"]),
        (["--context-length", "-1"], ["--context-length", "0 or more"]),
        (["--attention-backend", "fast"], ["--attention-backend", "varlen"]),
        (["--load-format", "bitsandbytes"], ["--load-format", "dummy"]),
        (["--redis-url", "redis://127.0.0.1:1/0"], ["no Redis answers", "--redis-url"]),
        (["--redis-url", "localhost:6379"], ["--redis-url", "redis://"]),
        (["--kv-backend", "nccl", "--device", "cpu"], ["--kv-backend", "CUDA"]),
        (["--host", "no.such.host.invalid"], ["--host", "cannot be used"]),
        (["--name", "x"], ["--name", "single process"]),
        (["--tp", "4"], ["6 attention heads", "--tensor-parallel-size"]),
        (["--max-total-tokens", "1000000000000"], ["--max-total-tokens", "GiB", "at most"]),
        (["--cors-origin", "chat.example.com"], ["--cors-origin", "https://"]),
    ],
)
def test_bad_settings(flags: list[str], words: list[str]) -> None:
    assert_refused(kvrelay("up", "--port", str(free_port()), *flags), *words)


@pytest.mark.verify
def test_one_interrupt_stops_every_process() -> None:
    process = start_kvrelay("up", "--prefill", "2", "--port", str(free_port()))
    try:
        assert process.stdout is not None
        assert any("kvrelay serves at" in line for line in process.stdout)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 5  # Redis, coordinator, two prefill nodes, one decode node
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=TIMEOUT_S)
        _, alive = psutil.wait_procs(children, timeout=1.0)
        assert not alive
    finally:
        process.kill()


@pytest.mark.verify
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_of_users_of_sglang_serves_and_leaves_nothing(
    number: signal.Signals, tmp_path: Path
) -> None:
    """As they type it: other names of flags, a tensor-parallel model, keys."""
    port = free_port()
    flags = ["--tensor-parallel-size", "2", "--dtype", "half", "--log-level", "info"]
    process = start_program_of_sglang(
        ["--model-path", str(EMBEDDED), "--port", str(port), "--trust-remote-code", *flags],
        {"TMPDIR": str(tmp_path), "KVRELAY_API_KEY": "first,second"},
    )
    try:
        assert process.stdout is not None
        assert any("kvrelay serves at" in line for line in process.stdout)
        children = psutil.Process(process.pid).children(recursive=True)
        with Client(f"http://127.0.0.1:{port}", api_key="second") as client:
            assert client.generate("Once", max_new_tokens=2)
        with Client(f"http://127.0.0.1:{port}") as client, pytest.raises(UserError, match="key"):
            client.generate("Once", max_new_tokens=2)
        assert list(tmp_path.glob("kvrelay-*"))
        process.send_signal(number)
        _, errors = process.communicate(timeout=TIMEOUT_S)
        assert errors.count("\n") == 1 and "--trust-remote-code" in errors
        _, left = psutil.wait_procs(children, timeout=1.0)
        assert not [child for child in left if is_running(child)]
        assert not list(tmp_path.iterdir())
    finally:
        process.kill()


def test_a_step_of_the_demo_that_fails_is_told(tiny_cluster: Cluster) -> None:
    class Forgetful(Client):
        def generate(self, prompt: Prompt, **params: Any) -> Generated:
            return Generated(text="I do not know.")

    local = tiny_cluster.local
    with Forgetful(local.url) as client, pytest.raises(StepFailed, match="4271"):
        Demo(local, client, Console(quiet=True)).reuse(checks_times=False)


def test_generate_and_stats(tiny_cluster: Cluster) -> None:
    url = tiny_cluster.local.url
    prompt = "<|user|>My cat is called Zorin. What is my cat called?<|end|><|assistant|>"
    answer = kvrelay("generate", prompt, "--url", url)
    assert answer.returncode == 0
    assert "Zorin" in answer.stdout
    stats = kvrelay("stats", "--url", url)
    assert stats.returncode == 0
    top = kvrelay("top", "--once", "--url", url)
    assert top.returncode == 0, top.stderr
    for name in ("p0", "p1", "d0", "d1"):
        assert name in stats.stdout and name in top.stdout
    assert json.loads(kvrelay("stats", "--json", "--url", url).stdout)["cluster"]["requests"] >= 1


def test_requests_are_listed_and_ended_by_name(tiny_cluster: Cluster) -> None:
    url = tiny_cluster.local.url
    body = body_of("Once upon a time", max_new_tokens=20_000) | {"rid": "endless", "stream": True}
    with tiny_cluster.http.stream("POST", "/generate", json=body) as response:
        events = response.iter_lines()
        next(events)
        running = kvrelay("requests", "--state", "unfinished", "--json", "--url", url)
        assert [one["rid"] for one in json.loads(running.stdout)] == ["endless"]
        assert kvrelay("abort", "endless", "--url", url).returncode == 0
        *_, last, end = filter(None, events)
    assert end == "data: [DONE]" and '"type":"abort"' in last
    listed = kvrelay("requests", "--node", "d0", "--limit", "500", "--url", url).stdout
    others = kvrelay("requests", "--node", "d1", "--limit", "500", "--url", url).stdout
    assert ("endless" in listed) != ("endless" in others), "one of the two had it"


def test_watched_stats_are_shown_again_until_an_interrupt(tiny_cluster: Cluster) -> None:
    # Wide enough for every line: a narrower terminal breaks them anywhere.
    terminal = {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
    process = start_kvrelay(
        "stats", "--watch", "--url", tiny_cluster.local.url, environment=terminal
    )
    try:
        assert process.stdout is not None
        shown = (line for line in process.stdout if "Redis" in line)
        assert all("Redis connected" in next(shown) for _ in range(3))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 130 and errors == ""
    finally:
        process.kill()


def test_help_names_the_choices() -> None:
    text = kvrelay("coordinator", "--help").stdout
    assert "--policy {cost,disaggregate,round-robin,least-loaded,longest-prefix}" in text
    assert "--log-level {debug,info,warning,error}" in text


def assert_said(said: str, *words: str) -> None:
    for word in words:
        assert word in said


@pytest.mark.parametrize("command", [["generate", "hello"], ["stats"], ["explain", "x"], ["audit"]])
def test_no_cluster_there(command: list[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert_refused(kvrelay(*command, "--url", url), "no answer", "kvrelay up")


def is_running(process: psutil.Process) -> bool:
    """False for one that has ended and waits for the init process of the host to take note."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_secret_is_made_once(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    assert kvrelay("secret", str(file)).returncode == 0
    made = file.read_text()
    again = kvrelay("secret", str(file))
    assert (again.returncode, file.read_text()) == (0, made) and "stays as it is" in again.stdout
    assert_refused(kvrelay("secret", str(tmp_path / "no" / "secret")), "cannot be written")


def test_a_process_that_all_could_use_does_not_start() -> None:
    for command in ("coordinator", "prefill"):
        refused = kvrelay(command, "--host", "0.0.0.0")
        assert_refused(refused, "--host 0.0.0.0", "--cluster-secret-file", "--insecure")
