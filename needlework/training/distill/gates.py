"""Training of gates: a frozen model's own attention teaches them which blocks it looks at."""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import polars as pl
import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from needlework.attention.seer.gates import Gates
from needlework.config.gates import SeerGates
from needlework.config.training import Distill
from needlework.models.checkpoint import open_model
from needlework.training.checkpoints import Checkpoints
from needlework.training.data_order import shuffled
from needlework.training.distill.distiller import Lesson
from needlework.training.finetune import Row, collate, encode
from needlework.training.loop import IGNORED, Batch, train, warmup_cosine
from needlework.training.run import write_tables


def distill(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: pl.DataFrame,
    config: SeerGates,
    seed: int,
    checkpoints: Checkpoints | None = None,
) -> tuple[Gates, pl.DataFrame, pl.DataFrame]:
    """Gates for `model`, trained as SeerAttention's (Gao et al., 2024): 10 KL(attention || gate).

    Args:
        model: any causal language model with RoPE; left as it was.
        tokenizer: has an eos_token, which ends every row.
        rows: columns prompt and answer (text); the whole text is learnt from.
        config: the gates' shape, and the recipe.
        seed: of the gates' first weights, the order of rows and the tokens that decode gates learn.
        checkpoints: where training goes on from, and leaves its checkpoints.

    Returns:
        The gates; metrics and measurements of `loop.train`.

    Raises:
        ValueError: a row longer than sequence_length, a tokenizer with no eos_token, a model that
            gates cannot be made for, and what `loop.train` raises.
    """
    recipe = config.distill
    encoded = encode(tokenizer, rows, recipe.sequence_length)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        gates = Gates.new(
            model, block_size=config.block_size, gate_dim=config.gate_dim, stages=config.stages
        )
    with Lesson(model, gates) as lesson:
        metrics, measurements = train(
            gates,
            batches(encoded, pad, config, seed),
            recipe,
            steps=recipe.steps,
            groups=[
                {"params": [*gates.parameters()], "lr": recipe.learning_rate, "weight_decay": 0.0}
            ],
            schedule=partial(
                warmup_cosine,
                steps=recipe.steps,
                warmup=recipe.warmup_steps,
                final=recipe.final_learning_rate_ratio,
            ),
            loss=lambda gates, part, batch: lesson.loss(part, batch),
            checkpoints=checkpoints,
            description="distilling",
        )
    return gates, metrics, measurements


def distill_checkpoint(
    recipe: Distill,
    checkpoints: Checkpoints,
    *,
    model: str,
    revision: str | None,
    dtype: str,
    allow_pickle: bool,
    gates: dict[str, Any],
    rows: list[str],
    seed: int,
) -> None:
    """Distil gates of the checkpoint `model` on the tables `rows`.

    `gates` has the keys of SeerGates but `distill`. Gates and tables are left in
    `checkpoints.product`.
    """
    teacher, tokenizer = open_model(
        model, dtype=dtype, revision=revision, allow_pickle=allow_pickle
    )
    table = pl.concat([pl.read_parquet(file, columns=["prompt", "answer"]) for file in rows])
    config = SeerGates(**gates, distill=recipe)
    found, *tables = distill(teacher, tokenizer, table, config, seed, checkpoints)
    if PartialState().is_main_process:
        found.save(checkpoints.product)
        write_tables(checkpoints, *tables)


def batches(encoded: list[Row], pad: int, config: SeerGates, seed: int) -> Iterator[Batch]:
    """One batch of `collate` a step, with what its gates learn from, drawn anew in each.

    Beside what `collate` gives: tokens, counted from the first real one, and blocks of queries,
    each (rows, n) int64 and the blocks the same in every row; token_weights and block_weights,
    (rows, n) float32, how much the loss counts them.
    """
    recipe = config.distill
    generator = torch.Generator().manual_seed(seed)
    order = shuffled(range(len(encoded)), generator)
    for _ in range(recipe.steps):
        numbers = list(islice(order, recipe.batch_size))
        batch = collate([encoded[n] for n in numbers], pad)
        lengths = batch["attention_mask"].sum(1, keepdim=True)
        skipped = (lengths * recipe.skipped_share).floor().long()
        blocks = _drawn_blocks(lengths, skipped, config, generator)
        answers = int((batch["labels"] != IGNORED).sum(1).min())
        tokens = _drawn_tokens(lengths, skipped, answers, recipe, generator)
        yield {
            **batch,
            "row": torch.tensor(numbers),
            "blocks": blocks[0],
            "block_weights": blocks[1],
            "tokens": tokens[0],
            "token_weights": tokens[1],
        }


def _drawn_blocks(
    lengths: Tensor, skipped: Tensor, config: SeerGates, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Blocks that prefill gates learn from, and their weights: one of each of n equal stretches of
    what the shortest text does not skip. lengths and skipped [rows, 1], tokens."""
    size = config.block_size
    first, end = int(skipped.min()) // size, -(-int(lengths.max()) // size)
    n = min(config.distill.prefill_rows, end - first)
    stretches = (torch.arange(n) + torch.rand(n, generator=generator)) / n
    blocks = ((stretches * (end - first)).long() + first).clamp_max(end - 1)
    counts = (blocks >= -(-skipped // size)) & (blocks < -(-lengths // size))
    return blocks.expand(len(lengths), -1), counts.float()


def _drawn_tokens(
    lengths: Tensor, skipped: Tensor, answers: int, recipe: Distill, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Tokens that decode gates learn from, and their weights: one of each of decode_queries equal
    stretches of what a text does not skip, and its last `answers`, which are of its answer."""
    n, share = min(recipe.decode_queries, int(lengths.max())), recipe.answer_share
    stretches = (torch.arange(n) + torch.rand(len(lengths), n, generator=generator)) / n
    text = torch.minimum((stretches * (lengths - skipped)).long() + skipped, lengths - 1)
    tokens = torch.cat([text, torch.arange(-answers, 0) + lengths], 1)
    weights = torch.tensor([(1 - share) / n] * n + [share / answers] * answers)
    return tokens, weights.expand_as(tokens)
