"""The guide's commands are commands, and a busy generator is told of."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from kvrelay.bench.config import add_to
from kvrelay.bench.generator_health import GeneratorHealth

ROOT = Path(__file__).resolve().parents[3]
GUIDE = (ROOT / "docs/guides/benchmarking.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)
ROWS = [line for line in GUIDE.splitlines() if line.startswith("| ") and "`--" in line]
FLAGS = [row.split("`")[1] for row in ROWS if "bench_serving" not in row]


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_to(parser.add_subparsers(), lambda config: None)
    return parser


def test_every_block_is_a_command_of_the_parser(parser: argparse.ArgumentParser) -> None:
    commands = [shlex.split(block.replace("\\\n", " ")) for block in BLOCKS]
    assert len(commands) >= 3
    for command in commands:
        assert command[:3] == ["kvrelay", "bench", "serve"]
        assert callable(parser.parse_args(command[1:]).run)


@pytest.mark.parametrize("flags", FLAGS)
def test_every_row_of_flags_is_taken(parser: argparse.ArgumentParser, flags: str) -> None:
    assert callable(parser.parse_args(["bench", "serve", *shlex.split(flags)]).run)


def test_the_guide_has_a_row_for_each_workload() -> None:
    assert len(FLAGS) == 3


@pytest.mark.parametrize(
    ("cpu_share", "lag_p99_ms", "is_warned"),
    [(0.1, 2.0, False), (0.95, 2.0, True), (0.1, 80.0, True)],
)
def test_a_busy_generator_is_told_of(cpu_share: float, lag_p99_ms: float, is_warned: bool) -> None:
    health = GeneratorHealth(cpu_share, 1000.0, lag_p99_ms, 0.0)
    assert ("the generator was the bottleneck" in health.warning) == is_warned
