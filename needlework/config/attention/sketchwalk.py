"""Parameters of SketchWalk (Rice, 2026), and their presets."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from needlework.config.attention.base import Choices, Ranked


class SketchWalk(Ranked):
    """SketchWalk (Rice, 2026): blocks chosen by a walk across layers over sketched block means.

    A preset sets the defaults of the other keys; a key that is given wins. `paper`: the paper's
    form, with the defaults shown here. `official`: the released code (heads sum, sketch_dim null,
    score_scale null, sparsity_exponent 1, walk damped, select quantile, local_share 0.05,
    sink_share 0.05, unranked_sink_share 0.025, dense_last_rows 4, decode_queries 32). `box`: ours
    (heads sum, keys box, sketch_dim null, walk off). `quest`: the choice of Quest (Tang et
    al., 2024; those of box, with choices head, stages decode, block_size 16).
    """

    type: Literal["sketchwalk"] = "sketchwalk"
    preset: Literal["paper", "official", "box", "quest"] = Field(
        "paper", description="variant that sets the defaults of other keys"
    )
    heads: Literal["mean", "sum"] = Field(
        "mean",
        description="mean: softmax of head means (paper); sum: softmax per head, summed (ours)",
    )
    keys: Literal["mean", "box"] = Field(
        "mean",
        description="representation of a block of keys; mean: their mean (paper); box: the maximum "
        "and minimum of each coordinate, which bound the scores of all keys (ours)",
    )
    choices: Choices = Field(
        "layer",
        description="heads that read the same blocks: all of a layer, the group of a kv head, or "
        "each its own; group and head need heads sum and walk off",
    )
    sketch_dim: int | None = Field(
        64, ge=1, description="coordinates of the Hadamard sketch; null: block means unsketched"
    )
    score_scale: float | None = Field(
        1.0,
        gt=0,
        description="factor on block scores before the softmax; null: the head dimension / 100",
    )
    sparsity_exponent: float = Field(8.0, gt=0, description="power that sharpens the softmax")
    walk: Literal["product", "damped", "off"] = Field(
        "product",
        description="carry scores R across layers; product: R W; damped: walk_steps times "
        "(1 - walk_damping) W + walk_damping R W, rows of W of sum 1; off: W alone",
    )
    walk_steps: int = Field(3, ge=1, description="steps of the damped walk in each layer")
    walk_damping: float = Field(0.25, ge=0, le=1, description="share of R in a damped step")
    walk_memory: Literal["full", "sparse"] = Field(
        "full",
        description="sparse: rows of W and R keep only the entries of their kept blocks, an "
        "approximation whose memory grows with blocks times kept blocks",
    )
    select: Literal["topk", "quantile"] = Field(
        "topk",
        description="topk: the number of blocks that top_k_blocks or density sets; quantile: "
        "blocks above the `quantile` of their row",
    )
    quantile: float = Field(
        0.875,
        ge=0,
        lt=1,
        description="of a row's scores R outside unranked sinks and local blocks, interpolated",
    )
    local_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="always kept: the last blocks before the row, this share of all tokens",
    )
    sink_share: float = Field(
        0.0, ge=0, le=1, description="always kept: the first blocks, this share of all tokens"
    )
    unranked_sink_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="the first blocks that the quantile leaves out, this share of all tokens; "
        "null: those of sink_share",
    )
    dense_last_rows: int = Field(
        0, ge=0, description="rows of blocks at the prompt's end that keep all blocks"
    )
    decode_queries: int = Field(
        1, ge=1, description="last queries that are averaged to score blocks in decode"
    )
    seed: int = Field(42, ge=0, description="seed of the sketch")

    @field_validator("walk", mode="before")
    @classmethod
    def _read_off(cls, value: Any) -> Any:
        # YAML reads an unquoted off as false.
        return "off" if value is False else value

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        preset = values.get("preset")
        return {**_PRESETS.get(preset, {}), **values} if isinstance(preset, str) else values

    @model_validator(mode="after")
    def _one_selection_rule(self) -> Self:
        if self.choices != "layer" and (self.heads != "sum" or self.walk != "off"):
            raise ValueError(
                f"choices: {self.choices} needs heads sum and walk off, since head means and walks "
                "mix heads; write both, or choices layer"
            )
        if self.select == "quantile" and self.density is not None:
            raise ValueError("density: select quantile does not count blocks; remove density")
        if self.select == "quantile":
            self._refuse_top_k("select quantile")
        elif self.unranked_sink_share is not None:
            raise ValueError(
                "unranked_sink_share: only select quantile ranks by a quantile; remove it"
            )
        if self.unranked_sink_share is not None and self.unranked_sink_share > self.sink_share:
            raise ValueError(
                f"unranked_sink_share: {self.unranked_sink_share} is above sink_share "
                f"{self.sink_share}; write at most sink_share"
            )
        return self

    @property
    def marks_blocks(self) -> bool:
        forced = self.local_share or self.sink_share or self.dense_last_rows
        return self.select == "quantile" or bool(forced)

    @property
    def prompt_length_key(self) -> str | None:
        if self.is_dense("prefill"):
            return None
        keys = ("dense_last_rows", "local_share", "sink_share", "unranked_sink_share")
        return next((key for key in keys if getattr(self, key)), None)


_BOX = {"heads": "sum", "keys": "box", "sketch_dim": None, "walk": "off"}
_PRESETS: dict[str, dict[str, Any]] = {
    "official": {
        "heads": "sum",
        "sketch_dim": None,
        "score_scale": None,
        "sparsity_exponent": 1.0,
        "walk": "damped",
        "select": "quantile",
        "local_share": 0.05,
        "sink_share": 0.05,
        "unranked_sink_share": 0.025,
        "dense_last_rows": 4,
        "decode_queries": 32,
    },
    "box": _BOX,
    "quest": {**_BOX, "choices": "head", "stages": "decode", "block_size": 16},
}
