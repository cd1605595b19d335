"""A prompt: its text in three parts, what answers it, where its needles stand, its frame."""

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


class Frame(NamedTuple):
    """What a chat template puts around a prompt.

    The whole prompt is head + context + question + tail + answer_prefix where `prefills`, else
    head + context + question + answer_prefix + tail.
    """

    head: str
    """Text before the context, without the special tokens that the tokenizer adds by itself."""
    tail: str
    """Text behind the question, up to where the model's answer begins."""
    system_prompt: str | None
    """The system message; it is in `head` already."""
    prefills: bool
    """Whether the answer's beginning is put into the model's mouth. Not where it thinks first."""


PLAIN = Frame("", "", None, True)
"""No template: what a base model reads."""
