"""Pretraining: a small model and its tokenizer, from nothing."""

from collections import deque

import polars as pl
import torch
from accelerate.utils import reduce
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from needlework.config.training import Pretrain
from needlework.models.tiny import tiny_llama, word_tokenizer
from needlework.training.checkpoints import Checkpoints
from needlework.training.curriculum import batches, vocabulary
from needlework.training.loop import IGNORED, Batch, Validate, train, warmup_cosine
from needlework.training.run import write_product


def pretrain(
    config: Pretrain,
    seed: int,
    checkpoints: Checkpoints | None = None,
    validate: Validate | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, pl.DataFrame, pl.DataFrame]:
    """Train the model that `config` describes, a plain Llama, and make its tokenizer.

    Args:
        config: the recipe.
        seed: of the start and of the sequences.
        checkpoints: where training goes on from, and leaves its checkpoints.
        validate: gives the loss on held-out text.

    Returns:
        Model, tokenizer, and the metrics and measurements of `loop.train`; the metrics also hold
        answer_loss and text_loss, the last step's.
    """
    tokenizer = word_tokenizer(vocabulary(), config.max_positions)
    model = tiny_llama(config, tokenizer, torch.Generator().manual_seed(seed))
    steps = sum(stage.steps for stage in config.stages)

    def schedule(step: int) -> float:
        return warmup_cosine(
            step,
            steps=steps,
            warmup=config.warmup_steps,
            stable_fraction=config.stable_fraction,
            final=config.final_learning_rate_ratio,
        )

    seen: deque[Tensor] = deque(maxlen=config.gradient_accumulation_steps)

    def loss(model: torch.nn.Module, part: Batch, batch: Batch) -> Tensor:
        answers, text = losses(model, part, batch)
        seen.append(torch.stack([answers.detach(), text.detach()]))
        return answers + config.text_weight * text

    def watch() -> dict[str, float]:
        answers, text = reduce(sum(seen), "sum").tolist()
        return {"answer_loss": answers, "text_loss": text}

    metrics, measurements = train(
        model,
        batches(config, tokenizer, seed),
        config,
        steps=steps,
        groups=_groups(model, config),
        schedule=schedule,
        loss=loss,
        watch=watch,
        validate=validate,
        checkpoints=checkpoints,
        description="pretraining",
    )
    return model, tokenizer, metrics, measurements


def pretrain_model(
    recipe: Pretrain, checkpoints: Checkpoints, *, seed: int, validate: Validate | None = None
) -> None:
    """Pretrain by `recipe`; the product is written by `write_product`."""
    write_product(checkpoints, *pretrain(recipe, seed, checkpoints, validate))


def losses(model: torch.nn.Module, part: Batch, batch: Batch) -> tuple[Tensor, Tensor]:
    """What `part` adds to the mean cross-entropy of the answers of `batch`, and to that of the
    sampled other tokens: two scalars.

    The softmax runs over `candidates` alone: with tens of thousands of words and a narrow model,
    the whole vocabulary would be most of the work.
    """
    hidden = model.model(
        input_ids=part["input_ids"],
        position_ids=part["position_ids"],
        attention_mask=part["attention_mask"],
        use_cache=False,
    ).last_hidden_state[:, :-1]
    candidates = part["candidates"][0].contiguous()
    weights = model.lm_head.weight[candidates]

    def share(name: str) -> Tensor:
        labels = part[name][:, 1:]
        there = labels != IGNORED
        wanted = torch.searchsorted(candidates, labels[there])
        summed = cross_entropy(hidden[there] @ weights.T, wanted, reduction="sum")
        return summed / (batch[name][:, 1:] != IGNORED).sum()

    return share("labels"), share("text_labels")


def _groups(model: torch.nn.Module, config: Pretrain) -> list[dict]:
    embeddings = [model.get_input_embeddings().weight]
    rest = [p for p in model.parameters() if p is not embeddings[0]]
    return [
        {
            "params": [p for p in rest if p.dim() > 1],
            "lr": config.learning_rate,
            "weight_decay": config.weight_decay,
        },
        {
            "params": [p for p in rest if p.dim() <= 1],
            "lr": config.learning_rate,
            "weight_decay": 0.0,
        },
        {
            "params": embeddings,
            "lr": config.learning_rate * config.embedding_rate_ratio,
            "weight_decay": 0.0,
        },
    ]
