"""The keys of a body of /generate that name a session, checked. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from coordinator.http.checking import checked
from coordinator.http.errors import BadRequest
from coordinator.sessions.turns import TurnRequest

MAX_NAME_LENGTH = 256
"""The most characters of a session's name, and of a rid."""


class SessionParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The object under `session_params`, with SGLang's names. null stands for the default."""

    id: str | None = None
    rid: str | None = None
    offset: int | None = None
    replace: bool | None = None
    drop_previous_output: bool | None = None


def parse_session(
    params: dict[str, Any] | list[dict[str, Any] | None] | None,
    session_id: str | None,
    num_answers: int,
) -> TurnRequest | None:
    """Returns what the two keys ask for; None if they name no session.

    `session_id` alone is a first turn. `num_answers` is how many answers the whole body asks for: a
    turn has one. Raises BadRequest.
    """
    if isinstance(params, list):
        if len(params) > 1:
            raise BadRequest("session_params: one prompt takes one session", "session_params")
        params = params[0] if params else None
    one = checked(params or {}, SessionParams, "session_params: ")
    if one.id and session_id and one.id != session_id:
        raise BadRequest(
            f"session_id is {session_id!r} and session_params.id is {one.id!r}; give one of them",
            "session_id",
        )
    if not (name := one.id or session_id or ""):
        return None
    check_name(name, "session_params.id" if one.id else "session_id")
    if num_answers != 1:
        raise BadRequest(
            f"session_params: a turn has one prompt and one answer; this body asks for "
            f"{num_answers} answers",
            "session_params",
        )
    return TurnRequest(
        session_id=name,
        rid=one.rid or "",
        offset=one.offset or 0,
        replace=bool(one.replace),
        drop_previous_output=bool(one.drop_previous_output),
    )


def check_name(name: str, key: str) -> None:
    """Raises BadRequest, with `key` as what is wrong, for an unfit name of a session."""
    if not name or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise BadRequest(f"{key} is one printable line of 1 to {MAX_NAME_LENGTH} characters", key)
