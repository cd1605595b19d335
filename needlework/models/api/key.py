"""The key of an API: from the environment, and nowhere else."""

import os


def api_key(variable: str | None) -> str | None:
    """What the environment variable holds; None where no variable is named.

    Raises:
        ValueError: it is not set, or holds what cannot be a key. The key is not told.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(
            f"key_env {variable}: is not set in the environment; export it, or write "
            "key_env: null for an API that asks for no key"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        # An HTTP library would tell the whole header, and so the key, in its own error.
        raise ValueError(f"key_env {variable}: holds no key but other text; export the key")
    return key
