"""Parameters of attention systems; `needlework/attention/methods/{type}.py` computes each."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from needlework.config.base import Strict, tagged_union


class Attention(Strict):
    """Parameters of one attention system, common ground of them all."""

    converts_model: ClassVar[bool] = False
    """True: part of a model (`models:`), saved with its weights. False: put on at evaluation."""

    @property
    def module(self) -> str:
        """Dotted name of the module that computes it."""
        return f"needlework.attention.methods.{self.type}"


class BlockSparse(Attention):
    """Exact attention over chosen blocks of keys, the others left out."""

    block_size: int = Field(64, ge=1, description="tokens a block")
    dense_layers: int = Field(2, ge=0, description="first layers that keep the stock attention")
    skip_decode: bool = Field(False, description="sparse prefill, dense decode")

    @property
    def marks_blocks(self) -> bool:
        """Scores of +inf and -inf settle blocks, so a row may keep more or fewer than its count."""
        return True

    @property
    def counts_on_the_end(self) -> str | None:
        """A key that is set, by which choices in prefill depend on the whole prompt's length."""
        keys = ("dense_last_rows", "local_share", "sink_share", "nz_ratio")
        is_dense = getattr(self, "skip_prefill", False)
        return next((key for key in keys if getattr(self, key, None) and not is_dense), None)

    def skips(self, stage: str) -> bool:
        """Whether the stage, prefill or decode, stays dense without the system looking at it."""
        return stage == "decode" and self.skip_decode


class Ranked(BlockSparse):
    """Each row of blocks keeps a number of them, those that score best."""

    top_k_blocks: int = Field(16, ge=1, description="blocks kept for each row of blocks")
    density: float | None = Field(
        None,
        gt=0,
        le=1,
        description="instead of top_k_blocks: row i keeps ceil(density * (i + 1)) of its blocks",
    )

    @model_validator(mode="after")
    def _counts_once(self) -> Self:
        if self.density is not None:
            self._refuse_top_k("density")
        return self

    def _refuse_top_k(self, other: str) -> None:
        """For where `other` settles how many blocks are kept. The default may stand beside it: a
        system that was written out names every key."""
        if self.top_k_blocks != type(self).model_fields["top_k_blocks"].default:
            raise ValueError(f"top_k_blocks: {other} says how many blocks are kept; leave out one")

    @property
    def marks_blocks(self) -> bool:
        return False


class SketchWalk(Ranked):
    """SketchWalk (Rice, 2026): blocks chosen by a walk across layers over sketched block means.

    A preset sets the defaults of the other keys; a key that is given wins. `paper` is the form of
    the paper, and the defaults shown here. `official` is that of the released code: heads sum,
    sketch_dim null, score_scale 1.28, sparsity_exponent 1, walk damped, select quantile,
    local_share 0.05, sink_share 0.05, dense_last_rows 4, decode_queries 32. `box` is ours: heads
    sum, keys box, sketch_dim null, walk off.
    """

    type: Literal["sketchwalk"] = "sketchwalk"
    preset: Literal["paper", "official", "box"] = Field(
        "paper", description="the form to start from: two published ones, and ours"
    )
    heads: Literal["mean", "sum"] = Field(
        "mean",
        description="mean: softmax of head means (paper); sum: softmax by head, summed (ours)",
    )
    keys: Literal["mean", "box"] = Field(
        "mean",
        description="what stands for a block of keys; mean: their mean (paper); box: the largest "
        "and smallest of each coordinate, which bound the scores of all (ours)",
    )
    sketch_dim: int | None = Field(
        64, ge=1, description="coordinates of the Hadamard sketch; null: block means unsketched"
    )
    score_scale: float = Field(1.0, gt=0, description="multiplies block scores before the softmax")
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
        description="topk: as many blocks as top_k_blocks or density say; quantile: those above "
        "`quantile` of their row",
    )
    quantile: float = Field(
        0.875,
        ge=0,
        lt=1,
        description="of a row's scores R outside sinks and local blocks, interpolated",
    )
    local_share: float = Field(
        0.0, ge=0, le=1, description="always kept: this share of all tokens, up to the row itself"
    )
    sink_share: float = Field(
        0.0, ge=0, le=1, description="always kept: this share of all tokens, from the first"
    )
    dense_last_rows: int = Field(
        0, ge=0, description="rows of blocks at the prompt's end that keep all blocks"
    )
    decode_queries: int = Field(
        1, ge=1, description="last queries whose mean asks when a token decodes"
    )
    seed: int = Field(42, ge=0, description="of the sketch")

    @field_validator("walk", mode="before")
    @classmethod
    def _read_off(cls, value: Any) -> Any:
        # YAML reads off without quotes as false.
        return "off" if value is False else value

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        preset = given.get("preset")
        return {**_PRESETS.get(preset, {}), **given} if isinstance(preset, str) else given

    @model_validator(mode="after")
    def _one_way_to_select(self) -> Self:
        if self.select == "quantile" and self.density is not None:
            raise ValueError("density: counts blocks, which select quantile does not; leave it out")
        if self.select == "quantile":
            self._refuse_top_k("select quantile")
        return self

    @property
    def marks_blocks(self) -> bool:
        forced = self.local_share or self.sink_share or self.dense_last_rows
        return self.select == "quantile" or bool(forced)

    def skips(self, stage: str) -> bool:
        # What decodes is remembered, for the prompts after it.
        return False


