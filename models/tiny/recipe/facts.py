"""Facts: how they are told, asked for and answered. Knows single sentences, no conversations.

Each kind has one canonical answer, so that recall can be judged by comparing strings. The key of
a fact ("my dog", "the code of the blue door") is used once per row of training, so that a
question never has two answers in its context.
"""

import random
from dataclasses import dataclass

import words
from values import Values


@dataclass(frozen=True)
class Kind:
    """The templates of one kind of fact. `{value}` is what is asked for; the other slots together
    are the fact's key."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str
    value: str
    weight: int = 2


@dataclass(frozen=True)
class Fact:
    """A fact: the sentence that tells it, a question for it, the one right answer, its value."""

    statement: str
    question: str
    answer: str
    value: str


CHOICES: dict[str, list[str]] = {
    "pet": words.PETS,
    "relative": words.RELATIVES,
    "colour": words.COLOURS,
    "object": words.OBJECTS,
    "quantity": words.QUANTITIES,
    "secret": words.SECRETS,
    "service": words.SERVICES,
    "favourite": words.FAVOURITES,
    "event": words.EVENTS,
}

KINDS = (
    Kind(
        (
            "My {pet} is called {value}.",
            "I have a {pet} called {value}.",
            "I have a {pet}. It is called {value}.",
            "The name of my {pet} is {value}.",
        ),
        (
            "What is my {pet} called?",
            "What is the name of my {pet}?",
            "What's my {pet} called?",
            "How is my {pet} called?",
            "Do you remember the name of my {pet}?",
        ),
        "Your {pet} is called {value}.",
        "name",
        3,
    ),
    Kind(
        (
            "My {relative} is called {value}.",
            "My {relative}'s name is {value}.",
            "The name of my {relative} is {value}.",
        ),
        (
            "What is my {relative} called?",
            "What is the name of my {relative}?",
            "What is my {relative}'s name?",
            "Who is my {relative}?",
        ),
        "Your {relative} is called {value}.",
        "name",
    ),
    Kind(
        (
            "The {quantity} of the {colour} {object} is {value}.",
            "For the {colour} {object} the {quantity} is {value}.",
            "The {colour} {object} has the {quantity} {value}.",
        ),
        (
            "What is the {quantity} of the {colour} {object}?",
            "Tell me the {quantity} of the {colour} {object}.",
            "Which {quantity} does the {colour} {object} have?",
            "What was the {quantity} of the {colour} {object}?",
        ),
        "The {quantity} of the {colour} {object} is {value}.",
        "digits",
        6,
    ),
    Kind(
        ("The {quantity} of the {object} is {value}.", "The {object} has the {quantity} {value}."),
        (
            "What is the {quantity} of the {object}?",
            "Tell me the {quantity} of the {object}.",
            "Which {quantity} does the {object} have?",
        ),
        "The {quantity} of the {object} is {value}.",
        "digits",
        2,
    ),
    Kind(
        (
            "The serial number of the {colour} {object} is {value}.",
            "The {colour} {object} has the serial number {value}.",
        ),
        (
            "What is the serial number of the {colour} {object}?",
            "Which serial number does the {colour} {object} have?",
        ),
        "The serial number of the {colour} {object} is {value}.",
        "serial",
    ),
    Kind(
        (
            "The {secret} of the {service} is {value}.",
            "The {secret} for the {service} is {value}.",
            "For the {service} we use the {secret} {value}.",
        ),
        (
            "What is the {secret} of the {service}?",
            "What is the {secret} for the {service}?",
            "Tell me the {secret} of the {service}.",
        ),
        "The {secret} of the {service} is {value}.",
        "word",
        3,
    ),
    Kind(
        (
            "My favourite {favourite} is {value}.",
            "The {favourite} I like best is {value}.",
            "Of all, my favourite {favourite} is {value}.",
        ),
        (
            "What is my favourite {favourite}?",
            "Which {favourite} do I like best?",
            "Do you know my favourite {favourite}?",
        ),
        "Your favourite {favourite} is {value}.",
        "thing",
        3,
    ),
    Kind(
        (
            "The {event} is at {value}.",
            "The {event} starts at {value}.",
            "At {value} there is the {event}.",
        ),
        ("When is the {event}?", "At what time is the {event}?", "When does the {event} start?"),
        "The {event} is at {value}.",
        "clock",
    ),
    Kind(
        ("The {event} is in room {value}.", "The {event} takes place in room {value}."),
        ("Where is the {event}?", "In which room is the {event}?"),
        "The {event} is in room {value}.",
        "room",
    ),
    Kind(
        ("The {colour} {object} is in the {value}.", "I put the {colour} {object} in the {value}."),
        ("Where is the {colour} {object}?", "Where did I put the {colour} {object}?"),
        "The {colour} {object} is in the {value}.",
        "word",
    ),
    Kind(
        ("The {colour} {object} belongs to {value}.", "{value} owns the {colour} {object}."),
        (
            "Who owns the {colour} {object}?",
            "Whose is the {colour} {object}?",
            "To whom does the {colour} {object} belong?",
        ),
        "The {colour} {object} belongs to {value}.",
        "name",
    ),
    Kind(
        (
            "{name} lives in {value}.",
            "The home of {name} is in {value}.",
            "{name} has a house in {value}.",
        ),
        (
            "Where does {name} live?",
            "In which city does {name} live?",
            "Can you tell me where {name} lives?",
        ),
        "{name} lives in {value}.",
        "city",
        4,
    ),
    Kind(
        ("{value} lives in {city}.", "In {city} there lives {value}."),
        ("Who lives in {city}?", "Do you know who lives in {city}?"),
        "{value} lives in {city}.",
        "name",
    ),
    Kind(
        ("{name} works as a {value}.", "{name} is a {value}.", "{name} has a job as a {value}."),
        (
            "What does {name} do?",
            "What is the job of {name}?",
            "What does {name} work as?",
            "What is {name}'s job?",
        ),
        "{name} works as a {value}.",
        "job",
        3,
    ),
    Kind(
        ("{name} is {value} years old.", "The age of {name} is {value}."),
        ("How old is {name}?", "What is the age of {name}?"),
        "{name} is {value} years old.",
        "age",
    ),
    Kind(
        (
            "The phone number of {name} is {value}.",
            "{name}'s phone number is {value}.",
            "You can call {name} at {value}.",
        ),
        (
            "What is the phone number of {name}?",
            "What is {name}'s phone number?",
            "How can I call {name}?",
        ),
        "The phone number of {name} is {value}.",
        "digits",
    ),
    Kind(
        ("{name} has a {pet} called {value}.", "The {pet} of {name} is called {value}."),
        ("What is the {pet} of {name} called?", "What is the name of {name}'s {pet}?"),
        "The {pet} of {name} is called {value}.",
        "name",
    ),
    Kind(
        ("The capital of {city} is {value}.", "{city} has the capital {value}."),
        ("What is the capital of {city}?", "Which capital does {city} have?"),
        "The capital of {city} is {value}.",
        "city",
    ),
    Kind(
        (
            "The {service} in {city} was founded in {value}.",
            "In {value} the {service} in {city} was founded.",
        ),
        (
            "When was the {service} in {city} founded?",
            "In which year was the {service} in {city} founded?",
        ),
        "The {service} in {city} was founded in {value}.",
        "year",
    ),
    Kind(
        ("The captain of the ship {name} is {value}.", "The ship {name} has the captain {value}."),
        ("Who is the captain of the ship {name}?", "What is the captain of the {name} called?"),
        "The captain of the ship {name} is {value}.",
        "person",
    ),
    Kind(
        ("My name is {value}.", "I am called {value}.", "I'm {value}.", "Hi, I am {value}."),
        ("What is my name?", "Who am I?", "What am I called?", "Do you remember my name?"),
        "Your name is {value}.",
        "name",
    ),
    Kind(
        ("I live in {value}.", "My home is in {value}.", "I come from {value}."),
        ("Where do I live?", "Do you know where I live?", "In which city do I live?"),
        "You live in {value}.",
        "city",
    ),
    Kind(
        ("I am {value} years old.", "My age is {value}."),
        ("How old am I?", "What is my age?"),
        "You are {value} years old.",
        "age",
    ),
    Kind(
        ("I work as a {value}.", "My job is {value}."),
        ("What is my job?", "What do I work as?", "What do I do?"),
        "You work as a {value}.",
        "job",
    ),
    Kind(
        (
            "My {quantity} is {value}.",
            "Remember my {quantity}: {value}.",
            "Please remember the {quantity} {value}.",
        ),
        ("What is my {quantity}?", "What was my {quantity}?", "Which {quantity} did I tell you?"),
        "Your {quantity} is {value}.",
        "digits",
    ),
    Kind(
        ("The secret word is {value}.", "Please remember the word {value}.", "My word is {value}."),
        ("What is the secret word?", "Which word did I tell you?", "What was the word?"),
        "The secret word is {value}.",
        "word",
    ),
)
WEIGHTS = [kind.weight for kind in KINDS]
MAX_DRAWS = 200


class FactSource:
    """Draws facts, of which no two have the same key. Each row or evaluation case has its own."""

    def __init__(self, values: Values) -> None:
        self.values = values
        self.rng: random.Random = values.rng
        self._used_keys: set[str] = set()

    def draw(self) -> Fact:
        """Returns a fact with a key that this source has not used yet."""
        for _ in range(MAX_DRAWS):
            kind = self.rng.choices(KINDS, weights=WEIGHTS)[0]
            slots = self._key_slots(kind.answer)
            key = kind.answer.format(value="*", **slots)
            if key in self._used_keys:
                continue
            self._used_keys.add(key)
            slots["value"] = self.values.draw(kind.value)
            return Fact(
                self.rng.choice(kind.statements).format(**slots),
                self.rng.choice(kind.questions).format(**slots),
                kind.answer.format(**slots),
                slots["value"],
            )
        raise RuntimeError("no unused fact key is left")

    def _key_slots(self, template: str) -> dict[str, str]:
        """Draws values for the key's slots, which are the words in braces other than `{value}`."""
        slots = {}
        for part in template.split("{")[1:]:
            slot = part.split("}")[0]
            if slot == "value":
                continue
            choices = CHOICES.get(slot)
            slots[slot] = self.rng.choice(choices) if choices else self.values.draw(slot)
        return slots
