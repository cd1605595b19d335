"""Supervised fine-tuning on prompts with answers (loss on answers only) and on plain text."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any, get_args

import numpy as np
import polars as pl
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from needlework.config.attention.registry import AnyAttention
from needlework.config.opening import ModelSpec
from needlework.config.training import Finetune, FinetuneStage
from needlework.models.checkpoint import open_model
from needlework.models.convert import convert
from needlework.models.special_ids import pad_id
from needlework.sources.added_tokens import prompt_tokenizer
from needlework.sources.control_tokens import SpecialTokens
from needlework.tasks.seeds import stream_seed
from needlework.training.checkpoints import Checkpoints
from needlework.training.data_order import cycle_shuffled, mix_batches
from needlework.training.loop import IGNORED, Batch, Validate, train, warmup_cosine
from needlework.training.run import write_product
from needlework.training.sliced_loss import summed_loss
from needlework.training.state import full_tensor

Row = tuple[Sequence[int] | np.ndarray, Sequence[int] | np.ndarray]
"""Token ids without loss, then token ids with loss: a prompt and its answer with the
end-of-sequence token, or the first token of a text and all others."""


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: pl.DataFrame | Mapping[str, pl.DataFrame],
    config: Finetune,
    seed: int,
    checkpoints: Checkpoints | None = None,
    validate: Validate | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Fine-tune `model` in place by `config`.

    Each stage draws its rows in a new random order each epoch. Where several tables are mixed, each
    has its own order, and their weights decide which table a row comes from. A model may offer
    `gates` (modules with `balance_factors`, which get their own learning rate) and
    `training_offset` (where the first segment of each row ends), as Infini models do.

    Args:
        model: any causal language model; Infini gates get their own rate and no weight decay.
        tokenizer: has an eos_token, which ends every answer.
        rows: a table with columns prompt and answer (text; an answer includes its leading space),
            and optionally context_length, which is checked against the tokenizer; or a table of
            text with the column input_ids. One table for each name of `config.data`; error messages
            number their rows consecutively, tables in alphabetical order.
        config: the recipe.
        seed: of the order of rows and of the segment alignments.
        checkpoints: where to read and write checkpoints.
        validate: returns the loss on held-out text.

    Returns:
        Metrics and measurements of `loop.train`; metrics include each gate's activated value as
        gate_layer{l}_head{h}.

    Raises:
        ValueError: a row is longer than sequence_length; rows are of another tokenizer; a stage has
            no rows; the tokenizer has no eos_token; balance_factor_learning_rate or
            segment_alignment is set for a model without gates; or `loop.train` fails.
    """
    if config.balance_factor_learning_rate is not None and not _gates(model):
        raise ValueError(
            f"balance_factor_learning_rate: {config.balance_factor_learning_rate} applies to "
            f"Infini gates, but this {model.config.model_type} model has none; remove it"
        )
    if config.segment_alignment is not None and not _gates(model):
        raise ValueError(
            f"segment_alignment: {config.segment_alignment} applies to Infini models, but this "
            f"{model.config.model_type} model is not one; remove it"
        )
    tables = {config.data: rows} if isinstance(rows, pl.DataFrame) else rows
    encoded: list[Row] = []
    row_numbers: dict[str, range] = {}
    for name in config.data_weights:
        of_table = f" of {name}" if len(config.data_weights) > 1 else ""
        table = encode(tokenizer, tables[name], config.sequence_length, of_table)
        _check_tokenizer(model, tables[name], table, of_table)
        row_numbers[of_table] = range(len(encoded), len(encoded) + len(table))
        encoded += table
    pad = pad_id(model, tokenizer)
    generator = torch.Generator().manual_seed(seed)
    offset = None
    if _gates(model):
        alignment = config.segment_alignment
        offset = partial(model.training_offset, generator=generator, alignment=alignment)
    stages = [*config.curriculum, config]
    # A separate generator, so that a single table's order does not depend on table choices.
    table_choices = torch.Generator().manual_seed(stream_seed("choices", seed))
    stage_batches = []
    for i, stage in enumerate(stages):
        orders = [
            cycle_shuffled(_rows_of_stage(encoded, numbers, stages, i, of_table), generator)
            for of_table, numbers in row_numbers.items()
        ]
        weights = list(config.data_weights.values())
        mixed = mix_batches(orders, weights, stage.batch_size, table_choices)
        stage_batches.append(islice(mixed, stage.steps))

    def batches() -> Iterator[Batch]:
        for numbers in chain(*stage_batches):
            batch = collate([encoded[n] for n in numbers], pad, offset)
            yield {**batch, "row": torch.tensor(numbers)}

    steps = sum(stage.steps for stage in stages)
    return train(
        model,
        batches(),
        config,
        steps=steps,
        groups=parameter_groups(model, config),
        schedule=partial(
            warmup_cosine,
            steps=steps,
            warmup=config.warmup_steps,
            final=config.final_learning_rate_ratio,
        ),
        loss=answer_loss,
        extra_metrics=partial(_gate_values, _gates(model)),
        validate=validate,
        checkpoints=checkpoints,
        description="fine-tuning",
    )


