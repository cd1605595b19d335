"""Attention systems: their parameters. `type: x` is computed by needlework/attention/x.py."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from needlework.config.base import Strict, tagged_union


class Attention(Strict):
    """Parameters of one attention system, common ground of them all."""

    converts_model: ClassVar[bool] = False
    """True: part of a model (`models:`), saved with its weights. False: put on at evaluation."""


class BlockSparse(Attention):
    """Exact attention over chosen blocks of keys, the others left out."""

    block_size: int = Field(64, ge=1, description="tokens a block")
    top_k_blocks: int = Field(16, ge=1, description="blocks kept for each row of blocks")
    density: float | None = Field(
        None,
        gt=0,
        le=1,
        description="instead of top_k_blocks: row i keeps ceil(density * (i + 1)) of its blocks",
    )
    dense_layers: int = Field(2, ge=0, description="first layers that keep the stock attention")
    skip_decode: bool = Field(False, description="sparse prefill, dense decode")
    seed: int = Field(42, ge=0, description="of whatever is drawn at random")


class SketchWalk(BlockSparse):
    """SketchWalk (Rice, 2026): blocks chosen by a walk across layers over sketched block means."""

    type: Literal["sketchwalk"] = "sketchwalk"
    preset: Literal["paper"] = Field("paper", description="the published form to start from")
    heads: Literal["mean", "sum"] = Field(
        "mean",
        description="mean: softmax of head means (paper); sum: softmax by head, summed (ours)",
    )
    sketch_dim: int = Field(64, ge=1, description="coordinates of the Hadamard sketch")
    sparsity_exponent: float = Field(8.0, gt=0, description="power that sharpens the softmax")
    walk: Literal["product", "off"] = Field("product", description="carry scores across layers")


class Random(BlockSparse):
    """Blocks drawn at random at the same density: the floor below which a method means nothing."""

    type: Literal["random"] = "random"


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
