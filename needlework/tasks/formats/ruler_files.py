"""Read RULER's JSON lines, as NVIDIA's scripts or lm-evaluation-harness write them."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from needlework.config.base import Text
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

    Raises:
        ValueError: the file is missing or empty, or a line is invalid; the message names the line
            and the key.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; {_EXPECTED}") from None
    rows = [
        _parse(line, f"{path}:{number}")
        for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1)
        if line.strip()
    ]
    if not rows:
        raise ValueError(f"{path}: empty; {_EXPECTED}")
    return rows


def _parse(line: bytes, location: str) -> RulerRow:
    try:
        return RulerRow.model_validate_json(line)
    except ValidationError as error:
        # Every line is parsed separately, so the parser always names line 1.
        problem = re.sub(r" at line 1 column", " at column", describe_error(error, "the line"))
        raise ValueError(
            f"{location}: {problem}; write an object with index, input and outputs"
        ) from None
