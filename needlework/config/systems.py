"""Attention systems: their parameters. `type: x` is computed by needlework/attention/x.py."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from needlework.config.base import Strict, tagged_union


class Attention(Strict):
    """Parameters of one attention system, common ground of them all."""

    converts_model: ClassVar[bool] = False
    """True: part of a model (`models:`), saved with its weights. False: put on at evaluation."""


class BlockSparse(Attention):
    """Exact attention over chosen blocks of keys, the others left out."""

    block_size: int = Field(64, ge=1, description="tokens a block")
    dense_layers: int = Field(2, ge=0, description="first layers that keep the stock attention")
    skip_decode: bool = Field(False, description="sparse prefill, dense decode")

    @property
    def marks_blocks(self) -> bool:
        """Scores of +inf and -inf settle blocks, so a row may keep more or fewer than its count."""
        return True


class Ranked(BlockSparse):
    """Each row of blocks keeps a number of them, those that score best."""

    top_k_blocks: int = Field(16, ge=1, description="blocks kept for each row of blocks")
    density: float | None = Field(
        None,
        gt=0,
        le=1,
        description="instead of top_k_blocks: row i keeps ceil(density * (i + 1)) of its blocks",
    )

    @property
    def marks_blocks(self) -> bool:
        return False


class SketchWalk(Ranked):
    """SketchWalk (Rice, 2026): blocks chosen by a walk across layers over sketched block means.

    A preset sets the defaults of the other keys; a key that is given wins. `paper` is the form of
    the paper, and the defaults shown here. `official` is that of the released code: heads sum,
    sketch_dim null, score_scale 1.28, sparsity_exponent 1, walk damped, select quantile,
    local_share 0.05, sink_share 0.05, dense_last_rows 4, decode_queries 32.
    """

    type: Literal["sketchwalk"] = "sketchwalk"
    preset: Literal["paper", "official"] = Field(
        "paper", description="the published form to start from"
    )
    heads: Literal["mean", "sum"] = Field(
        "mean",
        description="mean: softmax of head means (paper); sum: softmax by head, summed (ours)",
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
    walk_memory: Literal["whole", "kept"] = Field(
        "whole",
        description="kept: rows of W and R carry on only the entries that they keep, an "
        "approximation whose memory grows with blocks times kept blocks",
    )
    select: Literal["topk", "quantile"] = Field(
        "topk",
        description="topk: as many blocks as top_k_blocks or density say; quantile: those above "
        "`quantile` of their row",
    )
    quantile: float = Field(0.875, ge=0, lt=1, description="of a row's scores R, interpolated")
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

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        preset = given.get("preset")
        return {**_OFFICIAL, **given} if preset == "official" else given

    @model_validator(mode="after")
    def _one_way_to_select(self) -> Self:
        if self.select == "quantile" and self.density is not None:
            raise ValueError("density: counts blocks, which select quantile does not; leave it out")
        return self

    @property
    def marks_blocks(self) -> bool:
        forced = self.local_share or self.sink_share or self.dense_last_rows
        return self.select == "quantile" or bool(forced)


_OFFICIAL = {
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
        return self

    @property
    def marks_blocks(self) -> bool:
        return self.threshold is not None


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


AnyAttention = tagged_union(Attention)
