"""Training recipes: parameters, units, defaults, meaning."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from needlework.config.base import Name, Strict


class Loop(Strict):
    """What every recipe says of the optimizer and of how its steps are run."""

    learning_rate: float = Field(5.0e-5, gt=0, description="peak rate, after warm-up")
    warmup_steps: int = Field(50, ge=0, description="linear warm-up")
    final_learning_rate_ratio: float = Field(
        0.1, ge=0, le=1, description="cosine decay ends at this share of the peak"
    )
    adam_betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        [0.9, 0.95], min_length=2, max_length=2, description="decay of AdamW's two running means"
    )
    adam_epsilon: float = Field(1.0e-8, gt=0, description="added to AdamW's divisor")
    max_grad_norm: float = Field(1.0, gt=0, description="largest gradient norm")
    gradient_accumulation_steps: int = Field(
        1,
        ge=1,
        description="parts that the rows of a step (of a process) are taken in, one after the "
        "other, to need less memory; the step is the same",
    )
    processes: int = Field(
        1, ge=1, description="processes that share the rows of each step, one GPU or core each"
    )
    log_every: int = Field(10, ge=1, description="steps between rows of the metrics table")
    checkpoint_every: int = Field(
        100, ge=1, description="steps between checkpoints, from which a killed training goes on"
    )
    keep_checkpoints: int = Field(
        2, ge=1, description="latest checkpoints kept until what is trained is whole"
    )


Weight = Annotated[float, Field(gt=0)]
"""How often rows are drawn from one source, beside the weights of the others."""
# Told apart by their type, so that an error is of what was written.
Data = Annotated[
    Annotated[Name, Tag("name:")]
    | Annotated[dict[Name, Weight], Field(min_length=1), Tag("weights:")],
    Discriminator(lambda given: "weights:" if isinstance(given, dict) else "name:"),
]


class WholeModel(Loop):
    """What the recipe of a whole model says besides, of memory and of validation."""

    mixed_precision: Literal["no", "bf16"] = Field(
        "no",
        description="bf16: computed in bfloat16, weights and gradients kept in float32 while "
        "training; no: all in the model's dtype",
    )
    gradient_checkpointing: bool = Field(
        False, description="true: activations are computed again layer by layer, not kept"
    )
    accelerate_config: str | None = Field(
        None,
        description="an accelerate config file to start the processes by, for FSDP (version 2)",
    )
    validate_every: int = Field(
        0, ge=0, description="steps between losses on held-out text, in the metrics; 0: none"
    )
    validation: Name | None = Field(
        None,
        description="a name under streams: the text, its first shard, read as the stream says",
    )
    validation_tokens: int = Field(10_000, ge=2, description="most tokens of it")


class FinetuneStage(Strict):
    """A stretch of fine-tuning on the rows of one length."""

    steps: int = Field(500, ge=1, description="optimizer steps")
    sequence_length: int = Field(1024, ge=2, description="tokens; longer rows are an error")
    batch_size: int = Field(4, ge=1, description="rows a step")


class Finetune(FinetuneStage, WholeModel):
    """Supervised fine-tuning; the loss is on the answers of rows, and on all of a text."""

    data: Data = Field(
        description="a name under finetune_data, or names with their weights: {keys: 3, prose: 1} "
        "draws three rows of `keys` for each of `prose`"
    )
    curriculum: list[FinetuneStage] = Field(
        [],
        description="stages before the main one, shortest first; each takes the rows longer than "
        "the stage before does and no longer than its own sequence_length",
    )
    balance_factor_learning_rate: float | None = Field(
        None, ge=0, description="peak rate of Infini gates (no weight decay); null: learning_rate"
    )
    segment_alignment: Literal["start", "end", "random"] | None = Field(
        None,
        description="where training cuts the segments of Infini-attention; start: at the first "
        "token; end: so that the prompt ends anywhere in the middle half of one; random: anywhere; "
        "null: as the attention's segment_alignment",
    )
    weight_decay: float = Field(0.01, ge=0, description="of matrices; none on biases and norms")
    seed: int | None = Field(
        None, ge=0, description="of the order of rows; null: the experiment's seed"
    )

    @property
    def weights(self) -> dict[str, float]:
        """Names of the data, in an order of their own, and how often each is drawn from."""
        return {self.data: 1.0} if isinstance(self.data, str) else dict(sorted(self.data.items()))


class Distill(FinetuneStage, Loop):
    """Training of a frozen model's gates towards the blocks that its own attention looks at.

    The loss is 10 KL(attention || gate), attention max-pooled over each tile, summed over layers.
    """

    data: Annotated[list[Name], Field(min_length=1)] = Field(
        description="names under finetune_data, the rows of all of them mixed"
    )
    prefill_rows: int = Field(
        256, ge=1, description="rows of blocks of each batch that prefill gates learn from"
    )
    decode_queries: int = Field(
        256, ge=1, description="tokens of each row that decode gates learn from, beside its answer"
    )
    answer_share: float = Field(
        0.5, ge=0, le=1, description="weight of the answers' tokens in the loss of decode gates"
    )
    learning_rate: float = Field(1.0e-3, gt=0, description="peak rate, after warm-up")
    warmup_steps: int = Field(20, ge=0, description="linear warm-up")
    final_learning_rate_ratio: float = Field(
        0.0, ge=0, le=1, description="cosine decay ends at this share of the peak"
    )
    skipped_share: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="share of each row's text, its start, that the loss leaves out",
    )


Exercise = Literal["recall", "passkey", "noise", "sentences"]
"""A kind of training sequence: short recall, a pass key, needles in noise or in sentences."""


class Stage(Strict):
    """A stretch of pretraining on sequences of one length."""

    length: int = Field(ge=64, description="tokens a sequence")
    rows: int = Field(ge=1, description="sequences a step")
    steps: int = Field(ge=1, description="optimizer steps")
    exercises: list[Exercise] = Field(min_length=1, description="mixed evenly, repeats count")
    jumps: float = Field(
        0.0, ge=0, le=1, description="share of sequences whose positions jump ahead (PoSE)"
    )


class Pretrain(WholeModel):
    """A small Llama and its word tokenizer, trained from nothing by stages of growing length."""

    stages: list[Stage] = Field(min_length=1, description="the curriculum, in order")
    hidden_size: int = Field(128, ge=32, description="width; a multiple of head_size")
    feed_forward_size: int = Field(256, ge=1, description="width inside the feed-forward part")
    layers: int = Field(3, ge=1, description="decoder layers")
    head_size: int = Field(32, ge=8, description="width of an attention head")
    max_positions: int = Field(32768, ge=64, description="positions the model may be asked for")
    rope_theta: float = Field(1.0e9, gt=1, description="base of the rotary position encoding")
    start: Literal["random", "induction"] = Field(
        "induction",
        description="random: normal weights; induction: heads set by hand to look a few tokens "
        "back (first layer) and to find earlier text like the last few tokens (the others)",
    )
    held_out_words: float = Field(
        0.1, ge=0, lt=1, description="share of the key words that training never shows"
    )
    digits: list[int] = Field([1, 2, 3, 4, 5, 6, 7], min_length=1, description="of pass keys")
    most_needles: int = Field(24, ge=1, description="needles a sequence, where they fit")
    longest_jump: int = Field(
        8192, ge=1, description="positions that jumps of a sequence add up to"
    )
    learning_rate: float = Field(2.5e-3, gt=0, description="peak rate, after warm-up")
    embedding_rate_ratio: float = Field(0.3, gt=0, description="the embeddings' share of the rate")
    warmup_steps: int = Field(30, ge=0, description="linear warm-up")
    stable_fraction: float = Field(
        0.55, ge=0, le=1, description="share of the steps before the cosine decay"
    )
    weight_decay: float = Field(0.1, ge=0, description="of matrices; none on embeddings and biases")
    text_weight: float = Field(
        0.1, ge=0, description="weight of the loss on a sample of the tokens that are no answers"
    )
    text_share: float = Field(0.05, ge=0, le=1, description="how many of those tokens are sampled")
    distractors: int = Field(512, ge=1, description="random vocabulary entries in the softmax")
