"""Haystacks that tasks hide needles in."""

from pydantic import Field

from needlework.config.base import Strict
from needlework.config.paths import SPLIT, TEXT_COLUMN, TEXT_PATH

BUILT_IN_HAYSTACKS = ("noise", "needle", "sentences", "essay")
HAYSTACK = (
    "noise: one repeated paragraph; needle: other needles; sentences: generated sentences; "
    "essay: haystacks.essay, or generated sentences without it; or a name under haystacks"
)


class Haystack(Strict):
    """A text of yours to hide needles in; it is split into sentences."""

    path: str = Field(min_length=1, description=TEXT_PATH)
    column: str = Field("text", description=TEXT_COLUMN)
    split: str = Field("train", description=SPLIT)
