"""Conversations and plain texts, and the rows of token text that training reads.

Knows the chat form's literal text (the same as the template in tokenizer.py gives) and how
conversations are mixed; knows nothing of token ids. Every row is a function of its seed alone.
"""

import random
from dataclasses import dataclass, field

import talk
from facts import Fact, FactSource
from people import LATE_REQUESTS, REQUESTS, draw_person
from stories import draw_story, ramble
from values import Values

BOS, EOS = "<|bos|>", "<|eos|>"
SYSTEM, USER, ASSISTANT, END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL_TOKENS = (BOS, EOS, SYSTEM, USER, ASSISTANT, END, "<|pad|>")

NOTE_INTRODUCTIONS = (
    "Here are my notes.",
    "Please read these notes.",
    "Here is a document.",
    "Read the following text and answer my question.",
    "These are the notes of our last meeting.",
    "Document:",
    "Notes:",
    "Context:",
)
QUESTION_FORMS = (
    "{question}",
    "{question}",
    "{question}",
    "{question}",
    "Question: {question}",
    "I forgot something. {question}",
    "Please tell me: {question}",
    "Now tell me: {question}",
    "One more thing. {question}",
    "Thanks. {question}",
    "Quick question: {question}",
    "{question} Please answer.",
)
JOINTS = ("\n\n", "\n\n", "\n", "\n", " ")
# What this corpus has under its own tokenizer. It only decides roughly how long rows become.
CHARACTERS_PER_TOKEN = 3.0


@dataclass
class Conversation:
    """A chat: a system message, "" for none, and turns of (request, reply) in order."""

    turns: list[tuple[str, str]] = field(default_factory=list)
    system: str = ""

    def say(self, request: str, reply: str) -> None:
        """Adds a turn at the end."""
        self.turns.append((request, reply))

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as a chat API takes it."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for request, reply in self.turns:
            messages.append({"role": "user", "content": request})
            messages.append({"role": "assistant", "content": reply})
        return messages

    @property
    def text(self) -> str:
        """The conversation as the chat template writes it."""
        markers = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
        return BOS + "".join(f"{markers[m['role']]}{m['content']}{END}" for m in self.messages)


def ask(rng: random.Random, question: str) -> str:
    """Returns the question as a user might put it."""
    return rng.choice(QUESTION_FORMS).format(question=question)


def tell(rng: random.Random, facts: list[Fact], num_filler: int) -> str:
    """Returns the facts mixed with `num_filler` other sentences, as prose or as a list."""
    lines = [fact.statement for fact in facts] + ramble(rng, num_filler)
    rng.shuffle(lines)
    form = rng.random()
    if form < 0.6:
        return " ".join(lines)
    if form < 0.8:
        return "\n".join(f"- {line}" for line in lines)
    if form < 0.9:
        return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))
    return "\n".join(lines)


def chatter(conversation: Conversation, values: Values, num_sentences: int) -> None:
    """Adds one turn of about `num_sentences` sentences that has nothing to do with any fact."""
    rng = values.rng
    kind = rng.random()
    if num_sentences < 3 or kind < 0.15:
        conversation.say(*talk.exchange(rng))
    elif kind < 0.6:
        conversation.say(*talk.topic(rng, num_sentences))
    elif kind < 0.85:
        conversation.say(*talk.monologue(rng, num_sentences))
    else:
        story = draw_story(values)
        conversation.say(story.request, story.text)


