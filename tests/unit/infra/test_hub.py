"""A model named as org/name comes from the Hugging Face hub, or a sentence says why it does not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects

from coordinator.answers.template_sources import template_sources
from infra import hub, models
from protocol.model.directory import ModelDirectoryError

HTTP_CLIENT_ERROR = errors.HfHubHTTPError.__bases__[0]
"""Of httpx, httpx2 or requests, whichever the library uses."""


FILES = {
    "config.json": json.dumps({"architectures": ["LlamaForCausalLM"]}),
    "model.safetensors": "",
    "pytorch_model.bin": "",
    "consolidated.safetensors": "",
    "onnx/config.json": "{}",
    "original/model.safetensors": "",
    "chat_template.jinja": "the default",
    "qwen.tiktoken": "",
    "additional_chat_templates/tool_use.jinja": "with tools",
    "small.gguf": "",
    "large/large-00001-of-00002.gguf": "",
    "large/large-00002-of-00002.gguf": "",
}
"""What the repository org/name has on the hub."""


class FakeHub:
    """Stands for `snapshot_download`: a directory with the files asked for, or an error of the
    library's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.error: Exception | None = None
        self.asked: list[dict[str, Any]] = []

    def __call__(self, repo_id: str, **arguments: Any) -> str:
        self.asked.append({"repo_id": repo_id, **arguments})
        if self.error is not None:
            raise self.error
        allowed, ignored = arguments["allow_patterns"], arguments.get("ignore_patterns")
        wanted = filter_repo_objects(FILES, allow_patterns=allowed, ignore_patterns=ignored)
        for name in wanted:
            (self.directory / name).parent.mkdir(exist_ok=True)
            (self.directory / name).write_text(FILES[name])
        return str(self.directory)

    def files(self) -> set[str]:
        """Returns the names of the files that were fetched so far."""
        files = (file for file in self.directory.rglob("*") if file.is_file())
        return {file.relative_to(self.directory).as_posix() for file in files}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return fake


def http_error(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    request = httpx.Request("GET", "https://huggingface.co/api/models/org/name")
    return kind("Client Error", response=httpx.Response(status, request=request))  # type: ignore


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("meta-llama/Llama-3.1-8B", True),
        ("models", False),
        ("/models/tiny", False),
        ("./models/tiny", False),
        ("a/b/c", False),
        ("org/name/model-Q4_K_M.gguf", True),
        ("org/name/folder/model-00001-of-00002.gguf", True),
        ("org/model.gguf", False),
        ("/org/name/model.gguf", False),
        ("org/name/../model.gguf", False),
        ("", False),
    ],
)
def test_what_is_a_hub_id(name: str, is_one: bool) -> None:
    assert hub.is_hub_id(name) is is_one


def test_a_directory_goes_before_a_hub_id(
    fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = tmp_path / "org" / "name"
    local.mkdir(parents=True)
    (local / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert models.path("org/name", with_weights=True) == "org/name"
    assert models.served_name("org/name") == ""
    assert not fake.asked


def test_only_the_files_that_are_needed_are_fetched(fake: FakeHub) -> None:
    small = {
        "config.json",
        "chat_template.jinja",
        "qwen.tiktoken",
        "additional_chat_templates/tool_use.jinja",
    }
    assert models.path("org/name", with_weights=False) == str(fake.directory)
    assert fake.files() == small
    assert models.path("org/name", with_weights=True) == str(fake.directory)
    assert fake.files() == {*small, "model.safetensors"}
    assert models.served_name("org/name") == "org/name"


def test_a_file_in_gguf_is_fetched_alone(fake: FakeHub) -> None:
    assert hub.fetch("org/name/small.gguf", with_weights=False) == fake.directory / "small.gguf"
    assert fake.files() == {"small.gguf"}
    assert models.served_name("org/name/small.gguf") == "org/name/small.gguf"
    assert [one["repo_id"] for one in fake.asked] == ["org/name"]


def test_of_a_split_set_nodes_have_all_parts_and_others_the_first(fake: FakeHub) -> None:
    first, second = (f"large/large-0000{i}-of-00002.gguf" for i in (1, 2))
    assert hub.fetch(f"org/name/{second}", with_weights=False) == fake.directory / first
    assert fake.files() == {first}
    assert hub.fetch(f"org/name/{second}", with_weights=True) == fake.directory / first
    assert fake.files() == {first, second}


def test_a_file_that_the_hub_does_not_have(fake: FakeHub) -> None:
    with pytest.raises(ModelDirectoryError, match=r"org/name has no other\.gguf .*/tree/main"):
        hub.fetch("org/name/other.gguf", with_weights=True)


def test_named_chat_templates_are_fetched_of_the_same_commit(fake: FakeHub) -> None:
    path = models.path("org/name", with_weights=False)
    assert template_sources(Path(path), "") == {"default": "the default", "tool_use": "with tools"}
    assert [asked.get("revision") for asked in fake.asked] == [None, fake.directory.name]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            http_error(errors.GatedRepoError, 403),
            r"org/name is gated: accept its terms at https://huggingface\.co/org/name.*HF_TOKEN",
        ),
        (
            http_error(errors.RepositoryNotFoundError, 401),
            r"no directory org/name, nor a model.*spelling.*private.*set HF_TOKEN",
        ),
        (errors.LocalEntryNotFoundError("no route"), r"cannot be reached \(no route\).*network"),
        (http_error(errors.HfHubHTTPError, 500), r"could not be fetched.*try again"),
        (HTTP_CLIENT_ERROR("reset by peer"), r"could not be fetched.*\(reset by peer\); try again"),
        (OSError("disk is full"), r"could not be fetched.*\(disk is full\)"),
        (errors.HFValidationError("a..b"), r"cannot serve org/name \(a\.\.b\); check --model-path"),
    ],
)
def test_every_refusal_says_what_to_do(fake: FakeHub, error: Exception, says: str) -> None:
    fake.error = error
    with pytest.raises(ModelDirectoryError, match=says):
        models.path("org/name", with_weights=True)


def test_a_token_that_is_no_use_is_mentioned(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    fake.error = http_error(errors.RepositoryNotFoundError, 404)
    with pytest.raises(ModelDirectoryError, match="HF_TOKEN's cannot"):
        models.path("org/name", with_weights=True)


def test_offline_for_real(tmp_path: Path) -> None:
    """The library reads the variable when it is imported, so in a process of its own."""
    script = "from infra import models; models.path('org/name', with_weights=True)"
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert re.search(r"HF_HUB_OFFLINE is set and org/name is not in the cache", ended.stderr)
