"""Supervised fine-tuning: on rows, the loss on the answers alone, and on text, on all of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
import polars as pl
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from needlework.config.attention import AnyAttention
from needlework.config.training import Finetune, FinetuneStage
from needlework.models.checkpoint import open_model
from needlework.models.convert import convert
from needlework.tasks.seeds import stream_seed
from needlework.training.checkpoints import Checkpoints
from needlework.training.data_order import mix, shuffled
from needlework.training.loop import IGNORED, Batch, Validate, train, warmup_cosine
from needlework.training.run import write_product
from needlework.training.sliced_loss import summed_loss
from needlework.training.state import whole

Row = tuple[Sequence[int] | np.ndarray, Sequence[int] | np.ndarray]
"""Token ids of a prompt, and of its answer with the end-of-sequence token; of text the first token,
which nothing foretells, and all others."""


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

    Each stage draws its rows in an order shuffled anew whenever all have been seen. Where several
    tables are mixed, each has an order of its own, and which one a row is drawn from is drawn by
    their weights. A model may offer `gates` (parameters `balance_factors`, with a rate of their
    own) and `training_offset` (where the first segment of each row is cut), as Infini models do.

    Args:
        model: any causal language model; Infini gates get their own rate and no weight decay.
        tokenizer: has an eos_token, which ends every answer.
        rows: columns prompt and answer (text; an answer begins with its space); where there is a
            context_length, it is what the tokenizer is checked by. Or text: the column input_ids.
            Where `config.data` has several names, a table for each; errors number their rows
            through, in the order of the names' letters.
        config: the recipe.
        seed: of the order of rows and of the alignments.
        checkpoints: where training goes on from, and leaves its checkpoints.
        validate: gives the loss on held-out text.

    Returns:
        Metrics and measurements of `loop.train`; the metrics also hold each gate's activated value
        as gate_layer{l}_head{h}.

    Raises:
        ValueError: a row longer than sequence_length; rows of another tokenizer; a stage with no
            rows; a tokenizer with no eos_token; balance_factor_learning_rate or segment_alignment
            for a model without gates; and what `loop.train` raises.
    """
    if config.balance_factor_learning_rate is not None and not _gates(model):
        raise ValueError(
            f"balance_factor_learning_rate: {config.balance_factor_learning_rate} is for Infini "
            f"gates and this {model.config.model_type} model has none; leave it out"
        )
    if config.segment_alignment is not None and not _gates(model):
        raise ValueError(
            f"segment_alignment: {config.segment_alignment} is for Infini models and this "
            f"{model.config.model_type} model is none; leave it out"
        )
    tables = {config.data: rows} if isinstance(rows, pl.DataFrame) else rows
    encoded, owners = [], {}
    for name in config.data_weights:
        of = f" of {name}" if len(config.data_weights) > 1 else ""
        found = encode(tokenizer, tables[name], config.sequence_length, of)
        _require_own_tokens(model, tables[name], found, of)
        owners[of] = range(len(encoded), len(encoded) + len(found))
        encoded += found
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    generator = torch.Generator().manual_seed(seed)
    offset = None
    if _gates(model):
        alignment = config.segment_alignment
        offset = partial(model.training_offset, generator=generator, alignment=alignment)
    stages = [*config.curriculum, config]
    # Of their own, so that one table alone is drawn from as if there were nothing to choose.
    choices = torch.Generator().manual_seed(stream_seed("choices", seed))
    drawn = []
    for i, stage in enumerate(stages):
        orders = [
            shuffled(_numbers_of(encoded, numbers, stages, i, of), generator)
            for of, numbers in owners.items()
        ]
        batches_of_stage = mix(
            orders, list(config.data_weights.values()), stage.batch_size, choices
        )
        drawn.append(islice(batches_of_stage, stage.steps))

    def batches() -> Iterator[Batch]:
        for numbers in chain(*drawn):
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
        watch=partial(_gate_values, _gates(model)),
        validate=validate,
        checkpoints=checkpoints,
        description="fine-tuning",
    )


def finetune_checkpoint(
    recipe: Finetune,
    checkpoints: Checkpoints,
    *,
    base: str,
    revision: str | None,
    dtype: str,
    allow_pickle: bool,
    attention: dict[str, Any] | None,
    rows: dict[str, str],
    seed: int,
    validate: Validate | None = None,
) -> None:
    """Fine-tune the checkpoint `base`, converted to `attention` first, on the tables `rows`.

    The product is written by `write_product`, in `dtype`.
    """
    torch.manual_seed(seed)
    model, tokenizer = open_model(
        base, dtype=dtype, device="cpu", revision=revision, allow_pickle=allow_pickle
    )
    model = convert(model, TypeAdapter(AnyAttention | None).validate_python(attention))
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    if recipe.mixed_precision != "no":
        model.float()
    found = {name: pl.read_parquet(path) for name, path in rows.items()}
    tables = finetune(model, tokenizer, found, recipe, seed, checkpoints, validate)
    write_product(checkpoints, model, tokenizer, *tables, dtypes=dtypes)


