"""Parameters of needles and questions of the user's own."""

from typing import ClassVar, Literal

from pydantic import Field

from needlework.config.base import Name, Strict, Text
from needlework.config.tasks.base import (
    ANSWERS_IN_HAYSTACK,
    MAX_NEEDLES,
    MAX_NEW_TOKENS,
    AnswersInHaystack,
    DepthTask,
)
from needlework.config.tasks.haystack import HAYSTACK


class FreeNeedle(Strict):
    """A sentence of yours to hide, and the part of it that the answer must contain."""

    text: Text = Field(description="sentence to hide")
    answer: Text = Field(description="what the answer must contain")


class Needles(DepthTask):
    """Your own needles and a question about all of them."""

    module: ClassVar[str] = "needlework.tasks.needles"

    type: Literal["needles"] = "needles"
    haystack: Name = Field("essay", description=HAYSTACK)
    needles: list[FreeNeedle] = Field(
        min_length=1, max_length=MAX_NEEDLES, description="needles to hide and to look for"
    )
    question: Text = Field(description="question after the haystack")
    intro: Text = Field(
        "Read the following text. I will ask you about it afterwards.",
        description="instruction before the haystack",
    )
    answer_prefix: str = Field("Answer:", description="start of the answer")
    answers_in_haystack: AnswersInHaystack = Field("warn", description=ANSWERS_IN_HAYSTACK)
    max_new_tokens: int = Field(64, ge=1, description=MAX_NEW_TOKENS)

    @property
    def haystack_name(self) -> str:
        return self.haystack

    @property
    def answer_type(self) -> Literal["text"]:
        return "text"
