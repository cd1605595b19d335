"""Memory, time and GPUs of each job, as JSON on stdout.

`python -m needlework.planning.job_resources` reads the experiment as JSON on stdin. It runs in a
separate process so that the Snakefile never imports torch.
"""

import json
import sys
from contextlib import suppress
from typing import Any

from needlework.config.devices import Device, devices
from needlework.config.experiment import Experiment
from needlework.config.streams import Stream
from needlework.config.training import Finetune
from needlework.planning.cost import CONTEXT_BYTES, PROCESS_BYTES
from needlework.planning.plan import Models, plan
from needlework.planning.trace import trace_training


def plan_jobs(experiment: Experiment) -> dict[str, Any]:
    """Resources of each job that opens a model: mem_bytes (of the host), seconds (at most), gpus.

    Returns:
        {"evaluate": {system: job}, "finetune": {model: job}, "streams": {stream: {system:
        job}}}; without jobs that cannot be planned.
    """
    device = devices()[experiment.device]
    models = Models(experiment)
    planned: dict[str, Any] = {"evaluate": {}, "finetune": {}, "streams": {}}
    for row in plan(experiment, device, advise=False).drop_nulls("peak_bytes").to_dicts():
        opening = models.opening(row["model"])
        number = opening.devices if opening.cpu_offload else row["devices"]
        job = _job(
            row["weight_bytes"],
            row["weight_bytes"] + row["cache_bytes"] + row["activation_bytes"],
            row["seconds"] / opening.dp,
            max(number or 1, opening.devices),
            device,
            opening.processes,
        )
        # One job answers all lengths, one after the other.
        shorter = planned["evaluate"].get(row["system"], dict.fromkeys(job, 0))
        job["seconds"] += shorter["seconds"]
        planned["evaluate"][row["system"]] = {
            name: max(value, shorter[name]) for name, value in job.items()
        }
    for name, entry in experiment.models.items():
        recipe = entry.trained and entry.trained.recipe
        if isinstance(recipe, Finetune):
            with suppress(ValueError):  # the rule's minimum applies
                planned["finetune"][name] = _finetune_job(models, name, recipe, device)
    for name, stream in experiment.streams.items():
        for system in stream.systems or experiment.systems:
            jobs = planned["streams"].setdefault(name, {})
            if stream.tokens is not None:
                with suppress(ValueError):
                    jobs[system] = _stream_job(models, stream, stream.tokens, system, device)
    return planned


def _job(
    weights: int,
    peak: int,
    seconds: float,
    number: int | None,
    device: Device,
    processes: int = 1,
) -> dict[str, Any]:
    # Weights pass through host memory on their way to a GPU.
    host = weights if device.gpu else peak
    overhead = PROCESS_BYTES + (CONTEXT_BYTES if device.gpu else 0)
    return {
        "mem_bytes": host + processes * overhead,
        "seconds": seconds,
        "gpus": (number or 1) if device.gpu else 0,
    }


def _finetune_job(models: Models, name: str, recipe: Finetune, device: Device) -> dict[str, Any]:
    """Resources of a fine-tuning with AdamW: weights, gradients and two moments, the moments in
    float32, and the activations of one micro-batch."""
    shape = models.open(name).shape
    state_bytes = shape.parameters * (2 * shape.item_bytes + 8)
    activations, flops = 0, 0
    for stage in (*recipe.curriculum, recipe):
        parts = recipe.processes * recipe.gradient_accumulation_steps
        rows = -(-stage.batch_size // parts)
        activations = max(activations, trace_training(shape.model, rows, stage.sequence_length))
        # 2 operations per weight in the forward pass, and 4 in the backward pass.
        tokens = stage.steps * stage.batch_size * stage.sequence_length
        flops += 6 * shape.active_parameters * tokens
    if recipe.gradient_checkpointing:
        activations = 2 * activations // max(1, len(shape.layers))
    processes = recipe.processes
    seconds = flops / processes / device.flops_per_second(shape.dtype)
    # Each process holds the full state unless FSDP shards it.
    states = state_bytes if recipe.accelerate_config else processes * state_bytes
    peak = states + processes * activations
    return _job(states, peak, seconds, processes, device, processes)


def _stream_job(
    models: Models, stream: Stream, tokens: int, name: str, device: Device
) -> dict[str, Any]:
    """Resources of reading the `tokens` tokens of a stream in chunks with system `name`."""
    reader = stream.read_by(name)
    system = models.experiment.systems.get(name, reader)
    if system.model is None:
        raise ValueError(f"streams: {name} has no model")
    model = models.open(system.model, prefill_chunk_tokens=None)
    chunk = min(reader.chunk_size or 2048, tokens)
    method = models.method(model, system.attention)
    chunk_cost = model.cost(method, chunk, device)
    # The logits of all tokens in the model's dtype, and two float32 copies for the loss.
    logits = chunk * model.shape.text.vocab_size * (model.shape.item_bytes + 8)
    working = chunk_cost.activation_bytes + logits
    if reader.overlap:
        windows = tokens / (chunk - reader.overlap)
        working = (working + chunk_cost.cache_bytes) * reader.window_batch_size
        cache, seconds = 0, windows * chunk_cost.prefill_seconds
    else:
        cost = model.cost(method, tokens, device)
        cache, seconds = cost.cache_bytes, cost.prefill_seconds
    peak = chunk_cost.weight_bytes + cache + working
    return _job(chunk_cost.weight_bytes, peak, seconds, 1, device)


if __name__ == "__main__":
    print(json.dumps(plan_jobs(Experiment.model_validate(json.load(sys.stdin)))))
