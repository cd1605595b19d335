"""Read RULER's samples: JSON lines, JSON or Parquet, in the columns of several projects."""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from needlework.config.base import Text
from needlework.sources.records import read_bytes, read_records
from needlework.tasks.formats.validation_errors import describe_error

_EXPECTED = "write a file in RULER's JSON lines"


class RulerRow(BaseModel):
    """One sample. Keys that needlework does not use are ignored."""

    model_config = ConfigDict(strict=True, frozen=True)

    index: int
    input: str
    # An empty output would match any answer.
    outputs: Annotated[list[Text], Field(min_length=1)]
    answer_prefix: str = ""
    """Empty if the input already ends with it."""
    gen_prefix: str = ""
    """lm-evaluation-harness' name of the answer prefix; it omits the space before it."""
    length: int | None = None
    max_length: int | None = None
    """Tokens of prompt and answer, as `length`."""

    @field_validator("length", "max_length", mode="before")
    @classmethod
    def _not_null(cls, value: object) -> object:
        if value is None:
            raise ValueError("is null; write a whole number, or omit the key")
        return value

    @property
    def prefix(self) -> str:
        """The answer prefix as it follows the input."""
        if "answer_prefix" in self.model_fields_set:
            return self.answer_prefix
        starts_with_space = self.gen_prefix[:1].isspace() or self.input[-1:].isspace()
        return (
            self.gen_prefix if starts_with_space or not self.gen_prefix else f" {self.gen_prefix}"
        )


def read_ruler_jsonl(path: str | Path) -> list[RulerRow]:
    """Read the rows of a file in order; empty lines are skipped.

    Files are JSON lines, a JSON list (.json) or Parquet (.parquet), also compressed (.gz). Columns
    are those of RulerRow, or context, question, answer_prefix and answer; without an index, rows
    are numbered.

    Raises:
        ValueError: the file is missing or empty, or a line is invalid; the message names the line
            and the key.
    """
    path = Path(path)
    try:
        is_lines = ".jsonl" in path.suffixes
        records = None if is_lines else read_records(path)
        content = b"" if path.suffix == ".parquet" else read_bytes(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; {_EXPECTED}") from None
    if records is not None:
        return [_row(record, i, f"{path}: row {i + 1}") for i, record in enumerate(records)]
    rows = [
        _parse(line, f"{path}:{number}")
        for number, line in enumerate(content.split(b"\n"), start=1)
        if line.strip()
    ]
    if not rows:
        raise ValueError(f"{path}: empty; {_EXPECTED}")
    return rows


def _row(record: dict[str, Any], index: int, location: str) -> RulerRow:
    """The row of a record, whose columns have one of several names."""
    record = {name: value for name, value in record.items() if value is not None}
    names = ", ".join(record)
    record.setdefault("index", index)
    if "input" not in record and {"context", "question"} <= record.keys():
        context, question = str(record["context"]), str(record["question"])
        joined = context[-1:].isspace() or question[:1].isspace() or not question or not context
        record["input"] = f"{context}{question}" if joined else f"{context}\n{question}"
    for name in ("answer", "answers"):
        if "outputs" not in record and name in record:
            value = record[name]
            record["outputs"] = value if isinstance(value, list) else [value]
    for name, others in {"input": "context and question", "outputs": "answer"}.items():
        if name not in record:
            raise ValueError(f"{location}: no column {name}, or {others}; its columns are {names}")
    try:
        return RulerRow.model_validate(record)
    except ValidationError as error:
        raise ValueError(f"{location}: {describe_error(error, 'the row')}") from None


def _parse(line: bytes, location: str) -> RulerRow:
    try:
        return RulerRow.model_validate_json(line)
    except ValidationError as error:
        # Every line is parsed separately, so the parser always names line 1.
        problem = re.sub(r" at line 1 column", " at column", describe_error(error, "the line"))
        raise ValueError(
            f"{location}: {problem}; write an object with index, input and outputs"
        ) from None
