"""Training recipes: pretraining, fine-tuning and distillation of gates."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from needlework.config.base import Name, Strict


class TrainingLoop(Strict):
    """Optimizer, processes, logging and checkpoints: keys of every recipe."""

    learning_rate: float = Field(5.0e-5, gt=0, description="peak learning rate, after warm-up")
    warmup_steps: int = Field(50, ge=0, description="steps of linear warm-up")
    final_learning_rate_ratio: float = Field(
        0.1, ge=0, le=1, description="share of the peak at which the cosine decay ends"
    )
    adam_betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        [0.9, 0.95], min_length=2, max_length=2, description="betas of AdamW"
    )
    adam_epsilon: float = Field(1.0e-8, gt=0, description="epsilon of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="clip gradients to this norm")
    gradient_accumulation_steps: int = Field(
        1,
        ge=1,
        description="split the rows of a step (of each process) into this many forward and "
        "backward passes, to save memory; the result is the same",
    )
    processes: int = Field(
        1, ge=1, description="processes that share the rows of each step, on one GPU or core each"
    )
    log_every: int = Field(10, ge=1, description="steps between rows of the metrics table")
    checkpoint_every: int = Field(
        100, ge=1, description="steps between checkpoints, from which a killed training resumes"
    )
    keep_checkpoints: int = Field(
        2, ge=1, description="checkpoints to keep until training is complete; older ones go"
    )


Weight = Annotated[float, Field(gt=0)]
"""Relative frequency with which rows are drawn from one data set."""
# Discriminated by type, so that an error refers to the form that was written.
Data = Annotated[
    Annotated[Name, Tag("name:")]
    | Annotated[dict[Name, Weight], Field(min_length=1), Tag("weights:")],
    Discriminator(lambda value: "weights:" if isinstance(value, dict) else "name:"),
]


class ModelTraining(TrainingLoop):
    """Further keys of recipes that train a whole model: memory and validation."""

    mixed_precision: Literal["no", "bf16"] = Field(
        "no",
        description="bf16: compute in bfloat16, keep weights and gradients in float32; no: use the "
        "model's dtype throughout",
    )
    gradient_checkpointing: bool = Field(
        False, description="true: recompute activations layer by layer instead of storing them"
    )
    accelerate_config: str | None = Field(
        None,
        description="accelerate config file to launch the processes with, for FSDP (version 2)",
    )
    validate_every: int = Field(
        0, ge=0, description="steps between validation losses in the metrics table; 0: never"
    )
    validation: Name | None = Field(
        None,
        description="held-out text: the first shard of this entry of streams, read with the "
        "stream's settings",
    )
    validation_tokens: int = Field(10_000, ge=2, description="maximum validation tokens")


class FinetuneStage(Strict):
    """A stage of fine-tuning at one sequence length."""

    steps: int = Field(500, ge=1, description="optimizer steps")
    sequence_length: int = Field(1024, ge=2, description="tokens; longer rows are an error")
    batch_size: int = Field(4, ge=1, description="rows per step")


class Finetune(FinetuneStage, ModelTraining):
    """Supervised fine-tuning. The loss covers the answers of prompt-answer rows and all tokens of
    text rows."""

    data: Data = Field(
        description="a name under finetune_data, or names with weights: {keys: 3, prose: 1} draws "
        "three rows of `keys` for each row of `prose`"
    )
    curriculum: list[FinetuneStage] = Field(
        [],
        description="stages before the main one, shortest first; each trains on rows that fit its "
        "sequence_length but not the previous stage's",
    )
    balance_factor_learning_rate: float | None = Field(
        None,
        ge=0,
        description="peak learning rate of Infini-attention gates, without weight decay; null: "
        "learning_rate",
    )
    segment_alignment: Literal["start", "end", "random"] | None = Field(
        None,
        description="where training cuts the segments of Infini-attention; start: at the first "
        "token; end: so that the prompt ends at a random point in the middle half of a segment; "
        "random: anywhere; null: the attention's segment_alignment",
    )
    weight_decay: float = Field(
        0.01, ge=0, description="weight decay of matrices; biases and norms have none"
    )
    seed: int | None = Field(
        None, ge=0, description="seed of the row order; null: the experiment's seed"
    )

    @property
    def data_weights(self) -> dict[str, float]:
        """Weight of each data set, sorted by name."""
        return {self.data: 1.0} if isinstance(self.data, str) else dict(sorted(self.data.items()))


class Distill(FinetuneStage, TrainingLoop):
    """Distill the attention of a frozen model into gates.

    The loss is 10 KL(attention || gate), with attention max-pooled over each tile, summed over
    layers.
    """

    data: Annotated[list[Name], Field(min_length=1)] = Field(
        description="names under finetune_data; their rows are mixed"
    )
    prefill_rows: int = Field(
        256, ge=1, description="rows of blocks per batch that train the prefill gates"
    )
    decode_queries: int = Field(
        256,
        ge=1,
        description="tokens of each row, besides its answer, that train the decode gates",
    )
    answer_share: float = Field(
        0.5, ge=0, le=1, description="weight of the answer tokens in the decode gates' loss"
    )
    learning_rate: float = Field(1.0e-3, gt=0, description="peak learning rate, after warm-up")
    warmup_steps: int = Field(20, ge=0, description="steps of linear warm-up")
    final_learning_rate_ratio: float = Field(
        0.0, ge=0, le=1, description="share of the peak at which the cosine decay ends"
    )
    skipped_share: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="share of each row, from its start, that the loss ignores",
    )


Exercise = Literal["recall", "passkey", "noise", "sentences"]
"""Kind of pretraining sequence: short recall, a passkey, needles in noise or in sentences."""


class PretrainStage(Strict):
    """A stage of pretraining at one sequence length."""

    length: int = Field(ge=64, description="tokens per sequence")
    rows: int = Field(ge=1, description="sequences per step")
    steps: int = Field(ge=1, description="optimizer steps")
    exercises: list[Exercise] = Field(
        min_length=1, description="kinds of sequence, mixed evenly; repeats add weight"
    )
    jumps: float = Field(
        0.0, ge=0, le=1, description="share of sequences with jumps in their positions (PoSE)"
    )


class Pretrain(ModelTraining):
    """Train a small Llama and its word tokenizer from scratch, in stages of growing length."""

    stages: list[PretrainStage] = Field(min_length=1, description="the curriculum, in order")
    hidden_size: int = Field(128, ge=32, description="model width; a multiple of head_size")
    feed_forward_size: int = Field(256, ge=1, description="width of the feed-forward layers")
    layers: int = Field(3, ge=1, description="decoder layers")
    head_size: int = Field(32, ge=8, description="width of an attention head")
    max_positions: int = Field(32768, ge=64, description="position limit of the model")
    rope_theta: float = Field(1.0e9, gt=1, description="base of the rotary position embedding")
    start: Literal["random", "induction"] = Field(
        "induction",
        description="initial weights; random: normal; induction: heads set by hand to attend a few "
        "tokens back (first layer) and to earlier text that resembles the last few tokens (others)",
    )
    held_out_words: float = Field(
        0.1, ge=0, lt=1, description="share of key words that training never shows"
    )
    digits: list[int] = Field(
        [1, 2, 3, 4, 5, 6, 7], min_length=1, description="passkey lengths to train on, in digits"
    )
    most_needles: int = Field(24, ge=1, description="maximum needles per sequence")
    longest_jump: int = Field(
        8192, ge=1, description="maximum sum of the position jumps of a sequence"
    )
    learning_rate: float = Field(2.5e-3, gt=0, description="peak learning rate, after warm-up")
    embedding_rate_ratio: float = Field(
        0.3, gt=0, description="learning rate of the embeddings relative to learning_rate"
    )
    warmup_steps: int = Field(30, ge=0, description="steps of linear warm-up")
    stable_fraction: float = Field(
        0.55, ge=0, le=1, description="share of the steps before the cosine decay"
    )
    weight_decay: float = Field(
        0.1, ge=0, description="weight decay of matrices; embeddings and biases have none"
    )
    text_weight: float = Field(
        0.1, ge=0, description="weight of the loss on sampled tokens outside the answers"
    )
    text_share: float = Field(
        0.05, ge=0, le=1, description="share of the tokens outside the answers that are sampled"
    )
    distractors: int = Field(
        512, ge=1, description="random vocabulary entries in the sampled softmax"
    )
