"""API keys, read from the environment only."""

import os


def api_key(variable: str | None) -> str | None:
    """Return the key in an environment variable, or None if no variable is named.

    Raises:
        ValueError: the variable is not set or does not hold a key. The message omits its value.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(
            f"key_env {variable}: is not set in the environment; export it, or write "
            "key_env: null for an API without a key"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        # An HTTP library would quote the whole header, and so the key, in its own error.
        raise ValueError(
            f"key_env {variable}: does not hold a key (spaces, line breaks or non-ASCII text); "
            "export the key alone"
        )
    return key
