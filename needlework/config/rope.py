"""Rotary position scaling: how many positions a checkpoint has, and a scaling of the user's."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from needlework.config.base import Strict


class RopeScaling(Strict):
    """Rotary position scaling in place of the checkpoint's, with the keys of transformers."""

    rope_type: Literal["default", "linear", "dynamic", "yarn", "llama3", "longrope"] = Field(
        description="kind of scaling; default: none"
    )
    factor: float | None = Field(
        None, ge=1, description="longest length over the one trained on; not for default"
    )
    original_max_position_embeddings: int | None = Field(
        None, ge=1, description="length trained on; null: the checkpoint's max_position_embeddings"
    )
    rope_theta: float | None = Field(None, gt=0, description="base; null: the checkpoint's")
    attention_factor: float | None = Field(
        None, gt=0, description="yarn, longrope: factor on queries and keys; null: from factor"
    )
    beta_fast: float | None = Field(None, gt=0, description="yarn; null: 32")
    beta_slow: float | None = Field(None, gt=0, description="yarn; null: 1")
    low_freq_factor: float | None = Field(None, gt=0, description="llama3")
    high_freq_factor: float | None = Field(None, gt=0, description="llama3")
    short_factor: list[float] | None = Field(None, description="longrope: one per frequency")
    long_factor: list[float] | None = Field(None, description="longrope: one per frequency")

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        needed = {
            "default": [],
            "llama3": ["factor", "low_freq_factor", "high_freq_factor"],
            "longrope": ["short_factor", "long_factor"],
        }.get(self.rope_type, ["factor"])
        if missing := [key for key in needed if getattr(self, key) is None]:
            raise ValueError(f"{self.rope_type} needs {missing[0]}; write it")
        return self

    def keys(self) -> dict[str, Any]:
        """The keys that are set, as in a config.json."""
        return self.model_dump(exclude_none=True)


def positions_of(config: Mapping[str, Any], scaling: RopeScaling | None = None) -> int | None:
    """Positions that a model is made for, with its rotary scaling; None if unknown.

    yarn extends original_max_position_embeddings by its factor, and so does linear scaling if the
    config has that key. Without it max_position_embeddings is the original number, as the
    documentation of transformers demands of linear and dynamic scaling; dynamic scaling always
    starts from it there. llama3, longrope and scalings by layer type (Gemma 3) state the extended
    number in max_position_embeddings already.

    Args:
        config: the keys of config.json.
        scaling: used in place of the config's.
    """
    text = config.get("text_config") or config
    stated = text.get("max_position_embeddings")
    if stated is None:
        return None
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    original = rope.get("original_max_position_embeddings")
    # Phi-3 states it beside the scaling, and transformers prefers that.
    original = text.get("original_max_position_embeddings") or original
    if scaling is not None:
        rope = scaling.keys()
        original = rope.get("original_max_position_embeddings") or original
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor")
    if factor is None or "gemma3" in str(text.get("model_type")):
        return stated
    if kind == "dynamic" or (kind == "linear" and original is None):
        return int(stated * factor)
    if kind in ("linear", "yarn") or (scaling is not None and kind in ("llama3", "longrope")):
        return max(stated, int((original or stated) * factor))
    return stated
