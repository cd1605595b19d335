"""The training loop shared by all recipes."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import polars as pl
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel

from needlework.config.training import ModelTraining, TrainingLoop
from needlework.runtime.memory import peak_memory_bytes
from needlework.runtime.progress import track
from needlework.training.checkpoints import Checkpoints
from needlework.training.stall_warnings import warn_if_stalled
from needlework.training.state import collect_state, full_tensor, restore_state

_log = logging.getLogger(__name__)

IGNORED = -100
"""Label of a token that the loss ignores."""
Batch = dict[str, Tensor]
"""The rows of one step; the first dimension of every tensor is the row."""
Loss = Callable[[nn.Module, Batch, Batch], Tensor]
"""(model, part, batch) -> the contribution of the rows `part` to the loss of the step's whole
`batch`: a sum over the part's rows or tokens divided by their number in `batch`. The contributions
of a step's parts sum to its loss."""
Validate = Callable[[nn.Module], float]
"""model -> loss on held-out text. Every process of a training run calls it and gets the same value.
It does not use torch's global random generator."""

_SUPPORTED_DISTRIBUTED_TYPES = ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP")


@dataclass
class _Progress:
    """Progress of a training run, as saved next to its tensors."""

    step: int = 0
    tokens: int = 0
    steps_summed: int = 0
    """Steps since the last metrics row, which holds a mean loss."""
    seconds: float = 0.0
    row_tokens: int = 0
    row_seconds: float = 0.0
    """Tokens and seconds at the last metrics row."""
    metrics: list[dict[str, float | None]] = field(default_factory=list)
    measurements: list[dict[str, float]] = field(default_factory=list)


