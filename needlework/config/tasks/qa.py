"""Parameters of RULER's question answering."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from needlework.config.tasks.base import MAX_NEW_TOKENS, Metric, Task
from needlework.config.tasks.templates import TEMPLATES, Sentence, Templates


class QuestionAnsweringTemplates(Templates):
    """The sentences of a question answering prompt."""

    required: ClassVar[Mapping[str, frozenset[str]]] = {
        "title": frozenset({"number"}),
        "question": frozenset({"query"}),
    }

    intro: Sentence = Field(description="instruction before the documents")
    title: Sentence = Field(description="line before each document, with {number}")
    question: Sentence = Field(description="text after the documents, with {query} for a question")


class QuestionAnsweringTask(Task):
    """A question about one or two paragraphs among many."""

    module: ClassVar[str] = "needlework.tasks.qa"
    answers_remedy: ClassVar[str] = "answers_in_haystack: exclude"

    path: str = Field(
        min_length=1, description="question set: the JSON file that its authors publish"
    )
    format: Literal["squad", "hotpotqa"] = Field("squad", description="format of the file")
    answers_in_haystack: Literal["refuse", "exclude", "warn"] = Field(
        "warn",
        description="what to do if an answer occurs in a document that is not one of the "
        "question's own; exclude: leave such documents out",
    )
    templates: QuestionAnsweringTemplates | None = Field(None, description=TEMPLATES)
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
