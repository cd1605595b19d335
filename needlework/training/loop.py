"""The training loop that pretraining and fine-tuning share."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import polars as pl
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from needlework.progress import track

Batch = dict[str, Tensor]


def train(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    steps: int,
    groups: Sequence[dict[str, Any]],
    schedule: Callable[[int], float],
    clip: float,
    log_every: int,
    loss: Callable[[nn.Module, Batch], Tensor] | None = None,
    watch: Callable[[], dict[str, float]] | None = None,
    description: str = "training",
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Take `steps` steps of AdamW (0.9, 0.95), one batch each, and tell how they went.

    Args:
        model: trained in place; left in eval mode, on the device that accelerate chose.
        batches: dicts of tensors, one a step; `input_ids` (batch, tokens) int64 is counted, what
            else they hold is for `loss`.
        groups: optimizer groups, each `{"params": [...], "lr": peak, "weight_decay": x}`.
        schedule: step (0 is the first) to the factor of every group's peak rate.
        clip: largest norm of the gradient of all parameters.
        log_every: steps between rows of the tables; the first and the last step have one too.
        loss: (model, batch) to a scalar; `model(**batch).loss` where left out.
        watch: called at each row, for further columns of the metrics (gate values, say).
        description: what the progress bar says.

    Returns:
        Metrics, one row a log interval: step (steps taken), tokens (seen so far), loss (mean over
        the interval), learning_rate (first group), gradient_norm (before clipping, last step), and
        what `watch` gave. Measurements of the same rows: step, seconds (since the start),
        tokens_per_second (over the interval).

    Raises:
        ValueError: batches ended before `steps`, or the loss is no longer a finite number.
    """
    accelerator = Accelerator()
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    model, optimizer = accelerator.prepare(model, optimizer)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer.optimizer, schedule)
    parameters = [parameter for group in groups for parameter in group["params"]]
    compute = loss or (lambda model, batch: model(**batch).loss)

    metrics, measurements = [], []
    tokens, tokens_then = 0, 0
    total, counted = torch.zeros((), device=accelerator.device), 0
    start = then = time.perf_counter()
    model.train()
    feed = iter(batches)
    with track(description=description, total=steps, unit="step") as bar:
        for step in range(1, steps + 1):
            batch = next(feed, None)
            if batch is None:
                raise ValueError(f"training data ended after {step - 1} of {steps} steps")
            batch = {key: value.to(accelerator.device) for key, value in batch.items()}
            value = compute(model, batch)
            accelerator.backward(value)
            norm = accelerator.clip_grad_norm_(parameters, clip)
            rate = rates.get_last_lr()[0]
            optimizer.step()
            rates.step()
            optimizer.zero_grad()

            total, counted = total + value.detach(), counted + 1
            tokens += batch["input_ids"].numel() * accelerator.num_processes
            if step % log_every == 0 or step in (1, steps):
                mean = (total / counted).item()
                if not math.isfinite(mean):
                    raise ValueError(
                        f"the loss became {mean} by step {step}: lower the learning rate"
                    )
                now = time.perf_counter()
                speed = (tokens - tokens_then) / (now - then)
                metrics.append(
                    {
                        "step": step,
                        "tokens": tokens,
                        "loss": mean,
                        "learning_rate": rate,
                        "gradient_norm": norm.item(),
                        **(watch() if watch else {}),
                    }
                )
                measurements.append(
                    {"step": step, "seconds": now - start, "tokens_per_second": speed}
                )
                bar.set_postfix(loss=f"{mean:.3f}", tokens_per_second=f"{speed:.0f}", refresh=False)
                total, counted = torch.zeros_like(total), 0
                then, tokens_then = now, tokens
            bar.update()
    model.eval()
    return pl.DataFrame(metrics), pl.DataFrame(measurements)


def warmup_cosine(step: int, *, steps: int, warmup: int, flat: float = 0.0, final: float) -> float:
    """Factor of the peak rate: a linear warm-up, then flat, then a cosine down to `final`.

    `step` 0 is the first; the rate stays at its peak until the share `flat` of `steps`.
    """
    if step < warmup:
        return (step + 1) / warmup
    decay_start = max(warmup, flat * steps)
    done = min(1.0, max(0.0, (step - decay_start) / max(1.0, steps - decay_start)))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))
