"""What the command makes of flags."""

from __future__ import annotations

import pytest

from infra.cli import _parser


@pytest.mark.parametrize("flag", ["--chat-templat", "--stream-outpu", "--prot"])
def test_a_flag_that_is_misspelt_is_none(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of a flag's name is no flag either: a typo must not start something else."""
    with pytest.raises(SystemExit):
        _parser().parse_args(["up", flag, "1"])
    assert flag in capsys.readouterr().err
