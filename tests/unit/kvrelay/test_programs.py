"""Programs against a scripted backend: every primitive of the language."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

import kvrelay
from kvrelay import LanguageError, Program, ProgramState, ScriptedBackend, gen, select
from kvrelay.answers import Generated, GeneratedMeta
from kvrelay.language.backend import Decision
from kvrelay.language.transcript import Said
from kvrelay.language.value_types import ValueCutOff


@dataclass(frozen=True)
class Place:
    name: str


QUESTION = "My dog is called Bramo. What is my dog called? "


@kvrelay.function
def asks(s: ProgramState, name: str = "Bramo") -> str:
    s += f"My dog is called {name}. What is my dog called? "
    s += gen("answer", max_new_tokens=8)
    s += "."
    return f"{name}!"


def test_a_program_writes_and_reads() -> None:
    backend = ScriptedBackend({QUESTION: "Bramo"})
    state = asks.run(backend)
    assert state["answer"] == "Bramo" and "answer" in state and "other" not in state
    assert state.text() == f"{QUESTION}Bramo."
    assert state.result == "Bramo!"
    assert backend.asked == [(QUESTION, {"max_new_tokens": 8})]
    assert isinstance(state.meta("answer"), GeneratedMeta)
    with pytest.raises(KeyError, match="there are: answer"):
        state["other"]


def test_arguments_may_be_bound() -> None:
    backend = ScriptedBackend({"What is my dog called? ": "?"})
    for program, args, given in (
        (asks.bind(name="Tavik"), (), {}),
        (asks, ("Tavik",), {}),
        (asks, (), {"name": "Tavik"}),
    ):
        assert program.run(backend, *args, **given).result == "Tavik!"


@pytest.mark.parametrize(
    ("dtype", "text", "value"),
    [
        (int, "-42", -42),
        (float, "3.50", 3.5),
        (bool, "False", False),
        (str, '"a word"', "a word"),
        (list[int], "[1,2]", [1, 2]),
        (None, "plain", "plain"),
    ],
)
def test_a_value_has_its_type_and_its_text_follows_a_grammar(
    dtype: Any, text: str, value: Any
) -> None:
    @kvrelay.function
    def program(s: ProgramState) -> None:
        s += "x = " + gen("x", dtype=dtype) + ";"

    backend = ScriptedBackend({"x = ": text})
    state = program.run(backend)
    assert state["x"] == value and type(state["x"]) is type(value)
    assert state.text() == f"x = {text};"
    ((_, params),) = backend.asked
    assert params.keys() == (
        {"json_schema"} if dtype == list[int] else {"regex"} if dtype else set()
    )


def test_a_value_that_is_cut_off_is_told() -> None:
    @kvrelay.function
    def program(s: ProgramState) -> None:
        s += gen("x", dtype=list[int], max_new_tokens=2)

    with pytest.raises(ValueCutOff, match="max_new_tokens"):
        program.run(ScriptedBackend({"": "[1,"}))


def test_a_variable_can_be_made_again() -> None:
    """Each reading gives what was appended last before it."""

    @kvrelay.function
    def program(s: ProgramState) -> list[str]:
        seen = []
        for number in range(3):
            s += f" {number}:" + gen("x")
            seen.append(s["x"])
        return seen

    backend = ScriptedBackend({f" {number}:": str(number) for number in range(3)})
    assert program.run(backend).result == ["0", "1", "2"]


def test_the_way_of_a_program_may_depend_on_what_was_written() -> None:
    @kvrelay.function
    def program(s: ProgramState) -> None:
        for number in range(10):
            s += f"Step {number}: " + select("action", ["search", "finish"])
            if s["action"] == "finish":
                break
            s += "\n"

    class Deciding(ScriptedBackend):
        def select(self, prefix: str, choices: Any) -> Decision:
            return Decision("finish" if "Step 2" in prefix else "search")

    text = program.run(Deciding({})).text()
    assert text == "Step 0: search\nStep 1: search\nStep 2: finish"


def test_the_likeliest_choice_is_selected() -> None:
    @kvrelay.function
    def program(s: ProgramState) -> None:
        s += "It is " + gen("town", choices=["Oslen", "Bram"]) + "!"

    state = program.run(ScriptedBackend({}, {"Oslen": -2.0, "Bram": -0.5}))
    assert state["town"] == "Bram" and state.text() == "It is Bram!"
    decision = state.meta("town")
    assert isinstance(decision, Decision)
    assert [score.mean_logprob for score in decision.scores] == [-2.0, -0.5]


def test_roles_are_written_by_the_template_and_kept_as_messages() -> None:
    @kvrelay.function
    def program(s: ProgramState) -> None:
        s += kvrelay.system("Be short.") + kvrelay.user("Hi")
        s += kvrelay.assistant("Well, " + gen("a"))
        with s.user():
            s += "And "
            s += "now?"
        with s.assistant():
            s += gen("b")

    backend = ScriptedBackend({"Well, ": "hi", "now?\nASSISTANT: ": "bye"})
    state = program.run(backend)
    said = ("Be short.", "Hi", "Well, hi", "And now?", "bye")
    roles = ("system", "user", "assistant", "user", "assistant")
    assert state.messages() == tuple(map(Said, roles, said))
    assert state.text() == (
        "SYSTEM: Be short.\nUSER: Hi\nASSISTANT: Well, hi\nUSER: And now?\nASSISTANT: bye\n"
    )


def test_text_that_no_role_says_comes_behind_the_end_of_a_role() -> None:
    @kvrelay.function
    def program(s: ProgramState) -> None:
        s += kvrelay.user("Hi")
        s += gen("free") + " (free) "
        s += kvrelay.assistant(gen("a"))

    backend = ScriptedBackend({"USER: Hi\n": "well", "ASSISTANT: ": "hello"})
    assert program.run(backend).text() == "USER: Hi\nwell (free) ASSISTANT: hello\n"


def test_roles_do_not_nest() -> None:
    @kvrelay.function
    def program(s: ProgramState) -> None:
        with s.user(), s.assistant():
            s += "x"

    with pytest.raises(LanguageError, match="before user has ended"):
        program.run(ScriptedBackend({}))


def test_branches_begin_from_the_same_text_which_is_computed_once() -> None:
    @kvrelay.function
    def program(s: ProgramState) -> list[str]:
        s += "a long beginning " * 8
        forks = s.fork(3)
        forks += lambda number: f"{number}: "
        forks += gen("part")
        s = forks.join()
        s += " and ".join(s["part"])
        return [branch.own_text() for branch in forks]

    backend = ScriptedBackend({f"{number}: ": f"<{number}>" for number in range(3)})
    state = program.run(backend)
    begin = "a long beginning " * 8
    assert backend.warmed == [begin]
    assert sorted(prompt for prompt, _ in backend.asked) == [f"{begin}{n}: " for n in range(3)]
    assert state.result == ["0: <0>", "1: <1>", "2: <2>"]
    assert state["part"] == ["<0>", "<1>", "<2>"]
    assert state.text() == f"{begin}<0> and <1> and <2>"


def test_a_text_that_the_backend_has_seen_is_not_computed_before_a_fork() -> None:
    @kvrelay.function
    def program(s: ProgramState) -> None:
        s += "a long beginning " * 8 + gen("first")
        s.fork(2)
        s.copy()

    backend = ScriptedBackend({"": "x" * 100})
    program.run(backend)
    assert backend.warmed == []


class Meeting(ScriptedBackend):
    """Answers when `num` prompts are there at the same time, and fails if they never are."""

    def __init__(self, num: int) -> None:
        super().__init__({"": "x"})
        self._barrier = threading.Barrier(num, timeout=20.0)

    def generate(self, prompt: str, params: Mapping[str, Any]) -> Generated:
        self._barrier.wait()
        return super().generate(prompt, params)


def test_branches_run_side_by_side_and_so_do_calls_of_a_batch() -> None:
    @kvrelay.function
    def program(s: ProgramState) -> None:
        forks = s.fork(4)
        for branch in forks:
            branch += gen("x")
        forks.join()

    assert program.run(Meeting(4))["x"] == ["x"] * 4
    backend = Meeting(3)
    states = asks.run_batch(backend, [{"name": str(n)} for n in range(9)], max_threads=3)
    assert [state.result for state in states] == [f"{n}!" for n in range(9)]


def test_a_batch_computes_what_its_calls_begin_with_once() -> None:
    @kvrelay.function
    def program(s: ProgramState, rule: str, question: str) -> None:
        s += f"The rule: {rule}. The question: {question}? " + gen("answer")

    backend = ScriptedBackend({"? ": "yes"})
    batch = [{"rule": "be kind", "question": str(number)} for number in range(3)]
    states = program.run_batch(backend, batch, shows_progress=True)
    assert backend.warmed == ["The rule: be kind. The question: "]
    assert [state["answer"] for state in states] == ["yes"] * 3
    assert program.run_batch(backend, []) == []
    program.run_batch(backend, batch, warms=False)
    assert len(backend.warmed) == 1


def test_an_error_is_raised_where_it_is_read_and_at_the_end() -> None:
    @kvrelay.function
    def reads(s: ProgramState) -> None:
        s += "?" + gen("x")
        with pytest.raises(LanguageError, match="no answer"):
            s["x"]

    @kvrelay.function
    def forks(s: ProgramState) -> None:
        s.fork(2)[1].__iadd__("?" + gen("x"))

    for program in (reads, forks):
        with pytest.raises(LanguageError, match="no answer"):
            program.run(ScriptedBackend({}))
    with pytest.raises(LanguageError, match="no answer"):
        asks.run_batch(ScriptedBackend({}), [{}, {}])


def test_a_tool_is_called_with_what_the_model_wrote() -> None:
    def distance(start: Place, miles: int, unit: str = "km") -> str:
        return f"{start.name} {miles} {unit}"

    @kvrelay.function
    def program(s: ProgramState) -> None:
        s += "call: " + kvrelay.call("result", distance, max_new_tokens=50)
        s += f" = {s['result']}"

    arguments = '{"start":{"name":"Oslen"},"miles":3}'
    backend = ScriptedBackend({"call: ": arguments})
    assert program.run(backend).text() == f"call: {arguments} = Oslen 3 km"
    ((_, params),) = backend.asked
    assert params["max_new_tokens"] == 50
    definition = params["json_schema"]["$defs"]["distance"]
    assert definition["required"] == ["start", "miles"]
    assert definition["additionalProperties"] is False


def test_a_tool_that_reads_from_its_own_branch_is_told() -> None:
    @kvrelay.function
    def program(s: ProgramState) -> None:
        def tool() -> str:
            return s.text()

        s += "x" + kvrelay.call("y", tool)

    with pytest.raises(LanguageError, match="waits for the tool"):
        program.run(ScriptedBackend({"x": "{}"}))


def test_a_tool_needs_annotations() -> None:
    with pytest.raises(LanguageError, match="parameter x of <lambda>"):
        kvrelay.call("y", lambda x: x)

    def unknown(x: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
        pass

    with pytest.raises(LanguageError, match="Nowhere"):
        kvrelay.call("y", unknown)


def test_a_program_is_part_of_another() -> None:
    @kvrelay.function
    def outer(s: ProgramState) -> None:
        s += "Listen. "
        asks(s, name="Bramo")
        with s.captured("both"):
            s += gen("more") + "!"

    state = outer.run(ScriptedBackend({QUESTION: "Bramo", ".": " Yes"}))
    assert state.text() == f"Listen. {QUESTION}Bramo. Yes!"
    assert state["both"] == " Yes!"


def test_started_programs_yield_their_text_as_it_comes() -> None:
    state = asks.start(ScriptedBackend({QUESTION: "Bramo"}))
    assert "".join(state.text_iter("answer")) == "Bramo"
    assert "".join(state.text_iter()) == f"{QUESTION}Bramo."
    assert state.wait().result == "Bramo!"
    assert list(state.text_iter("never")) == []


def test_pieces_come_before_the_end() -> None:
    """The backend does not end an answer before its first piece was read."""
    was_read = threading.Event()

    class Patient(ScriptedBackend):
        def stream(self, prompt: str, params: Any) -> Any:
            first, *others = super().stream(prompt, params)
            yield first
            assert was_read.wait(20.0)
            yield from others

    state = asks.start(Patient({QUESTION: "Bramo"}))
    pieces = state.text_iter("answer")
    assert next(pieces) == "B"
    was_read.set()
    assert "".join(pieces) == "ramo"


def test_the_error_of_a_started_program_reaches_who_reads() -> None:
    state = asks.start(ScriptedBackend({}))
    with pytest.raises(LanguageError, match="no answer"):
        list(state.text_iter())
    with pytest.raises(LanguageError, match="no answer"):
        state.wait()


def test_programs_run_beside_an_event_loop() -> None:
    async def run() -> tuple[str, list[Any]]:
        backend = ScriptedBackend({"": "Bramo"})
        state = asks.start(backend)
        text = "".join([piece async for piece in state.text_async_iter()])
        states = await asyncio.gather(*(asks.run_async(backend, name=str(n)) for n in range(5)))
        return text, [state.result for state in states]

    text, results = asyncio.run(run())
    assert text == f"{QUESTION}Bramo." and results == [f"{n}!" for n in range(5)]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: select("x", []), "at least one choice"),
        (lambda: select("x", ["a", ""]), "none of them empty"),
        (lambda: gen("x", dtype=int, regex="a"), "regex both say"),
        (lambda: gen("x", choices=["a"], temperature=1), "nothing else"),
        (lambda: gen("x") + 3, "cannot be appended"),
        (lambda: ScriptedBackend({}, chat_template="lama"), "'lama' is unknown; it is 'server' or"),
    ],
)
def test_what_the_language_does_not_have_is_told(make: Any, words: str) -> None:
    with pytest.raises(LanguageError, match=words):
        make()


def test_a_fork_has_a_bound() -> None:
    program = Program(lambda s: s.fork(100_000))
    with pytest.raises(LanguageError, match="256"):
        program.run(ScriptedBackend({}))
