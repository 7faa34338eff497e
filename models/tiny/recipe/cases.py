"""Held-out cases: prompts whose names and values training never draws, and their answers.

Knows prompts and what a right reply is; knows nothing of models. Made from the same sentences as
the corpus, with values of the other side of the hash split (values.py).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import talk
from corpus import JOINTS, NOTE_INTRODUCTIONS, Conversation, ask, tell
from facts import FactSource
from people import REQUESTS, draw_person
from stories import draw_story, ramble
from values import Values, is_held_out

Count = Callable[[str], int]  # text -> tokens


@dataclass(frozen=True)
class Case:
    """A conversation that ends with the user's turn, or a plain text when `messages` is empty."""

    messages: tuple[dict[str, str], ...]
    text: str
    expected: str  # the whole reply; for stories and completions a name that must occur in it


def near(rng: random.Random, count: Count) -> Case:
    """Returns a case with one to four facts and the question in one message."""
    source = FactSource(Values(rng, held_out=True))
    facts = [source.draw() for _ in range(rng.randint(1, 4))]
    fact = rng.choice(facts)
    _check(fact.value)
    text = tell(rng, facts, rng.randint(0, 2)) + rng.choice(JOINTS) + ask(rng, fact.question)
    return _chat([], text, fact.answer)


def far(rng: random.Random, count: Count) -> Case:
    """Returns a case with five to ten facts in the first turn, talk in the second, and the question
    in the third, 300 to 700 tokens behind its fact."""
    while True:
        source = FactSource(Values(rng, held_out=True))
        facts = [source.draw() for _ in range(rng.randint(5, 10))]
        fact = rng.choice(facts)
        _check(fact.value)
        conversation = Conversation()
        told = tell(rng, facts, rng.randint(0, 12))
        conversation.say(told, rng.choice(talk.ACKNOWLEDGEMENTS))
        make = rng.choice((talk.topic, talk.monologue))
        conversation.say(*make(rng, rng.randint(10, 30)))
        question = ask(rng, fact.question)
        case = _chat(conversation.messages, question, fact.answer)
        between = told.split(fact.statement)[1] + "".join(
            message["content"] for message in [*conversation.messages[1:], case.messages[-1]]
        )
        if 300 <= count(between) <= 700:
            return case


def notes(rng: random.Random, count: Count) -> Case:
    """Returns a case with a note of 300 to 800 tokens, six to eighteen facts in it, and a question
    at its end."""
    while True:
        source = FactSource(Values(rng, held_out=True))
        facts = [source.draw() for _ in range(rng.randint(6, 18))]
        fact = rng.choice(facts)
        _check(fact.value)
        body = tell(rng, facts, rng.randint(5, 30))
        text = rng.choice(NOTE_INTRODUCTIONS) + rng.choice(JOINTS) + body
        if 300 <= count(text) <= 800:
            text += rng.choice(JOINTS) + ask(rng, fact.question)
            return _chat([], text, fact.answer)


def extraction(rng: random.Random, count: Count) -> Case:
    """Returns a case that describes a person and asks for JSON."""
    person = draw_person(Values(rng, held_out=True))
    for value in (person.age, *person.name.split()):
        _check(value)
    prose = person.prose(rng)
    if rng.random() < 0.15:
        prose = " ".join([*ramble(rng, 1), prose])
    return _chat([], rng.choice(REQUESTS).format(prose=prose), person.as_json())


def story(rng: random.Random, count: Count) -> Case:
    """Returns a case that asks for a story about a hero whose name is given."""
    values = Values(rng, held_out=True)
    while True:
        drawn = draw_story(values)
        if drawn.hero in drawn.request:
            return _chat([], drawn.request, drawn.hero)


def completion(rng: random.Random, count: Count) -> Case:
    """Returns a case that is the first two sentences of a story, without chat form."""
    drawn = draw_story(Values(rng, held_out=True))
    sentences = drawn.text.split(". ")
    return Case((), ". ".join(sentences[:2]) + ".", drawn.hero)


SUITES: dict[str, Callable[[random.Random, Count], Case]] = {
    "recall_near": near,
    "recall_far": far,
    "recall_notes": notes,
    "json_extraction": extraction,
    "story": story,
    "completion": completion,
}


def _chat(earlier: list[dict[str, str]], text: str, expected: str) -> Case:
    return Case((*earlier, {"role": "user", "content": text}), "", expected)


def _check(value: str) -> None:
    """Raises AssertionError unless training can never have drawn this value: the evaluation would
    be worth nothing otherwise."""
    parts = [value, *value.split()]
    assert any(is_held_out(part) for part in parts), f"{value} may have been trained on"
