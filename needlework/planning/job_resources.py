"""Memory, time and GPUs of each job, as JSON on stdout.

`python -m needlework.planning.job_resources` reads the experiment as JSON on stdin. It runs as a
process of its own so that a Snakefile never imports torch.
"""

import json
import sys
from typing import Any

from needlework.config.devices import Device, devices
from needlework.config.experiment import Experiment
from needlework.config.streams import Stream
from needlework.config.training import Finetune
from needlework.planning.cost import CONTEXT_BYTES, PROCESS_BYTES
from needlework.planning.plan import Models, plan
from needlework.planning.trace import trace_training


def reserve(experiment: Experiment) -> dict[str, Any]:
    """For each job that opens a model: mem_bytes (of the host), seconds (at most), gpus.

    Returns:
        {"evaluate": {system: {length: job}}, "finetune": {model: job}, "streams": {stream: {system:
        job}}}; without an entry for what could not be reckoned.
    """
    device = devices()[experiment.device]
    models = Models(experiment)
    found: dict[str, Any] = {"evaluate": {}, "finetune": {}, "streams": {}}
    tasks = len(experiment.tasks)
    for row in plan(experiment, device, advise=False).drop_nulls("peak_bytes").to_dicts():
        jobs = found["evaluate"].setdefault(row["system"], {})
        # A job answers one task, at worst the one with the longest answers.
        longest = max(task.max_new_tokens for task in experiment.tasks.values())
        seconds = (
            row["prompts"]
            / tasks
            * (row["prefill_seconds"] + longest * row["decode_seconds_per_token"])
        )
        opening = models.opening(row["model"])
        number = opening.devices if opening.cpu_offload else row["devices"]
        number = max(number or 1, opening.devices)
        jobs[str(row["length"])] = _job(
            row["weight_bytes"],
            row["weight_bytes"] + row["cache_bytes"] + row["activation_bytes"],
            seconds,
            number,
            device,
            opening.processes,
        )
    for name, entry in experiment.models.items():
        recipe = entry.trained and entry.trained.recipe
        if isinstance(recipe, Finetune):
            _try(
                found["finetune"],
                name,
                lambda n=name, r=recipe: _finetune(models, n, r, device),
            )
    for name, stream in experiment.streams.items():
        for system in stream.systems or experiment.systems:
            jobs = found["streams"].setdefault(name, {})
            _try(jobs, system, lambda s=stream, n=system: _read(models, s, n, device))
    return found


def _try(jobs: dict[str, Any], name: str, reckon) -> None:
    try:
        job = reckon()
    except ValueError:
        return  # the floor of the rule stands
    if job is not None:
        jobs[name] = job


def _job(
    weights: int,
    peak: int,
    seconds: float,
    number: int | None,
    device: Device,
    processes: int = 1,
) -> dict[str, Any]:
    # Weights pass through the host's memory on their way to a GPU.
    host = weights if device.gpu else peak
    beside = PROCESS_BYTES + (CONTEXT_BYTES if device.gpu else 0)
    return {
        "mem_bytes": host + processes * beside,
        "seconds": seconds,
        "gpus": (number or 1) if device.gpu else 0,
    }


def _finetune(models: Models, name: str, recipe: Finetune, device: Device) -> dict[str, Any]:
    """AdamW: weights, gradients and two means in float32 at least, and one part's activations."""
    shape = models.open(name).shape
    states = shape.parameters * (2 * shape.item_bytes + 8)
    kept, work = 0, 0
    for stage in (*recipe.curriculum, recipe):
        parts = recipe.processes * recipe.gradient_accumulation_steps
        rows = -(-stage.batch_size // parts)
        kept = max(kept, trace_training(shape.model, rows, stage.sequence_length))
        # Backward takes twice the operations of forward.
        tokens = stage.steps * stage.batch_size * stage.sequence_length
        work += 6 * shape.active_parameters * tokens
    if recipe.gradient_checkpointing:
        kept = 2 * kept // max(1, len(shape.layers))
    seconds = work / recipe.processes / device.flops_per_second(shape.dtype)
    # Each process has its part of a batch, and all of the states unless FSDP shares them out.
    number = recipe.processes
    held = states if recipe.accelerate_config else number * states
    return _job(held, held + number * kept, seconds, number, device, number)


def _read(models: Models, stream: Stream, name: str, device: Device) -> dict[str, Any] | None:
    """A text read in chunks; None where its length is not known."""
    how = stream.read_by(name)
    system = models.experiment.systems.get(name, how)
    if stream.tokens is None:
        return None
    model = models.open(system.model, prefill_chunk_tokens=None)
    chunk = min(how.chunk_size or 2048, stream.tokens)
    method = models.method(model, system.attention)
    at_once = model.cost(method, chunk, device)
    # Every token's logits, in float32 beside the model's dtype.
    logits = chunk * model.shape.text.vocab_size * (model.shape.item_bytes + 8)
    working, seconds = at_once.activation_bytes + logits, 0.0
    if how.overlap:
        windows = stream.tokens / (chunk - how.overlap)
        working = (working + at_once.cache_bytes) * how.window_batch_size
        cache, seconds = 0, windows * at_once.prefill_seconds
    else:
        whole = model.cost(method, stream.tokens, device)
        cache, seconds = whole.cache_bytes, whole.prefill_seconds
    peak = at_once.weight_bytes + cache + working
    return _job(at_once.weight_bytes, peak, seconds, 1, device)


if __name__ == "__main__":
    print(json.dumps(reserve(Experiment.model_validate(json.load(sys.stdin)))))
