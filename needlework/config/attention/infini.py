"""Parameters of Infini-attention (Munkhdalai et al., 2024)."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from needlework.config.attention.base import Attention


class Segmented(Attention):
    """Attention by segments, causal unless their boundaries depend on where the prompt ends."""

    if TYPE_CHECKING:
        segment_alignment: Literal["start", "end"]

    @property
    def is_causal(self) -> bool:
        return self.segment_alignment == "start"

    @property
    def is_causal_with_state(self) -> bool:
        return True  # the end of the text is unknown, so segments start at its start

    @property
    def causal_setting(self) -> str:
        return "`segment_alignment: start`"


class Infini(Segmented):
    """Infini-attention (Munkhdalai et al., 2024): local attention by segments and a memory.

    The defaults are those of the open replication (nanotron), whose gate is a hard sigmoid.
    `preset: paper` sets what the paper states (segment_length 2048, balance_act_type sigmoid,
    gate_empty_memory true); a key that is given wins.
    """

    converts_model: ClassVar[bool] = True

    needs_all_heads: ClassVar[bool] = True
    caches: ClassVar[tuple[str, ...]] = ("dynamic",)
    limits_positions: ClassVar[bool] = False  # positions are counted within a segment

    type: Literal["infini"] = "infini"
    preset: Literal["replication", "paper"] = Field(
        "replication", description="variant that sets the defaults of the other keys"
    )
    segment_length: int = Field(1024, ge=1, description="tokens per segment")
    update: Literal["linear", "delta"] = Field("linear", description="rule that writes the memory")
    balance_act_type: Literal["sigmoid", "hard_sigmoid", "tanh", "abs_tanh"] = Field(
        "hard_sigmoid", description="activation of the gate between memory and local attention"
    )
    balance_init_type: Literal["zeros", "randn", "constant"] = Field(
        "zeros", description="initial value of the gates"
    )
    balance_init_value: float | Annotated[list[float], Field(min_length=1)] = Field(
        0.0, description="value of `constant`, before the activation: one, or one per layer"
    )
    turn_on_memory: bool = Field(True, description="false: local attention only")
    gate_empty_memory: bool = Field(
        False, description="true: the gate scales the local part even while memory is empty"
    )
    segment_alignment: Literal["start", "end"] = Field(
        "start",
        description="end: the first segment is shortened so that the prompt ends inside a segment",
    )
    sigma_scale: float = Field(1.0, gt=0, description="a in sigma(x) = ELU(a x) + 1")

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("preset") == "paper":
            return {**_INFINI_PAPER, **values}
        return values


_INFINI_PAPER: dict[str, Any] = {
    "segment_length": 2048,
    "balance_act_type": "sigmoid",
    "gate_empty_memory": True,
}


class InfiniAlignment(Segmented):
    """Evaluates an Infini model with another segment alignment than its checkpoint's."""

    adjusts: ClassVar[str | None] = "infini"

    type: Literal["infini_alignment"] = "infini_alignment"
    segment_alignment: Literal["start", "end"] = Field(
        description="start: segments begin at the first token; end: the prompt ends inside a "
        "segment"
    )