def finetune_checkpoint(
    recipe: Finetune,
    checkpoints: Checkpoints,
    *,
    model: dict[str, Any],
    attention: dict[str, Any] | None,
    rows: dict[str, str],
    seed: int,
    validate: Validate | None = None,
) -> None:
    """Convert a checkpoint to `attention`, fine-tune it, and save it in `checkpoints.product`.

    Args:
        model: a `ModelSpec` as JSON values; the product has its dtype.
        attention: its parameters; None keeps the checkpoint's own.
        rows: Parquet files by name of the data.
    """
    torch.manual_seed(seed)
    base, tokenizer = open_model(ModelSpec.model_validate(model), device="cpu")
    trained = convert(base, TypeAdapter(AnyAttention | None).validate_python(attention))
    dtypes = {name: parameter.dtype for name, parameter in trained.named_parameters()}
    if recipe.mixed_precision != "no":
        trained.float()
    row_tables = {name: pl.read_parquet(path) for name, path in rows.items()}
    tables = finetune(trained, tokenizer, row_tables, recipe, seed, checkpoints, validate)
    write_product(checkpoints, trained, tokenizer, *tables, dtypes=dtypes)


def encode(
    tokenizer: PreTrainedTokenizerFast, rows: pl.DataFrame, max_tokens: int, of_table: str = ""
) -> list[Row]:
    """Encode each row, prompt and answer separately, as in generation.

    Error messages name the row's number followed by `of_table`.

    Raises:
        ValueError: a row has more than `max_tokens` tokens, or the tokenizer no eos_token.
    """
    if "input_ids" in rows.columns:
        # Arrays take a tenth of the memory of lists.
        arrays = (ids.to_numpy() for ids in rows["input_ids"])
        encoded = [(ids[:1], ids[1:]) for ids in arrays]
    else:
        encoded = _encode_answered(tokenizer, rows)
    for number, (prompt, answer) in enumerate(encoded):
        if len(prompt) + len(answer) > max_tokens:
            raise ValueError(
                f"sequence_length: row {number}{of_table} has {len(prompt) + len(answer)} tokens "
                f"including answer and end-of-sequence token, more than {max_tokens}; raise "
                "sequence_length or shorten the rows"
            )
    return encoded


def _encode_answered(tokenizer: PreTrainedTokenizerFast, rows: pl.DataFrame) -> list[Row]:
    if tokenizer.eos_token_id is None:
        raise ValueError("tokenizer: it has no eos_token to end answers with; set one")
    backend, end = tokenizer.backend_tokenizer, tokenizer.eos_token_id
    encoders = {how: prompt_tokenizer(backend, how).encode for how in get_args(SpecialTokens)}
    columns = ("prompt", "answer", "special_tokens")
    if "special_tokens" not in rows.columns:
        rows = rows.with_columns(pl.lit("text").alias("special_tokens"))
    return [
        (
            encoders[how](prompt).ids,
            [*encoders[how](answer, add_special_tokens=False).ids, end],
        )
        for prompt, answer, how in rows.select(columns).iter_rows()
    ]


