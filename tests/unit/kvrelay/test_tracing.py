"""What is found out of a program before it runs: its constant prefix and its branches."""

from __future__ import annotations

import json
from typing import Any

import pytest

import kvrelay
from kvrelay import Program, ProgramState, ScriptedBackend, gen, select
from kvrelay.language.tracing import Trace


def traced(body: Any, **known: Any) -> Trace:
    return Program(body).trace(**known)


def test_the_prefix_ends_at_the_first_argument_however_it_is_written() -> None:
    def formatted(s: ProgramState, name: str) -> None:
        s += f"I am {name:>9}"

    def joined(s: ProgramState, name: str) -> None:
        s += " ".join(["I", "am", "".join([name, "!"])])

    def changed(s: ProgramState, name: str) -> None:
        s += "I am " + name.strip().upper() + "%s" % name  # noqa: UP031

    def quoted(s: ProgramState, name: str) -> None:
        s += "I am" + json.dumps([name]).strip('["') + repr(name)

    for body in (formatted, joined, changed, quoted):
        assert traced(body).prefix.rstrip() == "I am"
        assert not traced(body).stopped_because
        known = traced(body, name="Lina").prefix
        assert known.startswith("I am") and "LINA" in known.upper()


def test_the_prefix_ends_at_the_first_generated_text() -> None:
    def body(s: ProgramState, rule: str = "short") -> None:
        s += f"Be {rule}. " + gen("a") + " and more"

    assert traced(body).prefix == "Be short. "
    assert traced(body, rule="long").prefix == "Be long. "


@pytest.mark.parametrize(
    "look",
    [
        lambda value: value == "x",
        lambda value: "x" in value,
        lambda value: len(value),
        lambda value: int(value),
        lambda value: int(f"{value}"),
        lambda value: {"x": 1}[value],
        lambda value: list(value),
        lambda value: 1 if value else 2,
        lambda value: value[0],
        lambda value: value < "x",
        lambda value: json.loads(value),
        lambda value: range(value),
    ],
)
def test_tracing_stops_where_the_program_looks_at_what_is_not_known(look: Any) -> None:
    def of_argument(s: ProgramState, value: Any) -> None:
        s += "begin "
        look(value)
        s += "end"

    def of_generated(s: ProgramState) -> None:
        s += "begin " + gen("value")
        try:
            look(s["value"])
        except KeyError:  # a program's own care does not keep tracing going
            s += "care"
        s += "end"

    for body in (of_argument, of_generated):
        trace = traced(body)
        assert trace.prefix == "begin "
        assert trace.stopped_because


def test_branches_and_what_they_need_of_each_other() -> None:
    @kvrelay.function
    def body(s: ProgramState, topic: str) -> None:
        s += "Common. "
        facts, doubts, mixed = s.fork(3)
        facts += f"Facts of {topic}:" + gen("facts")
        doubts += f"Doubts of {topic}:" + select("doubts", ["many", "few"])
        mixed += f"Both: {facts['facts']}" + gen("both")
        inner = facts.fork(2)
        inner += gen("again")

    trace = body.trace()
    assert trace.prefix == "Common. " and not trace.stopped_because
    assert [branch.parent for branch in trace.branches] == [None, 0, 0, 0, 1, 1]
    assert trace.branches[3].needs == {"facts"} and trace.branches[3].makes == ("both",)
    assert all(not trace.branches[n].needs for n in (0, 1, 2, 4, 5))
    assert trace.independent() == [(1, 2), (4, 5)]


def test_tracing_asks_nobody_and_calls_no_tool() -> None:
    called = []

    def tool(x: int) -> int:
        called.append(x)
        return x

    @kvrelay.function
    def body(s: ProgramState) -> None:
        s += kvrelay.user("Hi ") + kvrelay.assistant(kvrelay.call("y", tool))
        s += f"{s['y']}"
        assert s.messages()

    backend = ScriptedBackend({}, chat_template="chatml")
    trace = body.trace(backend)
    assert trace.prefix == "<|im_start|>user\nHi <|im_end|>\n<|im_start|>assistant\n"
    assert backend.asked == backend.warmed == called == []
    assert body.warm(backend) == trace.prefix
    assert backend.warmed == [trace.prefix]


def test_endless_programs_are_traced_up_to_a_bound() -> None:
    def body(s: ProgramState) -> None:
        while True:
            s += "again "
            s += gen()

    trace = traced(body)
    assert trace.prefix == "again " and "expressions" in trace.stopped_because
