"""What agents write anew into each request is taken out of chats, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.conversation.agent_headers import without_agent_header

LINE = "x-anthropic-billing-header: cc_version=2.1.175.4f0; cc_entrypoint=cli; cch=eb6c6;"
USER = {"role": "user", "content": "Hello"}


def system(content: object) -> dict[str, Any]:
    return {"role": "system", "content": content}


def part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("first", "kept"),
    [
        (system(f"{LINE}\nBe brief."), [system("Be brief.")]),
        (system(f"\n{LINE}\n\nBe brief."), [system("Be brief.")]),
        (system([part(LINE), part("Be brief.")]), [system([part("Be brief.")])]),
        (system([part(f"{LINE}\nBe"), part("brief.")]), [system([part("Be"), part("brief.")])]),
        (system(LINE), []),
        (system([part(LINE)]), []),
        ({"role": "developer", "content": f"{LINE}\nBe"}, [{"role": "developer", "content": "Be"}]),
    ],
)
def test_the_line_is_taken_out(first: dict[str, Any], kept: list[dict[str, Any]]) -> None:
    assert list(without_agent_header([first, USER])) == [*kept, USER]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [USER],
        [{"role": "user", "content": LINE}],
        [system("Be brief."), system(LINE)],
        [system(f"Be brief.\n{LINE}")],
        [system([part("Be brief."), part(LINE)])],
        [system([{"type": "image"}])],
        [system(None)],
        ["no message"],
    ],
)
def test_everything_else_stays(messages: list[Any]) -> None:
    assert without_agent_header(messages) is messages
