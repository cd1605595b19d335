"""What attention systems have in common: parameters, and what the rest of needlework relies on."""

from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from needlework.config.base import Strict

Stage = Literal["prefill", "decode"]
Stages = Literal["prefill", "decode", "both"]
Choices = Literal["layer", "group", "head"]
"""Heads that read the same blocks: all of a layer, those with a common kv head, or each its own."""


class Attention(Strict):
    """Parameters of one attention system, and what the rest of needlework may rely on.

    A subclass with a `type` is a system that an experiment can name.
    """

    if TYPE_CHECKING:
        type: str
        """Name of the system in an experiment file; each named system declares it."""

    converts_model: ClassVar[bool] = False
    """True: part of a model (`models:`), saved with its weights. False: applied at evaluation."""
    adjusts: ClassVar[str | None] = None
    """Type of the model's own attention that it changes a setting of; None: it replaces plain
    attention."""
    evicts_cache: ClassVar[bool] = False
    """Whether streaming can drop keys and values that no later token will see."""
    needs_all_heads: ClassVar[bool] = False
    """Whether a process must hold every head of a layer, which `tp` would split."""
    caches: ClassVar[tuple[str, ...]] = ("dynamic", "quantized")
    """Values of a model's `cache` that it works with."""
    limits_positions: ClassVar[bool] = True
    """Whether the model's maximum number of positions applies."""

    @property
    def module(self) -> str:
        """Dotted name of the module that computes it, in its class `Method`."""
        return f"needlework.attention.methods.{self.type}"

    @property
    def skips_pairs(self) -> bool:
        """Whether it skips causal pairs of query and key, so that its density can be below 1."""
        return False

    @property
    def gates_name(self) -> str | None:
        """Name or folder of the trained gates it needs; None: it needs none."""
        return None

    @property
    def chunk_multiple(self) -> int:
        """Chunks of a prompt or stream must be a multiple of this many tokens."""
        return 1

    @property
    def context_tokens(self) -> int | None:
        """Recent tokens that a token sees; None: no fixed number."""
        return None

    @property
    def is_causal(self) -> bool:
        """Whether no later token affects the logits of a token, so that the perplexity of a text is
        a left-to-right likelihood. Each system answers."""
        # Not abstract: distillation makes a plain BlockSparse for its blocks, and never asks.
        raise NotImplementedError(f"{type(self).__name__}: define is_causal")

    @property
    def is_causal_with_state(self) -> bool:
        """`is_causal` along a text that is read chunk by chunk with a state."""
        return self.is_causal

    @property
    def causal_setting(self) -> str:
        """What to write for `is_causal` to be true, if it is false."""
        return "`choose: causal`"

    @property
    def prompt_length_key(self) -> str | None:
        """A key that makes choices in prefill depend on the whole prompt's length; None: no key
        does."""
        return None


class BlockSparse(Attention):
    """Exact attention over chosen blocks of keys; the other blocks are skipped."""

    block_size: int = Field(64, ge=1, description="tokens per block")
    dense_layers: int = Field(2, ge=0, description="first layers, which keep the stock attention")
    stages: Stages = Field(
        "both", description="stages in which blocks are chosen; the other stage is dense"
    )

    @property
    def skips_pairs(self) -> bool:
        return True

    @property
    def marks_blocks(self) -> bool:
        """Whether scores of +inf and -inf force blocks in or out, whatever the row's count."""
        return True

    def kept_blocks(self, row: int) -> int:
        """Blocks that row `row` (from 0) keeps by rank, its own included; 1: only marks count."""
        return 1

    def is_dense(self, stage: Stage) -> bool:
        """Whether every block is kept in the stage."""
        return self.stages not in (stage, "both")


class Ranked(BlockSparse):
    """Each row of blocks keeps a number of them, those with the highest scores."""

    top_k_blocks: int = Field(16, ge=1, description="blocks kept by each row of blocks")
    density: float | None = Field(
        None,
        gt=0,
        le=1,
        description="instead of top_k_blocks: row i keeps ceil(density * (i + 1)) of its blocks",
    )

    choose: Literal["block", "causal"] = Field(
        "block",
        description="prefill; block: a row of blocks chooses by its own queries, so its first "
        "tokens by those after them; causal: by the scores of the row before, so that the "
        "perplexity of a text is a likelihood",
    )

    @property
    def is_causal(self) -> bool:
        return self.choose == "causal" or self.is_dense("prefill") or not self.skips_pairs

    @model_validator(mode="after")
    def _causal_choice_needs_no_length(self) -> Self:
        if self.choose == "causal" and (key := self.prompt_length_key):
            raise ValueError(
                f"choose: causal sees the past alone, but {key} depends on the prompt's length; "
                f"set {key} to 0 or null, or write choose: block"
            )
        return self

    @model_validator(mode="after")
    def _density_replaces_count(self) -> Self:
        if self.density is not None:
            self._refuse_top_k("density")
        return self

    def _refuse_top_k(self, other: str) -> None:
        """Raise if top_k_blocks is set although `other` sets the number of blocks. The default is
        allowed: a saved system names every key."""
        if self.top_k_blocks != type(self).model_fields["top_k_blocks"].default:
            raise ValueError(f"top_k_blocks: {other} sets the number of blocks; remove one of them")

    @property
    def skips_pairs(self) -> bool:
        return self.density != 1

    @property
    def chunk_multiple(self) -> int:
        # A row of blocks cut by a chunk would choose twice, each time from part of its queries.
        return self.block_size

    @property
    def marks_blocks(self) -> bool:
        return False

    def kept_blocks(self, row: int) -> int:
        if self.density is None:
            return min(self.top_k_blocks, row + 1)
        # The decimal as written: 0.1 * 30 is above 3 in binary.
        return -int(-Fraction(str(self.density)) * (row + 1) // 1)
