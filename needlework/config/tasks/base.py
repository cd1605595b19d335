"""What the rest of the workflow asks of a task, whatever its type.

A task is one module in this folder: a class with a `type` field, which `config.tasks.registry`
finds, and a module that generates its samples (see needlework/tasks/generate.py).
"""

from typing import ClassVar, Literal

from pydantic import Field

from needlework.config.base import Strict
from needlework.config.depths import Depths
from needlework.config.paths import SPECIAL_TOKENS

MAX_NEEDLES = 40
"""RULER has 40 depths, and no two needles share one."""
Metric = Literal["all", "part", "prefix_ratio"]
ValueType = Literal["numbers", "words", "uuids"]
AnswerType = Literal["numbers", "words", "uuids", "text", "choice"]
AnswersInHaystack = Literal["refuse", "warn"]
ANSWERS_IN_HAYSTACK = "what to do if an answer occurs in the context outside its needle"
MAX_NEW_TOKENS = "token budget of the answer"


class Task(Strict):
    """Parameters that all tasks share."""

    module: ClassVar[str]
    """The module that generates the samples; see needlework/tasks/generate.py."""
    has_depths: ClassVar[bool] = True
    """Whether each answer has one depth, so that the task has a heatmap."""
    answers_remedy: ClassVar[str] = "another answer or haystack"
    """What to write if an answer occurs in the context outside its needle."""
    generated: ClassVar[bool] = True
    """Whether samples are generated, or exist already and all have to be read to be checked."""

    max_new_tokens: int = Field(ge=1, description=MAX_NEW_TOKENS)
    special_tokens: Literal["text", "allow"] = Field("text", description=SPECIAL_TOKENS)

    @property
    def type_name(self) -> str:
        """The `type` that selects this task in the experiment file."""
        return type(self).model_fields["type"].get_default()

    @property
    def metric(self) -> Metric:
        """Its metric: all references must be found, or any of them, or see `scoring`."""
        return "all"

    @property
    def answer_type(self) -> AnswerType:
        """The kind of values in the answers, for the exact metric."""
        return "numbers"

    @property
    def haystack_name(self) -> str | None:
        """The haystack that the task hides its needles in; None: it has none."""
        return None

    @property
    def files(self) -> list[str]:
        """Files that the samples are made from; {length} in a path stands for the length."""
        return []


DEPTHS = Field(None, description="depths of the needles; null: the experiment's depths")


class DepthTask(Task):
    """A task with needles at depths."""

    depths: Depths | None = DEPTHS
