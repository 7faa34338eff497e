"""What a user imports: the clients of a kvrelay cluster, their answers and their errors."""

from kvrelay.answers import ChatAnswer, ChatUpdate, Generated, GeneratedMeta
from kvrelay.async_client import AsyncClient
from kvrelay.client import Client
from kvrelay.errors import ClientError, ClusterBusy, ClusterUnavailable, InvalidCall
from kvrelay.retries import NEVER_AGAIN, RetryPolicy

__all__ = [
    "NEVER_AGAIN",
    "AsyncClient",
    "ChatAnswer",
    "ChatUpdate",
    "Client",
    "ClientError",
    "ClusterBusy",
    "ClusterUnavailable",
    "Generated",
    "GeneratedMeta",
    "InvalidCall",
    "RetryPolicy",
]
