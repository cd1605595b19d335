"""Parameters of SeerAttention (Gao et al., 2024; -R, 2025)."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from needlework.config.attention.base import Ranked, Stage


class Seer(Ranked):
    """SeerAttention (Gao et al., 2024; -R, 2025): learned gates choose blocks for each head.

    Prefill chooses per query head, decode per key head. Without top_k_blocks and density, threshold
    is 0.1 and token_budget 2048, as in the released code.
    """

    needs_all_heads: ClassVar[bool] = True

    type: Literal["seer"] = "seer"
    gates: str = Field(
        min_length=1, description="a name under gates, or a folder of saved or released gates"
    )
    dense_layers: int = Field(0, ge=0, description="first layers, which keep the stock attention")
    threshold: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="prefill, instead of a count: blocks above this share of the row's gate "
        "(published: 5e-4 on RULER, 2e-3 on LongBench)",
    )
    nz_ratio: float | None = Field(
        None,
        gt=0,
        le=1,
        description="prefill, instead of a count: every row keeps max(1, floor((1 - sqrt(1 - "
        "nz_ratio)) * blocks of the prompt)) blocks, and its own",
    )
    dense_last_rows: int = Field(
        2, ge=0, description="rows of blocks at the prompt's end that keep all blocks"
    )
    decode_threshold: float | None = Field(
        None, ge=0, lt=1, description="decode: as threshold, instead of a count"
    )
    token_budget: int | None = Field(
        None,
        ge=1,
        description="decode, instead of a count: token_budget // block_size blocks, and its own",
    )

    @model_validator(mode="before")
    @classmethod
    def _released_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values

        def has(*keys: str) -> bool:
            return any(values.get(key) is not None for key in keys)

        filled = dict(values)
        if not has("top_k_blocks", "density"):
            stages = values.get("stages")
            if not has("threshold", "nz_ratio") and stages != "decode":
                filled["threshold"] = 0.1
            if not has("decode_threshold", "token_budget") and stages != "prefill":
                filled["token_budget"] = 2048
        return filled

    @model_validator(mode="after")
    def _one_selection_rule(self) -> Self:
        needs_no_count = []
        rules_of: dict[Stage, tuple[str, str]] = {
            "prefill": ("threshold", "nz_ratio"),
            "decode": ("decode_threshold", "token_budget"),
        }
        for stage, (first, second) in rules_of.items():
            rules = [key for key in (first, second) if getattr(self, key) is not None]
            if len(rules) == 2:
                raise ValueError(f"{first}: {second} chooses blocks already; remove one of them")
            if rules and self.is_dense(stage):
                raise ValueError(
                    f"{rules[0]}: `stages: {self.stages}` makes {stage} dense; remove one of them"
                )
            needs_no_count.append(bool(rules) or self.is_dense(stage))
        if all(needs_no_count):
            if self.density is not None:
                raise ValueError("density: both stages choose blocks without it; remove it")
            self._refuse_top_k("each stage")
        if self.token_budget is not None and self.token_budget < self.block_size:
            raise ValueError(
                f"token_budget: {self.token_budget} is less than a block of {self.block_size}; "
                f"write at least {self.block_size}"
            )
        return self

    @property
    def gates_name(self) -> str | None:
        return self.gates

    @property
    def marks_blocks(self) -> bool:
        return True

    @property
    def prompt_length_key(self) -> str | None:
        if self.is_dense("prefill"):
            return None
        keys = ("dense_last_rows", "nz_ratio")
        return next((key for key in keys if getattr(self, key)), None)
