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
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import clip_grad_norm_

from needlework.config.training import Loop
from needlework.progress import track
from needlework.training.checkpoints import Checkpoint, Checkpoints
from needlework.training.signs import warn

_log = logging.getLogger(__name__)

IGNORED = -100
"""The label of a token that no loss is on."""
Batch = dict[str, Tensor]
"""The rows of a step: every tensor has one entry a row."""
Loss = Callable[[nn.Module, Batch, Batch], Tensor]
"""(model, part, batch) -> what the rows `part` add to the loss of the step's whole `batch`: a sum
over its rows or tokens divided by how many `batch` has. The parts of a step sum to its loss."""


_KINDS = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.FSDP,
)


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
    metrics: list[dict[str, float]] = field(default_factory=list)
    measurements: list[dict[str, float]] = field(default_factory=list)


def train(
    model: nn.Module,
    batches: Iterable[Batch],
    recipe: Loop,
    *,
    steps: int,
    groups: Sequence[dict[str, Any]],
    schedule: Callable[[int], float],
    loss: Loss,
    watch: Callable[[], dict[str, float]] | None = None,
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
        checkpoints: where they lie; None: there are none.
        description: what the progress bar says.

    Returns:
        Metrics, one row every `log_every` steps, and of the first and the last: step (steps taken),
        tokens (seen so far), loss (mean over the interval), learning_rate (first group),
        gradient_norm (before clipping, last step), and what `watch` gave. Measurements of the same
        rows: step, seconds (of training, what a kill undid left out), tokens_per_second (over the
        interval).

    Raises:
        ValueError: batches ended before `steps`, a batch has too few rows to share, the loss or its
            gradient is no longer finite, a checkpoint cannot be written, or accelerate's
            configuration is of another kind of training.
    """
    accelerator = Accelerator(
        mixed_precision=recipe.mixed_precision,
        # Gates of a memory that is off get no gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    kind = accelerator.distributed_type
    if kind not in _KINDS or (kind == DistributedType.FSDP and not accelerator.is_fsdp2):
        raise ValueError(
            f"accelerate_config: {recipe.accelerate_config} asks for {kind.value}; it may ask for "
            "data parallel processes, or for FSDP with fsdp_version: 2"
        )
    betas = (recipe.adam_betas[0], recipe.adam_betas[1])
    fused = accelerator.device.type == "cuda" or None
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=recipe.adam_epsilon, fused=fused)
    peaks = [group["lr"] for group in optimizer.param_groups]
    if recipe.gradient_checkpointing:
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
        loss_sum = _restore(checkpoint, optimizer, parameters, accelerator)
        _log.info("%s goes on from step %d of %d", description, at.step, steps)
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
            norm = whole(clip_grad_norm_(parameters, recipe.clip)).item()
            if not math.isfinite(norm):
                raise ValueError(_lost(at.step, values, norm, batch, accelerator))
            prepared.step()
            prepared.zero_grad()

            loss_sum = loss_sum + sum(values)
            at.steps_summed += 1
            at.tokens += batch["input_ids"].numel()
            if at.step % recipe.log_every == 0 or at.step in (1, steps):
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
                        **(watch() if watch else {}),
                    }
                )
                at.measurements.append(
                    {"step": at.step, "seconds": at.seconds, "tokens_per_second": speed}
                )
                bar.set_postfix(loss=f"{mean:.3f}", tokens_per_second=f"{speed:.0f}", refresh=False)
                loss_sum, at.steps_summed = torch.zeros_like(loss_sum), 0
                at.row_tokens, at.row_seconds = at.tokens, at.seconds
                if accelerator.is_main_process:
                    warn(at.metrics)
                    if checkpoints is not None:
                        checkpoints.show(
                            metrics=pl.DataFrame(at.metrics),
                            measurements=pl.DataFrame(at.measurements),
                        )
            bar.update()
            if checkpoints is not None and (at.step % checkpoints.every == 0 or at.step == steps):
                tensors = _tensors(optimizer, parameters, loss_sum, accelerator)
                at.seconds = time.perf_counter() - started
                if accelerator.is_main_process:
                    checkpoints.save(at.step, tensors, asdict(at))
    if recipe.gradient_checkpointing:
        model.activation_checkpointing_disable()
    model.eval()
    return pl.DataFrame(at.metrics), pl.DataFrame(at.measurements)


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


def _tensors(
    optimizer: torch.optim.Optimizer,
    parameters: list[Tensor],
    loss_sum: Tensor,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """What a checkpoint holds: trained parameters, AdamW's means, each process's own state.

    Every process has to call this; the main one gets the tensors, on the CPU.
    """
    tensors = {}

    def add(name: str, value: Tensor) -> None:
        value = whole(value.detach())
        if accelerator.is_main_process:
            tensors[name] = value.cpu().contiguous()

    for i, parameter in enumerate(parameters):
        add(f"{i}.value", parameter)
        for name, value in optimizer.state.get(parameter, {}).items():
            add(f"{i}.{name}", value)
    own = {"loss_sum": loss_sum, "random": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        own["cuda_random"] = torch.cuda.get_rng_state()
    for name, value in own.items():
        add(f"processes.{name}", accelerator.gather(value.to(accelerator.device)[None]))
    return tensors


def _restore(
    checkpoint: Checkpoint,
    optimizer: torch.optim.Optimizer,
    parameters: list[Tensor],
    accelerator: Accelerator,
) -> Tensor:
    """Put a checkpoint's tensors where they belong; the sum of losses since the last row."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in checkpoint.tensors.items():
        owner, part = name.split(".")
        found.setdefault(owner, {})[part] = tensor
    # A clone, because torch reads a random state from the beginning of its storage.
    number = accelerator.process_index
    own = {name: value[number].clone() for name, value in found["processes"].items()}
    moments = {}
    with torch.no_grad():
        for i, parameter in enumerate(parameters):
            parts = found[str(i)]
            parameter.copy_(_as(parameter, parts.pop("value")))
            # The count of steps is a scalar that no process shares out.
            moments[i] = {name: _as(parameter, x) if x.dim() else x for name, x in parts.items()}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    torch.set_rng_state(own["random"])
    if accelerator.device.type == "cuda":
        torch.cuda.set_rng_state(own["cuda_random"])
    return own["loss_sum"].to(accelerator.device)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that is spread over processes (FSDP)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _as(like: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` spread over the processes as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def warmup_cosine(step: int, *, steps: int, warmup: int, flat: float = 0.0, final: float) -> float:
    """Factor of the peak rate: a linear warm-up, then flat, then a cosine down to `final`.

    `step` 0 is the first; the rate stays at its peak until the share `flat` of `steps`.
    """
    if step < warmup:
        return (step + 1) / warmup
    decay_start = max(warmup, flat * steps)
    done = min(1.0, max(0.0, (step - decay_start) / max(1.0, steps - decay_start)))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))
