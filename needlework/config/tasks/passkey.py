"""Parameters of the passkey task."""

from typing import ClassVar, Literal

from pydantic import Field

from needlework.config.base import Text
from needlework.config.tasks.base import MAX_NEW_TOKENS, DepthTask


class Passkey(DepthTask):
    """A pass key in repeated filler (Mohtashami and Jaggi, 2023)."""

    module: ClassVar[str] = "needlework.tasks.passkey"

    type: Literal["passkey"] = "passkey"
    digits: int = Field(5, ge=1, le=20, description="number of digits of the key")
    shots: int = Field(
        0, ge=0, le=3, description="worked examples with other keys before the prompt"
    )
    filler: Text | None = Field(None, description="text to repeat; null: the grass is green, ...")
    max_new_tokens: int = Field(10, ge=1, description=MAX_NEW_TOKENS)
