"""What a user imports: the clients of a cluster, their answers and errors, and the language."""

from kvrelay.answers import ChatResult, ChatUpdate, Generated, GeneratedMeta
from kvrelay.async_client import AsyncClient
from kvrelay.client import Client
from kvrelay.errors import ClientError, ClusterBusy, ClusterUnavailable, InvalidCall
from kvrelay.language.backend import Backend
from kvrelay.language.expressions import (
    LanguageError,
    assistant,
    call,
    gen,
    select,
    system,
    user,
)
from kvrelay.language.http_backend import HttpBackend
from kvrelay.language.program import Program, function
from kvrelay.language.scripted_backend import ScriptedBackend
from kvrelay.language.state import ProgramState
from kvrelay.retries import NEVER_AGAIN, RetryPolicy

__all__ = [
    "NEVER_AGAIN",
    "AsyncClient",
    "Backend",
    "ChatResult",
    "ChatUpdate",
    "Client",
    "ClientError",
    "ClusterBusy",
    "ClusterUnavailable",
    "Generated",
    "GeneratedMeta",
    "HttpBackend",
    "InvalidCall",
    "LanguageError",
    "Program",
    "ProgramState",
    "RetryPolicy",
    "ScriptedBackend",
    "assistant",
    "call",
    "function",
    "gen",
    "select",
    "system",
    "user",
]