def encode(
    tokenizer: PreTrainedTokenizerFast, rows: pl.DataFrame, longest: int, of: str = ""
) -> list[Row]:
    """Token ids of each row; prompt and answer apart, as generation will meet them.

    Errors name a row's number and `of`.

    Raises:
        ValueError: a row of more than `longest` tokens, or a tokenizer with no eos_token.
    """
    if "input_ids" in rows.columns:
        # Arrays, where lists would take ten times the memory.
        arrays = (ids.to_numpy() for ids in rows["input_ids"])
        encoded = [(ids[:1], ids[1:]) for ids in arrays]
    else:
        encoded = _encode_answered(tokenizer, rows)
    for number, (prompt, answer) in enumerate(encoded):
        if len(prompt) + len(answer) > longest:
            raise ValueError(
                f"sequence_length: row {number}{of} has {len(prompt) + len(answer)} tokens with "
                f"its answer and end, more than {longest}; raise sequence_length or shorten the "
                "rows"
            )
    return encoded


def _encode_answered(tokenizer: PreTrainedTokenizerFast, rows: pl.DataFrame) -> list[Row]:
    if tokenizer.eos_token_id is None:
        raise ValueError("tokenizer: it has no eos_token to end answers with; give it one")
    prompts = tokenizer(rows["prompt"].to_list())["input_ids"]
    answers = tokenizer(rows["answer"].to_list(), add_special_tokens=False)["input_ids"]
    return [(p, [*a, tokenizer.eos_token_id]) for p, a in zip(prompts, answers, strict=True)]


def _require_own_tokens(
    model: PreTrainedModel, rows: pl.DataFrame, encoded: list[Row], of: str
) -> None:
    entries = model.get_input_embeddings().weight.shape[0]
    told = rows["context_length"] if "context_length" in rows.columns else [None] * len(rows)
    for number, ((prompt, answer), length) in enumerate(zip(encoded, told, strict=True)):
        found = len(prompt) + len(answer)
        largest = max(max(prompt, default=0), max(answer))
        if largest >= entries:
            wrong = f"has the token {largest} and the model {entries} embeddings"
        # Prompt and answer were counted as one text, which may save a token where they meet.
        elif length is not None and abs(found - length) > 2:
            wrong = f"was made with {length} tokens and has {found}"
        else:
            continue
        raise ValueError(
            f"tokenizer: row {number}{of} {wrong}: the rows or the model are of another tokenizer; "
            "make the rows anew"
        )


def collate(
    rows: list[Row], pad: int, offset: Callable[[Tensor], Tensor | None] | None = None
) -> dict[str, Tensor]:
    """One batch, padded on the left.

    Args:
        rows: of any lengths.
        pad: the padding token.
        offset: prompt lengths, int64 [B], to the segment_offset of the batch.

    Returns:
        input_ids, attention_mask and labels, int64 [B, n], the labels -100 outside answers; and
        segment_offset [B] where `offset` gives one.
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
    drawn = offset(torch.tensor([len(prompt) for prompt, _ in rows])) if offset else None
    return batch if drawn is None else {**batch, "segment_offset": drawn}


def answer_loss(model: nn.Module, part: Batch, batch: Batch) -> Tensor:
    """What the rows `part` add to the mean cross-entropy of the answers' tokens of `batch`.

    Logits are computed where answers stand only, of long ones some at a time. Both batches are as
    of `collate`.
    """
    inputs = {name: value for name, value in part.items() if name not in ("labels", "row")}
    columns = int((part["labels"] != IGNORED).any(0).sum())
    summed = summed_loss(model, inputs, part["labels"][:, -columns:])
    return summed / (batch["labels"] != IGNORED).sum()


def parameter_groups(model: PreTrainedModel, config: Finetune) -> list[dict]:
    """Optimizer groups: matrices with weight decay, biases and norms without, gates at their own
    rate and without."""
    of_gates = [gate.balance_factors for gate in _gates(model)]
    others = [p for p in model.parameters() if all(p is not beta for beta in of_gates)]
    rate, decay = config.learning_rate, config.weight_decay
    groups = [
        {"params": [p for p in others if p.dim() > 1], "lr": rate, "weight_decay": decay},
        {"params": [p for p in others if p.dim() <= 1], "lr": rate, "weight_decay": 0.0},
    ]
    if of_gates:
        own = config.balance_factor_learning_rate
        groups.append({"params": of_gates, "lr": rate if own is None else own, "weight_decay": 0.0})
    return groups


def _numbers_of(
    encoded: list[Row], numbers: range, stages: list[FinetuneStage], i: int, of: str
) -> list[int]:
    """Those of stage i's rows: longer than the stage before takes, no longer than its own."""
    shortest = stages[i - 1].sequence_length if i else 0
    longest = stages[i].sequence_length
    lengths = {n: len(encoded[n][0]) + len(encoded[n][1]) for n in numbers}
    found = [n for n, length in lengths.items() if shortest < length <= longest]
    if not found:
        raise ValueError(
            f"sequence_length: no row{of} has {shortest + 1} to {longest} tokens, for which "
            f"{stages[i].steps} steps are set; add such rows or leave the stage out"
        )
    return found


def _gates(model: PreTrainedModel) -> list[nn.Module]:
    return getattr(model, "gates", [])


def _gate_values(gates: list[nn.Module]) -> dict[str, float]:
    return {
        f"gate_layer{layer}_head{head}": value
        for layer, gate in enumerate(gates)
        for head, value in enumerate(whole(gate()).tolist())
    }
