"""Parameters of StreamingLLM (Xiao et al., 2023)."""

from typing import ClassVar, Literal

from pydantic import Field

from needlework.config.attention.base import BlockSparse


class Window(BlockSparse):
    """StreamingLLM (Xiao et al., 2023): the first tokens and the most recent ones, token by token.

    Positions are those of the text; the original counts positions within its cache.
    """

    evicts_cache: ClassVar[bool] = True

    type: Literal["window"] = "window"
    sink_tokens: int = Field(4, ge=0, description="first tokens, which all tokens see")
    recent_tokens: int = Field(
        1024, ge=1, description="last tokens that a token sees, itself included"
    )

    @property
    def is_causal(self) -> bool:
        return True

    @property
    def context_tokens(self) -> int | None:
        return None if self.is_dense("prefill") else self.recent_tokens
