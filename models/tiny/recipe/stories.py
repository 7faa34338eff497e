"""Draws short stories from a grammar: one hero, one friend, one thing, a beginning and an end.

It knows text only; whether a story is asked for in a chat or stands alone is corpus.py's matter.
"""

import random
from dataclasses import dataclass

import words
from values import Values

HEROES = [
    "fox",
    "bear",
    "mouse",
    "rabbit",
    "owl",
    "cat",
    "dog",
    "bird",
    "frog",
    "girl",
    "boy",
    "sailor",
    "robot",
    "dragon",
    "baker",
    "duck",
    "goat",
    "turtle",
    "hedgehog",
    "squirrel",
    "pony",
    "farmer",
    "king",
    "queen",
    "giant",
    "wizard",
]
MOODS = [
    "little",
    "old",
    "brave",
    "clever",
    "curious",
    "shy",
    "kind",
    "lazy",
    "cheerful",
    "small",
    "quiet",
    "proud",
]
HOMES = [
    "in a forest",
    "by the sea",
    "in a small house",
    "on a high hill",
    "near a river",
    "in a village",
    "in an old tower",
    "under a big tree",
    "on an island",
    "at the edge of a town",
    "behind a mill",
]
GOODS = [
    "lamp",
    "key",
    "map",
    "bell",
    "boat",
    "book",
    "drum",
    "kite",
    "coin",
    "stone",
    "hat",
    "clock",
    "ring",
    "flute",
    "letter",
    "apple",
    "ball",
    "shell",
    "feather",
    "button",
    "mirror",
    "blanket",
    "lantern",
]
QUALITIES = [
    "golden",
    "lost",
    "red",
    "tiny",
    "magic",
    "old",
    "broken",
    "shiny",
    "blue",
    "heavy",
    "strange",
    "silver",
]
SPOTS = [
    "under a stone",
    "in the grass",
    "behind a tree",
    "at the bottom of a well",
    "in the snow",
    "on the road",
    "inside a box",
    "in the sand",
    "next to a bridge",
    "in a hole",
]
TROUBLES = (
    (
        "But soon a storm came and it became very dark.",
        "Together they hid under a rock until the storm was over.",
    ),
    (
        "But the river was too wide to cross.",
        "Together they made a small raft and crossed the river.",
    ),
    (
        "But nobody knew whom it belonged to.",
        "Together they asked everyone in the village until an old woman smiled and told them.",
    ),
    (
        "But a hungry wolf stood in the way.",
        "Together they sang a song so loud that the wolf ran away.",
    ),
    (
        "But the way home was lost in the fog.",
        "Together they followed the sound of the bells until they saw a light.",
    ),
    (
        "But it was stuck and would not move.",
        "Together they pulled and pulled until it came free.",
    ),
    (
        "But it began to rain and the path was full of mud.",
        "Together they waited under a big leaf and told each other jokes.",
    ),
)
ENDINGS = (
    "From that day on, {hero} and {friend} were the best of friends.",
    "{hero} gave the {good} to {friend}, and both were happy.",
    "That night {hero} slept well and dreamed of the {good}.",
    "And if you visit them today, {hero} will show you the {good}.",
    "{hero} learned that everything is easier with a friend like {friend}.",
)
REQUESTS = (
    "Tell me a story about a {kind} called {hero}.",
    "Write a short story about a {kind} called {hero}.",
    "Please tell me a story about {hero} the {kind}.",
    "I would like a story about a {kind} named {hero}.",
    "Write a story about a {mood} {kind} called {hero}.",
)
OPEN_REQUESTS = (
    "Tell me a story.",
    "Tell me a short story.",
    "Write a short story.",
    "Please tell me a story about a {kind}.",
    "Tell me a story about a {kind}.",
    "Can you write a story about a {mood} {kind}?",
)


@dataclass(frozen=True)
class Story:
    """A request for a story, the story, and its hero's name, which is told again near the end."""

    request: str
    text: str
    hero: str


def draw_story(values: Values) -> Story:
    """Returns a story of eight to eleven sentences."""
    rng = values.rng
    hero, friend = values.name(), values.name()
    slots = {
        "hero": hero,
        "friend": friend,
        "kind": rng.choice(HEROES),
        "other": rng.choice(HEROES),
        "mood": rng.choice(MOODS),
        "good": rng.choice(GOODS),
    }
    trouble, rescue = rng.choice(TROUBLES)
    sentences = [
        rng.choice(
            (
                "Once upon a time there was a {mood} {kind} called {hero}.",
                "There was once a {mood} {kind} whose name was {hero}.",
                "Long ago there lived a {mood} {kind} called {hero}.",
            )
        ),
        f"{{hero}} lived {rng.choice(HOMES)}.",
        f"Every {rng.choice(('day', 'morning', 'evening'))} {{hero}} "
        + rng.choice(
            ("went for a walk.", "looked at the sky.", "sang a song.", "drank a cup of tea.")
        ),
        f"One day {{hero}} found a {rng.choice(QUALITIES)} {{good}} {rng.choice(SPOTS)}.",
        rng.choice(
            (
                '"What a beautiful {good}!" said {hero}.',
                "{hero} was very happy about the {good}.",
                '"Who has lost this {good}?" asked {hero}.',
            )
        ),
        trouble,
        "Then a {other} called {friend} came along.",
        rng.choice(
            (
                '"I will help you," said {friend}.',
                '"Do not be afraid," said {friend}.',
                '"Let us try it together," said {friend}.',
            )
        ),
        rescue,
        rng.choice(("{hero} thanked {friend}.", "{hero} laughed and {friend} laughed too.")),
        rng.choice(ENDINGS),
    ]
    requests = REQUESTS if rng.random() < 0.6 else OPEN_REQUESTS
    return Story(
        rng.choice(requests).format(**slots),
        " ".join(sentences).format(**slots),
        hero,
    )


def ramble(rng: random.Random, num_sentences: int) -> list[str]:
    """Returns sentences in which there is nothing to ask for: the filler between facts."""
    return [_sentence(rng) for _ in range(num_sentences)]


def _sentence(rng: random.Random) -> str:
    subject = f"the {rng.choice(words.ADJECTIVES)} {rng.choice(words.THINGS)}"
    other = f"a {rng.choice(words.ADJECTIVES)} {rng.choice(words.THINGS)}"
    kind = rng.randrange(5)
    where = rng.choice(words.WHERE)
    if kind == 0:
        text = f"{subject} {rng.choice(words.VERBS)} {where}."
    elif kind == 1:
        text = f"{where} {subject} {rng.choice(words.VERBS)}."
    elif kind == 2:
        text = f"we saw {other} {where}."
    elif kind == 3:
        text = f"{subject} {rng.choice(words.VERBS)}, and {other} {rng.choice(words.VERBS)}."
    else:
        text = f"someone talked about {rng.choice(words.TOPICS)} {where}."
    return text[0].upper() + text[1:]
