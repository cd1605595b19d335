"""A prompt: its text in three parts, what answers it, and where its needles stand."""

from typing import NamedTuple


class Needle(NamedTuple):
    """One key and value in the context."""

    key: str
    value: str
    depth_percent: float
    """Where it was meant to stand: 0 is the start of the haystack, 100 its end."""
    character: int
    """Character of the context at which the needle's line, sentence or word starts."""
    token: int
    """Token of the prompt at which it starts, special tokens counted, by arithmetic."""


class Prompt(NamedTuple):
    """What is asked. Of several outputs asked for, needles[j] holds outputs[j]."""

    context: str
    question: str
    answer_prefix: str
    outputs: tuple[str, ...]
    needles: tuple[Needle, ...]
    tokens: int
    """Of the whole prompt, by arithmetic: the counts of its pieces added up."""
