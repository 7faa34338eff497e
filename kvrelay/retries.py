"""`RetryPolicy`: whether a call that failed is made again, and after what wait. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from kvrelay.errors import ClientError, ConnectionBroken


@dataclass(frozen=True)
class RetryPolicy:
    """Waits twice as long after each failure, and half of the wait is chance, so that clients that
    failed together do not come back together."""

    max_attempts: int = 5
    """How often a call is made in all; 1: never again."""
    first_wait_s: float = 0.1
    max_wait_s: float = 10.0
    """The longest wait. A cluster that wants a longer one is not asked again."""

    def wait_s(
        self, num_failed: int, error: ClientError, chance: float, is_repeatable: bool
    ) -> float | None:
        """Returns how long to wait after the failure number `num_failed` (from 1), or None if the
        call is over. `chance` is from [0, 1).

        A call is made again if the cluster has not begun with it, and one that is repeatable also
        if the connection broke before an answer came.
        """
        is_safe = error.did_nothing or (is_repeatable and isinstance(error, ConnectionBroken))
        if not is_safe or num_failed >= self.max_attempts:
            return None
        if error.retry_after_s > self.max_wait_s:
            return None
        # The exponent is bounded: a float holds no 2.0 ** 1100.
        full_s = min(self.max_wait_s, self.first_wait_s * 2.0 ** min(num_failed - 1, 64))
        return max(error.retry_after_s, full_s * (0.5 + chance / 2))


DEFAULT_RETRY = RetryPolicy()
NEVER_AGAIN = RetryPolicy(max_attempts=1)
