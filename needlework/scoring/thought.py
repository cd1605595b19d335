"""Thought text, which models that reason write before the answer."""

_OPEN, _CLOSE = "<think>", "</think>"


def without_thought(prediction: str) -> str:
    """What stands after the last `</think>`; empty if that begins with a thought never closed."""
    answer = prediction.rpartition(_CLOSE)[2]
    return "" if answer.lstrip().startswith(_OPEN) else answer
