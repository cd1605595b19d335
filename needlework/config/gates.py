"""Gates of SeerAttention: whose they are, their shape, how they are trained."""

from typing import Annotated, Literal

from pydantic import Field

from needlework.config.base import Name, Strict
from needlework.config.training import Distill


class SeerGates(Strict):
    """Gates that tell which blocks a model attends to; the model itself stays as it is."""

    model: Name = Field(description="a name under models; the gates serve this one alone")
    block_size: int = Field(64, ge=1, description="tokens a block")
    gate_dim: int | None = Field(
        None, ge=2, multiple_of=2, description="width of a gate; null: the model's head size"
    )
    stages: Annotated[list[Literal["prefill", "decode"]], Field(min_length=1)] = Field(
        ["prefill", "decode"], description="what gates are made for, each with its own"
    )
    distill: Distill = Field(description="the recipe")
