"""Describe pydantic's validation errors in one line."""

from pydantic import ValidationError


def describe_error(error: ValidationError, root: str) -> str:
    """Say where the first error is, what is there and what should be.

    Args:
        error: raised by pydantic.
        root: what to call the validated value as a whole, such as "the file".
    """
    first = error.errors(include_url=False)[0]
    place, message = _key_path(first["loc"]) or root, first["msg"]
    if first["type"] == "json_invalid":
        return f"not JSON: {first['ctx']['error']}"
    if first["type"] == "missing":
        return f"{place} is missing"
    if first["type"] == "value_error":
        return f"{place} {first['ctx']['error']}"
    value = f"{first['input']!r:.40}"
    if first["type"] == "too_short":
        return f"{place} is {value}; it needs {first['ctx']['min_length']} or more items"
    if message.startswith("Input "):
        return f"{place} is {value}; it {message.removeprefix('Input ')}"
    return f"{place} is {value}: {message}"


def _key_path(loc: tuple[int | str, ...]) -> str:
    """`("data", 0, "text")` as `data[0].text`."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return path.removeprefix(".")