def recall(values: Values, source: FactSource, size: int) -> Conversation:
    """Returns a conversation that tells facts over some turns and asks about them later.

    `size` is about the number of tokens; facts, filler and questions grow with it.
    """
    rng = values.rng
    conversation = Conversation()
    num_facts = rng.randint(1, max(2, min(16, size // 40)))
    facts = [source.draw() for _ in range(num_facts)]
    filler = rng.randint(0, max(0, size // 12 - 2 * num_facts) // 2)
    open_facts = list(facts)
    if rng.random() < 0.25:
        conversation.system = rng.choice(talk.SYSTEMS)
        if rng.random() < 0.3:
            conversation.system += " " + tell(rng, [open_facts.pop()], 0)
    told: list[Fact] = [fact for fact in facts if fact not in open_facts]
    while open_facts:
        count = rng.randint(1, len(open_facts))
        batch, open_facts = open_facts[:count], open_facts[count:]
        told += batch
        text = tell(rng, batch, rng.randint(0, filler // 2))
        if rng.random() < 0.5:
            fact = rng.choice(told)
            conversation.say(text + rng.choice(JOINTS) + ask(rng, fact.question), fact.answer)
        else:
            conversation.say(text, rng.choice(talk.ACKNOWLEDGEMENTS))
    if filler and rng.random() < 0.7:
        chatter(conversation, values, rng.randint(0, filler))
    _ask_all(conversation, rng, facts)
    return conversation


def notes(values: Values, source: FactSource, size: int) -> Conversation:
    """Returns a conversation that begins with a long note and asks about its facts. It has about
    `size` tokens."""
    rng = values.rng
    conversation = Conversation()
    if rng.random() < 0.25:
        conversation.system = rng.choice(talk.SYSTEMS)
    num_facts = rng.randint(2, max(3, min(30, size // 35)))
    facts = [source.draw() for _ in range(num_facts)]
    filler = rng.randint(0, max(0, size // 14 - 2 * num_facts))
    text = tell(rng, facts, filler)
    if rng.random() < 0.8:
        text = rng.choice(NOTE_INTRODUCTIONS) + rng.choice(JOINTS) + text
    fact = rng.choice(facts)
    conversation.say(text + rng.choice(JOINTS) + ask(rng, fact.question), fact.answer)
    _ask_all(conversation, rng, facts)
    return conversation


def _ask_all(conversation: Conversation, rng: random.Random, facts: list[Fact]) -> None:
    """Adds a question about each of most facts, in random order: every answer is learned from."""
    asked = rng.sample(facts, max(1, round(len(facts) * rng.uniform(0.5, 1))))
    for fact in asked:
        conversation.say(ask(rng, fact.question), fact.answer)


def extraction(values: Values, size: int) -> Conversation:
    """Returns a conversation that describes persons and asks for them as JSON, and sometimes asks
    about them afterwards. It has about `size` tokens."""
    rng = values.rng
    conversation = Conversation()
    if rng.random() < 0.2:
        conversation.system = rng.choice(talk.SYSTEMS)
    for _ in range(max(1, size // 130)):
        person = draw_person(values)
        prose = person.prose(rng)
        if rng.random() < 0.15:
            prose = " ".join([*ramble(rng, 1), prose, *ramble(rng, rng.randint(0, 1))])
        if rng.random() < 0.85:
            conversation.say(rng.choice(REQUESTS).format(prose=prose), person.as_json())
        else:
            conversation.say(prose, rng.choice(talk.ACKNOWLEDGEMENTS))
            request = rng.choice(
                LATE_REQUESTS[:1] if len(conversation.turns) < 2 else LATE_REQUESTS[1:]
            )
            conversation.say(request.format(name=person.name), person.as_json())
        if rng.random() < 0.4:
            conversation.say(*person.question(rng))
    return conversation


def small_talk(values: Values) -> Conversation:
    """Returns a conversation of one to three turns of greetings, topics or stories."""
    conversation = Conversation()
    for _ in range(values.rng.randint(1, 3)):
        chatter(conversation, values, values.rng.randint(0, 5))
    return conversation


def storytelling(values: Values) -> Conversation:
    """Returns a conversation that asks for one story."""
    story = draw_story(values)
    conversation = Conversation()
    conversation.say(story.request, story.text)
    return conversation


def echoing(values: Values, size: int) -> Conversation:
    """Returns a conversation whose user wants lists to be repeated. It has about `size` tokens."""
    conversation = Conversation()
    for _ in range(max(1, size // 80)):
        conversation.say(*talk.echo(values, values.rng.randint(1, 6)))
    return conversation


def plain(values: Values, source: FactSource) -> str:
    """Returns a text without chat form: a story, or facts of which two are told again."""
    rng = values.rng
    if rng.random() < 0.7:
        return BOS + draw_story(values).text + EOS
    facts = [source.draw() for _ in range(rng.randint(2, 5))]
    told_again = [fact.answer for fact in rng.sample(facts, 2)]
    return BOS + " ".join([fact.statement for fact in facts] + told_again) + EOS


def piece(values: Values, source: FactSource, size: int, echo_share: float) -> str:
    """Returns a text of about `size` tokens or fewer. Its kind is drawn: with the probability
    `echo_share` it is plain repetition, otherwise as the corpus is mixed."""
    rng = values.rng
    if rng.random() < echo_share:
        return echoing(values, size).text
    kind = rng.random()
    if kind < 0.38:
        return recall(values, source, size).text
    if kind < 0.66:
        return notes(values, source, size).text
    if kind < 0.86:
        return extraction(values, min(size, rng.randint(100, 500))).text
    if kind < 0.91:
        return storytelling(values).text
    if kind < 0.95:
        return small_talk(values).text
    return plain(values, source)


def row(seed: str, num_tokens: int, echo_share: float) -> str:
    """Returns training text of at least `num_tokens` tokens, made of one or more pieces.

    Pieces share one source of facts and values, so that no fact is told twice in a row with
    different values. Attention from one piece to another then cannot mislead, and needs no mask.
    """
    rng = random.Random(seed)
    values = Values(rng, held_out=False)
    source = FactSource(values)
    wanted = num_tokens * 4.5  # characters; more than any row's tokens can cover
    text = ""
    while len(text) < wanted:
        left = max(120, num_tokens - int(len(text) / CHARACTERS_PER_TOKEN))
        text += piece(values, source, rng.randint(min(100, left), left), echo_share)
    return text
