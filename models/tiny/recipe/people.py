"""`Person`: a described person as prose, as the JSON of an extraction, and in questions."""

import json
import random
from dataclasses import dataclass

from values import Values

REQUESTS = (
    "Extract the person as JSON: {prose}",
    "Extract the person as JSON.\n{prose}",
    "Extract the person as JSON.\n\n{prose}",
    "{prose}\nExtract the person as JSON.",
    "{prose}\n\nExtract the person as JSON.",
    "Give me the person in this text as JSON: {prose}",
    "Turn this into JSON: {prose}",
    "Write the person as a JSON object. {prose}",
    "{prose} Give me that as JSON.",
    "JSON please: {prose}",
)
LATE_REQUESTS = (
    "Extract the person as JSON.",
    "Now give me {name} as JSON.",
    "Extract {name} as JSON.",
    "Write {name} as a JSON object.",
)
PROSE = (
    "{name} is {age} years old, works as a {job} and lives in {city}.",
    "{name} is {age} years old, lives in {city} and works as a {job}.",
    "{name} is a {job} from {city} and is {age} years old.",
    "{name}, {age}, works as a {job} in {city}.",
    "{name} lives in {city}, is {age} years old and works as a {job}.",
    "{name} is a {age} year old {job} who lives in {city}.",
    "{name} works as a {job}, lives in {city} and is {age} years old.",
    "In {city} lives {name}, a {job} of {age} years.",
    "{name} lives in {city}. {name} is {age} years old and works as a {job}.",
    "This is {name}. The age is {age}, the job is {job} and the home is {city}.",
    "A {job} called {name} lives in {city} and is {age} years old.",
    "The {job} {name}, {age} years old, lives in {city}.",
)
QUESTIONS = (
    ("How old is {name}?", "{name} is {age} years old."),
    ("What does {name} do?", "{name} works as a {job}."),
    ("What is the job of {name}?", "{name} works as a {job}."),
    ("Where does {name} live?", "{name} lives in {city}."),
    ("Who lives in {city}?", "{name} lives in {city}."),
)


@dataclass(frozen=True)
class Person:
    """The four values that an extraction asks for, as text."""

    name: str
    age: str
    job: str
    city: str

    @property
    def fields(self) -> dict[str, str]:
        """The values by name, for templates."""
        return {"name": self.name, "age": self.age, "job": self.job, "city": self.city}

    def as_json(self) -> str:
        """Returns the one right answer to an extraction: fixed order, the age as a number."""
        return json.dumps({**self.fields, "age": int(self.age)}, ensure_ascii=False)

    def prose(self, rng: random.Random) -> str:
        """Returns one or two sentences that hold all four fields."""
        return rng.choice(PROSE).format(**self.fields)

    def question(self, rng: random.Random) -> tuple[str, str]:
        """Returns a question about one field, and its one right answer."""
        question, answer = rng.choice(QUESTIONS)
        return question.format(**self.fields), answer.format(**self.fields)


def draw_person(values: Values) -> Person:
    """Returns a person of random values, with a name that `values` has not drawn before."""
    name = values.person() if values.rng.random() < 0.85 else values.name()
    return Person(name, values.age(), values.job(), values.city())
