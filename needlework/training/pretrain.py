"""Pretraining: a small model and its tokenizer, from nothing."""

from pathlib import Path

import polars as pl
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from needlework.config.training import Pretrain
from needlework.models.tiny import tiny_llama, word_tokenizer
from needlework.training.curriculum import IGNORED, batches, vocabulary
from needlework.training.loop import Batch, train, warmup_cosine


def pretrain(config: Pretrain, seed: int, output_dir: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Train what `config` describes and save model and tokenizer in `output_dir`.

    What is saved is a plain Llama checkpoint (safetensors) that transformers opens by itself.

    Returns:
        Metrics and measurements, as `needlework.training.loop.train` gives them.
    """
    tokenizer = word_tokenizer(vocabulary(), config.max_positions)
    model = tiny_llama(config, tokenizer, torch.Generator().manual_seed(seed))
    steps = sum(stage.steps for stage in config.stages)

    def schedule(step: int) -> float:
        return warmup_cosine(
            step,
            steps=steps,
            warmup=config.warmup_steps,
            flat=config.flat,
            final=config.final_learning_rate_ratio,
        )

    last = {}

    def loss(model: torch.nn.Module, batch: Batch) -> Tensor:
        answers, text = losses(model, batch)
        last["answers"], last["text"] = answers.detach(), text.detach()
        return answers + config.text_weight * text

    def watch() -> dict[str, float]:
        return {"answer_loss": last["answers"].item(), "text_loss": last["text"].item()}

    tables = train(
        model,
        batches(config, tokenizer, seed),
        steps=steps,
        groups=_groups(model, config),
        schedule=schedule,
        clip=config.clip,
        log_every=config.log_every,
        loss=loss,
        watch=watch,
        description="pretraining",
    )
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    return tables


def losses(model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the answers, and that of the sampled other tokens: two scalars.

    The softmax runs over `candidates` alone: with tens of thousands of words and a narrow model,
    the whole vocabulary would be most of the work.
    """
    hidden = model.model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        attention_mask=batch["attention_mask"],
        use_cache=False,
    ).last_hidden_state[:, :-1]
    candidates = batch["candidates"]
    weights = model.lm_head.weight[candidates]

    def mean_loss(labels: Tensor) -> Tensor:
        there = labels[:, 1:] != IGNORED
        wanted = torch.searchsorted(candidates, labels[:, 1:][there])
        return cross_entropy(hidden[there] @ weights.T, wanted)

    return mean_loss(batch["labels"]), mean_loss(batch["text_labels"])


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