def train(
    model: nn.Module,
    batches: Iterable[Batch],
    recipe: TrainingLoop,
    *,
    steps: int,
    groups: Sequence[dict[str, Any]],
    schedule: Callable[[int], float],
    loss: Loss,
    extra_metrics: Callable[[], dict[str, float]] | None = None,
    validate: Validate | None = None,
    checkpoints: Checkpoints | None = None,
    description: str = "training",
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Take `steps` steps of AdamW, one batch each, and return metrics and measurements.

    With checkpoints, training resumes from the latest intact one, and the result is bit-identical
    to that of an uninterrupted run: batches already used are drawn again and skipped. Where several
    processes call this with the same batches, they share the rows of each batch.

    Args:
        model: trained in place; left in eval mode, on the device that accelerate chose.
        batches: one per step, the same in every run and process. `input_ids` [rows, tokens] int64
            is counted; `row` [rows] numbers the rows in error messages; the rest is for `loss`.
        recipe: optimizer and loop settings. Rates, warm-up and the number of steps come from the
            arguments below instead.
        steps: optimizer steps.
        groups: optimizer groups, each `{"params": [...], "lr": peak, "weight_decay": x}`.
        schedule: step (from 0) -> factor of every group's peak rate.
        loss: see `Loss`.
        extra_metrics: called for each metrics row; returns more of its columns (gate values).
        validate: called before the first step, every `validate_every` steps, and after the last.
        checkpoints: where to read and write checkpoints; None disables them.
        description: label of the progress bar.

    Returns:
        Metrics, one row every `log_every` steps, plus the first, the last and those at which
        `validate` ran: step (steps taken), tokens (seen so far), loss (mean over the interval),
        learning_rate (first group), gradient_norm (before clipping, last step), validation_loss
        (null between validations; no column without `validate`), and the `extra_metrics`.
        Measurements of the same rows: step, seconds (of training, without validation and without
        work lost to interruptions), tokens_per_second (over the interval), peak_memory_bytes (of
        this process so far: allocated on the GPU, else resident).

    Raises:
        ValueError: batches end before `steps`, a batch has too few rows to share, the loss or
            gradient is not finite, a checkpoint cannot be written, or accelerate's configuration is
            not supported.
    """
    # Gates distilled from a frozen model have none of these keys; defaults apply.
    whole_model = recipe if isinstance(recipe, ModelTraining) else ModelTraining()
    accelerator = Accelerator(
        mixed_precision=whole_model.mixed_precision,
        # Gates get no gradient where memory is off.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    kind = accelerator.distributed_type
    if kind.value not in _SUPPORTED_DISTRIBUTED_TYPES or (
        kind == DistributedType.FSDP and not accelerator.is_fsdp2
    ):
        raise ValueError(
            f"accelerate_config: {whole_model.accelerate_config} uses {kind.value}, which is not "
            "supported; use data-parallel processes, or FSDP with fsdp_version: 2"
        )
    validate_every = 0 if validate is None else whole_model.validate_every
    if kind == DistributedType.FSDP and validate_every:
        raise ValueError(
            "validate_every: validation does not support FSDP; set it to 0, or remove "
            "accelerate_config"
        )
    betas = (recipe.adam_betas[0], recipe.adam_betas[1])
    fused = accelerator.device.type == "cuda" or None
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=recipe.adam_epsilon, fused=fused)
    peak_rates = [group["lr"] for group in optimizer.param_groups]
    if whole_model.gradient_checkpointing and isinstance(model, PreTrainedModel):
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    model.train()
    objective, prepared = accelerator.prepare(_Objective(model, loss), optimizer)
    optimizer = prepared.optimizer
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    batch_iterator, progress = iter(batches), _Progress()
    loss_sum = torch.zeros((), device=accelerator.device)
    if checkpoints is not None and (checkpoint := checkpoints.latest()) is not None:
        progress = _Progress(**checkpoint.progress)
        for _ in range(progress.step):
            next(batch_iterator)
        loss_sum = restore_state(checkpoint, optimizer, parameters, accelerator)
        _log.info("%s: resuming from step %d of %d", description, progress.step, steps)
    elif validate is not None and validate_every:
        # Errors in the held-out text surface before training starts.
        _log.info("step 0: loss on held-out text %.4f", validate(model))
    started = time.perf_counter() - progress.seconds
    with track(description=description, total=steps, initial=progress.step, unit="step") as bar:
        while progress.step < steps:
            progress.step += 1
            batch = next(batch_iterator, None)
            if batch is None:
                raise ValueError(f"training data ended after {progress.step - 1} of {steps} steps")
            for group, peak in zip(optimizer.param_groups, peak_rates, strict=True):
                group["lr"] = peak * schedule(progress.step - 1)
            rate = optimizer.param_groups[0]["lr"]
            values = _backward(objective, batch, recipe.gradient_accumulation_steps, accelerator)
            norm = full_tensor(clip_grad_norm_(parameters, recipe.max_grad_norm)).item()
            if not math.isfinite(norm):
                raise ValueError(
                    _describe_divergence(progress.step, values, norm, batch, accelerator)
                )
            prepared.step()
            prepared.zero_grad()

            loss_sum = loss_sum + sum(values)
            progress.steps_summed += 1
            progress.tokens += batch["input_ids"].numel()
            validates = validate_every and (
                progress.step % validate_every == 0 or progress.step == steps
            )
            if validates or progress.step % recipe.log_every == 0 or progress.step in (1, steps):
                mean = (accelerator.reduce(loss_sum, "sum") / progress.steps_summed).item()
                progress.seconds = time.perf_counter() - started
                speed = (progress.tokens - progress.row_tokens) / (
                    progress.seconds - progress.row_seconds
                )
                progress.metrics.append(
                    {
                        "step": progress.step,
                        "tokens": progress.tokens,
                        "loss": mean,
                        "learning_rate": rate,
                        "gradient_norm": norm,
                        **({"validation_loss": None} if validate_every else {}),
                        **(extra_metrics() if extra_metrics else {}),
                    }
                )
                progress.measurements.append(
                    {
                        "step": progress.step,
                        "seconds": progress.seconds,
                        "tokens_per_second": speed,
                        "peak_memory_bytes": peak_memory_bytes(),
                    }
                )
                if validate is not None and validates:
                    validation_loss = validate(model)
                    progress.metrics[-1]["validation_loss"] = validation_loss
                    _log.info("step %d: loss on held-out text %.4f", progress.step, validation_loss)
                    started = time.perf_counter() - progress.seconds
                bar.set_postfix(loss=f"{mean:.3f}", tokens_per_second=f"{speed:.0f}", refresh=False)
                loss_sum, progress.steps_summed = torch.zeros_like(loss_sum), 0
                progress.row_tokens, progress.row_seconds = progress.tokens, progress.seconds
                if accelerator.is_main_process:
                    warn_if_stalled(progress.metrics)
                    if checkpoints is not None:
                        checkpoints.write_live_tables(
                            metrics=_table(progress.metrics),
                            measurements=_table(progress.measurements),
                        )
            bar.update()
            if checkpoints is not None and (
                progress.step % checkpoints.every == 0 or progress.step == steps
            ):
                tensors = collect_state(optimizer, parameters, loss_sum, accelerator)
                progress.seconds = time.perf_counter() - started
                if accelerator.is_main_process:
                    checkpoints.save(progress.step, tensors, asdict(progress))
    if whole_model.gradient_checkpointing and isinstance(model, PreTrainedModel):
        model.activation_checkpointing_disable()
    model.eval()
    return _table(progress.metrics), _table(progress.measurements)


def _table(rows: list[dict[str, Any]]) -> pl.DataFrame:
    # A column may begin with any number of nulls.
    return pl.DataFrame(rows, infer_schema_length=None)


class _Objective(nn.Module):
    """The model with its loss as one module for accelerate to wrap.

    This lets a loss call any part of the model, not only its forward.
    """

    def __init__(self, model: nn.Module, loss: Loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, part: Batch, batch: Batch) -> Tensor:
        return self.loss(self.model, part, batch)

    def __getattr__(self, name: str) -> Any:
        # accelerate looks up attributes of the model, such as its embeddings.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


def _backward(
    objective: nn.Module, batch: Batch, accumulation: int, accelerator: Accelerator
) -> list[Tensor]:
    """Accumulate the gradients of this process's parts; return each part's loss contribution."""
    batch = {key: value.to(accelerator.device) for key, value in batch.items()}
    parts = list(_split(batch, accumulation * accelerator.num_processes))
    first = accumulation * accelerator.process_index
    values = []
    for i, part in enumerate(parts[first : first + accumulation]):
        is_last = i == accumulation - 1
        with nullcontext() if is_last else accelerator.no_sync(objective):
            value = objective(part, batch)
            # Gradients are averaged over processes, but contributions have to be summed.
            accelerator.backward(value * accelerator.num_processes)
        values.append(value.detach())
    return values


def _split(batch: Batch, number: int) -> Iterator[Batch]:
    """Split the rows of a batch into `number` parts."""
    if number == 1:
        yield batch
        return
    rows = len(batch["input_ids"])
    if rows < number:
        raise ValueError(
            f"a step has {rows} rows, too few for {number} parts (processes x "
            "gradient_accumulation_steps); reduce one of them"
        )
    split = {key: value.tensor_split(number) for key, value in batch.items()}
    for i in range(number):
        yield {key: pieces[i] for key, pieces in split.items()}


def _describe_divergence(
    step: int, values: list[Tensor], norm: float, batch: Batch, accelerator: Accelerator
) -> str:
    """Error message for a step with a non-finite gradient, naming the rows that caused it."""
    part_losses = accelerator.gather(torch.stack(values)).tolist()
    parts = list(_split(batch, len(part_losses)))
    bad = [i for i, value in enumerate(part_losses) if not math.isfinite(value)]
    rows = [
        n for i in bad or range(len(parts)) for n in parts[i].get("row", torch.empty(0)).tolist()
    ]
    on_rows = f" on rows {', '.join(map(str, rows))} of the data" if rows else ""
    return (
        f"step {step}: loss {sum(part_losses):g}, gradient norm {norm:g}{on_rows}; "
        "lower learning_rate, or inspect those rows"
    )


def warmup_cosine(
    step: int, *, steps: int, warmup: int, stable_fraction: float = 0.0, final: float
) -> float:
    """Factor of the peak rate: linear warm-up, then constant, then cosine decay to `final`.

    `step` counts from 0; the rate stays at its peak until `stable_fraction` of `steps`.
    """
    if step < warmup:
        return (step + 1) / warmup
    decay_start = max(warmup, stable_fraction * steps)
    done = min(1.0, max(0.0, (step - decay_start) / max(1.0, steps - decay_start)))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))
