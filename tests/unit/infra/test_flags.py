"""What the command makes of flags."""

from __future__ import annotations

import pytest

from coordinator.config import CoordinatorConfig
from infra import models
from infra.cli import main, read_arguments
from node.config import NodeConfig
from protocol.config import describe, resolve
from protocol.model.directory import ModelDirectoryError


def refusal_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit:
        read_arguments(words)
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, "one sentence"
    return said


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--chat-templat", "--chat-template"),
        ("--stream-outpu", "--stream-output"),
        ("--prot", "--port"),
        ("--tensor-paralel-size=2", "--tensor-parallel-size"),
        ("--speculative-algoritm", "--speculative-algorithm"),
    ],
)
def test_a_flag_that_is_misspelt_is_none(
    flag: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of a flag's name is no flag either: a typo must not start something else."""
    said = refusal_of(["up", flag, "1"], capsys)
    assert f"no flag {flag.partition('=')[0]} (did you mean {meant}?)" in said


def test_a_flag_of_another_command_is_told_apart_from_a_typo(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = refusal_of(["coordinator", "--mem-fraction-static", "0.5"], capsys)
    assert "`kvrelay up`, `kvrelay prefill`, `kvrelay decode`" in said
    assert "did you mean" not in refusal_of(["stats", "--zzzzzz"], capsys)
    assert "unexpected argument 'now'" in refusal_of(["stats", "now"], capsys)


@pytest.mark.parametrize("flag", ["--tensor-parallel-size", "--tp-size", "--tp"])
def test_flags_and_values_have_the_names_that_users_of_sglang_type(flag: str) -> None:
    typed = [flag, "2", "--dtype", "half", "--log-level", "WARN", "--model", "/m"]
    _, settings = read_arguments(["up", *typed])
    config = resolve(NodeConfig, settings, {})
    assert (config.tensor_parallel_size, config.dtype) == (2, "float16")
    assert (config.log_level, config.model_path) == ("warning", "/m")


def test_api_keys_are_joined_and_never_shown() -> None:
    _, settings = read_arguments(["coordinator", "--api-key", "one,two", "--api-key", "three"])
    config = resolve(CoordinatorConfig, settings, {"KVRELAY_API_KEY": "other"})
    assert config.api_key == ("one", "two", "three")
    assert resolve(CoordinatorConfig, {}, {"KVRELAY_API_KEY": "a, b"}).api_key == ("a", "b")
    told = describe(config)
    assert "api_key=***" in told and "two" not in told


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["demo", "--port", "99999"], "--port is 99999; it must be between 1 and 65535"),
        (["up", "--prefill", "1000", "--decode", "25"], "--decode are 1000 and 25; one host may"),
        (["coordinator", "--control-port", "-1"], "--control-port is -1; it must be between 0"),
    ],
)
def test_what_a_process_cannot_start_with_is_one_sentence(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(words)
    said = capsys.readouterr().err
    assert exit.value.code == 1 and said.count("\n") == 1
    assert said.startswith("kvrelay: --") and says in said


@pytest.mark.parametrize("path", ["A" * 5000, "/" + "A" * 5000, "org/" + "A" * 5000])
def test_a_path_that_no_file_can_have_is_told(path: str) -> None:
    with pytest.raises(
        ModelDirectoryError, match=r"--model-path '.* \(File name too long\); check"
    ):
        models.path(path, with_weights=False)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out.startswith("kvrelay ")


@pytest.mark.parametrize("command", ["up", "coordinator", "decode", "generate", "explain", "audit"])
def test_every_flag_has_a_help_text(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    flags = [i for i, line in enumerate(lines) if line.startswith("  --")]
    assert flags
    for i in flags:
        has_text = "  " in lines[i].strip() or lines[i + 1].startswith(" " * 20)
        assert has_text, lines[i]
