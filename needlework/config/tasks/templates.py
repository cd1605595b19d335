"""Sentences of a prompt in the user's own words, in any language."""

from collections.abc import Mapping
from string import Formatter
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, Field, model_validator

from needlework.config.base import Strict, Text

Sentence = Annotated[Text, AfterValidator(str.strip)]
TEMPLATES = "sentences of your own, in any language; null: the task's, in English"
_BRACES = "write {{ and }} for braces"


class Templates(Strict):
    """Sentences around the content of a task's prompts; their placeholders are checked."""

    required: ClassVar[Mapping[str, frozenset[str]]] = {}
    """Placeholders that the text of a key must have."""
    optional: ClassVar[Mapping[str, frozenset[str]]] = {}
    """Placeholders that it may have."""

    intro: Sentence = Field(description="instruction before the context")
    question: Sentence = Field(description="question after the context")
    answer_prefix: Sentence = Field(description="beginning of the answer")

    @model_validator(mode="after")
    def _check_placeholders(self) -> Self:
        for name, text in self:
            required = self.required.get(name, frozenset())
            allowed = required | self.optional.get(name, frozenset())
            found = _placeholders(name, text)
            known = ", ".join(f"{{{field}}}" for field in sorted(allowed)) or "none"
            for field in found:
                if field not in allowed:
                    raise ValueError(
                        f"{name} has the unknown {{{field}}}; it may have: {known}; {_BRACES}"
                    )
            for field in sorted(required - set(found)):
                raise ValueError(f"{name} has no {{{field}}}; write it where it belongs")
        return self

    @property
    def is_ascii(self) -> bool:
        """Whether token counts of the sentences add up as those of English ones do."""
        return all(text.isascii() for _, text in self)


def _placeholders(name: str, text: str) -> list[str]:
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"{name}: {error}; {_BRACES}") from None
    for _, field, specification, conversion in parts:
        if specification or conversion:
            raise ValueError(
                f"{name} formats {{{field}}}; write {{{field}}}, without `:` or `!` inside"
            )
    return [field for _, field, _, _ in parts if field is not None]