def _check_tokenizer(
    model: PreTrainedModel, rows: pl.DataFrame, encoded: list[Row], of_table: str
) -> None:
    """Raise ValueError if the model or the rows belong to another tokenizer."""
    embeddings = model.get_input_embeddings().weight.shape[0]
    recorded = rows["context_length"] if "context_length" in rows.columns else [None] * len(rows)
    for number, ((prompt, answer), expected) in enumerate(zip(encoded, recorded, strict=True)):
        length = len(prompt) + len(answer)
        largest = max(max(prompt, default=0), max(answer))
        if largest >= embeddings:
            problem = f"contains token {largest}, but the model has {embeddings} embeddings"
        # Lengths were counted on joined text, which may save a token where prompt and answer meet.
        elif expected is not None and abs(length - expected) > 2:
            problem = f"was generated with {expected} tokens, but now has {length}"
        else:
            continue
        raise ValueError(
            f"tokenizer: row {number}{of_table} {problem}: the rows or the model belong to another "
            "tokenizer; regenerate the rows with the model's own"
        )


def collate(
    rows: list[Row], pad: int, offset: Callable[[Tensor], Tensor | None] | None = None
) -> dict[str, Tensor]:
    """Build one batch, padded on the left.

    Args:
        rows: rows of any length.
        pad: the padding token.
        offset: maps prompt lengths, int64 [B], to the batch's segment_offset.

    Returns:
        input_ids, attention_mask and labels, int64 [B, n], the labels -100 outside answers; and
        segment_offset [B] if `offset` returns one.
    """
    columns = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), columns), pad)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for i, (prompt, answer) in enumerate(rows):
        length = len(prompt) + len(answer)
        ids[i, columns - length : columns - len(answer)] = torch.tensor(prompt)
        ids[i, columns - len(answer) :] = torch.tensor(answer)
        mask[i, columns - length :] = 1
        labels[i, columns - len(answer) :] = torch.tensor(answer)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    segment_offset = offset(torch.tensor([len(prompt) for prompt, _ in rows])) if offset else None
    return batch if segment_offset is None else {**batch, "segment_offset": segment_offset}


def answer_loss(model: nn.Module, part: Batch, batch: Batch) -> Tensor:
    """Contribution of the rows `part` to the mean cross-entropy of the answer tokens of `batch`.

    Logits are computed from the first answer column on, in slices where answers are long. Both
    batches come from `collate`.
    """
    inputs = {name: value for name, value in part.items() if name not in ("labels", "row")}
    columns = int((part["labels"] != IGNORED).any(0).sum())
    summed = summed_loss(model, inputs, part["labels"][:, -columns:])
    return summed / (batch["labels"] != IGNORED).sum()


def parameter_groups(model: PreTrainedModel, config: Finetune) -> list[dict]:
    """Optimizer groups: matrices with weight decay, biases and norms without; gates without, at
    their own learning rate."""
    balance_factors = [gate.balance_factors for gate in _gates(model)]
    others = [p for p in model.parameters() if all(p is not beta for beta in balance_factors)]
    rate, decay = config.learning_rate, config.weight_decay
    groups = [
        {"params": [p for p in others if p.dim() > 1], "lr": rate, "weight_decay": decay},
        {"params": [p for p in others if p.dim() <= 1], "lr": rate, "weight_decay": 0.0},
    ]
    if balance_factors:
        gate_rate = config.balance_factor_learning_rate
        gate_rate = rate if gate_rate is None else gate_rate
        groups.append({"params": balance_factors, "lr": gate_rate, "weight_decay": 0.0})
    return groups


def _rows_of_stage(
    encoded: list[Row], numbers: range, stages: list[FinetuneStage], i: int, of_table: str
) -> list[int]:
    """Numbers of the rows that fit stage i, but not the stage before."""
    shortest = stages[i - 1].sequence_length if i else 0
    longest = stages[i].sequence_length
    lengths = {n: len(encoded[n][0]) + len(encoded[n][1]) for n in numbers}
    fitting = [n for n, length in lengths.items() if shortest < length <= longest]
    if not fitting:
        raise ValueError(
            f"sequence_length: no row{of_table} has {shortest + 1} to {longest} tokens, but the "
            f"stage has {stages[i].steps} steps; add such rows or remove the stage"
        )
    return fitting


def _gates(model: PreTrainedModel) -> list[nn.Module]:
    return getattr(model, "gates", [])


def _gate_values(gates: list[nn.Module]) -> dict[str, float]:
    return {
        f"gate_layer{layer}_head{head}": value
        for layer, gate in enumerate(gates)
        for head, value in enumerate(full_tensor(gate()).tolist())
    }
