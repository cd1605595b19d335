"""Parameters of XAttention (Xu et al., 2025)."""

from typing import Literal, Self

from pydantic import Field, model_validator

from needlework.config.attention.base import Choices, Ranked


class XAttention(Ranked):
    """XAttention (Xu et al., 2025): blocks scored by sums along strided antidiagonals of q k^T."""

    type: Literal["xattention"] = "xattention"
    stride: int = Field(
        8, ge=1, description="tokens per group, read along one antidiagonal; divides block_size"
    )
    choices: Choices = Field(
        "head",
        description="heads that read the same blocks: each its own (published), the group of a kv "
        "head, or all of a layer; the scores of heads that share a choice are averaged",
    )
    threshold: float | None = Field(
        None,
        gt=0,
        le=1,
        description="instead of top_k_blocks: the fewest blocks that hold this share of the row's "
        "scores, always including its own and the first (published: 0.9)",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.block_size % self.stride:
            raise ValueError(
                f"stride: {self.stride} does not divide block_size {self.block_size}; "
                "write a divisor of block_size"
            )
        if self.threshold is not None and self.density is not None:
            raise ValueError("density: threshold sets how many blocks are kept; remove one of them")
        if self.threshold is not None:
            self._refuse_top_k("threshold")
        return self

    @property
    def marks_blocks(self) -> bool:
        return self.threshold is not None
