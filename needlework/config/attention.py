"""Parameters of attention systems; `needlework/attention/methods/{type}.py` computes each."""

from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from needlework.config.base import Strict, tagged_union

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


class SketchWalk(Ranked):
    """SketchWalk (Rice, 2026): blocks chosen by a walk across layers over sketched block means.

    A preset sets the defaults of the other keys; a key that is given wins. `paper`: the paper's
    form, with the defaults shown here. `official`: the released code (heads sum, sketch_dim null,
    score_scale null, sparsity_exponent 1, walk damped, select quantile, local_share 0.05,
    sink_share 0.05, unranked_sink_share 0.025, dense_last_rows 4, decode_queries 32). `box`: ours
    (heads sum, keys box, sketch_dim null, walk off).
    """

    type: Literal["sketchwalk"] = "sketchwalk"
    preset: Literal["paper", "official", "box"] = Field(
        "paper", description="variant that sets the defaults: two published ones, and ours"
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
    "box": {"heads": "sum", "keys": "box", "sketch_dim": None, "walk": "off"},
}


class Random(Ranked):
    """Random blocks: a lower bound that any method should beat at the same density."""

    type: Literal["random"] = "random"
    seed: int = Field(42, ge=0, description="seed of the draw")

    @property
    def is_causal(self) -> bool:
        return True


class Oracle(Ranked):
    """Blocks chosen by the true attention, fully computed: an upper bound for block selection."""

    type: Literal["oracle"] = "oracle"
    pool: Literal["max", "sum"] = Field(
        "max", description="how a block's probabilities are pooled over queries, keys and heads"
    )


class XAttention(Ranked):
    """XAttention (Xu et al., 2025): blocks scored by sums along strided antidiagonals of q k^T."""

    type: Literal["xattention"] = "xattention"
    stride: int = Field(
        8, ge=1, description="tokens per group, read along one antidiagonal; divides block_size"
    )
    choices: Choices = Field(
        "head",
        description="heads that read the same blocks: each its own (published), the group of a kv "
        "head, or all of a layer; the scores of heads that share a choice are averaged",
    )
    threshold: float | None = Field(
        None,
        gt=0,
        le=1,
        description="instead of top_k_blocks: the fewest blocks that hold this share of the row's "
        "scores, always including its own and the first (published: 0.9)",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.block_size % self.stride:
            raise ValueError(
                f"stride: {self.stride} does not divide block_size {self.block_size}; "
                "write a divisor of block_size"
            )
        if self.threshold is not None and self.density is not None:
            raise ValueError("density: threshold sets how many blocks are kept; remove one of them")
        if self.threshold is not None:
            self._refuse_top_k("threshold")
        return self

    @property
    def marks_blocks(self) -> bool:
        return self.threshold is not None


class Seer(Ranked):
    """SeerAttention (Gao et al., 2024; -R, 2025): learned gates choose blocks for each head.

    Prefill chooses per query head, decode per key head. Without top_k_blocks and density, threshold
    is 0.1 and token_budget 2048, as in the released code.
    """

    needs_all_heads: ClassVar[bool] = True

    type: Literal["seer"] = "seer"
    gates: str = Field(
        min_length=1, description="a name under gates, or a folder with gates.safetensors"
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


class Window(BlockSparse):
    """StreamingLLM (Xiao et al., 2023): the first tokens and the most recent ones, token by token.

    Positions are those of the text; the original counts positions within its cache.
    """

    evicts_cache: ClassVar[bool] = True

    type: Literal["window"] = "window"
    sink_tokens: int = Field(4, ge=0, description="first tokens, which all tokens see")
    recent_tokens: int = Field(
        1024, ge=1, description="last tokens that a token sees, itself included"
    )

    @property
    def is_causal(self) -> bool:
        return True

    @property
    def context_tokens(self) -> int | None:
        return None if self.is_dense("prefill") else self.recent_tokens


class Infini(Attention):
    """Infini-attention (Munkhdalai et al., 2024): local attention by segments and a memory.

    The defaults are those of the open replication (nanotron), whose gate is a hard sigmoid.
    `preset: paper` sets the defaults of the paper (segment_length 2048, balance_act_type sigmoid,
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

    @property
    def is_causal(self) -> bool:
        # With `end`, segments depend on where the prompt ends.
        return self.segment_alignment == "start"

    @property
    def causal_setting(self) -> str:
        return "`segment_alignment: start`"


_INFINI_PAPER: dict[str, Any] = {
    "segment_length": 2048,
    "balance_act_type": "sigmoid",
    "gate_empty_memory": True,
}


class InfiniAlignment(Attention):
    """Evaluates an Infini model with another segment alignment than its checkpoint's."""

    adjusts: ClassVar[str | None] = "infini"

    type: Literal["infini_alignment"] = "infini_alignment"
    segment_alignment: Literal["start", "end"] = Field(
        description="start: segments begin at the first token; end: the prompt ends inside a "
        "segment"
    )

    @property
    def is_causal(self) -> bool:
        return self.segment_alignment == "start"

    @property
    def causal_setting(self) -> str:
        return "`segment_alignment: start`"


AnyAttention = tagged_union(Attention)


def attention_class(name: str) -> type[Attention]:
    """The class of attention systems of type `name`; Attention itself for an unknown type."""
    pending: list[type[Attention]] = [Attention]
    while pending:
        cls = pending.pop()
        field = cls.model_fields.get("type")
        if field is not None and field.default == name:
            return cls
        pending += cls.__subclasses__()
    return Attention
