"""Parameters of fine-tuning data.

Fine-tuning data is a subclass of Examples with a `type` field, and a module whose function
`make_examples` generates the rows.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from needlework.config.base import Name, Percent, Strict, tagged_union
from needlework.config.paths import SPECIAL_TOKENS, SPLIT, TEXT_COLUMN, TEXT_PATH

_TABLE_PATH = (
    "Parquet/JSON lines/CSV file or folder, folder of a saved dataset, or owner/name of a hub "
    "dataset"
)
ExampleLength = Annotated[int, Field(ge=64)]
"""Tokens of a training row."""


class Examples(Strict):
    """Parameters that all kinds of training rows share."""

    module: ClassVar[str]
    """The module that makes the rows, in its function `make_examples`."""
    has_answers: ClassVar[bool] = True
    """Whether rows have a prompt and an answer; other rows are plain text."""
    ends_documents: ClassVar[bool] = False
    """Whether `make_examples` takes the id of the end-of-text token, in its argument `end`."""

    examples: int | None = Field(None, ge=1, description="number of rows")
    length: ExampleLength | Annotated[list[ExampleLength], Field(min_length=1)] = Field(
        1024, description="tokens of prompt, answer and end-of-text; several lengths alternate"
    )

    @property
    def task_name(self) -> str | None:
        """The task of the experiment that makes the rows; None: no task does."""
        return None

    @property
    def source_path(self) -> str | None:
        """The user's file, folder or dataset that rows are read from; None: they are generated."""
        return None

    @property
    def lengths(self) -> list[int]:
        """`length` as a list."""
        return [self.length] if isinstance(self.length, int) else self.length


class FixedCountExamples(Examples):
    """Training rows of a fixed number."""

    examples: int = Field(2000, ge=1, description="number of rows")


class PasskeyExamples(FixedCountExamples):
    """Passkey training rows: prompt and answer. Their keys are never evaluation keys."""

    module: ClassVar[str] = "needlework.finetune_data.passkey"

    type: Literal["passkey"] = "passkey"
    digits: list[Annotated[int, Field(ge=1, le=20)]] = Field(
        [4], min_length=1, description="numbers of digits of the keys, equally frequent"
    )
    depths: list[Percent] = Field(
        [0, 25, 50, 75, 100], min_length=1, description="depths of the key, equally frequent"
    )


class TaskExamples(FixedCountExamples):
    """Training rows of one of the file's tasks; the length has room for the longest answer.

    They use separate random streams; their pass keys are never evaluation keys.
    """

    module: ClassVar[str] = "needlework.finetune_data.task"

    type: Literal["task"] = "task"
    task: Name = Field(description="a name under tasks")

    @property
    def task_name(self) -> str:
        return self.task


class RowExamples(Examples):
    """Your own training rows: the columns prompt and answer of a table, unchanged.

    An answer directly follows its prompt: start it with a space if your tokenizer needs one.
    """

    module: ClassVar[str] = "needlework.finetune_data.rows"

    type: Literal["rows"] = "rows"
    path: str = Field(min_length=1, description=_TABLE_PATH)
    prompt_column: str = Field("prompt", description="column with the prompts")
    answer_column: str = Field("answer", description="column with the answers")
    split: str = Field("train", description=SPLIT)
    special_tokens: Literal["text", "allow"] = Field("text", description=SPECIAL_TOKENS)
    examples: int | None = Field(
        None, ge=1, description="number of rows, from the first; null: all"
    )
    length: ExampleLength = Field(
        1024,
        description="maximum tokens of prompt, answer and end-of-text; longer rows are an error",
    )

    @property
    def source_path(self) -> str:
        return self.path


class TextExamples(FixedCountExamples):
    """Your own text to train on, with loss on every token.

    Documents are tokenized one after the other, each ends with the end-of-text token, and the
    token stream is cut into rows without gaps.
    """

    module: ClassVar[str] = "needlework.finetune_data.text"
    has_answers: ClassVar[bool] = False
    ends_documents: ClassVar[bool] = True

    type: Literal["text"] = "text"
    path: str = Field(min_length=1, description=TEXT_PATH)
    column: str = Field("text", description=TEXT_COLUMN)
    split: str = Field("train", description=SPLIT)
    special_tokens: Literal["text", "allow"] = Field("text", description=SPECIAL_TOKENS)
    length: ExampleLength | Annotated[list[ExampleLength], Field(min_length=1)] = Field(
        1024, description="tokens of a row; several lengths alternate"
    )

    @property
    def source_path(self) -> str:
        return self.path


class RecallExamples(FixedCountExamples):
    """Generated text that states numbers and asks for them again, with loss on every token.

    The text of streams without a path; each row is an independent text from separate random
    streams. Mixed with rows of a task, it keeps a model able to continue text.
    """

    module: ClassVar[str] = "needlework.finetune_data.recall"
    has_answers: ClassVar[bool] = False

    type: Literal["recall"] = "recall"
    recall_fraction: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="fraction of turns that ask for an earlier number of the row and answer",
    )


AnyExamples = tagged_union(Examples)
