"""SGLang's flags: each means the same here, is told, or is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from infra.cli import read_arguments
from infra.command.document import document
from infra.command.foreign_flags import ForeignFlag
from infra.command.sglang_flags import SGLANG_FLAGS
from protocol.config import ConfigError

ROOT = Path(__file__).resolve().parents[3]


def words(flag: ForeignFlag) -> list[str]:
    """The flag as it is typed, with a value that asks for something."""
    return [f"--{flag.names[-1]}", *(["7"] if flag.takes != "nothing" else [])]


def test_no_name_is_in_the_table_twice() -> None:
    count = Counter(name for flag in SGLANG_FLAGS for name in flag.names)
    assert len(count) > 200 and set(count.values()) == {1}


@pytest.mark.parametrize("flag", SGLANG_FLAGS, ids=lambda flag: flag.names[0])
def test_no_flag_of_sglang_is_silently_ignored(
    flag: ForeignFlag, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["up", *words(flag)]
    if flag.treatment == "refused":
        with pytest.raises(ConfigError, match=f"--{flag.names[-1]}.* is refused: "):
            read_arguments(typed)
        return
    _, settings = read_arguments(typed)
    told = capsys.readouterr().err
    assert bool(settings) == (flag.treatment == "translated")
    assert (" ".join(words(flag)) in told) == (flag.treatment == "ignored")


def test_a_value_that_asks_for_what_happens_anyway_is_no_news(
    capsys: pytest.CaptureFixture[str],
) -> None:
    neutral = [flag for flag in SGLANG_FLAGS if flag.neutral and flag.neutral[0][0] != "@"]
    assert len(neutral) > 20
    for flag in neutral:
        for value in flag.neutral:
            _, settings = read_arguments(["up", f"--{flag.names[0]}={value}"])
            assert not settings
    same = ["up", "--model-path", "/m", "--tokenizer-path", "/m"]
    assert read_arguments(same)[1] == {"model_path": "/m"}
    assert capsys.readouterr().err == ""
    with pytest.raises(ConfigError, match="tokenizer is that of the model directory"):
        read_arguments([*same[:-1], "/other"])


def test_a_flag_of_sglang_may_be_a_setting_of_ours() -> None:
    typed = ["up", "--base-gpu-id", "3", "--enable-deterministic-inference"]
    assert read_arguments(typed)[1] == {"device": "cuda:3", "deterministic": "true"}
    with pytest.raises(ConfigError, match="--base-gpu-id 3 contradicts --device cpu"):
        read_arguments([*typed, "--device", "cpu"])


def test_the_page_of_flags_is_what_the_table_says() -> None:
    """`python -m infra.command.document` writes it."""
    assert (ROOT / "docs/sglang-flags.md").read_text(encoding="utf-8") == document()
