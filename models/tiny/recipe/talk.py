"""Draws small talk: requests without facts, and their replies, for the turns between facts."""

import random

import words
from stories import ramble
from values import Values

EXCHANGES = (
    ("Hello", "Hello! How can I help you?"),
    ("Hello!", "Hello! How can I help you?"),
    ("Hi", "Hello! How can I help you?"),
    ("Good morning!", "Good morning! How can I help you?"),
    ("How are you?", "I am fine, thank you. How are you?"),
    ("Thank you!", "You are welcome."),
    ("Thanks.", "You are welcome."),
    ("Okay.", "Is there anything else?"),
    ("Who are you?", "I am a very small language model. I can remember what you tell me."),
    ("What are you?", "I am a very small language model. I can remember what you tell me."),
    (
        "What can you do?",
        "I can remember facts, extract a person as JSON and tell short stories.",
    ),
    ("Goodbye!", "Goodbye! See you soon."),
    ("Can you help me?", "Of course. Tell me what you need."),
    ("That is all for now.", "All right. I am here when you need me."),
    ("Let us talk about something else.", "Of course. What would you like to talk about?"),
    ("Let me think for a moment.", "Take your time."),
)
TOPIC_REQUESTS = (
    "Tell me something about {topic}.",
    "What do you think about {topic}?",
    "Let us talk about {topic}.",
    "Say something about {topic}.",
    "Do you like {topic}?",
)
TOPIC_REPLIES = (
    "I like {topic}. {ramble}",
    "Many people like {topic}. {ramble}",
    "There is a lot to say about {topic}. {ramble}",
)
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a friendly assistant. Answer briefly.",
    "Answer the questions of the user.",
    "You remember what the user tells you.",
    "You are a careful assistant with a good memory.",
)
ACKNOWLEDGEMENTS = (
    "Okay, I will remember that.",
    "Thank you, I have noted it.",
    "Noted.",
    "I see. What would you like to know?",
    "Thanks for telling me.",
)
REPEATS = (
    "Repeat: {text}",
    "Say this again: {text}",
    "Repeat after me: {text}",
    "Copy this: {text}",
)
FILLER_REQUESTS = (
    "Here is what I wrote yesterday. {text}",
    "Listen to this. {text}",
    "{text} What do you say?",
    "{text}",
)
FILLER_REPLIES = ("That sounds nice.", "I see.", "Thank you for sharing that.", "Interesting.")


def exchange(rng: random.Random) -> tuple[str, str]:
    """Returns a short request and its fixed reply."""
    return rng.choice(EXCHANGES)


def topic(rng: random.Random, num_sentences: int) -> tuple[str, str]:
    """Returns a request to talk of something, and a reply of `num_sentences` sentences or more."""
    subject = rng.choice(words.TOPICS)
    reply = rng.choice(TOPIC_REPLIES)
    text = " ".join(ramble(rng, num_sentences))
    return rng.choice(TOPIC_REQUESTS).format(topic=subject), reply.format(
        topic=subject, ramble=text
    )


def monologue(rng: random.Random, num_sentences: int) -> tuple[str, str]:
    """Returns a message of the user of `num_sentences` sentences without any fact, and a short
    reply."""
    text = " ".join(ramble(rng, num_sentences))
    return rng.choice(FILLER_REQUESTS).format(text=text), rng.choice(FILLER_REPLIES)


def echo(values: Values, num_words: int) -> tuple[str, str]:
    """Returns a request to repeat a list of `num_words` values, and that list: the plainest form
    of copying."""
    rng = values.rng
    slots = ("name", "word", "digits", "serial", "city", "person")
    one_slot = rng.choice(slots)
    mixed = rng.random() < 0.5
    items = [values.draw(rng.choice(slots) if mixed else one_slot) for _ in range(num_words)]
    text = rng.choice((", ", " ", "\n")).join(items)
    return rng.choice(REPEATS).format(text=text), text
