"""Base classes and shared field types of the experiment file."""

from pathlib import Path
from typing import Annotated, Any, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
)

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]*$", max_length=64)]
"""A name used as a folder and a wildcard: a letter, then letters, digits, `_`, `.` or `-`."""

Percent = Annotated[float, Field(ge=0, le=100)]
"""A depth in percent of the context, from 0 (start) to 100 (end)."""


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank; write some text")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]
"""Text with at least one character that is not whitespace."""


class Strict(BaseModel):
    """A section of the experiment file: immutable; unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    # Of the field, not of the model, after which JSON's arrays would not be read as tuples.
    @field_validator(
        *("path", "gates", "tokenizer", "offload_folder", "accelerate_config"),
        mode="before",
        check_fields=False,
    )
    @classmethod
    def _expand_home(cls, path: Any) -> Any:
        # A shell expands ~ on its command line, not inside a file.
        return str(Path(path).expanduser()) if str(path).startswith("~") else path


def with_type(parent: type[Strict]) -> list[type[Any]]:
    """All subclasses of `parent` with a `type` field, in the order of their types."""
    classes, pending = [], [parent]
    while pending:
        cls = pending.pop()
        pending += cls.__subclasses__()
        if "type" in cls.model_fields:
            classes.append(cls)
    return sorted(classes, key=lambda cls: cls.model_fields["type"].default)


def tagged_union(parent: type[Strict]) -> Any:  # Any: the union's members are known at run time
    """The union of all subclasses of `parent` with a `type` field, discriminated by that field."""
    return Annotated[Union[tuple(with_type(parent))], Field(discriminator="type")]  # noqa: UP007
