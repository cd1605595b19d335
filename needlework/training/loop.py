"""The training loop that every recipe shares."""

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

from needlework.config.training import ModelTraining, TrainingLoop
from needlework.runtime.memory import peak_memory_bytes
from needlework.runtime.progress import track
from needlework.training.checkpoints import Checkpoints
from needlework.training.stall_warnings import warn
from needlework.training.state import restore, tensors_of, whole

_log = logging.getLogger(__name__)

IGNORED = -100
"""The label of a token that no loss is on."""
Batch = dict[str, Tensor]
"""The rows of a step: every tensor has one entry a row."""
Loss = Callable[[nn.Module, Batch, Batch], Tensor]
"""(model, part, batch) -> what the rows `part` add to the loss of the step's whole `batch`: a sum
over its rows or tokens divided by how many `batch` has. The parts of a step sum to its loss."""
Validate = Callable[[nn.Module], float]
"""model -> its loss on text that it is not trained on; every process of a training calls it, and
gets the same. It draws nothing from torch's own generator."""

_KINDS = ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP")


@dataclass
class _Progress:
    """How far a training is, beside its tensors."""

    step: int = 0
    tokens: int = 0
    steps_summed: int = 0
    """Since the last row of the tables, whose loss is a mean."""
    seconds: float = 0.0
    row_tokens: int = 0
    row_seconds: float = 0.0
    """Tokens and seconds at that row."""
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
    watch: Callable[[], dict[str, float]] | None = None,
    validate: Validate | None = None,
    checkpoints: Checkpoints | None = None,
    description: str = "training",
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Take `steps` steps of AdamW, one batch each, and tell how they went.

    With checkpoints, it goes on from the last whole one, and what comes out is to the bit what an
    undisturbed training gives: batches that were seen are drawn again and passed over. Where
    several processes call this, each with the same batches, they share the rows of each.

    Args:
        model: trained in place; left in eval mode, on the device that accelerate chose.
        batches: one a step, the same in every run and process; `input_ids` (rows, tokens) int64 is
            counted, `row` (rows,) is what an error names; what else they hold is for `loss`.
        recipe: optimizer and steps; its rates, warm-up and number of steps come as the arguments
            below.
        steps: optimizer steps.
        groups: optimizer groups, each `{"params": [...], "lr": peak, "weight_decay": x}`.
        schedule: step (0 is the first) to the factor of every group's peak rate.
        loss: see `Loss`.
        watch: called at each row of the tables, for further columns of the metrics (gate values).
        validate: called before the first step, every `validate_every` steps, and after the last.
        checkpoints: where they lie; None: there are none.
        description: what the progress bar says.

    Returns:
        Metrics, one row every `log_every` steps, and of the first, the last, and those that
        `validate` was called after: step (steps taken), tokens (seen so far), loss (mean over the
        interval), learning_rate (first group), gradient_norm (before clipping, last step),
        validation_loss (what `validate` gave; null between, and no column without it), and what
        `watch` gave. Measurements of the same rows: step, seconds (of training, what a kill undid
        and validation left out), tokens_per_second (over the interval), peak_memory_bytes (of this
        process so far: allocated on the GPU, or resident).

    Raises:
        ValueError: batches ended before `steps`, a batch has too few rows to share, the loss or its
            gradient is no longer finite, a checkpoint cannot be written, or accelerate's
            configuration is of another kind of training.
    """
    # Gates of a frozen model have none of these keys.
    of_model = recipe if isinstance(recipe, ModelTraining) else ModelTraining()
    accelerator = Accelerator(
        mixed_precision=of_model.mixed_precision,
        # Gates of a memory that is off get no gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    kind = accelerator.distributed_type
    if kind.value not in _KINDS or (kind == DistributedType.FSDP and not accelerator.is_fsdp2):
        raise ValueError(
            f"accelerate_config: {of_model.accelerate_config} asks for {kind.value}; it may ask "
            "for data parallel processes, or for FSDP with fsdp_version: 2"
        )
    every = 0 if validate is None else of_model.validate_every
    if kind == DistributedType.FSDP and every:
        raise ValueError(
            "validate_every: a model that FSDP spreads over processes is not read; write 0, or "
            "leave accelerate_config out"
        )
    betas = (recipe.adam_betas[0], recipe.adam_betas[1])
    fused = accelerator.device.type == "cuda" or None
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=recipe.adam_epsilon, fused=fused)
    peaks = [group["lr"] for group in optimizer.param_groups]
    if of_model.gradient_checkpointing:
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    model.train()
    objective, prepared = accelerator.prepare(_Objective(model, loss), optimizer)
    optimizer = prepared.optimizer
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    feed, at = iter(batches), _Progress()
    loss_sum = torch.zeros((), device=accelerator.device)
    if checkpoints is not None and (checkpoint := checkpoints.latest()) is not None:
        at = _Progress(**checkpoint.progress)
        for _ in range(at.step):
            next(feed)
        loss_sum = restore(checkpoint, optimizer, parameters, accelerator)
        _log.info("%s goes on from step %d of %d", description, at.step, steps)
    elif every:
        # A text that cannot be read is told before the work.
        _log.info("step 0: loss on held-out text %.4f", validate(model))
    started = time.perf_counter() - at.seconds
    with track(description=description, total=steps, initial=at.step, unit="step") as bar:
        while at.step < steps:
            at.step += 1
            batch = next(feed, None)
            if batch is None:
                raise ValueError(f"training data ended after {at.step - 1} of {steps} steps")
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * schedule(at.step - 1)
            rate = optimizer.param_groups[0]["lr"]
            values = _backward(objective, batch, recipe.gradient_accumulation_steps, accelerator)
            norm = whole(clip_grad_norm_(parameters, recipe.max_grad_norm)).item()
            if not math.isfinite(norm):
                raise ValueError(_lost(at.step, values, norm, batch, accelerator))
            prepared.step()
            prepared.zero_grad()

            loss_sum = loss_sum + sum(values)
            at.steps_summed += 1
            at.tokens += batch["input_ids"].numel()
            validates = every and (at.step % every == 0 or at.step == steps)
            if validates or at.step % recipe.log_every == 0 or at.step in (1, steps):
                mean = (accelerator.reduce(loss_sum, "sum") / at.steps_summed).item()
                at.seconds = time.perf_counter() - started
                speed = (at.tokens - at.row_tokens) / (at.seconds - at.row_seconds)
                at.metrics.append(
                    {
                        "step": at.step,
                        "tokens": at.tokens,
                        "loss": mean,
                        "learning_rate": rate,
                        "gradient_norm": norm,
                        **({"validation_loss": None} if every else {}),
                        **(watch() if watch else {}),
                    }
                )
                at.measurements.append(
                    {
                        "step": at.step,
                        "seconds": at.seconds,
                        "tokens_per_second": speed,
                        "peak_memory_bytes": peak_memory_bytes(),
                    }
                )
                if validates:
                    at.metrics[-1]["validation_loss"] = found = validate(model)
                    _log.info("step %d: loss on held-out text %.4f", at.step, found)
                    started = time.perf_counter() - at.seconds
                bar.set_postfix(loss=f"{mean:.3f}", tokens_per_second=f"{speed:.0f}", refresh=False)
                loss_sum, at.steps_summed = torch.zeros_like(loss_sum), 0
                at.row_tokens, at.row_seconds = at.tokens, at.seconds
                if accelerator.is_main_process:
                    warn(at.metrics)
                    if checkpoints is not None:
                        checkpoints.show(
                            metrics=_table(at.metrics), measurements=_table(at.measurements)
                        )
            bar.update()
            if checkpoints is not None and (at.step % checkpoints.every == 0 or at.step == steps):
                tensors = tensors_of(optimizer, parameters, loss_sum, accelerator)
                at.seconds = time.perf_counter() - started
                if accelerator.is_main_process:
                    checkpoints.save(at.step, tensors, asdict(at))
    if of_model.gradient_checkpointing:
        model.activation_checkpointing_disable()
    model.eval()
    return _table(at.metrics), _table(at.measurements)


def _table(rows: list[dict[str, Any]]) -> pl.DataFrame:
    # A column may begin with any number of nulls.
    return pl.DataFrame(rows, infer_schema_length=None)


class _Objective(nn.Module):
    """The model with its loss, for accelerate to wrap: a loss may call any part of the model."""

    def __init__(self, model: nn.Module, loss: Loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, part: Batch, batch: Batch) -> Tensor:
        return self.loss(self.model, part, batch)

    def __getattr__(self, name: str) -> Any:
        # What accelerate asks of a model, such as where its embeddings are.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


def _backward(
    objective: nn.Module, batch: Batch, accumulation: int, accelerator: Accelerator
) -> list[Tensor]:
    """Gradients of a batch's loss, this process's parts one after the other; what each adds."""
    batch = {key: value.to(accelerator.device) for key, value in batch.items()}
    parts = list(_parts(batch, accumulation * accelerator.num_processes))
    first = accumulation * accelerator.process_index
    values = []
    for i, part in enumerate(parts[first : first + accumulation]):
        last = i == accumulation - 1
        with nullcontext() if last else accelerator.no_sync(objective):
            value = objective(part, batch)
            # Gradients of processes are averaged, those of parts are to be summed.
            accelerator.backward(value * accelerator.num_processes)
        values.append(value.detach())
    return values


def _parts(batch: Batch, number: int) -> Iterator[Batch]:
    if number == 1:
        yield batch
        return
    rows = len(batch["input_ids"])
    if rows < number:
        raise ValueError(
            f"a step has {rows} rows, too few for {number} parts; write processes times "
            "gradient_accumulation_steps of no more than that"
        )
    split = {key: value.tensor_split(number) for key, value in batch.items()}
    for i in range(number):
        yield {key: pieces[i] for key, pieces in split.items()}


def _lost(
    step: int, values: list[Tensor], norm: float, batch: Batch, accelerator: Accelerator
) -> str:
    """What is said of a step whose gradient is not finite: which rows did it."""
    found = accelerator.gather(torch.stack(values)).tolist()
    parts = list(_parts(batch, len(found)))
    bad = [i for i, value in enumerate(found) if not math.isfinite(value)]
    rows = [
        n for i in bad or range(len(parts)) for n in parts[i].get("row", torch.empty(0)).tolist()
    ]
    named = f" on rows {', '.join(map(str, rows))} of the data" if rows else ""
    return (
        f"step {step}: the loss is {sum(found):g} and its gradient's norm {norm:g}{named}; "
        "lower learning_rate, or look at those rows"
    )


def warmup_cosine(
    step: int, *, steps: int, warmup: int, stable_fraction: float = 0.0, final: float
) -> float:
    """Factor of the peak rate: a linear warm-up, then flat, then a cosine down to `final`.

    `step` 0 is the first; the rate stays at its peak until the share `stable_fraction` of `steps`.
    """
    if step < warmup:
        return (step + 1) / warmup
    decay_start = max(warmup, stable_fraction * steps)
    done = min(1.0, max(0.0, (step - decay_start) / max(1.0, steps - decay_start)))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))
