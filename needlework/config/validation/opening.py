"""Ways to open a model that contradict each other, the checkpoint, or the experiment."""

from collections.abc import Iterator
from typing import Any

from needlework.config.attention.registry import attention_class
from needlework.config.errors import Problem
from needlework.config.experiment import Experiment
from needlework.config.opening import SPREAD, Opening

EVALUATION_ONLY = ("dp", "cache", "prefill_chunk_tokens")
"""Keys that training a model, or its gates, ignores."""

KeyProblem = tuple[str, str]
"""A key of Opening, and what is wrong with its value."""


def conflicts(opening: Opening) -> Iterator[KeyProblem]:
    """Keys that contradict another key."""
    if opening.device_map not in SPREAD:
        for key in ("max_memory", "cpu_offload", "offload_folder"):
            if getattr(opening, key) and (key != "max_memory" or opening.pp == 1):
                yield key, "needs layers spread over devices; add device_map: auto"
    if opening.pp > 1 and opening.device_map is not None:
        yield "pp", "splits the layers itself; remove device_map, or pp"
    if opening.processes > 1:
        key = "tp" if opening.tp > 1 else "ep"
        if opening.tp > 1 and opening.ep not in (1, opening.tp):
            yield "ep", f"differs from tp; write {opening.tp}, or remove tp"
        for other in ("quantization", "device_map"):
            if getattr(opening, other) is not None:
                yield other, f"does not work with {key}: {opening.processes}; remove one of them"
        if opening.pp > 1:
            yield "pp", f"does not work with {key}: {opening.processes}; remove one of them"


def config_conflict(config: dict[str, Any], opening: Opening) -> KeyProblem | None:
    """The key that a checkpoint's config.json rules out, if any."""
    text = config.get("text_config") or config
    stored = (config.get("quantization_config") or {}).get("quant_method")
    if stored is not None and opening.quantization is not None:
        return "quantization", f"the weights are already quantized by {stored}; remove it"
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = text.get(name)
        if opening.tp > 1 and isinstance(heads, int) and heads % opening.tp:
            return "tp", f"does not divide the model's {heads} {name}; write a divisor of {heads}"
    if opening.ep > 1:
        names = ("num_experts", "num_local_experts", "n_routed_experts")
        experts = next((text[name] for name in names if text.get(name)), 0)
        if not experts:
            return "ep", "is for models with experts, and this one has none; write tp instead"
        if experts % opening.ep:
            return "ep", f"does not divide the model's {experts} experts; write a divisor"
    return None


def attention_conflict(opening: Opening, attention: str) -> KeyProblem | None:
    """The key that needlework attention of type `attention` rules out, if any."""
    cls = attention_class(attention)
    if opening.tp > 1 and cls.needs_all_heads:
        return "tp", f"splits heads, which {attention} needs together; write ep, pp or dp"
    if opening.cache not in cls.caches:
        return "cache", f"does not work with {attention}, which keeps state in it; write dynamic"
    return None


def opening_problems(experiment: Experiment) -> Iterator[Problem]:
    """What is wrong with how the models of an experiment are opened, in the file's order."""
    for name, model in experiment.models.items():
        if model.local is None:
            continue
        opening = model.local.opening
        found = list(conflicts(opening))
        if not found:
            wrong = config_conflict(model.local.config_json, opening)
            if wrong is None and model.own_attention is not None:
                wrong = attention_conflict(opening, model.own_attention)
            found += [wrong] if wrong else []
        if opening.dp > experiment.samples:
            found.append(("dp", f"is above samples; write at most {experiment.samples}"))
        found += _use_conflicts(experiment, name, opening)
        yield from ((("models", name, key), what) for key, what in found)


def _use_conflicts(experiment: Experiment, name: str, opening: Opening) -> Iterator[KeyProblem]:
    """Keys that do not suit what the experiment does with model `name`."""
    for system in experiment.systems.values():
        if system.model != name:
            continue
        if system.attention is not None and (
            wrong := attention_conflict(opening, system.attention.type)
        ):
            yield wrong
        size = 1 if system.attention is None else system.attention.chunk_multiple
        if (opening.prefill_chunk_tokens or 0) % size:
            yield "prefill_chunk_tokens", f"splits blocks of {size}; write a multiple of {size}"
    trained = [model.parent for model in experiment.models.values()]
    trained += [gates.model for gates in experiment.gates.values()]
    plain = Opening()
    if name in trained:
        for key in Opening.model_fields:
            if key not in EVALUATION_ONLY and getattr(opening, key) != getattr(plain, key):
                yield (
                    key,
                    "is only for evaluation; train from another entry of the same path without it",
                )
    streamed = [
        stream.read_by(system).model or experiment.systems[system].model
        for stream in experiment.streams.values()
        for system in stream.systems or experiment.systems
        if stream.read_by(system).model or system in experiment.systems
    ]
    if name in streamed:
        for key in ("tp", "ep", "cache"):
            if getattr(opening, key) != getattr(plain, key):
                yield key, "is not for streams; stream another entry of the same path without it"
