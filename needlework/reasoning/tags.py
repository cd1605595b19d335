"""Tags around the reasoning that thinking models write before the answer."""

OPEN_TAG, CLOSE_TAG = "<think>", "</think>"
CLOSING_TEXT = f"\n{CLOSE_TAG}\n\n"
"""Closes reasoning that has used up its token budget."""


def strip_reasoning(prediction: str) -> str:
    """Return the text after the last `</think>`, or nothing if that is reasoning never closed."""
    answer = prediction.rpartition(CLOSE_TAG)[2]
    return "" if answer.lstrip().startswith(OPEN_TAG) else answer
