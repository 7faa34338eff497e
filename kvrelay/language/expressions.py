"""What a program appends to its state: texts, generations, selections, tool calls, roles. Pure."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from kvrelay.language.value_types import ValueType


class LanguageError(ValueError):
    """A program asks for what the language does not have; the message says what to write."""


class Expression:
    """Something that a state can be extended by. Expressions and texts are joined with `+`."""

    def __add__(self, other: Expression | str) -> Concatenation:
        return Concatenation((*self.parts(), *expression(other).parts()))

    def __radd__(self, other: str) -> Concatenation:
        return Concatenation((*expression(other).parts(), *self.parts()))

    def parts(self) -> tuple[Expression, ...]:
        """Returns what is to be carried out, one after the other."""
        return (self,)


@dataclass(frozen=True)
class Constant(Expression):
    """A text."""

    text: str


@dataclass(frozen=True)
class Concatenation(Expression):
    """Expressions in their order."""

    expressions: tuple[Expression, ...]

    def parts(self) -> tuple[Expression, ...]:
        return self.expressions


@dataclass(frozen=True)
class GeneratedText(Expression):
    """A text that the model writes. `name` is the variable that it becomes, if any."""

    name: str | None
    params: Mapping[str, Any]
    value_type: ValueType


@dataclass(frozen=True)
class Selection(Expression):
    """The likeliest of several texts, by the mean logprob of their tokens."""

    name: str | None
    choices: tuple[str, ...]


@dataclass(frozen=True)
class ToolUse(Expression):
    """Arguments that the model writes as JSON; the variable is what `function` makes of them."""

    name: str
    function: Callable[..., Any]
    arguments: GeneratedText


@dataclass(frozen=True)
class RoleBegin(Expression):
    """The begin of what a role says."""

    role: str


@dataclass(frozen=True)
class RoleEnd(Expression):
    """The end of what the open role says."""


@dataclass(frozen=True)
class CaptureBegin(Expression):
    """The begin of a text that becomes a variable."""

    name: str


@dataclass(frozen=True)
class CaptureEnd(Expression):
    """The end of the text that becomes the variable `name`."""

    name: str


@dataclass(frozen=True)
class Gathered(Expression):
    """A variable whose value is known already: what branches have made."""

    name: str
    value: Any


Immediate = Constant | RoleEnd | CaptureBegin | CaptureEnd | Gathered
"""What extends a text without asking anybody."""


def expression(value: Expression | str) -> Expression:
    """Returns a text as an expression. Raises LanguageError for what is neither."""
    if isinstance(value, Expression):
        return value
    if isinstance(value, str):
        return Constant(value)
    raise LanguageError(
        f"{value!r:.60} cannot be appended: give a text or an expression, such as gen(…)"
    )


def gen(
    name: str | None = None,
    *,
    dtype: Any = None,
    choices: Sequence[str] | None = None,
    **params: Any,
) -> Expression:
    """Returns an expression for text that the model writes, which becomes the variable `name`.

    `params` are those of /generate, such as `max_new_tokens`, `stop`, `temperature`, `regex`,
    `json_schema` and `return_logprob`. With a `dtype` the text follows its form and the variable
    has its value: int, float, bool, str (a text in quotes), or what JSON can carry, such as a
    dataclass or `list[int]`. With `choices` it is `select`.
    """
    if choices is not None:
        if dtype is not None or params:
            raise LanguageError("gen with choices takes nothing else; it is select(name, choices)")
        return select(name, choices)
    kind = ValueType(dtype)
    both = kind.grammar().keys() & params.keys()
    if both:
        raise LanguageError(f"gen: dtype and {', '.join(both)} both say what the text looks like")
    return GeneratedText(name, {**params, **kind.grammar()}, kind)


def select(name: str | None, choices: Sequence[str]) -> Expression:
    """Returns an expression for the likeliest of `choices`, which becomes the variable `name`."""
    if not choices or not all(isinstance(choice, str) and choice for choice in choices):
        raise LanguageError("select needs at least one choice, and none of them empty")
    return Selection(name, tuple(choices))


def call(name: str, function: Callable[..., Any], **params: Any) -> Expression:
    """Returns an expression that lets the model write the arguments of `function` as JSON, calls
    it, and makes the variable `name` of its result. The text grows by the arguments.

    Every parameter of the function needs an annotation that JSON can carry.
    """
    kind = ValueType(_arguments_type(function))
    return ToolUse(name, function, GeneratedText(None, {**params, **kind.grammar()}, kind))


def system(content: Expression | str) -> Expression:
    """Returns an expression for what the system says."""
    return _said("system", content)


def user(content: Expression | str) -> Expression:
    """Returns an expression for what the user says."""
    return _said("user", content)


def assistant(content: Expression | str) -> Expression:
    """Returns an expression for what the assistant says; `gen` may be in it."""
    return _said("assistant", content)


def _said(role: str, content: Expression | str) -> Expression:
    return Concatenation((RoleBegin(role), *expression(content).parts(), RoleEnd()))


def _arguments_type(function: Callable[..., Any]) -> type:
    """Returns a struct with the parameters of a function as its fields."""
    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError as error:
        raise LanguageError(f"call: an annotation of {function.__name__}: {error}") from error
    fields: list[Any] = []
    for parameter in signature.parameters.values():
        if parameter.annotation is parameter.empty or parameter.kind not in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        ):
            raise LanguageError(
                f"call: the parameter {parameter.name} of {function.__name__} needs an annotation, "
                "and a name by which it can be given"
            )
        has_default = parameter.default is not parameter.empty
        default = (parameter.default,) if has_default else ()
        fields.append((parameter.name, parameter.annotation, *default))
    return msgspec.defstruct(function.__name__, fields, forbid_unknown_fields=True, kw_only=True)
