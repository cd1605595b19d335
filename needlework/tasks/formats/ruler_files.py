"""Read samples that exist already, in the columns of several projects.

RULER's are `input` and `outputs`; kvpress' `context`, `question`, `answer_prefix` and `answer`; a
conversation is a list of messages in `messages` or `prompt`, as in OpenAI's MRCR.
"""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import from_json

from needlework.config.base import Text
from needlework.sources.records import Record, read_records, require_columns
from needlework.tasks.formats.validation_errors import describe_error

_EXPECTED = "write a JSON lines, JSON or Parquet file with samples"
_ROW = ConfigDict(strict=True, frozen=True)


class ChatMessage(BaseModel):
    """A message of a conversation. Other keys are ignored."""

    model_config = _ROW

    role: Text
    content: str

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, content: object) -> object:
        """The text of OpenAI's list of parts."""
        if not isinstance(content, list):
            return content
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        texts = [text for text in parts if isinstance(text, str)]
        if len(texts) < len(parts):
            raise ValueError("has a part that is no text; write text only")
        return "".join(texts)


class RulerRow(BaseModel):
    """One sample. Keys that needlework does not use are ignored."""

    model_config = _ROW

    index: int
    input: str = ""
    messages: list[ChatMessage] = []
    """A conversation in place of the input; it ends with the user's turn, or begins the answer."""
    # An empty output would match any answer.
    outputs: Annotated[list[Text], Field(min_length=1)]
    answer_prefix: str = ""
    """Empty if the input already ends with it."""
    gen_prefix: str = ""
    """lm-evaluation-harness' name of the answer prefix; it omits the space before it."""
    required_prefix: str = ""
    """Text that a right answer starts with."""
    length: int | None = None
    max_length: int | None = None
    """Tokens of prompt and answer, as `length`."""

    @model_validator(mode="after")
    def _ends_with_a_question(self) -> Self:
        if self.messages and (not self.turns or self.turns[-1].role != "user"):
            roles = ", ".join(message.role for message in self.messages)
            raise ValueError(
                f"has messages of {roles}; end with one of the user, or with the beginning of the "
                "answer after it"
            )
        return self

    @property
    def prefix(self) -> str:
        """The answer prefix as it follows the input."""
        if self.messages and self.messages[-1].role == "assistant":
            return self.messages[-1].content
        if "answer_prefix" in self.model_fields_set:
            return self.answer_prefix
        starts_with_space = self.gen_prefix[:1].isspace() or self.input[-1:].isspace()
        return (
            self.gen_prefix if starts_with_space or not self.gen_prefix else f" {self.gen_prefix}"
        )

    @property
    def turns(self) -> list[ChatMessage]:
        """The messages up to the question, which is the last one."""
        last_answers = bool(self.messages) and self.messages[-1].role == "assistant"
        return self.messages[:-1] if last_answers else self.messages


def read_ruler_jsonl(path: str | Path) -> list[RulerRow]:
    """Read the rows of a file in order; see `read_records` for its format.

    A null is the same as no column. Without an index, rows are numbered.

    Raises:
        ValueError: the file is missing or empty, or a row is invalid; the message names the row or
            line, and the column.
    """
    return [_row(record, i) for i, record in enumerate(read_records(path, _EXPECTED))]


def _row(record: Record, index: int) -> RulerRow:
    """The row of a record, whose columns have one of several names."""
    values = {name: value for name, value in record.values.items() if value is not None}
    given = record._replace(values=values.copy())
    values.setdefault("index", index)
    if (messages := _message_list(values.get("prompt"))) is not None:
        values.setdefault("messages", messages)
    if isinstance(values.get("messages"), str):
        values["messages"] = _message_list(values["messages"]) or values["messages"]
    if "input" not in values and {"context", "question"} <= values.keys():
        context, question = str(values["context"]), str(values["question"])
        joined = context[-1:].isspace() or question[:1].isspace() or not question or not context
        values["input"] = f"{context}{question}" if joined else f"{context}\n{question}"
    for name in ("answer", "answers"):
        if "outputs" not in values and name in values:
            value = values[name]
            values["outputs"] = value if isinstance(value, list) else [value]
    if "random_string_to_prepend" in values:
        values.setdefault("required_prefix", values["random_string_to_prepend"])
    if not {"input", "messages"} & values.keys():
        require_columns(given, ("input",), ("context", "question"), ("messages",))
    if "outputs" not in values:
        require_columns(given, ("outputs",), ("answer",))
    try:
        return RulerRow.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{record.location}: {describe_error(error, 'the row')}") from None


def _message_list(value: Any) -> list[Any] | None:
    """A list of messages, also as JSON in a text; None for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = from_json(value)
        except ValueError:
            return None
    is_list = isinstance(value, list) and bool(value)
    return value if is_list and all(isinstance(m, dict) and "role" in m for m in value) else None
