"""`RoleMarkers`: the texts between what roles say, by name or as a server renders them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kvrelay.language.expressions import LanguageError

Render = Callable[[Sequence[Mapping[str, str]], bool], str]
"""Makes the text of messages, with the begin of the assistant's answer if the flag says so. Raises
ValueError if the template cannot render them."""
ROLES = ("system", "user", "assistant")
SAID = {role: f"what the {role} says" for role in ROLES}
"""Contents whose places are looked for in a rendered chat."""


@dataclass(frozen=True)
class RoleMarkers:
    """The texts around what roles say.

    Templates differ in more than a begin and an end for each role: some put what the system says
    into the first message of the user. So a text belongs to two roles that follow each other.
    """

    between: Mapping[tuple[str | None, str], str]
    """The text from the end of what one role says to the begin of what the next says. The first
    one is None at the begin of a chat."""
    ends: Mapping[str, str] = field(default_factory=dict)
    """The text behind the last message, by its role."""

    def opening(self, last_role: str | None, role: str) -> str:
        """Returns the text before what `role` says. Raises LanguageError."""
        try:
            return self.between[last_role, role]
        except KeyError:
            after = f"after {last_role}" if last_role else "at the begin of a chat"
            known = sorted(f"{a or 'nothing'} → {b}" for a, b in self.between)
            raise LanguageError(
                f"the chat template has no message of {role} {after}; it has {', '.join(known)}. "
                "Another template can be named: HttpBackend(chat_template=…)"
            ) from None


def markers_of_roles(
    system: tuple[str, str], user: tuple[str, str], assistant: tuple[str, str]
) -> RoleMarkers:
    """Returns the markers of a template that has a begin and an end for each role."""
    around = dict(zip(ROLES, (system, user, assistant), strict=True))
    between: dict[tuple[str | None, str], str] = {
        (last, role): around[last][1] + around[role][0] for last in ROLES for role in ROLES
    }
    between |= {(None, role): around[role][0] for role in ROLES}
    return RoleMarkers(between, {role: around[role][1] for role in ROLES})


def _alike(begin: str, end: str) -> RoleMarkers:
    """Returns the markers of a template that writes every role the same way."""
    system, user, assistant = ((begin.format(role), end) for role in ROLES)
    return markers_of_roles(system, user, assistant)


NAMED: Mapping[str, RoleMarkers] = {
    "plain": markers_of_roles(("SYSTEM: ", "\n"), ("USER: ", "\n"), ("ASSISTANT: ", "\n")),
    "chatml": _alike("<|im_start|>{}\n", "<|im_end|>\n"),
    "llama-3": _alike("<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>"),
    "phi-3": _alike("<|{}|>\n", "<|end|>\n"),
    "gemma": RoleMarkers(
        {
            (None, "system"): "<start_of_turn>user\n",
            (None, "user"): "<start_of_turn>user\n",
            ("system", "user"): "\n\n",
            ("user", "assistant"): "<end_of_turn>\n<start_of_turn>model\n",
            ("assistant", "user"): "<end_of_turn>\n<start_of_turn>user\n",
        },
        {"user": "<end_of_turn>\n", "assistant": "<end_of_turn>\n"},
    ),
    "mistral": RoleMarkers(
        {
            (None, "system"): "[INST] ",
            (None, "user"): "[INST] ",
            ("system", "user"): "\n\n",
            ("user", "assistant"): " [/INST]",
            ("assistant", "user"): "</s>[INST] ",
        },
        {"user": " [/INST]", "assistant": "</s>"},
    ),
}
"""Templates by name. None begins with the token that servers put before every text."""


def named_markers(name: str) -> RoleMarkers:
    """Returns a template by its name. Raises LanguageError."""
    if name not in NAMED:
        raise LanguageError(
            f"the chat template {name!r} is unknown; it is 'server' or one of {', '.join(NAMED)}"
        )
    return NAMED[name]


def rendered_markers(render: Render, begin: str) -> RoleMarkers:
    """Returns the markers of the template that `render` uses, found from a few small chats.

    `begin` is the text of the token that the server puts before every text; it is left out. Raises
    ValueError if the template cannot even render a question and its answer.
    """
    question, answer, instruction = (
        {"role": role, "content": SAID[role]} for role in ("user", "assistant", "system")
    )
    again = {"role": "user", "content": "what else the user says"}
    asked = render([question], False)
    opened = _pieces(render([question], True), SAID["user"])
    talk = _pieces(
        render([question, answer, again], False),
        *(SAID["user"], SAID["assistant"], again["content"]),
    )
    between: dict[tuple[str | None, str], str] = {
        (None, "user"): opened[0].removeprefix(begin),
        ("user", "assistant"): opened[1],
        ("assistant", "user"): talk[2],
    }
    ends = {"user": _pieces(asked, SAID["user"])[1]}
    ends["assistant"] = _pieces(render([question, answer], False), SAID["assistant"])[1]
    try:
        instructed = _pieces(render([instruction, question], False), SAID["system"], SAID["user"])
    except ValueError:  # the template takes no system message
        return RoleMarkers(between, ends)
    between[None, "system"] = instructed[0].removeprefix(begin)
    between["system", "user"] = instructed[1]
    return RoleMarkers(between, ends)


def _pieces(text: str, *contents: str) -> list[str]:
    """Returns the texts around `contents`. Raises ValueError if the template has changed them."""
    pieces = []
    for content in contents:
        before, found, text = text.partition(content)
        if not found:
            raise ValueError(f"the chat template does not write {content!r} as it is")
        pieces.append(before)
    return [*pieces, text]
