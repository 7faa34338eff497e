"""What the demo claims of prompts that begin alike, on figures that hold it and that do not."""

from __future__ import annotations

import dataclasses

import pytest

from infra.demo.reuse import ReusedPrompt, problem_with, shared_in_pages

PAIR = ReusedPrompt(208, 216, 209, 0.04, 0.01, "p0", "p0")
COLD_TOKENS = 3 * 220
COMPUTED = COLD_TOKENS + 3 * 8


def pairs(**changes: object) -> list[ReusedPrompt]:
    """Three pairs, of which the last two are changed."""
    return [PAIR, *2 * [dataclasses.replace(PAIR, **changes)]]  # type: ignore[arg-type]


def test_a_demo_that_holds() -> None:
    assert problem_with(pairs(), COMPUTED, COLD_TOKENS, checks_times=True) == ""


@pytest.mark.parametrize("checks_times", [True, False])
def test_what_is_computed_twice_is_told(checks_times: bool) -> None:
    def problem(of: list[ReusedPrompt], computed: int) -> str:
        return problem_with(of, computed, COLD_TOKENS, checks_times)

    assert "192 of 208" in problem(pairs(cached_tokens=192), COMPUTED)
    assert f"{COMPUTED + 1} tokens" in problem(pairs(), COMPUTED + 1)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [({"warm_s": 0.05}, "not faster"), ({"computed_by": "p1"}, "not computed where")],
)
def test_times_and_routes_count_unless_the_machine_is_busy(
    changes: dict[str, object], problem: str
) -> None:
    slow = pairs(**changes)
    assert problem in problem_with(slow, COMPUTED, COLD_TOKENS, checks_times=True)
    assert problem_with(slow, COMPUTED, COLD_TOKENS, checks_times=False) == ""


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [("", "", 0), ("abcdefgh", "abcdefgh", 8), ("abcdefgh", "abcdefgx", 4), ("xbc", "abc", 0)],
)
def test_shared_tokens_are_whole_pages(first: str, second: str, shared: int) -> None:
    assert shared_in_pages(list(first.encode()), list(second.encode()), 4) == shared
