"""Thoughts, which models that reason write before the answer."""

OPEN, CLOSE = "<think>", "</think>"
END = f"\n{CLOSE}\n\n"
"""What ends a thought that has used up its budget."""


def without_thought(prediction: str) -> str:
    """What stands after the last `</think>`; empty if that begins with a thought never closed."""
    answer = prediction.rpartition(CLOSE)[2]
    return "" if answer.lstrip().startswith(OPEN) else answer
