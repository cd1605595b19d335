"""Parameters of RULER's question answering."""

from typing import ClassVar, Literal

from pydantic import Field

from needlework.config.tasks.base import MAX_NEW_TOKENS, Metric, Task


class QuestionAnsweringTask(Task):
    """A question about one or two paragraphs among many."""

    module: ClassVar[str] = "needlework.tasks.qa"

    path: str = Field(
        min_length=1, description="question set: the JSON file that its authors publish"
    )
    format: Literal["squad", "hotpotqa"] = Field("squad", description="format of the file")
    max_new_tokens: int = Field(32, ge=1, description=MAX_NEW_TOKENS)

    @property
    def metric(self) -> Metric:
        return "part"

    @property
    def answer_type(self) -> Literal["text"]:
        return "text"

    @property
    def files(self) -> list[str]:
        return [self.path]


class QuestionAnswering(QuestionAnsweringTask):
    """A question about one or two paragraphs among many, like RULER's qa_1 and qa_2."""

    type: Literal["qa"] = "qa"


class Qa1(QuestionAnsweringTask):
    """RULER's qa_1: SQuAD, with other paragraphs around the gold one."""

    type: Literal["qa_1"] = "qa_1"
    path: str = Field(min_length=1, description="SQuAD's dev-v2.0.json")


class Qa2(QuestionAnsweringTask):
    """RULER's qa_2: HotpotQA, with other paragraphs around a question's ten."""

    type: Literal["qa_2"] = "qa_2"
    path: str = Field(min_length=1, description="HotpotQA's hotpot_dev_distractor_v1.json")
    format: Literal["squad", "hotpotqa"] = Field("hotpotqa", description="format of the file")
