"""A prompt: its text in three parts, and where its needles stand."""

from typing import NamedTuple

from tokenizers import Encoding


class Needle(NamedTuple):
    """One key and value in the context."""

    key: str
    value: str
    depth_percent: float
    """Where it was meant to stand: 0 is the start of the haystack, 100 its end."""
    position: int
    """Character of the prompt at which the needle's line or sentence starts."""


class Prompt(NamedTuple):
    """What a text model reads is `text`; the needle asked for comes first in `needles`."""

    context: str
    question: str
    answer_prefix: str
    needles: tuple[Needle, ...]

    @property
    def text(self) -> str:
        return self.context + self.question + self.answer_prefix


def token_position(encoding: Encoding, needle: Needle) -> int:
    """Index of the token that holds the needle's first character, special tokens counted."""
    position = needle.position
    while (token := encoding.char_to_token(position)) is None:
        position += 1
    return token
