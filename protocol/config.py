"""Turns flags and environment variables into the frozen dataclass that configures a process.

A field made with `option(...)` is the flag `--field-name` and the variable `KVRELAY_FIELD_NAME`;
its type decides how the text is read. A flag goes before the variable, and that before the default.
A field that is a tuple takes several texts: its flag may come again, and commas separate them.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from protocol.errors import UserError
from protocol.redis.url import RedisUrl

T = TypeVar("T")
MOST_WHOLE, MOST_FRACTION = 1 << 53, 10**9
"""No setting needs more: what they go to has words of 64 bits, and waits of so many seconds."""
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")
LOG_LEVEL_SYNONYMS = {"warn": "warning", "critical": "error", "fatal": "error"}
PASSWORD_OPTION = re.compile(r"([?&]\w*password=)[^&]*")
"""Matches an option of a URL whose name ends with `password`; group 1 is all but its value."""


class ConfigError(UserError):
    """A setting is missing or wrong; the message says which one and what to do."""


def option(
    default: Any,
    help: str,
    choices: Sequence[str] = (),
    is_secret: bool = False,
    aliases: Sequence[str] = (),
    synonyms: Mapping[str, str] | None = None,
) -> Any:
    """Returns a dataclass field that is also a flag and an environment variable.

    With `choices` no other text is accepted, but for `synonyms`, each of which stands for a choice;
    capitals do not matter. The value of a secret is never shown. `aliases` are other names of the
    flag, without dashes before them.
    """
    metadata = {
        "help": help,
        "choices": tuple(choices),
        "is_secret": is_secret,
        "aliases": tuple(aliases),
        "synonyms": dict(synonyms or {}),
    }
    return dataclasses.field(default=default, metadata=metadata)


class _Joined(argparse.Action):
    """Joins the texts of a flag that is given several times, with commas between them."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        before = getattr(namespace, self.dest, "")
        setattr(namespace, self.dest, f"{before},{values}" if before else values)


def add_flags(
    parser: argparse._ActionsContainer, config: type, known: Collection[str] = ()
) -> set[str]:
    """Adds a flag for each option of the dataclass `config` whose name is not in `known`.

    Returns `known` and the names added, so that a command can take the options of several
    dataclasses, each name once. A flag that is not given leaves no attribute in the parsed
    arguments, so that the environment can be looked at instead.
    """
    names = set(known)
    for field in dataclasses.fields(config):
        if field.name in names:
            continue
        names.add(field.name)
        flags = ["--" + name for name in (field.name.replace("_", "-"), *field.metadata["aliases"])]
        shown = "none" if field.default in ("", ()) else field.default
        help_text = f"{field.metadata['help']} (default: {shown})".replace("%", "%%")
        choices = field.metadata["choices"]
        metavar = f"{{{','.join(choices)}}}" if choices else field.name.split("_")[-1].upper()
        kind: dict[str, Any] = {"metavar": metavar}
        if isinstance(field.default, bool):
            kind = {"action": "store_const", "const": "true"}
        elif isinstance(field.default, tuple):
            kind["action"] = _Joined
        parser.add_argument(
            *flags, dest=field.name, default=argparse.SUPPRESS, help=help_text, **kind
        )
    return names


def resolve(config: type[T], flags: Mapping[str, str], environment: Mapping[str, str]) -> T:
    """Builds the dataclass `config` out of parsed flags and the environment.

    Raises ConfigError, which names the flag or variable whose text is wrong.
    """
    hints = typing.get_type_hints(config)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        variable = "KVRELAY_" + field.name.upper()
        flag = "--" + field.name.replace("_", "-")
        if field.name in flags:
            text, source = flags[field.name], flag
        elif environment.get(variable):
            text, source = environment[variable], variable
        else:
            continue
        if choices := field.metadata["choices"]:
            text = _choice(text, source, choices, field.metadata["synonyms"])
        values[field.name] = _parse(text, hints[field.name], source)
    return config(**values)


def _choice(text: str, source: str, choices: Sequence[str], synonyms: Mapping[str, str]) -> str:
    """Returns the choice that `text` names."""
    lower = text.lower()
    chosen = synonyms.get(lower, lower)
    if chosen not in choices:
        raise ConfigError(f"{source} is {text!r}; it must be one of {', '.join(choices)}")
    return chosen


def _parse(text: str, kind: Any, source: str) -> Any:
    """Reads `text` as a value of type `kind`. `source` is the flag or variable it comes from."""
    if kind is bool:
        if text.lower() in ("1", "true", "yes", "on"):
            return True
        if text.lower() in ("0", "false", "no", "off"):
            return False
        raise ConfigError(f"{source} is {text!r}; it must be true or false")
    readers: dict[Any, Callable[[str], Any]] = {
        int: int,
        float: float,
        str: str,
        tuple[str, ...]: _several,
    }
    word = "a whole number" if kind is int else "a number"
    try:
        value = readers[kind](text)
    except ValueError:
        raise ConfigError(f"{source} is {text!r:.80}; it must be {word}") from None
    most = {int: MOST_WHOLE, float: MOST_FRACTION}.get(kind)
    if most is not None and not -most <= value <= most:
        raise ConfigError(f"{source} is {text!r:.80}; it must be {word} of at most {most:,}")
    return value


def _several(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def require(condition: bool, sentence: str) -> None:
    """Raises ConfigError with `sentence` unless `condition` holds. For checks of settings."""
    if not condition:
        raise ConfigError(sentence)


def require_ports(config: object, *names: str) -> None:
    """Raises ConfigError unless each of these settings is a port, or 0, which is any free one."""
    for name in names:
        port = getattr(config, name)
        flag = "--" + name.replace("_", "-")
        require(0 <= port < 65536, f"{flag} is {port}; it must be between 0 and 65535")


def require_redis_url(url: str) -> None:
    """Raises ConfigError, without the password, unless `url` is a Redis URL."""
    try:
        RedisUrl.parse(url)
    except ValueError as error:
        raise ConfigError(f"--redis-url is {hide_password(url)!r}; {error}") from error


def describe(config: object) -> str:
    """Returns one line with every setting, for the log at start. Secrets and passwords in URLs are
    hidden."""
    parts = []
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        hidden = "***" if field.metadata["is_secret"] and text else hide_password(text)
        parts.append(f"{field.name}={hidden}")
    return " ".join(parts)


def hide_password(url: str) -> str:
    """Returns `url` with its passwords replaced: `redis://user:secret@host` becomes
    `redis://user:***@host`, and so do the values of options whose names end with `password`."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    credentials, at, host = PASSWORD_OPTION.sub(r"\1***", rest).rpartition("@")
    if ":" in credentials:
        credentials = f"{credentials.split(':', 1)[0]}:***"
    return f"{scheme}://{credentials}{at}{host}"
