"""Rate limits of an API, and pauses that it asks for."""

import time


class RateLimiter:
    """Spaces the starts of requests evenly, so that no minute exceeds a limit.

    Args:
        requests_per_minute: None: unlimited.
        tokens_per_minute: None: unlimited.
    """

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None):
        self._request_seconds = 60 / requests_per_minute if requests_per_minute else 0.0
        self._token_seconds = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._next_start = 0.0

    @property
    def wait_seconds(self) -> float:
        """Seconds until a request may start; 0 or less: now."""
        return self._next_start - time.monotonic()

    def start(self, tokens: int) -> None:
        """Record the start of a request of `tokens` tokens, which delays later ones."""
        self.pause(max(self._request_seconds, self._token_seconds * tokens))

    def pause(self, seconds: float) -> None:
        """Delay all requests by at least `seconds`."""
        self._next_start = max(self._next_start, time.monotonic() + seconds)
