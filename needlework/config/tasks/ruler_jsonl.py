"""Parameters of samples that exist already."""

from typing import ClassVar, Literal

from pydantic import Field

from needlework.config.tasks.base import MAX_NEW_TOKENS, AnswerType, Metric, Task


class RulerJsonl(Task):
    """Existing samples in RULER's JSON lines; those of a length are used unchanged."""

    module: ClassVar[str] = "needlework.tasks.ruler_jsonl"
    has_depths: ClassVar[bool] = False
    generated: ClassVar[bool] = False

    type: Literal["ruler_jsonl"] = "ruler_jsonl"
    path: str = Field(
        min_length=1, description="the file; {length} in it stands for the length in tokens"
    )
    value_type: AnswerType = Field("text", description="kind of answers; choice: a letter")
    match: Metric = Field(
        "all",
        description="what a right answer contains: all of the outputs, or one of them (part); "
        "prefix_ratio: it starts with required_prefix, and its rest is compared with the output's",
    )
    max_new_tokens: int = Field(128, ge=1, description=MAX_NEW_TOKENS)

    @property
    def metric(self) -> Metric:
        return self.match

    @property
    def answer_type(self) -> AnswerType:
        return self.value_type

    @property
    def files(self) -> list[str]:
        return [self.path]
