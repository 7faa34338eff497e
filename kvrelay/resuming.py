"""`StreamProgress`: how a stream of /generate that broke off goes on. Pure.

Its first event carries a resume token. When its coordinator has died, any other one goes on with
the answer for whoever shows the token, as soon as the dead one's lease has ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvrelay.answers import Generated
from kvrelay.calls import ApiCall, resumed
from kvrelay.errors import ClientError, ConnectionBroken, InvalidCall
from kvrelay.retries import RetryPolicy

RESUME_WITHIN_S = 15.0
"""How long a stream is tried to be resumed: some leases of coordinators, of 3 s each."""
RESUME_EVERY_S = 0.25


@dataclass
class StreamProgress:
    """What is known of a stream so far."""

    call: ApiCall[Any]
    retry: RetryPolicy
    _has_begun: bool = False
    """The cluster has accepted the call."""
    _token: str = ""
    _last: Generated | None = None
    _num_failed: int = 0
    """Failures since the last update."""
    _broke_at: float | None = None
    """When the first of these was."""

    def began(self) -> None:
        """Notes that the head of a response has come, which says that a stream follows."""
        self._has_begun = True

    def saw(self, update: Generated) -> None:
        """Notes an update."""
        self._last, self._num_failed, self._broke_at = update, 0, None
        self._token = update.meta_info.resume_token or self._token

    def next_call(
        self, error: ClientError, chance: float, now: float
    ) -> tuple[ApiCall[Any], float] | None:
        """Returns the call with which the stream goes on after an error, and how long to wait
        before; None if it is over. `chance` is from [0, 1)."""
        if not self._has_begun or self.retry.max_attempts <= 1:
            return None  # whoever has sent the call has tried again already, or must not
        self._num_failed += 1
        if self._last is None:
            wait_s = self.retry.wait_s(self._num_failed, error, chance, self.call.is_repeatable)
            return None if wait_s is None else (self.call, wait_s)
        if self._broke_at is None:
            self._broke_at = now
        is_late = now - self._broke_at > RESUME_WITHIN_S
        if not self._token or is_late or not _may_pass(error):
            return None
        meta = self._last.meta_info
        again = resumed(self.call, meta.id, self._token, meta.completion_tokens)
        return again, max(error.retry_after_s, RESUME_EVERY_S * (0.5 + chance))


def _may_pass(error: ClientError) -> bool:
    """Returns True if the stream may go on after this error. That the rid is taken says that the
    first coordinator lives, or that its lease has not ended."""
    is_taken = isinstance(error, InvalidCall) and error.param == "rid"
    return is_taken or error.did_nothing or isinstance(error, ConnectionBroken)
