"""Parameters of RULER's aggregation tasks: common and frequent words."""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from needlework.config.tasks.base import MAX_NEW_TOKENS, Task
from needlework.config.tasks.templates import TEMPLATES, Sentence, Templates


class CommonWordsTemplates(Templates):
    """The sentences of a common words prompt."""

    required: ClassVar[Mapping[str, frozenset[str]]] = {"question": frozenset({"count"})}
    optional: ClassVar[Mapping[str, frozenset[str]]] = {"answer_prefix": frozenset({"count"})}

    question: Sentence = Field(description="question, with {count}, the number of common words")
    answer_prefix: Sentence = Field(description="beginning of the answer; may have {count}")


class FrequentWordsTemplates(Templates):
    """The sentences of a frequent words prompt, which asks for three words and ignores `...`."""


class CommonWords(Task):
    """RULER's cwe: find the most common words of a numbered list."""

    module: ClassVar[str] = "needlework.tasks.cwe"
    has_depths: ClassVar[bool] = False

    type: Literal["cwe"] = "cwe"
    common_words: int = Field(10, ge=1, le=100, description="common words to name")
    common_repeats: int | None = Field(
        None, ge=2, description="repeats of each common word; null: 30, below 4096 tokens 6"
    )
    other_repeats: int | None = Field(
        None, ge=1, description="repeats of each other word; null: 3, below 4096 tokens 1"
    )
    templates: CommonWordsTemplates | None = Field(None, description=TEMPLATES)
    max_new_tokens: int = Field(120, ge=1, description=MAX_NEW_TOKENS)

    @property
    def answer_type(self) -> Literal["words"]:
        return "words"

    @model_validator(mode="after")
    def _check_repeats(self) -> Self:
        common, other = self.common_repeats, self.other_repeats
        if (common is None) != (other is None):
            raise ValueError("write both common_repeats and other_repeats, or neither")
        if common is not None and other is not None and common <= other:
            raise ValueError(
                f"common_repeats is not above other_repeats; write at least {other + 1}"
            )
        return self


class FrequentWords(Task):
    """RULER's fwe: find the three most frequent coded words, whose counts follow Zipf's law."""

    module: ClassVar[str] = "needlework.tasks.fwe"
    has_depths: ClassVar[bool] = False

    type: Literal["fwe"] = "fwe"
    alpha: float = Field(
        2.0, gt=1, le=10, description="Zipf's exponent: rank k appears as often as k^-alpha"
    )
    letters: int = Field(6, ge=3, le=20, description="letters of a coded word")
    vocabulary: int | None = Field(
        None, ge=5, description="number of coded words; null: a fiftieth of the length"
    )
    templates: FrequentWordsTemplates | None = Field(None, description=TEMPLATES)
    max_new_tokens: int = Field(50, ge=1, description=MAX_NEW_TOKENS)

    @property
    def answer_type(self) -> Literal["words"]:
        return "words"
