"""SeerAttention gates: the model they belong to, their shape and their training."""

from typing import Annotated, Literal

from pydantic import Field

from needlework.config.base import Name, Strict
from needlework.config.training import Distill


class SeerGates(Strict):
    """Gates that predict which blocks a model attends to; the model's weights do not change."""

    model: Name = Field(description="a name under models; the gates work with this model only")
    block_size: int = Field(64, ge=1, description="tokens per block")
    gate_dim: int | None = Field(
        None, ge=2, multiple_of=2, description="gate width; null: the model's head size"
    )
    stages: Annotated[list[Literal["prefill", "decode"]], Field(min_length=1)] = Field(
        ["prefill", "decode"], description="stages to make gates for; each gets its own gates"
    )
    distill: Distill = Field(description="the training recipe")
