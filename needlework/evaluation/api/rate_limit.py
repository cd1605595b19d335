"""When the next request may start: limits of an API, and pauses that it asks for."""

import time


class RateLimiter:
    """Starts spread evenly, so that no minute has more requests or tokens than is allowed.

    Args:
        requests_per_minute: None: no limit.
        tokens_per_minute: None: no limit.
    """

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None):
        self._request_seconds = 60 / requests_per_minute if requests_per_minute else 0.0
        self._token_seconds = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._next = 0.0

    @property
    def wait_seconds(self) -> float:
        """Until a request may start; 0 or less: now."""
        return self._next - time.monotonic()

    def start(self, tokens: int) -> None:
        """A request of `tokens` tokens starts: those after it have to wait."""
        self.pause(max(self._request_seconds, self._token_seconds * tokens))

    def pause(self, seconds: float) -> None:
        """Let no request start for so long."""
        self._next = max(self._next, time.monotonic() + seconds)
