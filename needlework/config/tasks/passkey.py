"""Parameters of the passkey task."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from needlework.config.base import Text
from needlework.config.tasks.base import (
    ANSWERS_IN_HAYSTACK,
    MAX_NEW_TOKENS,
    AnswersInHaystack,
    DepthTask,
)
from needlework.config.tasks.templates import TEMPLATES, Sentence, Templates


class PasskeyTemplates(Templates):
    """The sentences of a passkey prompt."""

    required: ClassVar[Mapping[str, frozenset[str]]] = {"needle": frozenset({"key"})}

    needle: Sentence = Field(description="sentence to hide, with {key}")


class Passkey(DepthTask):
    """A pass key in repeated filler (Mohtashami and Jaggi, 2023)."""

    module: ClassVar[str] = "needlework.tasks.passkey"
    answers_remedy: ClassVar[str] = "another filler, or more digits"

    type: Literal["passkey"] = "passkey"
    digits: int = Field(5, ge=1, le=20, description="number of digits of the key")
    shots: int = Field(
        0, ge=0, le=3, description="worked examples with other keys before the prompt"
    )
    filler: Text | None = Field(None, description="text to repeat; null: the grass is green, ...")
    answers_in_haystack: AnswersInHaystack = Field("warn", description=ANSWERS_IN_HAYSTACK)
    templates: PasskeyTemplates | None = Field(None, description=TEMPLATES)
    max_new_tokens: int = Field(10, ge=1, description=MAX_NEW_TOKENS)
