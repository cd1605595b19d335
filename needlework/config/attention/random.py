"""Parameters of random blocks."""

from typing import Literal

from pydantic import Field

from needlework.config.attention.base import Ranked


class Random(Ranked):
    """Random blocks: a lower bound that any method should beat at the same density."""

    type: Literal["random"] = "random"
    seed: int = Field(42, ge=0, description="seed of the draw")

    @property
    def is_causal(self) -> bool:
        return True
