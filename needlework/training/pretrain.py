"""Pretrain a small model and its tokenizer from scratch."""

from collections import deque

import polars as pl
import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from needlework.config.models.pretrained import Pretrained
from needlework.config.training import Pretrain
from needlework.models.tiny import llama_config, tiny_llama, word_tokenizer
from needlework.training.checkpoints import Checkpoints
from needlework.training.curriculum import batches, vocabulary
from needlework.training.loop import IGNORED, Batch, Validate, train, warmup_cosine
from needlework.training.run import write_product


def config_of(model: Pretrained) -> LlamaConfig:
    """The config of a model before it is pretrained; see `LocalModel.config_module`."""
    tokenizer = word_tokenizer(vocabulary(), model.pretrain.max_positions)
    return llama_config(model.pretrain, tokenizer)


def pretrain(
    config: Pretrain,
    seed: int,
    checkpoints: Checkpoints | None = None,
    validate: Validate | None = None,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, pl.DataFrame, pl.DataFrame]:
    """Train the Llama model that `config` describes, and build its tokenizer.

    Args:
        config: the recipe.
        seed: of the initial weights and the training sequences.
        checkpoints: where to read and write checkpoints.
        validate: returns the loss on held-out text.

    Returns:
        Model, tokenizer, and the metrics and measurements of `loop.train`; metrics include
        answer_loss and text_loss of the last step.
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

    last_step_losses: deque[Tensor] = deque(maxlen=config.gradient_accumulation_steps)

    def loss(model: nn.Module, part: Batch, batch: Batch) -> Tensor:
        answer_loss, text_loss = answer_and_text_losses(model, part, batch)
        last_step_losses.append(torch.stack([answer_loss.detach(), text_loss.detach()]))
        return answer_loss + config.text_weight * text_loss

    def extra_metrics() -> dict[str, float]:
        answer_loss, text_loss = reduce(sum(last_step_losses), "sum").tolist()
        return {"answer_loss": answer_loss, "text_loss": text_loss}

    metrics, measurements = train(
        model,
        batches(config, tokenizer, seed),
        config,
        steps=steps,
        groups=_parameter_groups(model, config),
        schedule=schedule,
        loss=loss,
        extra_metrics=extra_metrics,
        validate=validate,
        checkpoints=checkpoints,
        description="pretraining",
    )
    return model, tokenizer, metrics, measurements


def pretrain_model(
    recipe: Pretrain, checkpoints: Checkpoints, *, seed: int, validate: Validate | None = None
) -> None:
    """Pretrain by `recipe` and leave the model in `checkpoints.product`."""
    write_product(checkpoints, *pretrain(recipe, seed, checkpoints, validate))


def answer_and_text_losses(
    model: LlamaForCausalLM, part: Batch, batch: Batch
) -> tuple[Tensor, Tensor]:
    """Contributions of `part` to two mean cross-entropies of `batch`, both scalars: that of its
    answers, and that of its sampled other tokens.

    The softmax runs over `candidates` alone: with tens of thousands of words and a narrow model,
    the full vocabulary would dominate the cost.
    """
    hidden = model.model(
        input_ids=part["input_ids"],
        position_ids=part["position_ids"],
        attention_mask=part["attention_mask"],
        use_cache=False,
    ).last_hidden_state[:, :-1]
    candidates = part["candidates"][0].contiguous()
    weights = model.lm_head.weight[candidates]

    def contribution(name: str) -> Tensor:
        labels = part[name][:, 1:]
        is_target = labels != IGNORED
        targets = torch.searchsorted(candidates, labels[is_target])
        summed = cross_entropy(hidden[is_target] @ weights.T, targets, reduction="sum")
        return summed / (batch[name][:, 1:] != IGNORED).sum()

    return contribution("labels"), contribution("text_labels")


def _parameter_groups(model: LlamaForCausalLM, config: Pretrain) -> list[dict]:
    embeddings = model.get_input_embeddings().weight
    others = [p for p in model.parameters() if p is not embeddings]
    return [
        {
            "params": [p for p in others if p.dim() > 1],
            "lr": config.learning_rate,
            "weight_decay": config.weight_decay,
        },
        {
            "params": [p for p in others if p.dim() <= 1],
            "lr": config.learning_rate,
            "weight_decay": 0.0,
        },
        {
            "params": [embeddings],
            "lr": config.learning_rate * config.embedding_rate_ratio,
            "weight_decay": 0.0,
        },
    ]
