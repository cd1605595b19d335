"""Parameters of RULER's variable tracking."""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from needlework.config.base import Name
from needlework.config.tasks.base import (
    ANSWERS_IN_HAYSTACK,
    MAX_NEEDLES,
    MAX_NEW_TOKENS,
    AnswersInHaystack,
    DepthTask,
)
from needlework.config.tasks.haystack import HAYSTACK
from needlework.config.tasks.templates import TEMPLATES, Sentence, Templates


class VariableTrackingTemplates(Templates):
    """The sentences of a variable tracking prompt; the assignments stay `VAR X = 12345`."""

    required: ClassVar[Mapping[str, frozenset[str]]] = {"question": frozenset({"value"})}
    optional: ClassVar[Mapping[str, frozenset[str]]] = {
        "question": frozenset({"count"}),
        "answer_prefix": frozenset({"count", "value"}),
    }

    question: Sentence = Field(description="question, with {value}; may have {count}")
    answer_prefix: Sentence = Field(
        description="beginning of the answer; may have {value} and {count}, the number of variables"
    )


class VariableTracking(DepthTask):
    """RULER's vt: find the variables that hold a value, through chains of assignments."""

    module: ClassVar[str] = "needlework.tasks.vt"

    type: Literal["vt"] = "vt"
    haystack: Name = Field("noise", description=HAYSTACK)
    chains: int = Field(1, ge=1, description="chains of assignments; the first is queried")
    hops: int = Field(4, ge=1, description="assignments of a chain after its first")
    answers_in_haystack: AnswersInHaystack = Field("warn", description=ANSWERS_IN_HAYSTACK)
    templates: VariableTrackingTemplates | None = Field(None, description=TEMPLATES)
    max_new_tokens: int = Field(30, ge=1, description=MAX_NEW_TOKENS)

    @property
    def haystack_name(self) -> str:
        return self.haystack

    @property
    def answer_type(self) -> Literal["words"]:
        return "words"

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        needles = self.chains * (self.hops + 1)
        if needles > MAX_NEEDLES:
            raise ValueError(
                f"chains x (hops + 1) is {needles} assignments; write at most {MAX_NEEDLES}"
            )
        return self
