"""Whatever a program appends, reads and forks, and whenever: its texts are those of the same steps
done one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kvrelay import Program, ProgramState, ScriptedBackend, gen, select
from kvrelay.language.tracing import MARK

ANSWERS = {"": "out", "a": "A", "b": "BB", "out": "over"}
LOGPROBS = {"yes": -1.0, "no": -0.5, "maybe": -2.0}
NAMES = st.sampled_from(["x", "y", "z"])

Step = tuple[Any, ...]
LEAVES: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just("text"), st.sampled_from(["a", "b", "some words, ", "é"])),
    st.tuples(st.just("gen"), NAMES),
    st.tuples(st.just("select"), NAMES, st.lists(st.sampled_from([*LOGPROBS]), min_size=1)),
    st.tuples(st.just("read"), NAMES),
)
STEPS = st.recursive(
    st.lists(LEAVES, max_size=6),
    lambda inner: st.lists(
        st.one_of(LEAVES, st.tuples(st.just("fork"), st.lists(inner, min_size=1, max_size=3))),
        max_size=5,
    ),
    max_leaves=12,
)


class Reference:
    """Does every step at once."""

    def __init__(self, text: str = "", variables: dict[str, Any] | None = None) -> None:
        self.text = text
        self.variables = dict(variables or {})
        self.branches: list[Reference] = []

    def run(self, steps: Sequence[Step]) -> None:
        for step in steps:
            match step:
                case ("text", text):
                    self.text += text
                case ("gen", name):
                    answers = [key for key in ANSWERS if self.text.endswith(key)]
                    self.add(name, ANSWERS[max(answers, key=len)])
                case ("select", name, choices):
                    self.add(name, max(choices, key=LOGPROBS.__getitem__))
                case ("read", name):
                    self.text += str(self.variables.get(name, "nothing"))
                case ("fork", parts):
                    self.fork(parts)

    def add(self, name: str, text: str) -> None:
        self.text += text
        self.variables[name] = text

    def fork(self, parts: Sequence[Sequence[Step]]) -> None:
        forks = [Reference(self.text, self.variables) for _ in parts]
        for fork, part in zip(forks, parts, strict=True):
            fork.run(part)
        new = dict.fromkeys(n for f in forks for n in f.variables if n not in self.variables)
        self.variables |= {name: [f.variables.get(name) for f in forks] for name in new}
        self.branches += forks

    def texts(self) -> list[str]:
        return [self.text, *(text for branch in self.branches for text in branch.texts())]


def run_steps(s: ProgramState, steps: Sequence[Step], branches: list[Any]) -> None:
    """Does the same steps as a program, and notes its branches as the reference does."""
    for step in steps:
        match step:
            case ("text", text):
                s += text
            case ("gen", name):
                s += gen(name)
            case ("select", name, choices):
                s += select(name, choices)
            case ("read", name):
                s += f"{s[name]}" if name in s else "nothing"
            case ("fork", parts):
                forks = s.fork(len(parts))
                inner: list[list[Any]] = [[] for _ in parts]
                for fork, part, below in zip(forks, parts, inner, strict=True):
                    run_steps(fork, part, below)
                forks.join()
                branches += zip(forks, inner, strict=True)


def texts_of(state: ProgramState, branches: list[Any]) -> list[str]:
    return [state.text(), *(text for branch in branches for text in texts_of(*branch))]


@given(STEPS)
def test_branches_write_what_their_steps_say(steps: Sequence[Step]) -> None:
    reference = Reference()
    reference.run(steps)
    backend = ScriptedBackend(ANSWERS, LOGPROBS)
    branches: list[Any] = []
    program = Program(lambda s: run_steps(s, steps, branches))
    state = program.run(backend)
    assert texts_of(state, branches) == reference.texts()
    assert state.variables() == reference.variables
    branches.clear()
    started = program.start(backend)
    streamed = "".join(started.text_iter())
    assert streamed == reference.text == started.wait().text()


@given(STEPS)
def test_a_traced_prefix_is_one_of_every_run(steps: Sequence[Step]) -> None:
    backend = ScriptedBackend(ANSWERS, LOGPROBS)
    program = Program(lambda s: run_steps(s, steps, []))
    prefix = program.trace().prefix
    assert not MARK.search(prefix)
    assert program.run(backend).text().startswith(prefix)
    assert backend.warmed == [text for text in backend.warmed if len(text) >= 64]
