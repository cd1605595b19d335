"""Supervised fine-tuning on prompt and answer rows, the loss on the answers alone."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any

import polars as pl
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from needlework.config.systems import AnyAttention
from needlework.config.training import Finetune, FinetuneStage
from needlework.models.checkpoint import open_model
from needlework.models.convert import convert
from needlework.training.checkpoints import Checkpoints
from needlework.training.loop import IGNORED, Batch, train, warmup_cosine, whole
from needlework.training.run import write_product

Row = tuple[list[int], list[int]]
"""Token ids of a prompt, and of its answer with the end-of-sequence token."""


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: pl.DataFrame,
    config: Finetune,
    seed: int,
    checkpoints: Checkpoints | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Fine-tune `model` in place by `config`.

    Each stage draws its rows in an order shuffled anew whenever all have been seen. A model may
    offer `gates` (parameters `balance_factors`, with a rate of their own) and `training_offset`
    (where the first segment of each row is cut), as Infini models do.

    Args:
        model: any causal language model; Infini gates get their own rate and no weight decay.
        tokenizer: has an eos_token, which ends every answer.
        rows: columns prompt and answer (text; an answer begins with its space); where there is a
            context_length, it is what the tokenizer is checked by.
        config: the recipe.
        seed: of the order of rows and of the alignments.
        checkpoints: where training goes on from, and leaves its checkpoints.

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
    encoded = encode(tokenizer, rows, config.sequence_length)
    _require_own_tokens(model, rows, encoded)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    generator = torch.Generator().manual_seed(seed)
    offset = None
    if _gates(model):
        alignment = config.segment_alignment
        offset = partial(model.training_offset, generator=generator, alignment=alignment)
    stages = [*config.curriculum, config]
    drawn = [
        islice(draw(_numbers_of(encoded, stages, i), stage.batch_size, generator), stage.steps)
        for i, stage in enumerate(stages)
    ]

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
    rows: str,
    seed: int,
) -> None:
    """Fine-tune the checkpoint `base`, converted to `attention` first, on the table `rows`.

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
    tables = finetune(model, tokenizer, pl.read_parquet(rows), recipe, seed, checkpoints)
    write_product(checkpoints, model, tokenizer, *tables, dtypes=dtypes)


def encode(tokenizer: PreTrainedTokenizerFast, rows: pl.DataFrame, longest: int) -> list[Row]:
    """Token ids of each row; prompt and answer apart, as generation will meet them.

    Raises:
        ValueError: a row of more than `longest` tokens, or a tokenizer with no eos_token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("tokenizer: it has no eos_token to end answers with; give it one")
    prompts = tokenizer(rows["prompt"].to_list())["input_ids"]
    answers = tokenizer(rows["answer"].to_list(), add_special_tokens=False)["input_ids"]
    encoded = [(p, [*a, tokenizer.eos_token_id]) for p, a in zip(prompts, answers, strict=True)]
    for number, (prompt, answer) in enumerate(encoded):
        if len(prompt) + len(answer) > longest:
            raise ValueError(
                f"sequence_length: row {number} has {len(prompt) + len(answer)} tokens with its "
                f"answer and end, more than {longest}; raise sequence_length or shorten the rows"
            )
    return encoded


def _require_own_tokens(model: PreTrainedModel, rows: pl.DataFrame, encoded: list[Row]) -> None:
    entries = model.get_input_embeddings().weight.shape[0]
    told = rows["context_length"] if "context_length" in rows.columns else [None] * len(rows)
    for number, ((prompt, answer), length) in enumerate(zip(encoded, told, strict=True)):
        largest, found = max(prompt + answer), len(prompt) + len(answer)
        if largest >= entries:
            wrong = f"has the token {largest} and the model {entries} embeddings"
        # Prompt and answer were counted as one text, which may save a token where they meet.
        elif length is not None and abs(found - length) > 2:
            wrong = f"was made with {length} tokens and has {found}"
        else:
            continue
        raise ValueError(
            f"tokenizer: row {number} {wrong}: the rows or the model are of another tokenizer; "
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
        ids[i, columns - length :] = torch.tensor(prompt + answer)
        mask[i, columns - length :] = 1
        labels[i, columns - len(answer) :] = torch.tensor(answer)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    drawn = offset(torch.tensor([len(prompt) for prompt, _ in rows])) if offset else None
    return batch if drawn is None else {**batch, "segment_offset": drawn}


def answer_loss(model: nn.Module, part: Batch, batch: Batch) -> Tensor:
    """What the rows `part` add to the mean cross-entropy of the answers' tokens of `batch`.

    Logits are computed where answers stand only. Both batches are as of `collate`.
    """
    inputs = {name: value for name, value in part.items() if name not in ("labels", "row")}
    columns = int((part["labels"] != IGNORED).any(0).sum())
    logits = model(**inputs, logits_to_keep=columns + 1, use_cache=False).logits[:, :-1]
    labels = part["labels"][:, -columns:].flatten()
    summed = cross_entropy(logits.flatten(0, 1).float(), labels, reduction="sum")
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


def _numbers_of(encoded: list[Row], stages: list[FinetuneStage], i: int) -> list[int]:
    """Numbers of stage i's rows: longer than the stage before takes, no longer than its own."""
    shortest = stages[i - 1].sequence_length if i else 0
    longest = stages[i].sequence_length
    lengths = [len(prompt) + len(answer) for prompt, answer in encoded]
    numbers = [n for n, length in enumerate(lengths) if shortest < length <= longest]
    if not numbers:
        raise ValueError(
            f"sequence_length: no row has {shortest + 1} to {longest} tokens, for which "
            f"{stages[i].steps} steps are set; add such rows or leave the stage out"
        )
    return numbers


def draw(
    numbers: Sequence[int], batch_size: int, generator: torch.Generator
) -> Iterator[list[int]]:
    """Numbers of rows, `batch_size` a time without end; the order is drawn anew whenever all have
    been seen."""

    def shuffled():
        while True:
            yield from torch.randperm(len(numbers), generator=generator).tolist()

    order = shuffled()
    while True:
        yield [numbers[j] for j in islice(order, batch_size)]


def _gates(model: PreTrainedModel) -> list[nn.Module]:
    return getattr(model, "gates", [])


def _gate_values(gates: list[nn.Module]) -> dict[str, float]:
    return {
        f"gate_layer{layer}_head{head}": value
        for layer, gate in enumerate(gates)
        for head, value in enumerate(whole(gate()).tolist())
    }
