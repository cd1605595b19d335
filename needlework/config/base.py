"""What every part of an experiment file shares: strict models and plain-word names."""

from typing import Annotated, Union

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]*$", max_length=64)]
"""A name that becomes a folder and a wildcard: letters, digits, `_`, `.`, `-`; a letter first."""

Percent = Annotated[float, Field(ge=0, le=100)]
"""A depth in percent of the context: 0 is its start, 100 its end."""


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank; write some text")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]
"""Text that says something."""


class Strict(BaseModel):
    """A part of the experiment file: unknown keys and wrong types are errors, values are fixed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def tagged_union(parent: type[Strict]):
    """The union of every class below `parent` that names a `type`, told apart by that key."""
    found, stack = [], [parent]
    while stack:
        cls = stack.pop()
        stack.extend(reversed(cls.__subclasses__()))
        if "type" in cls.model_fields:
            found.append(cls)
    return Annotated[Union[tuple(found)], Field(discriminator="type")]  # noqa: UP007