_PRESETS = {
    "official": {
        "heads": "sum",
        "sketch_dim": None,
        "score_scale": 1.28,
        "sparsity_exponent": 1.0,
        "walk": "damped",
        "select": "quantile",
        "local_share": 0.05,
        "sink_share": 0.05,
        "dense_last_rows": 4,
        "decode_queries": 32,
    },
    "box": {"heads": "sum", "keys": "box", "sketch_dim": None, "walk": "off"},
}


class Random(Ranked):
    """Blocks drawn at random at the same density: the floor below which a method means nothing."""

    type: Literal["random"] = "random"
    seed: int = Field(42, ge=0, description="of the draw")


class Oracle(Ranked):
    """Blocks by the true attention, all of it computed: the ceiling of any choice of blocks."""

    type: Literal["oracle"] = "oracle"
    pool: Literal["max", "sum"] = Field(
        "max", description="of the probabilities in a block, over its queries, keys and heads"
    )


class XAttention(Ranked):
    """XAttention (Xu et al., 2025): blocks scored by sums along strided antidiagonals of q k^T."""

    type: Literal["xattention"] = "xattention"
    stride: int = Field(
        8, ge=1, description="tokens a group, of which one antidiagonal is read; divides block_size"
    )
    threshold: float | None = Field(
        None,
        gt=0,
        le=1,
        description="instead of top_k_blocks: the fewest blocks that hold this share of the row's "
        "scores, its own and the first among them (published: 0.9)",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.block_size % self.stride:
            raise ValueError(
                f"stride: {self.stride} does not divide block_size {self.block_size}; "
                "blocks are made of whole groups"
            )
        if self.threshold is not None and self.density is not None:
            raise ValueError("density: counts blocks, which threshold does not; leave out one")
        if self.threshold is not None:
            self._refuse_top_k("threshold")
        return self

    @property
    def marks_blocks(self) -> bool:
        return self.threshold is not None


class Seer(Ranked):
    """SeerAttention (Gao et al., 2024; -R, 2025): learned gates choose blocks, head by head.

    Prefill chooses for each query head, decode for each key head. Where neither top_k_blocks nor
    density is given, threshold is 0.1 and token_budget 2048, as in the released code.
    """

    type: Literal["seer"] = "seer"
    gates: str = Field(
        min_length=1, description="a name under gates, or a folder with gates.safetensors"
    )
    dense_layers: int = Field(0, ge=0, description="first layers that keep the stock attention")
    skip_prefill: bool = Field(False, description="dense prefill, sparse decode")
    threshold: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="prefill, instead of a count: blocks whose share of the row's gate is above "
        "(published: 5e-4 on RULER, 2e-3 on LongBench)",
    )
    nz_ratio: float | None = Field(
        None,
        gt=0,
        le=1,
        description="prefill, instead of a count: max(1, floor((1 - sqrt(1 - nz_ratio)) * blocks "
        "of the prompt)) blocks in every row, and its own",
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
        description="decode, instead of a count: token_budget // block_size blocks, and the own",
    )

    @model_validator(mode="before")
    @classmethod
    def _as_released(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        found, has = dict(given), lambda *keys: any(given.get(key) is not None for key in keys)
        if not has("top_k_blocks", "density"):
            if not has("threshold", "nz_ratio") and not given.get("skip_prefill"):
                found["threshold"] = 0.1
            if not has("decode_threshold", "token_budget") and not given.get("skip_decode"):
                found["token_budget"] = 2048
        return found

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Self:
        settled = []
        for stage, skip, one, other in (
            ("prefill", "skip_prefill", "threshold", "nz_ratio"),
            ("decode", "skip_decode", "decode_threshold", "token_budget"),
        ):
            given = [key for key in (one, other) if getattr(self, key) is not None]
            if len(given) == 2:
                raise ValueError(f"{one}: {other} chooses blocks already; leave out one")
            if given and getattr(self, skip):
                raise ValueError(f"{given[0]}: {stage} is dense, {skip} says; leave out one")
            settled.append(bool(given) or getattr(self, skip))
        if self.skip_prefill and self.skip_decode:
            raise ValueError("skip_prefill: with skip_decode nothing is sparse; leave out one")
        if all(settled):
            if self.density is not None:
                raise ValueError("density: both stages choose blocks without it; leave it out")
            self._refuse_top_k("each stage")
        if self.token_budget is not None and self.token_budget < self.block_size:
            raise ValueError(
                f"token_budget: {self.token_budget} is less than a block of {self.block_size}; "
                "give a block or more"
            )
        return self

    @property
    def marks_blocks(self) -> bool:
        return True

    def skips(self, stage: str) -> bool:
        # The gates pool the keys of both stages.
        return False


class Window(BlockSparse):
    """StreamingLLM (Xiao et al., 2023): the first tokens and the most recent, token by token.

    Positions stay those of the text; the original counts them anew inside its cache.
    """

    type: Literal["window"] = "window"
    sink_tokens: int = Field(4, ge=0, description="first tokens that all may see")
    recent_tokens: int = Field(1024, ge=1, description="last tokens seen, the query's own included")


class Infini(Attention):
    """Infini-attention (Google, 2024): local attention by segments and a compressive memory."""

    converts_model: ClassVar[bool] = True

    type: Literal["infini"] = "infini"
    segment_length: int = Field(1024, ge=1, description="tokens a segment")
    update: Literal["linear", "delta"] = Field("linear", description="rule that writes the memory")
    balance_act_type: Literal["sigmoid", "hard_sigmoid", "tanh", "abs_tanh"] = Field(
        "hard_sigmoid", description="activation of the gate between memory and local attention"
    )
    balance_init_type: Literal["zeros", "randn", "constant"] = Field(
        "zeros", description="how gates start"
    )
    balance_init_value: float | Annotated[list[float], Field(min_length=1)] = Field(
        0.0, description="the constant of `constant`, before the activation: one, or one a layer"
    )
    turn_on_memory: bool = Field(True, description="false: local attention alone")
    gate_empty_memory: bool = Field(
        False, description="true: the gate scales the local part even where memory is empty"
    )
    segment_alignment: Literal["start", "end"] = Field(
        "start",
        description="end: the first segment is shortened so that the prompt ends inside a segment",
    )
    sigma_scale: float = Field(1.0, gt=0, description="a in sigma(x) = ELU(a x) + 1")


class InfiniAlignment(Attention):
    """An Infini model of which the segments are cut otherwise than its checkpoint says."""

    type: Literal["infini_alignment"] = "infini_alignment"
    segment_alignment: Literal["start", "end"] = Field(
        description="start: at the first token; end: so that the prompt ends inside a segment"
    )


AnyAttention = tagged_union(Attention)
