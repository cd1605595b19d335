"""Distill gates that predict which blocks a frozen model's own attention looks at."""

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
from needlework.config.opening import ModelSpec
from needlework.config.training import Distill
from needlework.models.checkpoint import open_model
from needlework.models.special_ids import pad_id
from needlework.training.checkpoints import Checkpoints
from needlework.training.data_order import cycle_shuffled
from needlework.training.distill.distiller import GateDistiller
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
    """Train gates for `model` as SeerAttention does (Gao et al., 2024): 10 KL(attention || gate).

    Args:
        model: any causal language model with RoPE; it does not change.
        tokenizer: has an eos_token, which ends every row.
        rows: columns prompt and answer (text); the loss covers the whole text.
        config: shape of the gates, and the recipe.
        seed: of the initial gates, the order of rows and the tokens that decode gates learn from.
        checkpoints: where to read and write checkpoints.

    Returns:
        The gates; metrics and measurements of `loop.train`.

    Raises:
        ValueError: a row is longer than sequence_length, the tokenizer has no eos_token, the model
            cannot have gates, or `loop.train` fails.
    """
    recipe = config.distill
    encoded = encode(tokenizer, rows, recipe.sequence_length)
    pad = pad_id(model, tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        gates = Gates.new(
            model, block_size=config.block_size, gate_dim=config.gate_dim, stages=config.stages
        )
    with GateDistiller(model, gates) as distiller:
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
            loss=lambda gates, part, batch: distiller.loss(part, batch),
            checkpoints=checkpoints,
            description="distilling",
        )
    return gates, metrics, measurements


def distill_checkpoint(
    recipe: Distill,
    checkpoints: Checkpoints,
    *,
    model: dict[str, Any],
    gates: dict[str, Any],
    rows: list[str],
    seed: int,
) -> None:
    """Distill gates for a checkpoint and save them with their tables in `checkpoints.product`.

    Args:
        model: a `ModelSpec` as JSON values.
        gates: the keys of `SeerGates` except `distill`.
        rows: Parquet files.
    """
    frozen_model, tokenizer = open_model(ModelSpec.model_validate(model))
    table = pl.concat([pl.read_parquet(file, columns=["prompt", "answer"]) for file in rows])
    config = SeerGates(**gates, distill=recipe)
    trained, metrics, measurements = distill(
        frozen_model, tokenizer, table, config, seed, checkpoints
    )
    if PartialState().is_main_process:
        trained.save(checkpoints.product)
        write_tables(checkpoints, metrics, measurements)


def batches(encoded: list[Row], pad: int, config: SeerGates, seed: int) -> Iterator[Batch]:
    """Yield one batch per step: that of `collate`, plus a random sample of tokens and blocks.

    Adds tokens (queries of decode gates, counted from each row's first real token) and blocks (of
    queries of prefill gates, the same in every row), each [rows, n] int64; and their weights in the
    loss, token_weights and block_weights [rows, n] float32.
    """
    recipe = config.distill
    generator = torch.Generator().manual_seed(seed)
    order = cycle_shuffled(range(len(encoded)), generator)
    for _ in range(recipe.steps):
        numbers = list(islice(order, recipe.batch_size))
        batch = collate([encoded[n] for n in numbers], pad)
        lengths = batch["attention_mask"].sum(1, keepdim=True)
        skipped = (lengths * recipe.skipped_share).floor().long()
        blocks, block_weights = _draw_blocks(lengths, skipped, config, generator)
        answer_tokens = int((batch["labels"] != IGNORED).sum(1).min())
        tokens, token_weights = _draw_tokens(lengths, skipped, answer_tokens, config, generator)
        yield {
            **batch,
            "row": torch.tensor(numbers),
            "blocks": blocks,
            "block_weights": block_weights,
            "tokens": tokens,
            "token_weights": token_weights,
        }


def _draw_blocks(
    lengths: Tensor, skipped: Tensor, config: SeerGates, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw the blocks that prefill gates learn from; return them and their weights.

    One block comes from each of n equal parts of the text after the fewest skipped tokens.
    `lengths` and `skipped` [rows, 1] are in tokens.
    """
    size = config.block_size
    first, end = int(skipped.min()) // size, -(-int(lengths.max()) // size)
    n = min(config.distill.prefill_rows, end - first)
    fractions = (torch.arange(n) + torch.rand(n, generator=generator)) / n
    blocks = ((fractions * (end - first)).long() + first).clamp_max(end - 1)
    counts = (blocks >= -(-skipped // size)) & (blocks < -(-lengths // size))
    return blocks.expand(len(lengths), -1), counts.float()


def _draw_tokens(
    lengths: Tensor,
    skipped: Tensor,
    answer_tokens: int,
    config: SeerGates,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw the tokens that decode gates learn from; return them and their weights.

    One token comes from each of decode_queries equal parts of a text after its skipped tokens; the
    last `answer_tokens` tokens, which belong to the answer, follow. Tokens of the first block have
    no earlier block to choose and weigh 0.
    """
    recipe = config.distill
    n, share = min(recipe.decode_queries, int(lengths.max())), recipe.answer_share
    fractions = (torch.arange(n) + torch.rand(len(lengths), n, generator=generator)) / n
    text = torch.minimum((fractions * (lengths - skipped)).long() + skipped, lengths - 1)
    tokens = torch.cat([text, torch.arange(-answer_tokens, 0) + lengths], 1)
    weights = torch.tensor([(1 - share) / n] * n + [share / answer_tokens] * answer_tokens)
    return tokens, weights * (tokens >= config.block_size)
