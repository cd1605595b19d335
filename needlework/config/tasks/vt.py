"""Parameters of RULER's variable tracking."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from needlework.config.base import Name
from needlework.config.tasks.base import MAX_NEEDLES, MAX_NEW_TOKENS, DepthTask
from needlework.config.tasks.haystack import HAYSTACK


class VariableTracking(DepthTask):
    """RULER's vt: find the variables that hold a value, through chains of assignments."""

    module: ClassVar[str] = "needlework.tasks.vt"

    type: Literal["vt"] = "vt"
    haystack: Name = Field("noise", description=HAYSTACK)
    chains: int = Field(1, ge=1, description="chains of assignments; the first is queried")
    hops: int = Field(4, ge=1, description="assignments of a chain after its first")
    max_new_tokens: int = Field(30, ge=1, description=MAX_NEW_TOKENS)

    @property
    def haystack_name(self) -> str:
        return self.haystack

    @property
    def answer_type(self) -> Literal["words"]:
        return "words"

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        needles = self.chains * (self.hops + 1)
        if needles > MAX_NEEDLES:
            raise ValueError(
                f"chains x (hops + 1) is {needles} assignments; write at most {MAX_NEEDLES}"
            )
        return self
