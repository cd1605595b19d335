"""Parameters of RULER's needle-in-a-haystack tasks."""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from needlework.config.base import Name, Text
from needlework.config.tasks.base import (
    ANSWERS_IN_HAYSTACK,
    MAX_NEEDLES,
    MAX_NEW_TOKENS,
    AnswersInHaystack,
    AnswerType,
    DepthTask,
    ValueType,
)
from needlework.config.tasks.haystack import HAYSTACK
from needlework.config.tasks.templates import TEMPLATES, Sentence, Templates


class NiahTemplates(Templates):
    """The sentences of a needle-in-a-haystack prompt."""

    required: ClassVar[Mapping[str, frozenset[str]]] = {
        "needle": frozenset({"key", "value"}),
        "question": frozenset({"query"}),
    }
    optional: ClassVar[Mapping[str, frozenset[str]]] = {"answer_prefix": frozenset({"query"})}

    needle: Sentence = Field(description="sentence to hide, with {key} and {value}")
    key_separator: Text = Field(", ", description="text between the keys that are asked for")
    question: Sentence = Field(description="question, with {query} for the keys asked for")
    answer_prefix: Sentence = Field(description="beginning of the answer; may have {query}")


class NiahTask(DepthTask):
    """A needle-in-a-haystack task of RULER (Hsieh et al., 2024)."""

    module: ClassVar[str] = "needlework.tasks.niah"

    haystack: Name = Field("noise", description=HAYSTACK)
    answers_in_haystack: AnswersInHaystack = Field("warn", description=ANSWERS_IN_HAYSTACK)
    key_type: ValueType = Field("words", description="kind of keys; words: adjective-noun")
    value_type: ValueType = Field("numbers", description="kind of values")
    digits: int = Field(7, ge=1, le=20, description="number of digits of numeric keys and values")
    keys: int = Field(1, ge=1, description="keys in the haystack")
    values: int = Field(1, ge=1, description="values per key; each is a needle")
    queries: int = Field(1, ge=1, description="keys that the question asks for")
    key_words: Literal["all", "held_out"] | list[Sentence] = Field(
        "all",
        description="words that keys and values of type words are drawn from; held_out: only those "
        "that the embedded model was not trained on; or a list of your own, in any script",
    )
    templates: NiahTemplates | None = Field(None, description=TEMPLATES)
    max_new_tokens: int = Field(128, ge=1, description=MAX_NEW_TOKENS)

    @property
    def haystack_name(self) -> str:
        return self.haystack

    @property
    def answer_type(self) -> AnswerType:
        # Words of any script need not be separable.
        own_words = self.value_type == "words" and isinstance(self.key_words, list)
        return "text" if own_words else self.value_type

    @field_validator("key_words")
    @classmethod
    def _check_words(cls, words: str | list[str]) -> str | list[str]:
        seen: list[str] = []
        for word in sorted(words, key=len) if isinstance(words, list) else []:
            if inside := next((other for other in seen if other in word.casefold()), None):
                raise ValueError(f"{word!r} contains {inside!r}, another word; remove one")
            seen.append(word.casefold())
        return words

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if self.keys * self.values > MAX_NEEDLES:
            needles = self.keys * self.values
            raise ValueError(f"keys x values is {needles} needles; write at most {MAX_NEEDLES}")
        if self.queries > self.keys:
            raise ValueError(f"queries is above keys; write at most {self.keys}, or more keys")
        return self


class Niah(NiahTask):
    """Needles in a haystack, with any of RULER's parameters (Hsieh et al., 2024)."""

    type: Literal["niah"] = "niah"


class NiahSingle1(NiahTask):
    """RULER's niah_single_1: a number in noise."""

    type: Literal["niah_single_1"] = "niah_single_1"


class NiahSingle2(NiahTask):
    """RULER's niah_single_2: a number in an essay."""

    type: Literal["niah_single_2"] = "niah_single_2"
    haystack: Name = Field("essay", description=HAYSTACK)


class NiahSingle3(NiahTask):
    """RULER's niah_single_3: a uuid in an essay."""

    type: Literal["niah_single_3"] = "niah_single_3"
    haystack: Name = Field("essay", description=HAYSTACK)
    value_type: ValueType = Field("uuids", description="kind of values")


class NiahMultikey1(NiahTask):
    """RULER's niah_multikey_1: four needles in an essay, one is queried."""

    type: Literal["niah_multikey_1"] = "niah_multikey_1"
    haystack: Name = Field("essay", description=HAYSTACK)
    keys: int = Field(4, ge=1, description="keys in the haystack")


class NiahMultikey2(NiahTask):
    """RULER's niah_multikey_2: a haystack of needles, one is queried."""

    type: Literal["niah_multikey_2"] = "niah_multikey_2"
    haystack: Name = Field("needle", description=HAYSTACK)


class NiahMultikey3(NiahTask):
    """RULER's niah_multikey_3: a haystack of needles made of uuids, one is queried."""

    type: Literal["niah_multikey_3"] = "niah_multikey_3"
    haystack: Name = Field("needle", description=HAYSTACK)
    key_type: ValueType = Field("uuids", description="kind of keys")
    value_type: ValueType = Field("uuids", description="kind of values")


class NiahMultivalue(NiahTask):
    """RULER's niah_multivalue: four values of one key in an essay, all are queried."""

    type: Literal["niah_multivalue"] = "niah_multivalue"
    haystack: Name = Field("essay", description=HAYSTACK)
    values: int = Field(4, ge=1, description="values per key; each is a needle")


class NiahMultiquery(NiahTask):
    """RULER's niah_multiquery: four keys in an essay, all are queried."""

    type: Literal["niah_multiquery"] = "niah_multiquery"
    haystack: Name = Field("essay", description=HAYSTACK)
    keys: int = Field(4, ge=1, description="keys in the haystack")
    queries: int = Field(4, ge=1, description="keys that the question asks for")
