"""Parameters of blocks chosen by the true attention."""

from typing import Literal

from pydantic import Field

from needlework.config.attention.base import Ranked


class Oracle(Ranked):
    """Blocks chosen by the true attention, fully computed: an upper bound for block selection."""

    type: Literal["oracle"] = "oracle"
    pool: Literal["max", "sum"] = Field(
        "max", description="how a block's probabilities are pooled over queries, keys and heads"
    )
